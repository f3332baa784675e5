"""Which network is in a checkpoint, and loading it."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from spikezip_hf.auto import MODELS
from spikezip_hf.conversion.ann import SOURCES
from spikezip_hf.models.checkpoints import find_file
from spikezip_hf.models.configuration_event_vit import EventViTConfig
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel

TIMM = "timm_wrapper"  # the model type of transformers' wrapper around timm's networks
CLASSES = {cls.__name__: cls for by_auto_class in MODELS.values() for cls in by_auto_class.values()}


def model_type(source: str, revision: str | None = None) -> str:
    """What kind of network is in a folder or on the Hub.

    Raises:
        OSError: there is no network.
    """
    if source.count("/") > 1 and not Path(source).is_dir():  # no Hub id
        raise FileNotFoundError(
            f"No network at {source}: there is no such folder, and it is no Hub id. Name another, or run the stage "
            "before this one with the same recipe."
        )
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise FileNotFoundError(f"{source} holds no network: it has no config.json. Name a folder that has one.")
    try:
        return AutoConfig.from_pretrained(source, revision=revision).model_type
    except (AttributeError, TypeError, RecursionError) as error:  # JSON, but no set of fields
        raise ValueError(f"config.json of {source} holds no set of fields ({error}): put another there.") from error
    except OSError as error:
        if folder.is_dir():
            raise
        where = source if revision is None else f"{source}, revision {revision}"
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise OSError(
            f"No network at {where}: there is no such folder here, and as a Hub id it cannot be loaded ({reason})."
        ) from error


def is_text(kind: str) -> bool:
    """Whether networks of this model type are of text, and not of images."""
    own = kind.removeprefix("quant_").removeprefix("spike_")
    return own not in (TIMM, EventViTConfig.model_type, *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def load_network(source: str):
    """A classifier, and the tokenizer or image processor beside it, from a folder or the Hub.

    Raises:
        OSError: there is nothing, or no processor.
    """
    kind = model_type(source)
    auto_class = AutoModelForSequenceClassification if is_text(kind) else AutoModelForImageClassification
    network = auto_class.from_pretrained(source)
    return network, timm_processor(source, network) if kind == TIMM else load_processor(source)


def timm_processor(source: str, network):
    """The image processor of a timm network: the one beside it, or the one that its data config describes.

    Raises:
        ValueError: there is none, or its images are prepared in a way that transformers' processor has not.
    """
    from spikezip_hf.conversion.timm_models import image_processor_of

    if find_file(source, "preprocessor_config.json") is not None:
        return AutoImageProcessor.from_pretrained(source)
    processor = image_processor_of(network)
    if processor is None:
        raise ValueError(f"{source} does not say how its images are prepared: put a preprocessor_config.json there.")
    return processor


def load_processor(source: str):
    """The tokenizer or image processor of a network.

    Raises:
        OSError: there is none beside it; says how to have one.
    """
    of_text = is_text(model_type(source))
    what = "tokenizer" if of_text else "image processor"
    missing = (
        f"{source} holds no {what}: save the one that the network was trained with beside it, "
        f"{what.replace(' ', '_')}.save_pretrained({source!r})."
    )
    try:
        processor = (AutoTokenizer if of_text else AutoImageProcessor).from_pretrained(source)
    except OSError as error:
        if not Path(source).is_dir():
            raise
        raise OSError(missing) from error
    # Where there is none, transformers makes a tokenizer of special tokens alone: every word would be unknown.
    if of_text and set(processor.get_vocab()) <= set(processor.all_special_tokens):
        raise OSError(missing)
    return processor


def class_of(source: str, revision: str | None = None) -> tuple[type[TwinPreTrainedModel], Any]:
    """The class that a checkpoint was saved from, and its config.

    Raises:
        ValueError: it is no Quant or Spike model; says what it is, and what to do.
        OSError: there is no checkpoint.
    """
    kind = model_type(source, revision=revision)
    if not kind.startswith(("quant_", "spike_")):
        architectures = AutoConfig.from_pretrained(source, revision=revision).architectures or []
        fitting = [
            quant.__name__
            for quant, ordinary in SOURCES.items()
            if any(source.__name__ in architectures for source in ordinary)
        ]
        raise ValueError(
            f"{source} holds an ordinary network of type {kind!r}, neither a Quant nor a Spike model: quantize it "
            f"with {fitting[0] if fitting else 'the from_ann of a Quant class'}"
            f"{'.from_ann(ann)' if fitting else ''} or `spikezip train`."
        )
    config = AutoConfig.from_pretrained(source, revision=revision)
    name = (config.architectures or [""])[0]
    if name not in CLASSES:
        raise ValueError(f"{source}: architectures in config.json is {config.architectures}, which is no class here.")
    return CLASSES[name], config


def load_twin(source: str, kind: type[TwinPreTrainedModel]) -> Any:
    """The model of a checkpoint.

    Raises:
        ValueError: it is not of this kind.
    """
    cls, _ = class_of(source)
    if not issubclass(cls, kind):
        wanted = "Spike" if kind is SpikePreTrainedModel else "Quant"
        remedy = f": convert it first, `spikezip convert {source} OUTPUT`" if wanted == "Spike" else ""
        raise ValueError(f"{source} holds a {cls.__name__}, and a {wanted} model is needed here{remedy}.")
    return cls.from_pretrained(source)

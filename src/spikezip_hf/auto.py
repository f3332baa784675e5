"""Registration with transformers' Auto classes; happens when `spikezip_hf` is imported."""

from importlib import import_module
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedConfig,
    RobertaTokenizer,
)
from transformers.utils import is_torchvision_available, is_vision_available

from spikezip_hf.models.configuration_event_vit import EventViTConfig
from spikezip_hf.models.configuration_spike_bert import QuantBertConfig, SpikeBertConfig
from spikezip_hf.models.configuration_spike_roberta import QuantRobertaConfig, SpikeRobertaConfig
from spikezip_hf.models.configuration_spike_swin import QuantSwinConfig, SpikeSwinConfig
from spikezip_hf.models.configuration_spike_vit import QuantViTConfig, SpikeViTConfig
from spikezip_hf.models.image_processing_events import EventImageProcessor
from spikezip_hf.models.modeling_event_vit import EventViTForImageClassification
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel

CONFIGS: tuple[type[PreTrainedConfig], ...] = (
    QuantViTConfig,
    SpikeViTConfig,
    QuantSwinConfig,
    SpikeSwinConfig,
    QuantBertConfig,
    SpikeBertConfig,
    QuantRobertaConfig,
    SpikeRobertaConfig,
)


def models_of(config: Any) -> dict[type, type]:
    """The Auto classes of an architecture and the model that each makes, from the map that travels with its files."""
    return {
        getattr(transformers, auto_class): getattr(import_module(f"spikezip_hf.models.{module}"), name)
        for auto_class, (module, name) in ((key, value.split(".")) for key, value in config.make_auto_map().items())
        if auto_class != "AutoConfig"
    }


MODELS: dict[type[PreTrainedConfig], dict] = {config: models_of(config) for config in CONFIGS}
# The tokenizer of a checkpoint that was saved without naming its own.
TOKENIZERS = {
    QuantBertConfig: BertTokenizer,
    SpikeBertConfig: BertTokenizer,
    QuantRobertaConfig: RobertaTokenizer,
    SpikeRobertaConfig: RobertaTokenizer,
}


def vit_image_processors() -> dict[str, type]:
    """transformers' image processors for ViT, which are Swin's too, as far as their libraries are installed."""
    processors: dict[str, type] = {}
    if is_vision_available():
        from transformers import ViTImageProcessorPil

        processors["pil"] = ViTImageProcessorPil
    if is_torchvision_available():
        from transformers import ViTImageProcessor

        processors["torchvision"] = ViTImageProcessor
    return processors


def register() -> None:
    """Make the Auto classes know every architecture of this library. Calling it twice does no harm."""
    for config, models in MODELS.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class, model in models.items():
            auto_class.register(config, model, exist_ok=True)
    for config, tokenizer in TOKENIZERS.items():
        AutoTokenizer.register(config, tokenizer, exist_ok=True)
    if processors := vit_image_processors():
        for config in (QuantViTConfig, SpikeViTConfig, QuantSwinConfig, SpikeSwinConfig):
            AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
    AutoConfig.register(EventViTConfig.model_type, EventViTConfig, exist_ok=True)
    AutoModelForImageClassification.register(EventViTConfig, EventViTForImageClassification, exist_ok=True)
    if is_vision_available():  # AutoImageProcessor is not there otherwise; its twins' files name this one too
        backends = dict.fromkeys(("pil", "torchvision"), EventImageProcessor)  # it needs neither
        AutoImageProcessor.register(EventViTConfig, image_processor_classes=backends, exist_ok=True)


def spiking_class(quant_class: type) -> type[SpikePreTrainedModel]:
    """The class of the spiking twins of models of `quant_class`."""
    classes = [model_class for by_auto_class in MODELS.values() for model_class in by_auto_class.values()]
    return next(one for one in classes if getattr(one, "quant_class", None) is quant_class)

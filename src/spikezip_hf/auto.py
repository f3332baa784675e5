"""Registration with transformers' Auto classes; happens when `spikezip_hf` is imported."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)
from transformers.utils import is_torchvision_available, is_vision_available

from spikezip_hf.models.configuration_spike_vit import QuantViTConfig, SpikeViTConfig
from spikezip_hf.models.modeling_spike_vit import (
    QuantViTForImageClassification,
    QuantViTModel,
    SpikeViTForImageClassification,
    SpikeViTModel,
)


def vit_image_processors() -> dict[str, type]:
    """transformers' image processors for ViT, as far as their libraries are installed."""
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
    for config, model, classifier in (
        (QuantViTConfig, QuantViTModel, QuantViTForImageClassification),
        (SpikeViTConfig, SpikeViTModel, SpikeViTForImageClassification),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForImageClassification.register(config, classifier, exist_ok=True)
        if processors := vit_image_processors():
            AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)

# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Configuration of the ordinary ViT for recordings of event cameras."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from .configuration_quantization import check_image_sizes, check_reduced_channels, check_weights_name


@strict
class EventViTConfig(ViTConfig):
    """ViTConfig of a network with a reduction layer ahead of the patches.

    Args:
        num_channels: of the input: 2 polarities for each time bin of `EventImageProcessor`.
        reduced_channels: that the reduction makes of them, and the patches take: 3 for a pretrained ViT.

    Raises:
        ValueError: reduced_channels is no integer from 1 to 1024, or a size is below 1; names it.

    Example:
        >>> EventViTConfig(image_size=32, patch_size=4, num_channels=2, reduced_channels=3)
    """

    model_type = "event_vit"
    _auto_class = "AutoConfig"  # the code travels with what is saved

    hidden_act: str = "relu"
    num_channels: int = 2
    reduced_channels: int = 3

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_weights_name(self)
        check_image_sizes(self)
        check_reduced_channels(self.reduced_channels)

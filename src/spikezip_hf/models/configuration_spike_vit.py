# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Configurations of the quantized and of the spiking ViT: transformers' ViTConfig and the fields of this library."""

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from .configuration_quantization import RECORDS, QuantizationFields, SpikeFields


@strict
class QuantViTConfig(QuantizationFields, ViTConfig):
    """ViTConfig with the fields of `QuantizationFields`. `hidden_act` has to be "relu", its default here.

    Raises:
        ValueError: a field of this library is out of range; the message names it.

    Example:
        >>> QuantViTConfig(image_size=32, patch_size=4, quantization_levels=16)
    """

    model_type = "quant_vit"

    heads = ("ImageClassification",)
    hidden_act: str = "relu"


@strict
class SpikeViTConfig(SpikeFields, ViTConfig):
    """ViTConfig with the fields of `SpikeFields`.

    Raises:
        ValueError: a field of this library is out of range; the message names it.

    Example:
        >>> SpikeViTConfig(image_size=32, patch_size=4, quantization_levels=16, time_steps=32)
    """

    model_type = "spike_vit"
    keys_to_ignore_at_inference = RECORDS

    heads = ("ImageClassification",)
    hidden_act: str = "relu"

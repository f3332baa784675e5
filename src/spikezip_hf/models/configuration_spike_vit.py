# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Configurations of the quantized and of the spiking ViT: transformers' ViTConfig and the fields of this library."""

from dataclasses import dataclass
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from .configuration_quantization import (
    RECORDS,
    QuantizationFields,
    SpikeFields,
    check_choice,
    check_image_sizes,
    check_reduced_channels,
)

POOLINGS = ("class_token", "mean")


@dataclass(kw_only=True, repr=False)
class ViTFields(QuantizationFields):
    """Fields of the Quant and Spike configs of ViT, for what timm's and DeiT's networks have beside transformers' ViT.

    Args:
        pooling: what the head reads: "class_token", or "mean", the mean of the patches' tokens.
        use_class_token: whether there is a class token; without it pooling has to be "mean".
        use_distillation_token: DeiT's second token behind the class token, with a head of its own; logits are the mean
            of those of the two heads.
        norm_after_pooling: the final LayerNorm stands behind the pooling, and not ahead of it (the `fc_norm` of MAE).
        positions_of_patches_only: patches alone have position embeddings (timm's `no_embed_class`).
        reduced_channels: for event cameras, channels that a convolution of 3 x 3 makes of the input's `num_channels`
            ahead of the patches, 3 for those of a pretrained ViT (paper section 4.2); None for no such layer.
    """

    pooling: str = "class_token"
    use_class_token: bool = True
    use_distillation_token: bool = False
    norm_after_pooling: bool = False
    positions_of_patches_only: bool = False
    reduced_channels: int | None = None

    heads: ClassVar[tuple[str, ...]] = ("ImageClassification",)

    @property
    def prefix_tokens(self) -> int:
        """Tokens ahead of those of the patches: class token, distillation token."""
        return int(self.use_class_token) + int(self.use_distillation_token)

    def check_fields(self) -> None:
        super().check_fields()
        check_image_sizes(self)
        check_choice("pooling", self.pooling, POOLINGS)
        if self.reduced_channels is not None:
            check_reduced_channels(self.reduced_channels)
        if self.pooling == "class_token" and not self.use_class_token:
            raise ValueError('use_class_token is False, so there is none to read: set pooling="mean".')
        if self.use_distillation_token and (self.pooling != "class_token" or self.norm_after_pooling):
            raise ValueError(
                "use_distillation_token: the two heads read their tokens behind the final LayerNorm; set "
                'pooling="class_token" and norm_after_pooling=False.'
            )


@strict
class QuantViTConfig(ViTFields, ViTConfig):
    """ViTConfig with the fields of `QuantizationFields` and `ViTFields`.

    `hidden_act` has to be "relu", its default here.

    Raises:
        ValueError: a field of this library is out of range; the message names it.

    Example:
        >>> QuantViTConfig(image_size=32, patch_size=4, quantization_levels=16)
    """

    model_type = "quant_vit"

    hidden_act: str = "relu"


@strict
class SpikeViTConfig(ViTFields, SpikeFields, ViTConfig):
    """ViTConfig with the fields of `SpikeFields` and `ViTFields`.

    Raises:
        ValueError: a field of this library is out of range; the message names it.

    Example:
        >>> SpikeViTConfig(image_size=32, patch_size=4, quantization_levels=16, time_steps=32)
    """

    model_type = "spike_vit"
    keys_to_ignore_at_inference = RECORDS

    hidden_act: str = "relu"

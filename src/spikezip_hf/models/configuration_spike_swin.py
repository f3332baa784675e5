# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Configurations of the quantized and of the spiking Swin: transformers' SwinConfig and the fields of this library."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import SwinConfig

from .configuration_quantization import (
    RECORDS,
    QuantizationFields,
    SpikeFields,
    check_image_sizes,
    check_positive_integer,
    pair,
)


@dataclass(kw_only=True, repr=False)
class SwinFields:
    """What the Quant and Spike configs of Swin have in common, beside the fields of this library.

    `drop_path_rate` is SwinConfig's own, default and meaning: from 0 in the first block to this in the last.
    `encoder_stride` and `out_features` are kept, and without effect: they are for classes that are not here.
    """

    hidden_act: str = "relu"
    drop_path_rate: float | int = 0.1

    def check_fields(self) -> None:
        super().check_fields()  # type: ignore[misc]
        config: Any = self
        check_image_sizes(config)
        check_positive_integer("window_size", config.window_size)
        if len(config.num_heads) != len(config.depths):
            raise ValueError(f"num_heads is of {len(config.num_heads)} stages, and depths of {len(config.depths)}.")
        for width, heads in zip(self.widths, config.num_heads, strict=True):
            if width % heads:
                raise ValueError(f"num_heads: {heads} heads do not divide the {width} channels of their stage.")
        patches = zip(pair(config.image_size), pair(config.patch_size), strict=True)
        if config.use_absolute_embeddings and any(side % patch for side, patch in patches):
            raise ValueError(
                f"use_absolute_embeddings needs an image_size that is a multiple of patch_size, {config.patch_size}; "
                f"got {config.image_size}: the patches at the edge would have no embedding."
            )

    def make_thin(self) -> None:
        config: Any = self
        config.embed_dim, config.mlp_ratio, config.num_heads = 1, 1, [1] * len(config.depths)
        config.hidden_size, config.image_size = self.widths[-1], config.patch_size

    @property
    def depth(self) -> int:
        return sum(self.depths)  # type: ignore[attr-defined]

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        config: Any = self
        return [config.embed_dim * 2**stage for stage in range(len(config.depths))]

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(height, width) of each stage's feature map, in positions; rounded up, as edges are padded."""
        config: Any = self
        sizes = zip(pair(config.image_size), pair(config.patch_size), strict=True)
        height, width = (-(-side // patch) for side, patch in sizes)
        return [(-(-height // 2**stage), -(-width // 2**stage)) for stage in range(len(config.depths))]


@strict
class QuantSwinConfig(SwinFields, QuantizationFields, SwinConfig):
    """SwinConfig with the fields of `QuantizationFields`. `hidden_act` has to be "relu", its default here.

    Raises:
        ValueError: a field is out of range; the message names it.

    Example:
        >>> QuantSwinConfig(image_size=32, patch_size=2, window_size=4, depths=[2, 2], num_heads=[3, 6])
    """

    model_type = "quant_swin"

    heads = ("ImageClassification",)


@strict
class SpikeSwinConfig(SwinFields, SpikeFields, SwinConfig):
    """SwinConfig with the fields of `SpikeFields`.

    Raises:
        ValueError: a field is out of range; the message names it.

    Example:
        >>> SpikeSwinConfig(image_size=32, patch_size=2, window_size=4, depths=[2, 2], num_heads=[3, 6], time_steps=32)
    """

    model_type = "spike_swin"
    keys_to_ignore_at_inference = RECORDS

    heads = ("ImageClassification",)

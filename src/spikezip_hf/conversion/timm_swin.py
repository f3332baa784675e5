"""timm's Swin Transformers, read as transformers' Swin with other names.

The two differ in how they are written, not in what they compute: queries, keys and values are one map in timm; patch
merging stands at the beginning of a stage there, and at the end of the one before it in transformers; the order in
which the four neighbours are put together is the same.
"""

from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, LayerNorm, Mlp, PatchEmbed, SelectAdaptivePool2d
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    WindowAttention,
)
from torch import nn
from transformers import SwinConfig

from spikezip_hf.conversion.timm_vit import check_modules, drop_path_rate
from spikezip_hf.models.configuration_quantization import derive_config
from spikezip_hf.models.configuration_spike_swin import QuantSwinConfig
from spikezip_hf.models.windows import Windows

# The modules of a network that is read, by their exact class, as for timm's ViTs.
MODULES = (
    *(SwinTransformer, SwinTransformerStage, SwinTransformerBlock, WindowAttention, PatchEmbed, PatchMerging, Mlp),
    *(ClassifierHead, SelectAdaptivePool2d, FastAdaptiveAvgPool, LayerNorm),
    *(nn.LayerNorm, nn.Linear, nn.Conv2d, nn.Sequential, nn.Identity, nn.Softmax),
    *(nn.Dropout, DropPath),  # without effect on what a trained network computes
)


def read_swin(model: nn.Module) -> tuple[SwinConfig, dict[str, torch.Tensor]]:
    """Config and weights of a timm `SwinTransformer`, as transformers' `SwinForImageClassification` has them.

    Args:
        model: its MLPs may have any activation, which the config does not tell: whoever converts checks it.

    Returns:
        The config, hidden_act "relu", and a state dict with transformers' keys, of `model`'s own tensors or views;
        without a head if `model` has none.

    Raises:
        ValueError: the model is no `SwinTransformer` of timm, or has a part that transformers' Swin lacks; names it.
    """
    config = read_config(model)
    check_modules(model, MODULES)
    state = model.state_dict()
    check_windows(model, config)
    weights = {
        "swin.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "swin.embeddings.norm": "patch_embed.norm",
        "swin.layernorm": "norm",
        "classifier": "head.fc",
    }
    found: dict[str, torch.Tensor] = {}
    for number, depth in enumerate(config.depths):
        stage, theirs = f"swin.encoder.layers.{number}", f"layers.{number}"
        if number:
            before = f"swin.encoder.layers.{number - 1}.downsample"
            weights |= {f"{before}.{name}": f"{theirs}.downsample.{name}" for name in ("norm", "reduction")}
        for block in (f"blocks.{index}" for index in range(depth)):
            weights |= {
                f"{stage}.{block}.{name}": f"{theirs}.{block}.{other}"
                for name, other in (
                    ("layernorm_before", "norm1"),
                    ("attention.o_proj", "attn.proj"),
                    ("layernorm_after", "norm2"),
                    ("mlp.fc1", "mlp.fc1"),
                    ("mlp.fc2", "mlp.fc2"),
                )
            }
            attention = f"{stage}.{block}.attention"
            for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
                parts = state.pop(f"{theirs}.{block}.attn.qkv.{kind}").chunk(3)
                found |= {f"{attention}.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
            table = state.pop(f"{theirs}.{block}.attn.relative_position_bias_table")
            found[f"{attention}.relative_position_bias.relative_position_bias_table"] = widened(
                table, config.window_size
            )
    for name, other in weights.items():
        for kind in ("weight", "bias"):
            if f"{other}.{kind}" in state:
                found[f"{name}.{kind}"] = state.pop(f"{other}.{kind}")
    if state:
        raise ValueError(f"{next(iter(state))}: transformers' Swin has no such weight, so the model is another one.")
    return config, found


def read_config(model: Any) -> SwinConfig:
    """The config of a timm `SwinTransformer`; what is not in it is refused by name."""
    family: type = type(model)
    if family is not SwinTransformer:
        raise ValueError(
            f"{type(model).__name__} is no SwinTransformer of timm. Swin V2 and others attend in another way, and are "
            "not converted."
        )
    blocks = [block for stage in model.layers for block in stage.blocks]
    first, patch, head = blocks[0], model.patch_embed, model.head
    if model.num_classes and (model.global_pool != "avg" or not isinstance(head.fc, nn.Linear)):
        raise ValueError(
            f"head: the model pools by {model.global_pool!r} and ends in {type(head.fc).__name__}; only a linear head "
            "on the mean of the positions is converted (global_pool='avg')."
        )
    norms = {name: module for name, module in model.named_modules() if name.rpartition(".")[2].startswith("norm")}
    for name, norm in norms.items():
        if name.endswith("mlp.norm"):  # nothing, in a Swin; if it has weights, they are found to be left over
            continue
        if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
            raise ValueError(f"{name} is {type(norm).__name__}; only a LayerNorm with weight and bias is converted.")
        # Those of the embeddings and of patch merging have the default of torch in transformers.
        eps = 1e-5 if "patch_embed" in name or "downsample" in name else model.norm.eps
        if norm.eps != eps:
            raise ValueError(f"{name}.eps is {norm.eps}, and {eps} in transformers' Swin.")
    widths = [stage.blocks[0].dim for stage in model.layers]
    for number, (stage, width) in enumerate(zip(model.layers, widths, strict=True)):
        if width != widths[0] * 2**number:
            raise ValueError(f"embed_dim: stage {number} has {width} channels, where each doubles those before it.")
        for block in stage.blocks:
            if block.attn.qkv.out_features != 3 * width:
                raise ValueError(f"head_dim: the heads of stage {number} are not {width} channels together.")
            if block.mlp_ratio != first.mlp_ratio:
                raise ValueError(f"mlp_ratio is {first.mlp_ratio} at first and {block.mlp_ratio} in stage {number}.")
    return SwinConfig(
        image_size=list(patch.img_size),
        patch_size=list(patch.patch_size),
        num_channels=patch.proj.in_channels,
        embed_dim=widths[0],
        depths=[len(stage.blocks) for stage in model.layers],
        num_heads=[stage.blocks[0].attn.num_heads for stage in model.layers],
        window_size=max(side for block in blocks for side in block.window_size),
        mlp_ratio=first.mlp_ratio,
        qkv_bias=first.attn.qkv.bias is not None,
        hidden_dropout_prob=first.attn.proj_drop.p,
        attention_probs_dropout_prob=first.attn.attn_drop.p,
        drop_path_rate=drop_path_rate(blocks[-1].drop_path1),
        layer_norm_eps=model.norm.eps,
        hidden_act="relu",
        **({"num_labels": model.num_classes} if model.num_classes else {}),
    )


def check_windows(model: Any, config: SwinConfig) -> None:
    """Raise ValueError if windows are not cut as transformers would."""
    grids = derive_config(QuantSwinConfig, config).grids
    for number, (stage, grid) in enumerate(zip(model.layers, grids, strict=True)):
        for index, block in enumerate(stage.blocks):
            windows = Windows.of(grid, config.window_size, shifted=index % 2 == 1)
            size, shift = tuple(block.window_size), tuple(block.shift_size)
            if size != (windows.size,) * 2 or shift != (windows.shift,) * 2:
                raise ValueError(
                    f"window_size: stage {number}, block {index} has windows of {size} shifted by {shift}, where "
                    f"transformers' Swin cuts {windows.size} x {windows.size} shifted by {windows.shift}."
                )
            if windows.shift and windows.padded != grid:
                raise ValueError(
                    f"window_size: the {grid} positions of stage {number} are no multiple of it, and timm shifts "
                    "before it pads, transformers after: choose an img_size whose feature maps it divides."
                )


def widened(table: torch.Tensor, window_size: int) -> torch.Tensor:
    """A table of biases (offsets, heads) for windows of `window_size`, of which a smaller window uses the middle."""
    side = int(len(table) ** 0.5)
    margin = window_size - (side + 1) // 2
    if not margin:
        return table
    square = table.unflatten(0, (side, side))
    return nn.functional.pad(square, (0, 0, margin, margin, margin, margin)).flatten(0, 1)

"""timm's Vision Transformers, read: the config and the weights of the Quant ViT that computes the same.

What is read is written down (`MODULES`, `read_weights`), and everything else is refused by name: a part that timm has
or will have, and that is not here, cannot slip through.
"""

from typing import Any

import torch
from timm.layers import Attention, DropPath, LayerNorm, LayerScale, Mlp, PatchDropout, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from transformers import ViTConfig

# The modules of a network that is read, by their exact class. Activations are looked at by `activations_of`.
MODULES = (
    *(VisionTransformer, VisionTransformerDistilled, PatchEmbed, Block, Attention, Mlp, LayerScale),
    *(LayerNorm, nn.LayerNorm, nn.Linear, nn.Conv2d, nn.Sequential, nn.Identity),
    *(nn.Dropout, DropPath, PatchDropout),  # without effect on what a trained network computes
)
POOLINGS = {"token": "class_token", "avg": "mean"}
WEIGHT_AND_BIAS = ("weight", "bias")


def read_vit(model: Any) -> tuple[ViTConfig, dict[str, torch.Tensor]]:
    """Config and weights of a Quant ViT that computes what a timm ViT or distilled DeiT does.

    The fused product of queries, keys and values is split. LayerScale is folded into the linear map ahead of it, whose
    outputs it scales. For images of other sizes positions are interpolated as in transformers' ViT, and not as by
    timm's `dynamic_img_size`, whose filter is another one.

    Args:
        model: a VisionTransformer or VisionTransformerDistilled, exactly.

    Returns:
        A ViTConfig that has the fields of `ViTFields` as well, and a state dict of `QuantViTForImageClassification`,
        without a classifier if the model has none.

    Raises:
        ValueError: the network has a part that is not read; names it.
    """
    check_modules(model, MODULES)
    weights = read_weights(model)
    check_attributes(model)
    block, distilled = model.blocks[0], isinstance(model, VisionTransformerDistilled)
    config = ViTConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        hidden_act="relu",  # as `from_ann` sees to
        layer_norm_eps=block.norm1.eps,
        image_size=square(model.patch_embed.img_size),
        patch_size=square(model.patch_embed.patch_size),
        num_channels=model.patch_embed.proj.in_channels,
        qkv_bias=block.attn.qkv.bias is not None,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pooling=POOLINGS[model.global_pool],
        use_class_token=model.cls_token is not None,
        use_distillation_token=distilled,
        norm_after_pooling=isinstance(model.fc_norm, nn.LayerNorm),
        positions_of_patches_only=model.no_embed_class,
        drop_path_rate=drop_path_rate(model.blocks[-1].drop_path1),
    )
    if model.num_classes:
        config.num_labels = model.num_classes
    return config, weights


def drop_path_rate(last: nn.Module) -> float:
    """Drop path of a network, from the module of its last block; Identity where there is none."""
    return round(getattr(last, "drop_prob", 0.0), 6)  # it has been in float32


def square(size: tuple[int, int]) -> int | tuple[int, int]:
    """A size as configs have it: one number if both sides are the same."""
    return size[0] if size[0] == size[1] else (size[0], size[1])


def check_modules(model: Any, classes: tuple[type[nn.Module], ...]) -> None:
    """Raise ValueError at the first module of a class that is not read."""
    for path, module in model.named_modules():
        if type(module) not in classes and not path.endswith(".mlp.act"):
            raise ValueError(f"{path} is a {type(module).__name__}, which is not converted.")


def check_attributes(model: Any) -> None:
    """Raise ValueError at the first thing that shows neither in classes nor in weights and that a Quant ViT does not
    compute."""
    if model.global_pool not in POOLINGS:
        raise ValueError(f"global_pool is {model.global_pool!r}: only {', '.join(map(repr, POOLINGS))} are converted.")
    if model.pool_include_prefix:
        raise ValueError("pool_include_prefix is True: a mean that has the class token in it is not converted.")
    if model.patch_embed.img_size is None or model.patch_embed.dynamic_img_pad:
        raise ValueError("dynamic_img_pad or no img_size: only networks for images of one size are converted.")
    if model.pos_embed is None:
        raise ValueError("pos_embed is None: a ViT without position embeddings is not converted.")
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    for path, norm in norms:
        if norm.eps != norms[0][1].eps:
            raise ValueError(f"eps of {path} is {norm.eps}, of {norms[0][0]} {norms[0][1].eps}: a config has one.")
    kinds = {isinstance(norm, nn.LayerNorm) for norm in (model.norm, model.fc_norm)}
    if len(kinds) == 1:
        raise ValueError("norm and fc_norm: a ViT with both, or with none (final_norm=False), is not converted.")
    first = model.blocks[0]
    for path, block in model.blocks.named_children():
        attention = block.attn
        shape = (attention.num_heads, attention.head_dim, block.mlp.fc1.out_features)
        expected = (first.attn.num_heads, model.embed_dim // first.attn.num_heads, first.mlp.fc1.out_features)
        if shape != expected or attention.scale != attention.head_dim**-0.5:
            raise ValueError(f"blocks.{path} has other heads or another mlp than the first, or another scale.")


def read_weights(model: Any) -> dict[str, torch.Tensor]:
    """The state dict in the keys of the Quant class.

    Raises:
        ValueError: there are weights of a part that is not read; names the first.
    """
    left = dict(model.state_dict())

    def take(source: str) -> torch.Tensor | None:
        return left.pop(source, None)

    weights: dict[str, torch.Tensor | None] = {
        "vit.embeddings.cls_token": take("cls_token"),
        "vit.embeddings.distillation_token": take("dist_token"),
        "vit.embeddings.position_embeddings": take("pos_embed"),
    }
    for source, target in (
        ("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
        ("norm", "vit.layernorm"),
        ("fc_norm", "fc_norm"),
        ("head", "classifier"),
        ("head_dist", "distillation_classifier"),
    ):
        for name in WEIGHT_AND_BIAS:
            weights[f"{target}.{name}"] = take(f"{source}.{name}")
    for layer in range(len(model.blocks)):
        ours, theirs = f"vit.layers.{layer}", f"blocks.{layer}"
        gammas = {"attn.proj": take(f"{theirs}.ls1.gamma"), "mlp.fc2": take(f"{theirs}.ls2.gamma")}
        for name in WEIGHT_AND_BIAS:
            fused = take(f"{theirs}.attn.qkv.{name}")
            parts = (None,) * 3 if fused is None else fused.chunk(3)
            for projection, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                weights[f"{ours}.attention.{projection}.{name}"] = part
            for source, target in (
                ("norm1", "layernorm_before"),
                ("attn.proj", "attention.o_proj"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                weight, gamma = take(f"{theirs}.{source}.{name}"), gammas.get(source)
                if weight is not None and gamma is not None:
                    weight = weight * (gamma[:, None] if weight.dim() == 2 else gamma)
                weights[f"{ours}.{target}.{name}"] = weight
    if left:
        raise ValueError(f"{next(iter(left))}: weights of a part that is not converted.")
    return {**zero_biases(weights), **{key: weight for key, weight in weights.items() if weight is not None}}


def zero_biases(weights: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Biases that timm leaves out (`proj_bias=False`) where the Quant ViT always has one; of q, k, v it has none."""
    found = {}
    for key, bias in weights.items():
        weight = weights[f"{key.removesuffix('.bias')}.weight"] if key.endswith(".bias") else None
        if bias is None and weight is not None and not key.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            found[key] = weight.new_zeros(len(weight))
    return found

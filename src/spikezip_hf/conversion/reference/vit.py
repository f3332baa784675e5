"""Layout of the reference's quantized ViT, timm's VisionTransformer with quantizers put in."""

import math
from collections.abc import Iterator

import torch

from spikezip_hf.conversion.reference.mapping import Entry, affine, count_layers, node, shape_of
from spikezip_hf.models.configuration_spike_vit import QuantViTConfig
from spikezip_hf.models.modeling_spike_vit import QuantViTForImageClassification

quant_class = QuantViTForImageClassification
MARK = "patch_embed.proj.0.weight"  # what tells this layout
POOLED = "fc_norm.0.weight"  # a LayerNorm behind the mean of the patches, in place of one ahead of the class token
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}  # of the reference's models: small, base, large, huge
LAYER_NORM_EPS = 1e-6
REDUCTION = "align.0.weight"  # of the network for event cameras: the convolution ahead of the patches
REFUSED = {
    "pre_logits.": "a layer ahead of the head that ours has not",
}


def sizes(tensors: dict[str, torch.Tensor], image_size: tuple[int, int] | None) -> dict:
    """Fields of the config that shapes give.

    Raises:
        ValueError: a tensor that they are read from is missing, or shapes do not fit one another; names it.
    """
    hidden, channels, patch_height, patch_width = shape_of(tensors, MARK, 4)
    positions = shape_of(tensors, "pos_embed", 3)[1]
    intermediate = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    if positions < 2:
        raise ValueError(f"pos_embed has {positions} places, and needs one for the class token and for each patch.")
    if image_size is None:
        side = math.isqrt(positions - 1)
        if side * side != positions - 1:
            raise ValueError(
                f"pos_embed has {positions - 1} places beside the class token, which is no square: give image_size, "
                "the height and width of the images."
            )
        image_size = (side * patch_height, side * patch_width)
    elif (image_size[0] // patch_height) * (image_size[1] // patch_width) != positions - 1:
        raise ValueError(
            f"image_size {image_size[0]} x {image_size[1]} makes "
            f"{(image_size[0] // patch_height) * (image_size[1] // patch_width)} patches of {patch_height} x "
            f"{patch_width}, and pos_embed has places for {positions - 1}."
        )
    reduction = {}
    if REDUCTION in tensors:
        reduced, from_camera = shape_of(tensors, REDUCTION, 4)[:2]
        if reduced != channels:
            raise ValueError(f"{REDUCTION} makes {reduced} channels, and {MARK} takes {channels}.")
        reduction = {"reduced_channels": channels}
        channels = from_camera
    return {
        **reduction,
        "hidden_size": hidden,
        "num_hidden_layers": count_layers(tensors, "blocks."),
        "intermediate_size": intermediate,
        "image_size": image_size[0] if image_size[0] == image_size[1] else list(image_size),
        "patch_size": patch_height if patch_height == patch_width else [patch_height, patch_width],
        "num_channels": channels,
        "num_labels": shape_of(tensors, "head.weight", 2)[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "pooling": "mean" if POOLED in tensors else "class_token",
        "norm_after_pooling": POOLED in tensors,
    }


def entries(tensors: dict[str, torch.Tensor], config: QuantViTConfig) -> Iterator[Entry]:
    """Where each tensor of our network is."""
    yield Entry("vit.embeddings.cls_token", "cls_token")
    yield Entry("vit.embeddings.position_embeddings", "pos_embed")
    if config.reduced_channels:
        yield from affine("vit.embeddings.patch_embeddings.reduction", "align.0")
        yield from node("vit.embeddings.patch_embeddings.reduction_node", "align.1")
    yield from affine("vit.embeddings.patch_embeddings.projection", "patch_embed.proj.0")
    yield from node("vit.embeddings.patch_embeddings.node", "patch_embed.proj.1")
    for layer in range(config.num_hidden_layers):
        yield from block(f"vit.layers.{layer}", f"blocks.{layer}", config.qkv_bias)
    ours, theirs = ("fc_norm", "fc_norm") if config.norm_after_pooling else ("vit.layernorm", "norm")
    yield from affine(ours, f"{theirs}.0")
    yield from node(f"{ours}_node", f"{theirs}.1")
    yield from affine("classifier", "head")


def block(ours: str, theirs: str, qkv_bias: bool) -> Iterator[Entry]:
    """An encoder layer."""
    for name, position in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
        yield from affine(f"{ours}.{name}", f"{theirs}.{position}.0")
        yield from node(f"{ours}.{name}_node", f"{theirs}.{position}.1")
    for part, name in enumerate("qkv"):
        yield from affine(f"{ours}.attention.{name}_proj", f"{theirs}.attn.qkv", qkv_bias, part)
        yield from node(f"{ours}.attention.{name}_node", f"{theirs}.attn.quan_{name}")
    yield from node(f"{ours}.attention.probs_node", f"{theirs}.attn.attn_quan")
    yield from node(f"{ours}.attention.context_node", f"{theirs}.attn.after_attn_quan")
    yield from affine(f"{ours}.attention.o_proj", f"{theirs}.attn.proj")
    yield from node(f"{ours}.attention.output_node", f"{theirs}.attn.quan_proj")
    yield from affine(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
    yield from node(f"{ours}.mlp.hidden_node", f"{theirs}.mlp.act.0")
    yield from affine(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2.0")
    yield from node(f"{ours}.mlp.output_node", f"{theirs}.mlp.fc2.1")

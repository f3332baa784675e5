"""Our quantized ViT as a plain torch network in the reference's layout, timm's names with quantizers put in."""

from collections.abc import Callable

import torch
from torch import nn

from spikezip_hf.conversion.reference.plain import (
    Quantizer,
    QuantizerFactory,
    affine,
    attend,
    check,
    convolution,
    layer_norm,
)
from spikezip_hf.models.modeling_spike_vit import QuantViTForImageClassification


class Attention(nn.Module):
    """Quantized self-attention, (B, N, hidden) to the same; `fill_attention` gives it its parts."""

    num_heads: int
    head_dim: int
    scale: float
    qkv: nn.Module
    proj: nn.Module
    quan_proj: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        nodes = (self.quan_q, self.quan_k, self.quan_v, self.attn_quan, self.after_attn_quan)
        return self.quan_proj(self.proj(attend(q, k, v, nodes, self.scale)))


def fill_attention(module: nn.Module, source, quantizer: QuantizerFactory) -> nn.Module:
    """Give `module` the maps and nodes of our ViTAttention, under the names of the layout."""
    module.num_heads, module.head_dim, module.scale = source.num_heads, source.head_dim, source.scaling
    module.qkv = affine(source.q_proj, source.k_proj, source.v_proj)
    module.quan_q, module.quan_k, module.quan_v = (quantizer(n) for n in (source.q_node, source.k_node, source.v_node))
    module.attn_quan, module.attn_drop = quantizer(source.probs_node), nn.Identity()
    module.after_attn_quan = quantizer(source.context_node)
    module.proj, module.proj_drop = affine(source.o_proj), nn.Identity()
    module.quan_proj = quantizer(source.output_node)
    return module


class PatchEmbed(nn.Module):
    """Image patches to tokens, (B, channels, H, W) to (B, patches, hidden)."""

    def __init__(self, source, num_patches: int, quantizer: QuantizerFactory):
        super().__init__()
        self.proj = nn.Sequential(convolution(source.projection), quantizer(source.node))
        self.num_patches = num_patches

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear maps and the nodes behind them, (..., hidden) to the same."""

    def __init__(self, source, quantizer: QuantizerFactory):
        super().__init__()
        self.fc1 = affine(source.fc1)
        self.act = nn.Sequential(quantizer(source.hidden_node), nn.ReLU())
        self.fc2 = nn.Sequential(affine(source.fc2), quantizer(source.output_node))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm encoder layer, (..., N, hidden) to the same."""

    def __init__(self, source, attention: nn.Module, quantizer: QuantizerFactory):
        super().__init__()
        self.norm1 = nn.Sequential(layer_norm(source.layernorm_before), quantizer(source.layernorm_before_node))
        self.attn = attention
        self.norm2 = nn.Sequential(layer_norm(source.layernorm_after), quantizer(source.layernorm_after_node))
        self.mlp = Mlp(source.mlp, quantizer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(self.norm1(x)) + x
        return self.mlp(self.norm2(x)) + x


class VisionTransformer(nn.Module):
    """Our quantized ViT: images (B, channels, H, W) to logits (B, classes).

    Args:
        qann: where weights and scales are from.
        quantizer: makes the quantizer of one of our nodes.
        attention: makes the empty module that is filled to be the quantized self-attention of this width, number of
            heads and number of levels.

    Raises:
        ValueError: `qann` has what the layout cannot express; names the field.
    """

    def __init__(
        self,
        qann: QuantViTForImageClassification,
        quantizer: QuantizerFactory = Quantizer,
        attention: Callable[[int, int, int], nn.Module] = lambda *shape: Attention(),
    ):
        super().__init__()
        check(qann)
        vit, config = qann.vit, qann.config
        for field, usual in (
            ("pooling", "class_token"),
            ("use_distillation_token", False),
            ("norm_after_pooling", False),
            ("positions_of_patches_only", False),
            ("reduced_channels", None),
        ):
            if getattr(config, field) != usual:
                raise ValueError(f"{field} is {getattr(config, field)!r}: the layout is that of {usual!r} alone.")
        self.embed_dim = config.hidden_size
        if getattr(config, "head_dim", None) not in (None, self.embed_dim // config.num_attention_heads):
            raise ValueError("head_dim: the layout's attention is as wide as the hidden state, so leave it out.")
        position = vit.embeddings.position_embeddings
        self.patch_embed = PatchEmbed(vit.embeddings.patch_embeddings, position.shape[1] - 1, quantizer)
        self.cls_token = nn.Parameter(vit.embeddings.cls_token.detach().clone())
        self.pos_embed = nn.Parameter(position.detach().clone())
        shape = (config.hidden_size, config.num_attention_heads, config.quantization_levels)
        self.blocks = nn.Sequential(
            *(
                Block(layer, fill_attention(attention(*shape), layer.attention, quantizer), quantizer)
                for layer in vit.layers
            )
        )
        self.norm = nn.Sequential(layer_norm(vit.layernorm), quantizer(vit.layernorm_node))
        self.head = affine(qann.classifier)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(pixels)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])

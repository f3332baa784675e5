"""Our quantized ViT in the attribute layout of the paper's code, which SpikingJelly's converter expects too."""

from collections.abc import Callable

import torch
from torch import nn

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.models.operators import quantized_weight
from spikezip_hf.models.quantization import LSQQuantizer

QuantizerFactory = Callable[[LSQQuantizer], nn.Module]


def check(qann) -> None:
    """Raise ValueError if `qann` has what neither peer can express."""
    if any(node.scale.numel() != 1 for node in qann.nodes):
        raise ValueError("The peers have one scale a node: quantize with scale_granularity='per_tensor'.")


def threshold(node: LSQQuantizer) -> torch.Tensor:
    """The scale of a node, () float32, which is what the peers' neurons keep it in."""
    return node.threshold(torch.float32).float().reshape(()).clone()


def affine(*sources: nn.Module) -> nn.Linear:
    """One plain linear map of the stacked rows of ours, with the weights that the products are done with."""
    weight = torch.cat([quantized_weight(source) for source in sources]).detach()
    linear = nn.Linear(weight.shape[1], weight.shape[0], sources[0].bias is not None, weight.device, weight.dtype)
    linear.weight.data = weight
    if sources[0].bias is not None:
        linear.bias.data = torch.cat([source.bias for source in sources]).detach()
    return linear


def convolution(source: nn.Conv2d) -> nn.Conv2d:
    """A plain convolution with the weights that ours is done with."""
    weight = quantized_weight(source).detach()
    conv = nn.Conv2d(source.in_channels, source.out_channels, source.kernel_size, source.stride)
    conv.weight.data = weight.clone()
    conv.bias.data = source.bias.detach().clone()
    return conv


def layer_norm(source: nn.LayerNorm) -> nn.LayerNorm:
    """A plain LayerNorm with the parameters of ours."""
    norm = nn.LayerNorm(source.normalized_shape, source.eps)
    norm.weight.data, norm.bias.data = source.weight.detach().clone(), source.bias.detach().clone()
    return norm


def fill_attention(module: nn.Module, source, quantizer: QuantizerFactory) -> nn.Module:
    """Give `module` the maps and nodes of our ViTAttention, under the names that the peers look for."""
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


class Block(nn.Module):
    """Pre-norm encoder layer, (..., N, hidden) to the same."""

    def __init__(self, source, attention: nn.Module, quantizer: QuantizerFactory):
        super().__init__()
        self.norm1 = nn.Sequential(layer_norm(source.layernorm_before), quantizer(source.layernorm_before_node))
        self.attn = attention
        self.norm2 = nn.Sequential(layer_norm(source.layernorm_after), quantizer(source.layernorm_after_node))
        self.mlp = nn.Sequential(
            affine(source.mlp.fc1),
            nn.ReLU(),
            quantizer(source.mlp.hidden_node),
            affine(source.mlp.fc2),
            quantizer(source.mlp.output_node),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(self.norm1(x)) + x
        return self.mlp(self.norm2(x)) + x


class VisionTransformer(nn.Module):
    """Our quantized ViT: images (B, channels, H, W) to logits (B, classes).

    Args:
        qann: where weights and scales are from.
        quantizer: makes the peer's quantizer of one of our nodes.
        attention: makes the empty module that is filled to be the peer's quantized self-attention of this width,
            number of heads and number of levels.
    """

    def __init__(
        self,
        qann: QuantViTForImageClassification,
        quantizer: QuantizerFactory,
        attention: Callable[[int, int, int], nn.Module],
    ):
        super().__init__()
        check(qann)
        vit, config = qann.vit, qann.config
        self.embed_dim = config.hidden_size
        if vit.layers[0].attention.q_proj.out_features != self.embed_dim:
            raise ValueError("The peers' attention is as wide as the hidden state: head_dim must be left out.")
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

"""Parts of plain torch networks in the reference's layout, made from ours."""

from collections.abc import Callable

import torch
from torch import nn

from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel
from spikezip_hf.models.operators import Conv2d, Linear, quantized_weight
from spikezip_hf.models.quantization import LSQQuantizer

QuantizerFactory = Callable[[LSQQuantizer], nn.Module]


class Quantizer(nn.Module):
    """One of our nodes, with the attributes that SpikingJelly's recipe reads. Any shape to the same.

    Attributes:
        s: (), the scale, in the type of ours: float32, if not wider.
        neg_min, pos_max: (), smallest and largest level; saved beside the scale.
        sym: whether there are levels below 0.
        level: how many levels there are.
    """

    def __init__(self, node: LSQQuantizer):
        super().__init__()
        self.level, self.sym = node.levels, node.signed
        self.s = nn.Parameter(scale_of(node), requires_grad=False)
        self.register_buffer("pos_max", torch.tensor(float(node.max_level)))
        self.register_buffer("neg_min", torch.tensor(float(node.min_level)))
        self.pos_max: torch.Tensor
        self.neg_min: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(x / self.s + 0.5).clamp(self.neg_min, self.pos_max) * self.s

    def extra_repr(self) -> str:
        return f"s={self.s.item():.4g}, levels {self.neg_min.item():g} to {self.pos_max.item():g}"


def scale_of(node: LSQQuantizer) -> torch.Tensor:
    """The scale of a node, ()."""
    return node.scale.detach().reshape(()).clone()


def check(qann: QuantPreTrainedModel) -> None:
    """Raise ValueError, naming the field or the node, if `qann` has what the layout cannot express."""
    if any(node.scale.numel() != 1 for node in qann.nodes):
        raise ValueError(
            f"scale_granularity is {qann.config.scale_granularity!r}, and the layout has one scale a node: quantize "
            "with scale_granularity='per_tensor'."
        )
    qann.check_nodes()


def affine(*sources: Linear) -> nn.Linear:
    """One plain linear map of the stacked rows of ours, with the weights that the products are done with."""
    weight = torch.cat([quantized_weight(source) for source in sources]).detach().clone()
    linear = nn.Linear(weight.shape[1], weight.shape[0], sources[0].bias is not None, weight.device, weight.dtype)
    linear.weight.data = weight
    if sources[0].bias is not None:
        linear.bias.data = torch.cat([source.bias for source in sources]).detach().clone()
    return linear


def convolution(source: Conv2d) -> nn.Conv2d:
    """A plain convolution of patches with the weights that ours is done with."""
    weight = quantized_weight(source).detach().clone()
    height, width = weight.shape[2:]
    conv = nn.Conv2d(
        source.in_channels, source.out_channels, (height, width), (height, width), bias=source.bias is not None
    )
    conv.weight.data = weight
    if source.bias is not None:
        conv.bias = nn.Parameter(source.bias.detach().clone())
    return conv


def layer_norm(source: nn.LayerNorm) -> nn.LayerNorm:
    """A plain LayerNorm with the parameters of ours."""
    norm = nn.LayerNorm(source.normalized_shape, source.eps)
    norm.weight.data, norm.bias.data = source.weight.detach().clone(), source.bias.detach().clone()
    return norm


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, nodes, scaling: float, bias=None) -> torch.Tensor:
    """Quantized self-attention of heads, three times (B, heads, N, d) to (B, N, heads * d); ahead of the nodes of
    queries, keys, values, probabilities and context."""
    q_node, k_node, v_node, probs_node, context_node = nodes
    scores = q_node(q) @ k_node(k).transpose(-1, -2) * scaling
    probs = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    return context_node(probs_node(probs) @ v_node(v)).transpose(1, 2).flatten(2)

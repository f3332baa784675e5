# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What networks of several architectures are built from: activation nodes, drop path, self-attention, MLP, layer."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .operators import Dropout, LayerNorm, Linear, MatMul, Softmax
from .quantization import LSQQuantizer
from .rows import Rows


def activation_node(
    config, num_features: int, stage: int, signed: bool = True, inner: bool = False, over_positions: bool = False
):
    """A node as the config asks for.

    Args:
        inner: inside attention or MLP, where no channel is far larger than the others.
        over_positions: its last dimension is positions and not features, so it has one scale in all.
    """
    granularity = config.scale_granularity
    per_channel = not over_positions and (granularity == "per_channel" or (granularity == "mixed" and not inner))
    return LSQQuantizer(config.quantization_levels, signed, num_features, per_channel, stage)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, a residual branch is left out for a sample.

    Args:
        rate: probability to leave it out; kept branches are scaled up by 1 / (1 - rate).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        kept = x.new_empty(x.shape[0], *(1,) * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def drop_path(rate: float, stage: int, num_layers: int) -> DropPath:
    """Drop path of layer `stage`: from nothing at the first layer to `rate` at the last, as in timm."""
    return DropPath(rate * stage / max(num_layers - 1, 1))


class SelfAttentionCore(nn.Module):
    """Quantized self-attention between its projections, and as spikes SESA (paper Figure 3 right, section 3.2.3).

    Args:
        width: features of queries, keys and values, all heads together.
        context_signed: False clips the context at 0, as the text branch of the paper's code does.
        num_heads: of this layer; the config's if None.
    """

    def __init__(self, config, width: int, stage: int, context_signed: bool = True, num_heads: int | None = None):
        super().__init__()
        self.num_heads = config.num_attention_heads if num_heads is None else num_heads
        self.head_dim = width // self.num_heads
        self.scaling = self.head_dim**-0.5

        self.q_node = activation_node(config, width, stage, inner=True)
        self.k_node = activation_node(config, width, stage, inner=True)
        self.v_node = activation_node(config, width, stage, inner=True)

        self.scores = MatMul()
        self.softmax = Softmax()
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        # A position has one feature a head.
        self.probs_node = activation_node(config, self.num_heads, stage, signed=False, over_positions=True)

        self.context = MatMul()
        self.context_node = activation_node(config, width, stage, signed=context_signed, inner=True)

    def split_heads(self, x):
        """(..., N, heads * d) to (..., heads, N, d)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def merge_heads(self, x):
        """(..., heads, N, d) to (..., N, heads * d)."""
        return x.heads_merged() if isinstance(x, Rows) else x.transpose(-3, -2).flatten(-2)

    def attend(self, q, k, v, engine, bias=None):
        """Context (..., N, width) and probabilities (..., heads, N, N), of what the projections gave.

        Args:
            q, k, v: (rows, N, width), or (rows, windows, N, width) for attention within windows, ahead of their nodes.
            bias: (B, windows or 1, heads, N, N) or the like, a static term of the scores: a bias by relative position.
        """
        q = self.split_heads(engine.fire(self.q_node, q))
        k = self.split_heads(engine.fire(self.k_node, k))
        v = self.split_heads(engine.fire(self.v_node, v))

        scores = engine.matmul(self.scores, q, k.transpose(-1, -2)) * self.scaling
        probs = engine.fire(self.probs_node, self.dropout(engine.probabilities(self.softmax, scores, bias)))

        context = self.merge_heads(engine.matmul(self.context, probs, v))
        return engine.fire(self.context_node, context), probs


class MLP(nn.Module):
    """Two linear maps; the unsigned node between them is the ReLU."""

    def __init__(self, config, width: int, hidden_width: int, stage: int):
        super().__init__()
        self.fc1 = Linear(width, hidden_width, weight_bits=config.weight_bits)
        self.hidden_node = activation_node(config, hidden_width, stage, signed=False, inner=True)
        self.fc2 = Linear(hidden_width, width, weight_bits=config.weight_bits)
        self.output_node = activation_node(config, width, stage)

    def forward(self, x, engine):
        hidden = engine.fire(self.hidden_node, engine.linear(self.fc1, x))
        return engine.fire(self.output_node, engine.linear(self.fc2, hidden))


class PreNormLayer(GradientCheckpointingLayer):
    """Transformer encoder layer (paper Figure 3 left), pre-norm.

    Args:
        attention: called with (x, engine), returns (attended, probabilities).
        width, hidden_width: features of a position, and of one in the MLP.
        num_layers: of the network, for drop path.
    """

    def __init__(self, config, attention: nn.Module, width: int, hidden_width: int, stage: int, num_layers: int):
        super().__init__()
        self.layernorm_before = LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_before_node = activation_node(config, width, stage)
        self.attention = attention
        self.layernorm_after = LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after_node = activation_node(config, width, stage)
        self.mlp = MLP(config, width, hidden_width, stage)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.drop_path = drop_path(config.drop_path_rate, stage, num_layers)

    def forward(self, x, engine):
        normed = engine.fire(self.layernorm_before_node, engine.apply(self.layernorm_before, x))
        attended, probs = self.attention(normed, engine)
        x = self.drop_path(self.dropout(attended)) + x

        normed = engine.fire(self.layernorm_after_node, engine.apply(self.layernorm_after, x))
        x = self.drop_path(self.dropout(self.mlp(normed, engine))) + x
        return x, probs

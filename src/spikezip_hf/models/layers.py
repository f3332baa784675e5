# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What networks of several architectures are built from: activation nodes, drop path, the core of self-attention."""

import torch
from torch import nn

from .operators import MatMul, Softmax
from .quantization import LSQQuantizer


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
    """

    def __init__(self, config, width: int, stage: int, context_signed: bool = True):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5

        self.q_node = activation_node(config, width, stage, inner=True)
        self.k_node = activation_node(config, width, stage, inner=True)
        self.v_node = activation_node(config, width, stage, inner=True)

        self.scores = MatMul()
        self.softmax = Softmax()
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        # A position has one feature a head.
        self.probs_node = activation_node(config, self.num_heads, stage, signed=False, over_positions=True)

        self.context = MatMul()
        self.context_node = activation_node(config, width, stage, signed=context_signed, inner=True)

    def split_heads(self, x):
        """(rows, N, heads * d) to (rows, heads, N, d)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def attend(self, q, k, v, engine, bias=None):
        """Context (rows, N, width) and probabilities (rows, heads, N, N), of what the projections gave.

        Args:
            q, k, v: (rows, N, width), ahead of their nodes.
            bias: (B, 1, 1, N) or the like, a static term of the scores: the padding mask.
        """
        q = self.split_heads(engine.fire(self.q_node, q))
        k = self.split_heads(engine.fire(self.k_node, k))
        v = self.split_heads(engine.fire(self.v_node, v))

        scores = engine.matmul(self.scores, q, k.transpose(-1, -2)) * self.scaling
        if bias is not None:
            scores = scores + engine.static(bias)
        probs = engine.fire(self.probs_node, self.dropout(engine.apply(self.softmax, scores)))

        context = engine.matmul(self.context, probs, v).transpose(1, 2).flatten(2)
        return engine.fire(self.context_node, context), probs

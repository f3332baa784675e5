# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Quantized and spiking Swin Transformer (Liu et al. 2021, arXiv:2103.14030): one network, two meanings.

The network is that of transformers' Swin, with the same parameter names, and an activation node ahead of and behind
every matrix product, as in the ViT here (paper section 3.2.1). What is Swin's own needs no neurons: windows put spikes
in another order, the bias by relative position and the mask of shifted windows are static terms of the scores, and the
mean over positions that the head reads is a linear map.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .configuration_quantization import pair
from .configuration_spike_swin import QuantSwinConfig, SpikeSwinConfig
from .layers import PreNormLayer, SelfAttentionCore, activation_node
from .modeling_image import (
    ImageClassifierNetwork,
    ImagePreTrainedModel,
    QuantImageClassifier,
    QuantImageModel,
    SpikeImageClassifier,
    SpikeImageModel,
)
from .operators import Conv2d, Dropout, LayerNorm, Linear, MeanPool, name_operators
from .remembering import remembered
from .windows import Windows, pad_grid


class SwinPatchEmbeddings(nn.Module):
    """Image patches to tokens: (B, channels, H, W) to (B, patches, embed_dim). The one product with analog input."""

    def __init__(self, config):
        super().__init__()
        self.patch_size = pair(config.patch_size)
        self.projection = Conv2d(
            config.num_channels,
            config.embed_dim,
            kernel_size=self.patch_size,
            stride=self.patch_size,
            weight_bits=config.weight_bits,
        )
        self.node = activation_node(config, config.embed_dim, stage=0)

    @property
    def input_product(self) -> Conv2d:
        """The product that takes the image."""
        return self.projection

    def forward(self, pixel_values, engine):
        below, beside = (-side % patch for side, patch in zip(pixel_values.shape[-2:], self.patch_size, strict=True))
        padded = nn.functional.pad(pixel_values, (0, beside, 0, below))
        current = engine.encode(self.projection, padded, per_step=padded.dim() == 5)
        return engine.fire(self.node, current.flatten(2).transpose(1, 2))


class SwinEmbeddings(nn.Module):
    """Spikes of the normed patches, and, if the config wants them, position embeddings as a current."""

    def __init__(self, config):
        super().__init__()
        self.patch_embeddings = SwinPatchEmbeddings(config)
        self.norm = LayerNorm(config.embed_dim)  # here and in patch merging transformers leaves eps alone
        self.norm_node = activation_node(config, config.embed_dim, stage=0)
        self.position_embeddings = None
        if config.use_absolute_embeddings:
            height, width = config.grids[0]
            self.position_embeddings = nn.Parameter(torch.zeros(1, height * width, config.embed_dim))
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, engine):
        patches = self.patch_embeddings(pixel_values, engine)
        tokens = engine.fire(self.norm_node, engine.apply(self.norm, patches))
        if self.position_embeddings is not None:
            tokens = tokens + engine.static(self.position_embeddings)
        return self.dropout(tokens)


class SwinRelativePositionBias(nn.Module):
    """A learned term of the scores for each head and each offset of two positions in a window.

    The table is for windows of the config's size, (2 * size - 1)^2 offsets; a smaller window uses the middle of it.
    """

    def __init__(self, window_size: int, num_heads: int):
        super().__init__()
        self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))

    def forward(self, windows: Windows) -> torch.Tensor:
        """The static term of the scores, mask of shifted windows included: (1, windows or 1, heads, n, n)."""
        table = self.relative_position_bias_table
        down, across = (windows.offsets(table.device) + self.window_size - 1).unbind(-1)
        bias = table[down * (2 * self.window_size - 1) + across].permute(2, 0, 1)[None]
        return (bias + windows.mask(table)[:, None] if windows.shift else bias)[None]


class SwinAttention(SelfAttentionCore):
    """Self-attention within windows (paper Figure 3 right), with its projections."""

    def __init__(self, config, width: int, num_heads: int, windows: Windows, stage: int):
        super().__init__(config, width, stage, num_heads=num_heads)
        self.windows = windows
        self.q_proj = Linear(width, width, config.qkv_bias, config.weight_bits)
        self.k_proj = Linear(width, width, config.qkv_bias, config.weight_bits)
        self.v_proj = Linear(width, width, config.qkv_bias, config.weight_bits)
        self.o_proj = Linear(width, width, weight_bits=config.weight_bits)
        self.relative_position_bias = SwinRelativePositionBias(config.window_size, num_heads)
        self.output_node = activation_node(config, width, stage)

    def forward(self, x, engine):
        bias = remembered(self, "bias", lambda: self.relative_position_bias(self.windows))
        x = engine.rearrange(x, self.windows.partition)
        q, k, v = (engine.linear(projection, x) for projection in (self.q_proj, self.k_proj, self.v_proj))
        context, probs = self.attend(q, k, v, engine, bias)
        context = engine.rearrange(context, self.windows.merge)
        return engine.fire(self.output_node, engine.linear(self.o_proj, context)), probs


class SwinPatchMerging(nn.Module):
    """Each two by two positions become one: (rows, height * width, features) to (rows, a quarter, 2 * features)."""

    def __init__(self, config, width: int, grid: tuple[int, int], stage: int):
        super().__init__()
        self.grid = grid
        self.norm = LayerNorm(4 * width)
        self.norm_node = activation_node(config, 4 * width, stage)
        self.reduction = Linear(4 * width, 2 * width, bias=False, weight_bits=config.weight_bits)
        self.output_node = activation_node(config, 2 * width, stage)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, height * width, features) to (rows, a quarter of the positions, 4 * features)."""
        height, width = self.grid
        x = pad_grid(x.unflatten(1, self.grid), (height + height % 2, width + width % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (rows, height / 2, 2, width / 2, 2, features)
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)

    def forward(self, x, engine):
        gathered = engine.rearrange(x, self.gather)
        normed = engine.fire(self.norm_node, engine.apply(self.norm, gathered))
        return engine.fire(self.output_node, engine.linear(self.reduction, normed))


class SwinLayer(PreNormLayer):
    """Block of a stage: its windows are shifted if its number there is odd."""

    def __init__(self, config, stage: int, block: int):
        width, grid = config.widths[stage], config.grids[stage]
        windows = Windows.of(grid, config.window_size, shifted=block % 2 == 1)
        number = sum(config.depths[:stage]) + block
        attention = SwinAttention(config, width, config.num_heads[stage], windows, number)
        super().__init__(config, attention, width, int(config.mlp_ratio * width), number, config.depth)


class SwinStage(nn.Module):
    """Blocks of one size of feature map, and the way to the next, which the last stage has not."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.blocks = nn.ModuleList([SwinLayer(config, stage, block) for block in range(config.depths[stage])])
        self.downsample = None
        if stage < len(config.depths) - 1:
            last_block = sum(config.depths[: stage + 1]) - 1
            self.downsample = SwinPatchMerging(config, config.widths[stage], config.grids[stage], last_block)

    def forward(self, x, engine):
        """Hidden state for the next stage, and attention probabilities of the last block."""
        for block in self.blocks:
            x, probs = block(x, engine)
        return (x if self.downsample is None else self.downsample(x, engine)), probs


class SwinEncoder(nn.Module):
    """All stages."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList([SwinStage(config, stage) for stage in range(len(config.depths))])


class SwinPreTrainedModel(ImagePreTrainedModel):
    base_model_prefix = "swin"
    _no_split_modules = ["SwinEmbeddings", "SwinLayer", "SwinPatchMerging"]
    integer_scores = False  # a bias by relative position is added to them

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SwinEmbeddings) and module.position_embeddings is not None:
            init.zeros_(module.position_embeddings)
        if isinstance(module, SwinRelativePositionBias):
            init.zeros_(module.relative_position_bias_table)

    def layer_sizes(self, inputs):
        config = self.config
        for (height, width), features, heads in zip(config.grids, config.widths, config.num_heads, strict=True):
            windows = Windows.of((height, width), config.window_size, shifted=True)
            down, across = windows.padded
            yield down * across, windows.size**2, features, int(config.mlp_ratio * features), heads


class SwinNetwork(SwinPreTrainedModel):
    """Embeddings, stages and final LayerNorm, written once for both twins."""

    _keys_to_ignore_on_load_unexpected = {r"^classifier\."}  # a checkpoint with a head has more than the network

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = SwinEmbeddings(config)
        self.encoder = SwinEncoder(config)
        self.layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_node = activation_node(config, config.hidden_size, stage=config.depth)
        name_operators(self)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.patch_embeddings

    def network(self, pixel_values, engine, output_hidden_states=None, output_attentions=None):
        """One pass on `engine`: last hidden state (rows, N, hidden).

        Hidden states are those of the embeddings and behind each stage, as transformers has them; attentions, of the
        last block of each stage, are (rows, windows, heads, n, n), where transformers counts windows as samples.
        """
        output_hidden_states, output_attentions = self.output_flags(output_hidden_states, output_attentions)
        x = self.embeddings(pixel_values, engine)
        hidden_states: tuple | None = (x,) if output_hidden_states else None
        attentions: tuple | None = () if output_attentions else None
        for stage in self.encoder.layers:
            x, probs = stage(x, engine)
            if hidden_states is not None:
                hidden_states += (x,)
            if attentions is not None:
                attentions += (probs,)
        x = engine.fire(self.layernorm_node, engine.apply(self.layernorm, x))
        return BaseModelOutput(last_hidden_state=x, hidden_states=hidden_states, attentions=attentions)


class QuantSwinModel(QuantImageModel, SwinNetwork):
    """Quantized Swin without a head."""

    config: QuantSwinConfig


class SpikeSwinModel(SpikeImageModel, SwinNetwork):
    """Spiking Swin without a head."""

    config: SpikeSwinConfig
    quant_class = QuantSwinModel


class SwinClassifierNetwork(SwinPreTrainedModel, ImageClassifierNetwork):
    """The network and a linear head on the mean of the positions."""

    def add_readout(self, config):
        self.pool = MeanPool()

    def features(self, x, engine):
        return engine.pool(self.pool, x)


class QuantSwinForImageClassification(QuantImageClassifier, SwinClassifierNetwork):
    """Quantized Swin with a classification head: the network that is trained, and the twin of its spiking form."""

    config: QuantSwinConfig
    base_class = QuantSwinModel


class SpikeSwinForImageClassification(SpikeImageClassifier, SwinClassifierNetwork):
    """Spiking Swin with a classification head (paper section 3.2)."""

    config: SpikeSwinConfig
    base_class = SpikeSwinModel
    quant_class = QuantSwinForImageClassification

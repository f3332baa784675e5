# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Quantized and spiking Vision Transformer: one network (paper Figure 3), two meanings.

The network is that of transformers' ViT, with the same parameter names, and an activation node (quantizer, or layer of
ST-BIF+ neurons) ahead of and behind every matrix product (paper section 3.2.1). Every product sees spikes, or static
weights, on each side; the one exception is the patch embedding, which takes the image as input current.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .configuration_quantization import pair
from .configuration_spike_vit import QuantViTConfig, SpikeViTConfig
from .layers import PreNormLayer, SelfAttentionCore, activation_node
from .modeling_image import (
    ImageClassifierNetwork,
    ImagePreTrainedModel,
    QuantImageClassifier,
    QuantImageModel,
    SpikeImageClassifier,
    SpikeImageModel,
)
from .operators import Conv2d, Dropout, LayerNorm, Linear, MeanPool, PatchLinear, name_operators


class ViTPatchEmbeddings(nn.Module):
    """Image patches to tokens: (B, channels, H, W) to (B, patches, hidden). The one product with analog input.

    With `reduced_channels` that product is a convolution ahead of the patches, which makes of the channels of an event
    camera those that a pretrained ViT takes (paper section 4.2). Its neurons fire, and the projection sees spikes.
    """

    def __init__(self, config):
        super().__init__()
        self.reduced_channels, self.patch_size = config.reduced_channels, pair(config.patch_size)
        if self.reduced_channels:
            self.reduction = Conv2d(
                config.num_channels,
                self.reduced_channels,
                kernel_size=3,
                padding=1,
                weight_bits=config.weight_bits,
            )
            self.reduction_node = activation_node(config, self.reduced_channels, stage=0, inner=True)
            self.projection: PatchLinear | Conv2d = PatchLinear(
                self.reduced_channels, config.hidden_size, self.patch_size, config.weight_bits
            )
            self.node = activation_node(config, config.hidden_size, stage=0)
            return
        self.projection = Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=pair(config.patch_size),
            stride=pair(config.patch_size),
            weight_bits=config.weight_bits,
        )
        self.node = activation_node(config, config.hidden_size, stage=0)

    @property
    def input_product(self) -> Conv2d:
        """The product that takes the image."""
        return self.reduction if self.reduced_channels else self.projection  # type: ignore[return-value]

    def forward(self, pixel_values, engine):
        current = engine.encode(self.input_product, pixel_values, per_step=pixel_values.dim() == 5)
        current = current.flatten(2).transpose(1, 2)
        if not self.reduced_channels:
            return engine.fire(self.node, current)
        pixels = engine.fire(self.reduction_node, current)
        height, width = pixel_values.shape[-2:]
        image = pixels.transpose(1, 2).unflatten(2, (height, width))
        # Pixels beyond the last whole patch are in none.
        patches = image[..., : height - height % self.patch_size[0], : width - width % self.patch_size[1]]
        return engine.fire(self.node, engine.linear(self.projection, patches))


class ViTEmbeddings(nn.Module):
    """Spikes of the patches; class and distillation token and position embeddings as currents."""

    def __init__(self, config):
        super().__init__()
        self.patch_size = pair(config.patch_size)
        self.grid = self.grid_of(*pair(config.image_size))
        # Positions are those of the tokens ahead of the patches, if they have any, then of the patches.
        self.prefix_positions = 0 if config.positions_of_patches_only else config.prefix_tokens
        positions = self.prefix_positions + self.grid[0] * self.grid[1]
        if config.use_class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        if config.use_distillation_token:
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.prefix = [name for name in ("cls_token", "distillation_token") if name in self._parameters]
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, positions, config.hidden_size))
        self.dropout = Dropout(config.hidden_dropout_prob)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Patches of an image of this size: rows and columns."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings of an image of this size, (1, N, hidden): for another than the config's those of its
        patches are interpolated (bicubic, as in transformers' ViT). They are static: no spike changes them."""
        grid = self.grid_of(height, width)
        if grid == self.grid:
            return self.position_embeddings
        of_prefix, of_patches = self.position_embeddings.tensor_split([self.prefix_positions], dim=1)
        plane = of_patches.transpose(1, 2).unflatten(2, self.grid)
        dtype = torch.promote_types(plane.dtype, torch.float32)  # half precision has no bicubic kernel on a CPU
        plane = nn.functional.interpolate(plane.to(dtype), size=grid, mode="bicubic", align_corners=False)
        return torch.cat((of_prefix, plane.flatten(2).transpose(1, 2).to(of_prefix.dtype)), dim=1)

    def forward(self, pixel_values, engine):
        patches = self.patch_embeddings(pixel_values, engine)
        positions = engine.static(self.positions(*pixel_values.shape[-2:]))
        prefix = [engine.static(getattr(self, name).expand(pixel_values.shape[0], -1, -1)) for name in self.prefix]
        if self.prefix_positions:
            return self.dropout(torch.cat((*prefix, patches), dim=1) + positions)
        patches = patches + positions
        return self.dropout(torch.cat((*prefix, patches), dim=1) if prefix else patches)


class ViTAttention(SelfAttentionCore):
    """Self-attention with its projections (paper Figure 3 right)."""

    def __init__(self, config, stage: int):
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = config.num_attention_heads * head_dim
        super().__init__(config, width, stage)
        self.q_proj = Linear(config.hidden_size, width, config.qkv_bias, config.weight_bits)
        self.k_proj = Linear(config.hidden_size, width, config.qkv_bias, config.weight_bits)
        self.v_proj = Linear(config.hidden_size, width, config.qkv_bias, config.weight_bits)
        self.o_proj = Linear(width, config.hidden_size, weight_bits=config.weight_bits)
        self.output_node = activation_node(config, config.hidden_size, stage)

    def forward(self, x, engine):
        q, k, v = (engine.linear(projection, x) for projection in (self.q_proj, self.k_proj, self.v_proj))
        context, probs = self.attend(q, k, v, engine)
        return engine.fire(self.output_node, engine.linear(self.o_proj, context)), probs


def encoder_layer(config, stage: int) -> PreNormLayer:
    attention = ViTAttention(config, stage)
    return PreNormLayer(
        config, attention, config.hidden_size, config.intermediate_size, stage, config.num_hidden_layers
    )


class ViTPreTrainedModel(ImagePreTrainedModel):
    base_model_prefix = "vit"
    takes_any_size = True
    _no_split_modules = ["ViTEmbeddings", "PreNormLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ViTEmbeddings):
            for name in ("position_embeddings", *module.prefix):
                init.trunc_normal_(getattr(module, name), std=self.config.initializer_range)

    def positions_of(self, inputs):
        rows, columns = self.base_model.embeddings.grid_of(*inputs.shape[-2:])
        return self.config.prefix_tokens + rows * columns


class ViTNetwork(ViTPreTrainedModel):
    """Embeddings, encoder layers and final LayerNorm, written once for both twins."""

    # A checkpoint with a head has more than the network.
    _keys_to_ignore_on_load_unexpected = {r"^(classifier|distillation_classifier|fc_norm|fc_norm_node)\."}

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([encoder_layer(config, stage) for stage in range(config.num_hidden_layers)])
        if not config.norm_after_pooling:
            self.layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.layernorm_node = activation_node(config, config.hidden_size, stage=config.num_hidden_layers)
        name_operators(self)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.patch_embeddings

    def network(self, pixel_values, engine, output_hidden_states=None, output_attentions=None):
        """One pass on `engine`: last hidden state (rows, N, hidden); with `norm_after_pooling` it is the residual
        stream, whose LayerNorm is the head's."""
        output_hidden_states, output_attentions = self.output_flags(output_hidden_states, output_attentions)
        x = self.embeddings(pixel_values, engine)
        hidden_states: tuple | None = (x,) if output_hidden_states else None
        attentions: tuple | None = () if output_attentions else None
        for layer in self.layers:
            x, probs = layer(x, engine)
            if hidden_states is not None:
                hidden_states += (x,)
            if attentions is not None:
                attentions += (probs,)
        if not self.config.norm_after_pooling:
            x = engine.fire(self.layernorm_node, engine.apply(self.layernorm, x))
        return BaseModelOutput(last_hidden_state=x, hidden_states=hidden_states, attentions=attentions)


class QuantViTModel(QuantImageModel, ViTNetwork):
    """Quantized ViT without a head."""

    config: QuantViTConfig


class SpikeViTModel(SpikeImageModel, ViTNetwork):
    """Spiking ViT without a head."""

    config: SpikeViTConfig
    quant_class = QuantViTModel


class ViTClassifierNetwork(ViTPreTrainedModel, ImageClassifierNetwork):
    """The network and what reads it: a linear head on the class token or on the mean of the patches' tokens."""

    def add_readout(self, config):
        self.pool = MeanPool(config.prefix_tokens) if config.pooling == "mean" else None
        if config.norm_after_pooling:
            self.fc_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.fc_norm_node = activation_node(config, config.hidden_size, stage=config.num_hidden_layers)
        if config.use_distillation_token:
            width, classes = config.hidden_size, config.num_labels
            self.distillation_classifier = Linear(width, classes, weight_bits=config.weight_bits)

    def features(self, x, engine):
        pooled = x[:, 0] if self.pool is None else engine.pool(self.pool, x)
        if not self.config.norm_after_pooling:
            return pooled
        return engine.fire(self.fc_norm_node, engine.apply(self.fc_norm, pooled))

    def logits(self, x, engine):
        if not self.config.use_distillation_token:
            return super().logits(x, engine)
        heads = self.classifier, self.distillation_classifier
        of_class, of_distillation = (engine.linear(head, x[:, token]) for token, head in enumerate(heads))
        return (of_class + of_distillation) * 0.5


class QuantViTForImageClassification(QuantImageClassifier, ViTClassifierNetwork):
    """Quantized ViT with a classification head: the network that is trained, and the twin of its spiking form."""

    config: QuantViTConfig
    base_class = QuantViTModel


class SpikeViTForImageClassification(SpikeImageClassifier, ViTClassifierNetwork):
    """Spiking ViT with a classification head (paper section 3.2)."""

    config: SpikeViTConfig
    base_class = SpikeViTModel
    quant_class = QuantViTForImageClassification

# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Quantized and spiking Vision Transformer: one network (paper Figure 3), two meanings.

The network is that of transformers' ViT, with the same parameter names, and an activation node (quantizer, or layer of
ST-BIF+ neurons) ahead of and behind every matrix product (paper section 3.2.1). Every product sees spikes, or static
weights, on each side; the one exception is the patch embedding, which takes the image as input current.
"""

from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_spike_vit import QuantViTConfig, SpikeViTConfig
from .engines import QuantEngine
from .layers import SelfAttentionCore, activation_node, drop_path
from .modeling_quantization import QuantPreTrainedModel, SpikePreTrainedModel, TwinPreTrainedModel
from .operators import Conv2d, LayerNorm, Linear, MeanPool, PatchLinear, name_operators
from .outputs import SpikeClassifierOutput, SpikeModelOutput
from .simulation import Trajectory, plain


def pair(size) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


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

    def forward(self, pixel_values, engine):
        per_step = pixel_values.dim() == 5
        if not self.reduced_channels:
            current = engine.encode(self.projection, pixel_values, per_step)
            return engine.fire(self.node, current.flatten(2).transpose(1, 2))
        current = engine.encode(self.reduction, pixel_values, per_step)
        pixels = engine.fire(self.reduction_node, current.flatten(2).transpose(1, 2))
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
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

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


class ViTMLP(nn.Module):
    """Two linear maps; the unsigned node between them is the ReLU."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, weight_bits=config.weight_bits)
        self.hidden_node = activation_node(config, config.intermediate_size, stage, signed=False, inner=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, weight_bits=config.weight_bits)
        self.output_node = activation_node(config, config.hidden_size, stage)

    def forward(self, x, engine):
        hidden = engine.fire(self.hidden_node, engine.linear(self.fc1, x))
        return engine.fire(self.output_node, engine.linear(self.fc2, hidden))


class ViTLayer(GradientCheckpointingLayer):
    """Transformer encoder layer (paper Figure 3 left), pre-norm."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.layernorm_before = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_before_node = activation_node(config, config.hidden_size, stage)
        self.attention = ViTAttention(config, stage)
        self.layernorm_after = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after_node = activation_node(config, config.hidden_size, stage)
        self.mlp = ViTMLP(config, stage)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = drop_path(config.drop_path_rate, stage, config.num_hidden_layers)

    def forward(self, x, engine):
        normed = engine.fire(self.layernorm_before_node, engine.apply(self.layernorm_before, x))
        attended, probs = self.attention(normed, engine)
        x = self.drop_path(self.dropout(attended)) + x

        normed = engine.fire(self.layernorm_after_node, engine.apply(self.layernorm_after, x))
        x = self.drop_path(self.dropout(self.mlp(normed, engine))) + x
        return x, probs


class ViTPreTrainedModel(TwinPreTrainedModel):
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ViTEmbeddings", "ViTLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ViTEmbeddings):
            for name in ("position_embeddings", *module.prefix):
                init.trunc_normal_(getattr(module, name), std=self.config.initializer_range)

    @property
    def dummy_inputs(self):
        size = (1, self.config.num_channels, *pair(self.config.image_size))
        return {"pixel_values": torch.zeros(size, device=self.device)}

    def prepare(  # type: ignore[override]
        self, pixel_values: torch.Tensor | None = None, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """`pixel_values` in the type of the weights.

        Raises:
            ValueError: they are missing, empty, or not (B, channels, H, W) or (B, F, channels, H, W) of the config;
                with `interpolate_pos_encoding`, of its channels, and at least one patch high and wide.
        """
        if pixel_values is None:
            raise ValueError("pixel_values is missing.")
        channels, size = self.config.num_channels, pair(self.config.image_size)
        given = tuple(pixel_values.shape)
        if interpolate_pos_encoding:
            patch = pair(self.config.patch_size)
            fits = given[-3:-2] == (channels,) and given[-2] >= patch[0] and given[-1] >= patch[1]
            expected = f"{channels}, at least {patch[0]}, at least {patch[1]}"
            remedy = "patch_size of the config."
        else:
            fits = given[-3:] == (channels, *size)
            expected = ", ".join(map(str, (channels, *size)))
            remedy = (
                "image_size of the config: let the model's own image processor resize the images, or pass "
                "interpolate_pos_encoding=True to take them as they are."
            )
        if pixel_values.dim() not in (4, 5) or not fits or not pixel_values.numel():
            raise ValueError(
                f"pixel_values must be (batch, {expected}), or (batch, steps, {expected}) for input per step; got "
                f"{given}. The sizes are num_channels and {remedy}"
            )
        # Not self.dtype: the replicas of DataParallel have no parameters to ask.
        return pixel_values.to(self.base_model.embeddings.patch_embeddings.projection.weight.dtype)


class ViTNetwork(ViTPreTrainedModel):
    """Embeddings, encoder layers and final LayerNorm, written once for both twins."""

    # A checkpoint with a head has more than the network.
    _keys_to_ignore_on_load_unexpected = {r"^(classifier|distillation_classifier|fc_norm|fc_norm_node)\."}

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([ViTLayer(config, stage) for stage in range(config.num_hidden_layers)])
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


class QuantViTModel(QuantPreTrainedModel, ViTNetwork):
    """Quantized ViT without a head."""

    config: QuantViTConfig
    supports_gradient_checkpointing = True

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> BaseModelOutput:
        """Values of the quantized network.

        Args:
            pixel_values: (B, channels, H, W), or (B, F, channels, H, W) for input per step, which adds up.
            engine: what the tensors mean; given by a model around this one, or to observe the nodes.
            interpolate_pos_encoding: take images of other sizes than the config's.
        """
        pixel_values = self.prepare(pixel_values, interpolate_pos_encoding)
        outputs = self.network(pixel_values, self.checked_engine(engine), output_hidden_states, output_attentions)
        return plain(outputs) if engine is None else outputs


class SpikeViTPreTrainedModel(SpikePreTrainedModel, ViTPreTrainedModel):
    """Simulation of a ViT, with or without a head."""

    def positions_of(self, inputs):
        rows, columns = self.base_model.embeddings.grid_of(*inputs.shape[-2:])
        return self.config.prefix_tokens + rows * columns

    def trajectory(
        self, pixel_values: torch.Tensor | None = None, interpolate_pos_encoding: bool = False, **arguments
    ) -> Trajectory:
        """Simulate; `arguments` are those of `SpikePreTrainedModel.run`."""
        pixel_values = self.prepare(pixel_values, interpolate_pos_encoding)
        input_steps = pixel_values.shape[1] if pixel_values.dim() == 5 else 1
        return self.run(partial(self.network, pixel_values), pixel_values, input_steps, **arguments)


class SpikeViTModel(SpikeViTPreTrainedModel, ViTNetwork):
    """Spiking ViT without a head."""

    config: SpikeViTConfig
    quant_class = QuantViTModel
    readout = "last_hidden_state"

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        time_steps: int | None = None,
        output_time_steps: bool = False,
        execution: str = "cumulative",
        stop: str | None = None,
        confidence_threshold: float | None = None,
        chunk_steps: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> SpikeModelOutput | BaseModelOutput:
        """Simulate the network on a batch, from rest: see `SpikeViTForImageClassification.forward`.

        Args:
            engine: given by a model around this one, which runs the simulation itself.
        """
        if engine is not None:
            return self.network(pixel_values, engine, output_hidden_states, output_attentions)
        run = self.trajectory(
            pixel_values,
            interpolate_pos_encoding,
            time_steps=time_steps,
            output_time_steps=output_time_steps,
            execution=execution,
            stop=stop,
            confidence_threshold=confidence_threshold,
            chunk_steps=chunk_steps,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return SpikeModelOutput(
            last_hidden_state=self.refuse_backward(run.readout),
            last_hidden_state_per_step=run.per_step,
            **run.records(),
        )


class ViTClassifierNetwork(ViTPreTrainedModel):
    """The network and what reads it: a linear head on the class token or on the mean of the patches' tokens, written
    once for both twins."""

    _auto_class = "AutoModelForImageClassification"
    base_class: type[ViTNetwork]

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = self.base_class(config)
        self.pool = MeanPool(config.prefix_tokens) if config.pooling == "mean" else None
        if config.norm_after_pooling:
            self.fc_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.fc_norm_node = activation_node(config, config.hidden_size, stage=config.num_hidden_layers)
        self.classifier = Linear(config.hidden_size, config.num_labels, weight_bits=config.weight_bits)
        if config.use_distillation_token:
            self.distillation_classifier = Linear(
                config.hidden_size, config.num_labels, weight_bits=config.weight_bits
            )
        for name, module in self.named_children():
            if module is not self.vit:
                name_operators(module, name)
        self.post_init()

    def logits(self, x, engine):
        """Logits (rows, classes) of the last hidden state. A head reads accumulated spikes and never fires."""
        if self.config.use_distillation_token:
            of_class, of_distillation = (
                engine.linear(head, x[:, token])
                for token, head in enumerate((self.classifier, self.distillation_classifier))
            )
            return (of_class + of_distillation) * 0.5
        pooled = x[:, 0] if self.pool is None else engine.pool(self.pool, x)
        if self.config.norm_after_pooling:
            pooled = engine.fire(self.fc_norm_node, engine.apply(self.fc_norm, pooled))
        return engine.linear(self.classifier, pooled)

    def network(self, pixel_values, engine, output_hidden_states=None, output_attentions=None):
        """One pass on `engine`: logits (rows, classes)."""
        outputs = self.vit(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            engine=engine,
            return_dict=True,
            interpolate_pos_encoding=True,  # `prepare` has looked at the sizes
        )
        return ImageClassifierOutput(
            logits=self.logits(outputs.last_hidden_state, engine),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class QuantViTForImageClassification(QuantPreTrainedModel, ViTClassifierNetwork):
    """Quantized ViT with a classification head: the network that is trained, and the twin of its spiking form."""

    config: QuantViTConfig
    base_class = QuantViTModel
    supports_gradient_checkpointing = True

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ImageClassifierOutput:
        """Values of the quantized network.

        Args:
            pixel_values: (B, channels, H, W), or (B, F, channels, H, W) for input per step, which adds up.
            labels: (B,) class indices; or as transformers' `problem_type` says.
            engine: what the tensors mean; given to observe the nodes.
            interpolate_pos_encoding: take images of other sizes than the config's, with position embeddings between
                those of its size.

        Raises:
            ValueError: pixels that the network cannot take.
            FloatingPointError: NaN reached a node, in eval mode on a CPU; the message names it.
        """
        pixel_values = self.prepare(pixel_values, interpolate_pos_encoding)
        outputs = plain(
            self.network(pixel_values, self.checked_engine(engine), output_hidden_states, output_attentions)
        )
        if labels is not None:
            outputs.loss = self.loss_function(labels, outputs.logits, self.config)
        return outputs


class SpikeViTForImageClassification(SpikeViTPreTrainedModel, ViTClassifierNetwork):
    """Spiking ViT with a classification head (paper section 3.2)."""

    config: SpikeViTConfig
    base_class = SpikeViTModel
    quant_class = QuantViTForImageClassification
    readout = "logits"

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        time_steps: int | None = None,
        output_time_steps: bool = False,
        execution: str = "cumulative",
        stop: str | None = None,
        confidence_threshold: float | None = None,
        chunk_steps: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> SpikeClassifierOutput:
        """Simulate the network on a batch, from rest.

        Args:
            pixel_values: (B, channels, H, W), a static current; or (B, F, channels, H, W), the current that arrives at
                each of the first F steps.
            labels: (B,) class indices, for the loss of the final logits.
            time_steps: T, most steps to run; the config's by default.
            output_time_steps: also return `logits_per_step`.
            execution: "cumulative", exact and fast; "event", the paper's operators step by step, which round
                differently in float32; "equilibrium", the final logits in one pass and no simulation.
            stop: "equilibrium" to end when every sample is proven to have got there; "never" to run all T steps;
                "confidence" to be done with a sample as soon as its largest logit leads the next by
                `confidence_threshold`, whatever the quantized network would say in the end. The config's by default.
            chunk_steps: steps computed at once (1 = streaming), for memory and speed; by default as many as fit a
                tensor of 16 MiB on a CPU, 256 MiB on a GPU. Spikes depend on it at ties alone, if at all.
            output_hidden_states, output_attentions: return those of the last step.
            interpolate_pos_encoding: take images of other sizes than the config's, with position embeddings between
                those of its size.

        Raises:
            ValueError: an argument is out of range or the pixels are not finite; the message names it.
            FloatingPointError: NaN reached a neuron; the message names its node.
        """
        run = self.trajectory(
            pixel_values,
            interpolate_pos_encoding,
            time_steps=time_steps,
            output_time_steps=output_time_steps,
            execution=execution,
            stop=stop,
            confidence_threshold=confidence_threshold,
            chunk_steps=chunk_steps,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.refuse_backward(run.readout)
        return SpikeClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            logits_per_step=run.per_step,
            **run.records(),
        )

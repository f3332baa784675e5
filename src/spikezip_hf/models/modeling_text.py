# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Quantized and spiking post-norm text encoder: the network of RoBERTa and of BERT, written once, in two meanings.

The network is that of transformers' RoBERTa and BERT, with the same parameter names, and an activation node (quantizer,
or layer of ST-BIF+ neurons) ahead of and behind every matrix product (paper section 3.2.1). What the two architectures do
not share, positions and heads, is in their own files.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .engines import QuantEngine
from .layers import SelfAttentionCore, activation_node
from .modeling_quantization import QuantPreTrainedModel, SpikePreTrainedModel, TwinPreTrainedModel
from .operators import LayerNorm, Linear, Tanh, name_operators
from .outputs import SpikeClassifierOutput, SpikeModelOutput
from .simulation import Trajectory


class TextInputs(NamedTuple):
    """A batch of text, checked and complete; named as the arguments of forward, which takes it back as it is.

    Attributes:
        input_ids: (B, N) int64; or None, and `inputs_embeds` (B, N, hidden) instead.
        attention_mask: (B, N) bool, which positions hold tokens.
        token_type_ids, position_ids: (B, N) int64.
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor
    position_ids: torch.Tensor
    inputs_embeds: torch.Tensor | None


def norm_node(config, stage: int):
    """The node behind a LayerNorm; the reference's placement has none there."""
    return activation_node(config, config.hidden_size, stage) if config.node_placement == "full" else None


def fire_norm(node, current, engine):
    """What a LayerNorm hands on: spikes of the node behind it, or its analog output where there is none."""
    return current if node is None else engine.fire(node, current)


class TextEmbeddings(nn.Module):
    """Tokens to spikes: the sum of their embeddings, normalised, is a static current into the first node."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_node = norm_node(config, stage=0)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, text: TextInputs, engine):
        words = self.word_embeddings(text.input_ids) if text.inputs_embeds is None else text.inputs_embeds
        tokens = words + self.token_type_embeddings(text.token_type_ids) + self.position_embeddings(text.position_ids)
        current = engine.static(self.LayerNorm(tokens))
        return self.dropout(fire_norm(self.norm_node, current, engine))


class TextSelfAttention(SelfAttentionCore):
    """Self-attention with the projections of its inputs (paper Figure 3 right)."""

    def __init__(self, config, stage: int):
        width = config.hidden_size
        super().__init__(config, width, stage, context_signed=config.node_placement == "full")
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)

    def forward(self, x, bias, engine):
        q, k, v = (engine.linear(projection, x) for projection in (self.query, self.key, self.value))
        return self.attend(q, k, v, engine, bias)


class TextResidual(nn.Module):
    """Linear map, residual addition and LayerNorm, each with its node: the end of attention and of the MLP."""

    def __init__(self, config, in_features: int, stage: int):
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size)
        self.output_node = activation_node(config, config.hidden_size, stage)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_node = norm_node(config, stage)

    def forward(self, x, residual, engine):
        x = engine.fire(self.output_node, engine.linear(self.dense, x))
        x = self.dropout(x) + residual
        return fire_norm(self.norm_node, engine.apply(self.LayerNorm, x), engine)


class TextAttention(nn.Module):
    """Self-attention and what follows it."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.self = TextSelfAttention(config, stage)
        self.output = TextResidual(config, config.hidden_size, stage)

    def forward(self, x, bias, engine):
        context, probs = self.self(x, bias, engine)
        return self.output(context, x, engine), probs


class TextIntermediate(nn.Module):
    """First linear map of the MLP; the unsigned node behind it is the ReLU."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.hidden_node = activation_node(config, config.intermediate_size, stage, signed=False, inner=True)

    def forward(self, x, engine):
        return engine.fire(self.hidden_node, engine.linear(self.dense, x))


class TextLayer(GradientCheckpointingLayer):
    """Transformer encoder layer (paper Figure 3 left), post-norm."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.attention = TextAttention(config, stage)
        self.intermediate = TextIntermediate(config, stage)
        self.output = TextResidual(config, config.intermediate_size, stage)

    def forward(self, x, bias, engine):
        x, probs = self.attention(x, bias, engine)
        return self.output(self.intermediate(x, engine), x, engine), probs


class TextEncoder(nn.Module):
    """The layers, under the name that they have in transformers' models."""

    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList([TextLayer(config, stage) for stage in range(config.num_hidden_layers)])


class HeadHidden(nn.Module):
    """Hidden layer of a sequence classifier, on the first token: linear map, tanh if the config has one, and node.

    With `head_act="relu"` the unsigned node is the activation, as in the paper.
    """

    def __init__(self, config):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.tanh = Tanh() if config.head_act == "tanh" else None
        self.hidden_node = activation_node(
            config, config.hidden_size, stage=config.num_hidden_layers, signed=self.tanh is not None, inner=True
        )

    def hidden(self, first_token, engine):
        """(rows, hidden) to the same."""
        current = engine.linear(self.dense, first_token)
        if self.tanh is not None:
            current = engine.apply(self.tanh, current)
        return engine.fire(self.hidden_node, current)


class TextPreTrainedModel(TwinPreTrainedModel):
    """What twins of text have in common: their inputs."""

    main_input_name = "input_ids"
    input_modalities = ("text",)
    _no_split_modules = ["TextEmbeddings", "TextLayer"]

    @property
    def first_position(self) -> int:
        """Position id of a text's first token."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int:
        """Most tokens of one text."""
        return self.config.max_position_embeddings - self.first_position

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        ids = torch.ones(1, 2, dtype=torch.long, device=self.base_model.embeddings.word_embeddings.weight.device)
        return {"input_ids": ids, "attention_mask": ids}

    def prepare(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> TextInputs:
        """The inputs checked, and those left out filled in.

        Without a mask, tokens are all but those with the padding id. Positions count from the first token, whatever
        padding stands before it.

        Raises:
            ValueError: shapes that do not fit, ids out of range, a mask of other values than 0 and 1, a text without
                tokens, or more tokens than the network has positions; the message names the argument.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given.dim() != (2 if inputs_embeds is None else 3) or not given.numel():
            raise ValueError(
                "input_ids must be (batch, length), inputs_embeds (batch, length, hidden_size), neither of them empty; "
                f"got {tuple(given.shape)}."
            )
        shape = given.shape[:2]
        for name, tensor in (
            ("attention_mask", attention_mask),
            ("token_type_ids", token_type_ids),
            ("position_ids", position_ids),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} must be (batch, length) = {tuple(shape)} as the input, got {tuple(tensor.shape)}."
                )

        tokens = self.token_mask(given, attention_mask)
        self.check_ids("input_ids", input_ids, self.config.vocab_size)
        self.check_ids("token_type_ids", token_type_ids, self.config.type_vocab_size)
        if token_type_ids is None:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=given.device)
        if position_ids is None:
            position_ids = self.positions(tokens)
        else:
            self.check_ids("position_ids", position_ids, self.config.max_position_embeddings)
        if inputs_embeds is not None:
            inputs_embeds = inputs_embeds.to(self.base_model.embeddings.word_embeddings.weight.dtype)
        return TextInputs(input_ids, tokens, token_type_ids, position_ids, inputs_embeds)

    def token_mask(self, given: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, N) bool, which positions hold tokens."""
        if attention_mask is not None:
            tokens = attention_mask != 0
            if not torch.compiler.is_compiling() and not bool((tokens == attention_mask).all()):
                raise ValueError("attention_mask must hold 1 for tokens and 0 for padding, and nothing else.")
        elif given.dim() == 2 and self.config.pad_token_id is not None:
            tokens = given != self.config.pad_token_id
        else:
            tokens = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        if not torch.compiler.is_compiling() and not bool(tokens.any(1).all()):
            raise ValueError("attention_mask leaves a text without any token.")
        return tokens

    def positions(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N) position ids, counted from the first token of each text."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = steps - tokens.int().argmax(1, keepdim=True)
        if tokens.shape[1] > self.max_tokens and not torch.compiler.is_compiling():
            longest = 1 + int(positions.masked_fill(~tokens, 0).max())
            if longest > self.max_tokens:
                raise ValueError(
                    f"input_ids holds a text of {longest} tokens, but the network has positions for {self.max_tokens} "
                    "(max_position_embeddings): truncate it, tokenizer(..., truncation=True, "
                    f"max_length={self.max_tokens})."
                )
        # Padding may lie outside; which embedding it gets does not matter.
        return positions.clamp(0, self.max_tokens - 1) + self.first_position

    @staticmethod
    def check_ids(name: str, ids: torch.Tensor | None, size: int) -> None:
        """Raise ValueError if an id is not one of `size` rows: on a GPU the look-up itself could not say so."""
        if ids is None or torch.compiler.is_compiling():
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise ValueError(f"{name} must be from 0 to {size - 1}, got {low if low < 0 else high}.")


class TextNetwork(TextPreTrainedModel):
    """Embeddings and encoder layers, written once for both architectures and both twins."""

    # A checkpoint with a head has more than the network in it.
    _keys_to_ignore_on_load_unexpected = [r"^pooler\.", r"^classifier\."]

    def __init__(self, config, add_pooling_layer: bool = False):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextEncoder(config)
        self.pooler = HeadHidden(config) if add_pooling_layer else None
        name_operators(self)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def network(self, text: TextInputs, engine, output_hidden_states=None, output_attentions=None):
        """One pass on `engine`: last hidden state (rows, N, hidden), and (rows, hidden) of the pooler if there is one."""
        output_hidden_states, output_attentions = self.output_flags(output_hidden_states, output_attentions)
        tokens = text.attention_mask
        padded = torch.compiler.is_compiling() or not bool(tokens.all())
        engine.attend(tokens if padded else None)
        bias = self.padding_bias(tokens) if padded else None

        x = self.embeddings(text, engine)
        hidden_states: tuple | None = (x,) if output_hidden_states else None
        attentions: tuple | None = () if output_attentions else None
        for layer in self.encoder.layer:
            x, probs = layer(x, bias, engine)
            if hidden_states is not None:
                hidden_states += (x,)
            if attentions is not None:
                attentions += (probs,)
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else self.pooler.hidden(engine.first_token(x), engine),
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def padding_bias(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1, 1, N) term of the attention scores that keeps padding out of every softmax."""
        dtype = self.embeddings.word_embeddings.weight.dtype
        bias = torch.zeros(tokens.shape, dtype=dtype, device=tokens.device)
        return bias.masked_fill(~tokens, torch.finfo(dtype).min)[:, None, None]


class QuantTextModel(QuantPreTrainedModel, TextNetwork):
    """Quantized text encoder without a head."""

    supports_gradient_checkpointing = True

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
    ) -> BaseModelOutputWithPooling:
        """Values of the quantized network; its output at padding is 0 (with node_placement="reference": undefined).

        Args:
            input_ids: (B, N) token ids; or `inputs_embeds`, (B, N, hidden), instead.
            attention_mask: (B, N), 1 for tokens and 0 for padding on any side, of any type. Left out: what has the
                padding id is padding.
            token_type_ids: (B, N), 0 for the first and 1 for the second text of a pair.
            position_ids: (B, N); counted from the first token by default.
            engine: what the tensors mean; given by a model around this one, or to observe the nodes.

        Raises:
            ValueError: inputs that the network cannot take; the message names the argument.
        """
        text = self.prepare(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.network(text, self.checked_engine(engine), output_hidden_states, output_attentions)


class SpikeTextPreTrainedModel(SpikePreTrainedModel, TextPreTrainedModel):
    """Simulation of a text encoder, with or without a head."""

    def trajectory(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **arguments,
    ) -> Trajectory:
        """Simulate; `arguments` are those of `SpikePreTrainedModel.run`."""
        text = self.prepare(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        inputs = text.input_ids if text.inputs_embeds is None else text.inputs_embeds
        return self.run(partial(self.network, text), inputs, **arguments)


class SpikeTextModel(SpikeTextPreTrainedModel, TextNetwork):
    """Spiking text encoder without a head."""

    readout = "last_hidden_state"

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        time_steps: int | None = None,
        output_time_steps: bool = False,
        execution: str = "cumulative",
        stop: str = "equilibrium",
        chunk_steps: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
    ) -> SpikeModelOutput | BaseModelOutputWithPooling:
        """Simulate the network on a batch, from rest: see `SpikeTextClassifier.forward`.

        Args:
            engine: given by a model around this one, which runs the simulation itself.
        """
        if engine is not None:
            text = self.prepare(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
            return self.network(text, engine, output_hidden_states, output_attentions)
        run = self.trajectory(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            time_steps=time_steps,
            output_time_steps=output_time_steps,
            execution=execution,
            stop=stop,
            chunk_steps=chunk_steps,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return SpikeModelOutput(
            last_hidden_state=self.refuse_backward(run.readout),
            last_hidden_state_per_step=run.per_step,
            pooler_output=run.final.pooler_output,
            **run.records(),
        )


class TextClassifierNetwork(TextPreTrainedModel):
    """The encoder and a head, which reads accumulated spikes and never fires (paper section 3.2.2)."""

    base_class: type[TextNetwork]
    output_class: type[ModelOutput]

    def classify(self, outputs: BaseModelOutputWithPooling, engine) -> torch.Tensor:
        """Logits of what the encoder returned."""
        raise NotImplementedError

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of the logits, as transformers defines it for the task."""
        raise NotImplementedError

    def network(self, text: TextInputs, engine, output_hidden_states=None, output_attentions=None):
        """One pass on `engine`: logits (rows, classes), or (rows, N, classes) for each token."""
        outputs = self.base_model(
            **text._asdict(),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            engine=engine,
            return_dict=True,
        )
        return self.output_class(
            logits=self.classify(outputs, engine),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def head_dropout(config) -> nn.Dropout:
    """Dropout in front of a classifier."""
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


class SequenceClassifierNetwork(TextClassifierNetwork):
    """A classifier of whole texts; its head is the architecture's own."""

    output_class = SequenceClassifierOutput

    def loss(self, logits, labels):
        return self.loss_function(labels, logits, self.config)


class TokenClassifierNetwork(TextClassifierNetwork):
    """A linear classifier of each token."""

    output_class = TokenClassifierOutput

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.base_class(config))
        self.dropout = head_dropout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        name_operators(self.classifier, "classifier")
        self.post_init()

    def classify(self, outputs, engine):
        return engine.linear(self.classifier, self.dropout(outputs.last_hidden_state))

    def loss(self, logits, labels):
        return self.loss_function(logits, labels, self.config)


class QuantTextClassifier(QuantPreTrainedModel, TextClassifierNetwork):
    """Quantized text classifier: the network that is trained, and the twin of its spiking form."""

    supports_gradient_checkpointing = True

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
    ) -> ModelOutput:
        """Values of the quantized network.

        Args:
            input_ids and what follows: see `QuantTextModel.forward`.
            labels: of sequences, (B,) class indices, (B, classes) for several labels at once, or (B,) numbers for
                regression, as transformers' `problem_type` says; of tokens, (B, N) class indices, -100 where none.
            engine: what the tensors mean; given to observe the nodes.

        Raises:
            ValueError: inputs that the network cannot take; the message names the argument.
        """
        text = self.prepare(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.network(text, self.checked_engine(engine), output_hidden_states, output_attentions)
        if labels is not None:
            outputs.loss = self.loss(outputs.logits, labels)
        return outputs


class SpikeTextClassifier(SpikeTextPreTrainedModel, TextClassifierNetwork):
    """Spiking text classifier (paper section 3.2)."""

    readout = "logits"

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        time_steps: int | None = None,
        output_time_steps: bool = False,
        execution: str = "cumulative",
        stop: str = "equilibrium",
        chunk_steps: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SpikeClassifierOutput:
        """Simulate the network on a batch, from rest.

        Args:
            input_ids and what follows: see `QuantTextModel.forward`. The embeddings are a static current.
            labels: see `QuantTextClassifier.forward`; for the loss of the final logits.
            time_steps: T, most steps to run; the config's by default.
            output_time_steps: also return `logits_per_step`.
            execution: "cumulative", exact and fast; "event", the paper's operators step by step, which round
                differently in float32; "equilibrium", the final logits in one pass and no simulation.
            stop: "equilibrium" to end when every sample is proven to have got there; "never" to run all T steps.
            chunk_steps: steps computed at once (1 = streaming); spikes do not depend on it, memory and speed do.
            output_hidden_states, output_attentions: return those of the last step.

        Raises:
            ValueError: an argument is out of range or an input is one that the network cannot take; the message names it.
            FloatingPointError: NaN reached a neuron; the message names its node.
        """
        run = self.trajectory(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            time_steps=time_steps,
            output_time_steps=output_time_steps,
            execution=execution,
            stop=stop,
            chunk_steps=chunk_steps,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.refuse_backward(run.readout)
        return SpikeClassifierOutput(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            logits_per_step=run.per_step,
            **run.records(),
        )

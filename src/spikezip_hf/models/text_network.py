# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The post-norm text encoder, the network of RoBERTa and of BERT, written once for both and for both twins.

The network is that of transformers' RoBERTa and BERT, with the same parameter names, and an activation node
(quantizer, or layer of ST-BIF+ neurons) ahead of and behind every matrix product (paper section 3.2.1). What the two
architectures do not share, positions and heads, is in their own files.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .inputs import check_tensor
from .layers import SelfAttentionCore, activation_node, drop_path
from .modeling_quantization import TwinPreTrainedModel
from .operators import Dropout, LayerNorm, Linear, Tanh, name_operators


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

    @property
    def given(self) -> torch.Tensor:
        """The ids, or the embeddings."""
        given = self.input_ids if self.inputs_embeds is None else self.inputs_embeds
        assert given is not None
        return given


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
        self.dropout = Dropout(config.hidden_dropout_prob)

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
        self.query = Linear(width, width, weight_bits=config.weight_bits)
        self.key = Linear(width, width, weight_bits=config.weight_bits)
        self.value = Linear(width, width, weight_bits=config.weight_bits)

    def forward(self, x, engine):
        q, k, v = (engine.linear(projection, x) for projection in (self.query, self.key, self.value))
        return self.attend(q, k, v, engine)


class TextResidual(nn.Module):
    """Linear map, residual addition and LayerNorm, each with its node: the end of attention and of the MLP."""

    def __init__(self, config, in_features: int, stage: int):
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size, weight_bits=config.weight_bits)
        self.output_node = activation_node(config, config.hidden_size, stage)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.drop_path = drop_path(config.drop_path_rate, stage, config.num_hidden_layers)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm_node = norm_node(config, stage)

    def forward(self, x, residual, engine):
        x = engine.fire(self.output_node, engine.linear(self.dense, x))
        x = self.drop_path(self.dropout(x)) + residual
        return fire_norm(self.norm_node, engine.apply(self.LayerNorm, x), engine)


class TextAttention(nn.Module):
    """Self-attention and what follows it."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.self = TextSelfAttention(config, stage)
        self.output = TextResidual(config, config.hidden_size, stage)

    def forward(self, x, engine):
        context, probs = self.self(x, engine)
        return self.output(context, x, engine), probs


class TextIntermediate(nn.Module):
    """First linear map of the MLP; the unsigned node behind it is the ReLU."""

    def __init__(self, config, stage: int):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size, weight_bits=config.weight_bits)
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

    def forward(self, x, engine):
        x, probs = self.attention(x, engine)
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
        self.dense = Linear(config.hidden_size, config.hidden_size, weight_bits=config.weight_bits)
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

    def prepare(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> TextInputs:
        """The inputs checked, and those left out filled in.

        Without a mask, tokens are all but those with the padding id. Positions count from the first token, whatever
        padding stands before it, and through padding inside a text, if there is any.

        Raises:
            ValueError: shapes or types that do not fit, ids out of range, a mask of other values than 0 and 1, a text
                without tokens, or more tokens than the network has positions; the message names the argument.
        """
        arguments = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        for name, value in arguments.items():
            if value is not None:
                check_tensor(name, value, "tokenizer")
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        if given.dim() != (2 if inputs_embeds is None else 3) or not given.numel():
            raise ValueError(
                "input_ids must be (batch, length), inputs_embeds (batch, length, hidden_size), neither of them "
                f"empty; got {tuple(given.shape)}."
            )
        if inputs_embeds is not None and inputs_embeds.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"inputs_embeds must be {self.config.hidden_size} wide (hidden_size), got {inputs_embeds.shape[-1]}."
            )
        shape = given.shape[:2]
        for name in ("attention_mask", "token_type_ids", "position_ids"):
            tensor = arguments[name]
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
            position_ids = self.positions(tokens, "input_ids" if inputs_embeds is None else "inputs_embeds")
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
            why = "attention_mask is 0" if attention_mask is not None else "input_ids hold the padding id"
            raise ValueError(f"A text has no tokens: {why} at all its positions.")
        return tokens

    def positions(self, tokens: torch.Tensor, name: str = "input_ids") -> torch.Tensor:
        """(B, N) position ids, counted from the first token of each text; `name` is the argument that holds them."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = steps - tokens.int().argmax(1, keepdim=True)
        if tokens.shape[1] > self.max_tokens and not torch.compiler.is_compiling():
            longest = 1 + int(positions[tokens].max())
            if longest > self.max_tokens:
                raise ValueError(
                    f"{name} holds a text of {longest} tokens, but the network has positions for {self.max_tokens} "
                    "(max_position_embeddings): truncate it, with truncation=True, "
                    f"max_length={self.max_tokens} for the tokenizer or the pipeline; a pipeline that takes no such "
                    f"arguments goes by its tokenizer.model_max_length = {self.max_tokens}."
                )
        # Padding may lie outside, so it gets a position that exists; which, does not matter.
        return positions.masked_fill(~tokens, 0) + self.first_position

    @staticmethod
    def check_ids(name: str, ids: torch.Tensor | None, size: int) -> None:
        """Raise ValueError if an id is not one of `size` rows: on a GPU the look-up itself could not say so."""
        if ids is None or torch.compiler.is_compiling():
            return
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} must be int64 or int32, got {ids.dtype}.")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise ValueError(f"{name} must be from 0 to {size - 1}, got {low if low < 0 else high}.")


class TextNetwork(TextPreTrainedModel):
    """Embeddings and encoder layers, written once for both architectures and both twins."""

    # A checkpoint with a head has more than the network in it.
    _keys_to_ignore_on_load_unexpected = {r"(^|\.)pooler\.", r"^classifier\."}

    def __init__(self, config, add_pooling_layer: bool = False):
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextEncoder(config)
        self.pooler = HeadHidden(config) if add_pooling_layer else None
        name_operators(self)
        self.post_init()

    @property
    def construction(self):
        return {"add_pooling_layer": self.pooler is not None}

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def network(self, text: TextInputs, engine, output_hidden_states=None, output_attentions=None):
        """One pass on `engine`: last hidden state (rows, N, hidden), and (rows, hidden) of a pooler."""
        output_hidden_states, output_attentions = self.output_flags(output_hidden_states, output_attentions)
        tokens = text.attention_mask
        # A graph is kept for other batches, so it may not depend on there being no padding in this one.
        in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        padded = in_graph or not bool(tokens.all())
        engine.attend(tokens if padded else None)

        x = self.embeddings(text, engine)
        hidden_states: tuple | None = (x,) if output_hidden_states else None
        attentions: tuple | None = () if output_attentions else None
        for layer in self.encoder.layer:
            x, probs = layer(x, engine)
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

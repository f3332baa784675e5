# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The quantized and the spiking twin of the text encoder, bare, as classifier of texts, and as classifier of tokens.

What users call; the network they call is in `text_network.py`.
"""

from functools import partial

import torch
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .engines import QuantEngine
from .inputs import names_its_arguments
from .modeling_quantization import QuantPreTrainedModel, SpikePreTrainedModel
from .operators import Dropout, Linear, name_operators
from .outputs import SpikeClassifierOutput, SpikeModelOutput
from .simulation import Trajectory, plain
from .text_network import TextInputs, TextNetwork, TextPreTrainedModel


class QuantTextModel(QuantPreTrainedModel, TextNetwork):
    """Quantized text encoder without a head."""

    supports_gradient_checkpointing = True

    @can_return_tuple
    @names_its_arguments
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
            attention_mask: (B, N), 1 for tokens and 0 for padding at either end, of any type. Left out: what has the
                padding id is padding.
            token_type_ids: (B, N), 0 for the first and 1 for the second text of a pair.
            position_ids: (B, N); counted from the first token by default.
            engine: what the tensors mean; given by a model around this one, or to observe the nodes.

        Raises:
            ValueError: inputs that the network cannot take; the message names the argument.
        """
        text = self.prepare(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.network(text, self.checked_engine(engine), output_hidden_states, output_attentions)
        return plain(outputs) if engine is None else outputs


class SpikeTextPreTrainedModel(SpikePreTrainedModel, TextPreTrainedModel):
    """Simulation of a text encoder, with or without a head."""

    def positions_of(self, inputs):
        return inputs.shape[1]

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
        return self.run(partial(self.network, text), text.given, **arguments)


class SpikeTextModel(SpikeTextPreTrainedModel, TextNetwork):
    """Spiking text encoder without a head."""

    readout = "last_hidden_state"

    @can_return_tuple
    @names_its_arguments
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
        stop: str | None = None,
        confidence_threshold: float | None = None,
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
            confidence_threshold=confidence_threshold,
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
    return Dropout(config.hidden_dropout_prob if own is None else own)


class SequenceClassifierNetwork(TextClassifierNetwork):
    """A classifier of whole texts; its head is the architecture's own."""

    _auto_class = "AutoModelForSequenceClassification"
    output_class = SequenceClassifierOutput

    def loss(self, logits, labels):
        return self.loss_function(labels, logits, self.config)


class TokenClassifierNetwork(TextClassifierNetwork):
    """A linear classifier of each token."""

    _auto_class = "AutoModelForTokenClassification"
    output_class = TokenClassifierOutput

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.base_class(config))
        self.dropout = head_dropout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels, weight_bits=config.weight_bits)
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
    @names_its_arguments
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
            FloatingPointError: NaN reached a node, in eval mode on a CPU; the message names it.
        """
        text = self.prepare(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = plain(self.network(text, self.checked_engine(engine), output_hidden_states, output_attentions))
        if labels is not None:
            outputs.loss = self.loss(outputs.logits, labels)
        return outputs


class SpikeTextClassifier(SpikeTextPreTrainedModel, TextClassifierNetwork):
    """Spiking text classifier (paper section 3.2)."""

    readout = "logits"

    @can_return_tuple
    @names_its_arguments
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
        stop: str | None = None,
        confidence_threshold: float | None = None,
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
            stop: "equilibrium" to end when every sample is proven to have got there; "never" to run all T steps;
                "confidence" to be done with a sample as soon as its largest logit leads the next by
                `confidence_threshold`, whatever the quantized network would say in the end. The config's by default.
            chunk_steps: steps computed at once (1 = streaming), for memory and speed; by default as many as fit a
                tensor of 16 MiB on a CPU, 256 MiB on a GPU, on a CPU of fewer samples at once if need be, and at most
                64 where the run may end early. Spikes depend on it at ties alone, if at all.
            output_hidden_states, output_attentions: return those of the last step.

        Raises:
            ValueError: an argument is out of range, or the network cannot take an input; the message names it.
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
            confidence_threshold=confidence_threshold,
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

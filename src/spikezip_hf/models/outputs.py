# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What spiking models return: the fields of a simulation beside those of transformers' own outputs."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SpikeModelOutput(ModelOutput):
    """Output of a spiking base model.

    Args:
        last_hidden_state: (B, N, hidden) accumulated output at the last step.
        last_hidden_state_per_step: (B, T, N, hidden) the same after each step, with `output_time_steps=True`.
        pooler_output: (B, hidden) at the last step, of a BERT made with its pooler.
        equilibrium_step: (B,) int64, first step, counted from 1, after which nothing moves; -1 = not proven. The
            levels are then the QANN's; so are the logits, to the bit (with execution="event" up to rounding).
        decision_step: (B,) int64, with stop="confidence": the step at which the sample's answer was taken; -1 where it
            never was clear enough.
        spike_counts: (B, nodes) int64 spikes until the last step, columns named by `model.node_names`.
        neuron_counts: (B, nodes) int64 neurons of each node.
        hidden_states, attentions: at the last step, as in the QANN, when asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    last_hidden_state_per_step: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    equilibrium_step: torch.Tensor | None = None
    decision_step: torch.Tensor | None = None
    spike_counts: torch.Tensor | None = None
    neuron_counts: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SpikeClassifierOutput(ModelOutput):
    """Output of a spiking classifier.

    Args:
        loss: of the logits at the last step, when labels are given. For evaluation: it has no gradient.
        logits: (B, classes) at the last step, (B, N, classes) for tokens: the membrane potential of the head (paper
            section 3.2.2).
        logits_per_step: (B, T, ...) the same after each step, with `output_time_steps=True`.
        equilibrium_step, decision_step, spike_counts, neuron_counts, hidden_states, attentions: see
            `SpikeModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    logits_per_step: torch.Tensor | None = None
    equilibrium_step: torch.Tensor | None = None
    decision_step: torch.Tensor | None = None
    spike_counts: torch.Tensor | None = None
    neuron_counts: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

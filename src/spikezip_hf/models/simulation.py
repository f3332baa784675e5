# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Running a network through time, up to equilibrium or to the last step, and the proof that it got there.

A product may round differently for another number of rows. So whatever chunks a simulation is run in, its last step is
run alone, on the B rows that the QANN would see. A sample is at equilibrium if in that step every tracer equals its
target: then this step *was* the QANN's forward pass, operand for operand, and its logits are the QANN's bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers.utils import ModelOutput

from .engines import QuantEngine, RecordingEngine, SpikingEngine

DEFAULT_CHUNK_STEPS = 8


@dataclass
class Trajectory:
    """What a run leaves. All but the first two are empty for the closed form, which simulates nothing.

    Attributes:
        final: what the network returned for the last step, rows (B, ...).
        readout: (B, ...) accumulated output at the last step: the membrane potential of the head.
        per_step: (B, T, ...) the same after each step, if asked for. Steps after an early stop repeat the last.
        equilibrium_step: (B,) int64, first step, from 1, after which nothing moves any more; -1 if not proven.
        spike_counts: (B, nodes) int64, spikes of each node until the last step.
        neuron_counts: (B, nodes) int64, neurons of each node.
        levels: {node name: (B, ...)} tracers after the last step.
    """

    final: ModelOutput
    readout: torch.Tensor
    per_step: torch.Tensor | None = None
    equilibrium_step: torch.Tensor | None = None
    spike_counts: torch.Tensor | None = None
    neuron_counts: torch.Tensor | None = None
    levels: dict[str, torch.Tensor] = field(default_factory=dict)

    def records(self) -> dict:
        """The fields that every spiking model's output has under the same name."""
        return {
            "equilibrium_step": self.equilibrium_step,
            "spike_counts": self.spike_counts,
            "neuron_counts": self.neuron_counts,
            "hidden_states": self.final.get("hidden_states"),
            "attentions": self.final.get("attentions"),
        }


def closed_form(outputs: ModelOutput, readout: str) -> Trajectory:
    """The equilibrium without the way there: what a QuantEngine's pass returned."""
    return Trajectory(final=outputs, readout=outputs[readout])


def confirm_levels(network: Callable[[QuantEngine], ModelOutput], run: Trajectory) -> None:
    """Withdraw equilibrium from the samples of which some level is not the QANN's.

    For the event-driven form, whose sums of changes may drift across a level without any of its neurons noticing.
    """
    recorder = RecordingEngine()
    network(recorder)
    equal = [(run.levels[name] == levels).flatten(1).all(1) for name, levels in recorder.levels.items()]
    assert run.equilibrium_step is not None
    run.equilibrium_step = torch.where(torch.stack(equal).all(0), run.equilibrium_step, -1)


def simulate(
    network: Callable[[QuantEngine], ModelOutput],
    readout: str,
    engine: SpikingEngine,
    *,
    time_steps: int,
    chunk_steps: int,
    stop_at_equilibrium: bool,
    keep_steps: bool,
) -> Trajectory:
    """Run `network` on `engine` for at most `time_steps` steps.

    Args:
        network: one pass over the rows of the engine's running chunk.
        readout: name of the output field, (rows, ...), to follow through time.
        chunk_steps: steps run as rows of one pass. Memory grows with it, not with `time_steps`.
        stop_at_equilibrium: end as soon as every sample is proven to be at equilibrium.
        keep_steps: keep the readout of every step, T times its size.

    Raises:
        FloatingPointError: NaN reached a node; the message names it.
    """
    total: torch.Tensor | int = 0
    per_step: list[torch.Tensor] = []
    done = 0
    alone = False  # whether steps are run one at a time
    while done < time_steps:
        engine.advance(1 if alone else max(1, min(chunk_steps, time_steps - 1 - done)))
        outputs = network(engine)
        engine.check_defined()
        done += engine.chunk

        steps = outputs[readout].unflatten(0, (engine.chunk, engine.batch_size))
        if engine.increments:
            steps = total + steps.cumsum(0)
        total = steps[-1]
        if keep_steps:
            per_step.append(steps)

        if stop_at_equilibrium and engine.input_finished and bool(engine.settled.all()):
            if engine.chunk == 1:
                break  # this step had the QANN's own shape: proven
            # Prove it in the next step. Should that find something to move, a kernel had rounded differently at a tie;
            # the steps that remain then keep the QANN's shape, where it cannot.
            alone = True

    if keep_steps:
        per_step.append(steps[-1].expand(time_steps - done, *steps.shape[1:]))
    return Trajectory(
        final=outputs,
        readout=steps[-1],
        per_step=torch.cat(per_step).transpose(0, 1).contiguous() if keep_steps else None,
        equilibrium_step=torch.where(engine.settled, engine.last_activity, -1),
        spike_counts=torch.stack(list(engine.spike_counts.values()), dim=1),
        neuron_counts=torch.stack([engine.neurons(tracer) for tracer in engine.tracers.values()], dim=1),
        levels=engine.tracers,
    )

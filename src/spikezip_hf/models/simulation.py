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
from .rows import unwrap

# Bytes of the largest tensor of a pass, by device, that steps are put together for. On a CPU the allocator gives back
# larger memory, and gets it anew page by page; on a GPU this is a guess, not measured.
CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**28}


def default_chunk_steps(batch_size: int, row_bytes: int, device: torch.device) -> int:
    """Steps to put into one pass so that no tensor of it is larger than CHUNK_BYTES, if more than one fits.

    Args:
        row_bytes: bytes of the largest tensor for one step of one sample.
    """
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (batch_size * row_bytes))


@dataclass
class Trajectory:
    """What a run leaves. All but the first two are empty for the closed form, which simulates nothing.

    Attributes:
        final: what the network returned for the last step, rows (B, ...).
        readout: (B, ...) accumulated output at the last step: the membrane potential of the head.
        per_step: (B, T, ...) the same after each step, if asked for. Steps after an early stop repeat the last.
        equilibrium_step: (B,) int64, first step, from 1, after which nothing moves any more; -1 if not proven.
        decision_step: (B,) int64, first step, from 1, at which the answer was clear enough to stop; -1 where it never
            was. None unless asked to stop on that.
        spike_counts: (B, nodes) int64, spikes of each node until the last step.
        neuron_counts: (B, nodes) int64, neurons of each node.
        levels: {node name: (B, ...)} tracers after the last step.
    """

    final: ModelOutput
    readout: torch.Tensor
    per_step: torch.Tensor | None = None
    equilibrium_step: torch.Tensor | None = None
    decision_step: torch.Tensor | None = None
    spike_counts: torch.Tensor | None = None
    neuron_counts: torch.Tensor | None = None
    levels: dict[str, torch.Tensor] = field(default_factory=dict)

    def records(self) -> dict:
        """The fields that every spiking model's output has under the same name."""
        return {
            "equilibrium_step": self.equilibrium_step,
            "decision_step": self.decision_step,
            "spike_counts": self.spike_counts,
            "neuron_counts": self.neuron_counts,
            "hidden_states": self.final.get("hidden_states"),
            "attentions": self.final.get("attentions"),
        }


def closed_form(outputs: ModelOutput, readout: str) -> Trajectory:
    """The equilibrium without the way there: what a QuantEngine's pass returned."""
    outputs = plain(outputs)
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


def plain(outputs: ModelOutput) -> ModelOutput:
    """Outputs of a pass with tensors in place of Rows."""
    for name, value in outputs.items():
        outputs[name] = unwrap(value)
    return outputs


def margin(logits: torch.Tensor) -> torch.Tensor:
    """How far the largest of the logits (..., classes) is ahead of the next."""
    largest = logits.topk(2, dim=-1).values
    return largest[..., 0] - largest[..., 1]


def simulate(
    network: Callable[[QuantEngine], ModelOutput],
    readout: str,
    engine: SpikingEngine,
    *,
    time_steps: int,
    chunk_steps: int,
    stop: str,
    keep_steps: bool,
    confidence_threshold: float | None = None,
) -> Trajectory:
    """Run `network` on `engine` for at most `time_steps` steps.

    Args:
        network: one pass over the rows of the engine's running chunk.
        readout: name of the output field, (rows, ...), to follow through time.
        chunk_steps: most steps run as rows of one pass. Memory grows with it, not with `time_steps`.
        stop: "never": all steps, of all samples. "equilibrium": samples at which nothing moves any more are left out,
            and the run ends as soon as every sample is proven to be at equilibrium. "confidence": besides, a sample is
            done, with its answer, at the first step at which its `margin` is at least `confidence_threshold`.
        keep_steps: keep the readout of every step, T times its size.

    Raises:
        FloatingPointError: NaN reached a node; the message names it.
    """
    final: torch.Tensor | None = None  # (B, ...) the readout so far
    per_step: list[torch.Tensor] = []
    done = 0
    alone = False  # whether steps are run one at a time, all samples in each
    decided = torch.full((engine.batch_size,), -1, dtype=torch.int64, device=engine.device)
    while done < time_steps:
        left = None  # samples to simulate: all of them
        if stop != "never" and not alone and done and done < time_steps - 1:
            moving = ~engine.settled if engine.input_finished else torch.ones_like(engine.settled)
            left = (moving & (decided < 0)).nonzero().flatten().cpu()
            # Nothing moves any more: prove it in the next step. Should that find something to move, a kernel had
            # rounded differently at a tie; the steps that remain then keep the QANN's shape, where it cannot.
            alone = not len(left)
            left = None if alone or len(left) == engine.batch_size else left
        engine.advance(1 if alone else max(1, min(chunk_steps, time_steps - 1 - done)), left)
        outputs = network(engine)

        every_step = keep_steps or stop == "confidence"
        steps = engine.accumulated(outputs[readout], final, every_step)  # (chunk, L, ...)
        if final is None:
            final = torch.zeros_like(steps[0])
        before = final
        counted = None
        if stop == "confidence":
            counted = decide(engine, steps, decided, confidence_threshold)
            last = (counted - 1).clamp_min(0).to(steps.device)
            kept = torch.where(
                counted[:, None] > 0,
                steps[last, torch.arange(steps.shape[1], device=steps.device)],
                engine.chosen(before),
            )
        else:
            kept = steps[-1]
        engine.conclude(counted)
        final = kept if engine.samples is None else before.index_copy(0, engine.samples.to(kept.device), kept)
        if keep_steps:
            per_step.append(trace(engine, steps, before, kept, counted))
        done += engine.chunk

        if stop == "confidence" and bool((decided > 0).all()):
            break
        whole = engine.chunk == 1 and engine.samples is None  # this step had the QANN's own shape
        if whole and stop != "never" and engine.input_finished and bool((engine.settled | (decided > 0)).all()):
            break  # proven

    assert final is not None
    assert isinstance(engine.spike_counts, torch.Tensor)
    if keep_steps:
        per_step.append(final.expand(time_steps - done, *final.shape))
    proven = engine.settled & (decided < 0)
    return Trajectory(
        final=plain(outputs),
        readout=final,
        per_step=torch.cat(per_step).transpose(0, 1).contiguous() if keep_steps else None,
        equilibrium_step=torch.where(proven, engine.last_activity, -1),
        decision_step=decided if stop == "confidence" else None,
        spike_counts=engine.spike_counts,
        neuron_counts=torch.stack([engine.neurons(tracer) for tracer in engine.tracers.values()], dim=1),
        levels=engine.tracers,
    )


def decide(
    engine: SpikingEngine, logits: torch.Tensor, decided: torch.Tensor, threshold: float | None
) -> torch.Tensor:
    """Note in `decided` (B,) which samples of the chunk have become clear, and at which step.

    Args:
        logits: (chunk, L, classes).

    Returns:
        (L,) steps of the chunk that count for each sample: none once it is decided.
    """
    assert threshold is not None
    clear = margin(logits) >= threshold
    first = torch.where(clear.any(0), clear.int().argmax(0) + 1, engine.chunk)
    before = engine.chosen(decided)
    counted = torch.where(before > 0, 0, first)
    now = torch.where((before < 0) & clear.any(0), engine.step + first, before)
    decided[slice(None) if engine.samples is None else engine.samples.to(decided.device)] = now
    return counted


def trace(engine: SpikingEngine, steps, before, kept, counted) -> torch.Tensor:
    """The readout (chunk, B, ...) of all samples after each step: those left out or done keep theirs."""
    if counted is not None:
        running = torch.arange(len(steps), device=steps.device)[:, None] < counted
        steps = torch.where(running[..., None], steps, kept)
    if engine.samples is None:
        return steps
    whole = before.expand(len(steps), *before.shape).clone()
    whole[:, engine.samples.to(whole.device)] = steps
    return whole

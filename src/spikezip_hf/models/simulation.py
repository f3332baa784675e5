# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Running a network through time, up to equilibrium or to the last step, and the proof that it got there.

A product may round differently for another number of rows. So whatever chunks a simulation is run in, its last step is
run alone, on the B rows that the QANN would see. A sample is at equilibrium if in that step every tracer equals its
target: then this step *was* the QANN's forward pass, operand for operand, and its logits are the QANN's bit for bit.
(Nodes that rest are not computed again in it: sums of whole numbers are the same for any number of rows.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers.utils import ModelOutput

from .engines import QuantEngine, RecordingEngine, SpikingEngine
from .rows import unwrap

# Bytes of the largest tensor of a pass, by device, that steps are put together for. On a CPU the allocator keeps
# pieces of up to twice as much (`kernels.memory`), and maps others anew, page by page. On a GPU it is a guess.
CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**28}
# The first step of a chunk is computed whole, the others by what changed since the one before: chunks should be long.
SHORTEST_CHUNK = 16
# A run that may end early does its last chunk whole, wherever in it the end comes: then chunks should not be too long.
LONGEST_CHUNK = 64


def default_chunk(
    batch_size: int, time_steps: int, row_bytes: int, device: torch.device, stop: str
) -> tuple[int, int]:
    """Samples and steps to put into one pass so that no tensor of it is larger than CHUNK_BYTES, if one row is not.

    On a CPU a batch goes in groups of about one size where chunks would else be shorter than SHORTEST_CHUNK; on a
    GPU, which is good at large products, as a whole. Where a run may end early, LONGEST_CHUNK is the longest chunk.

    Args:
        time_steps: T; the last step is a pass by itself.
        row_bytes: bytes of the largest tensor for one step of one sample.
        stop: when the run ends, see `simulate`.
    """
    rows = max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // row_bytes)
    most = rows if stop == "never" else LONGEST_CHUNK
    wanted = min(SHORTEST_CHUNK, max(1, time_steps - 1))
    if device.type != "cpu" or rows == 1 or wanted == 1:  # groups would not make chunks longer
        return batch_size, max(1, min(most, rows // batch_size))
    groups = math.ceil(batch_size / max(1, rows // wanted))
    samples = math.ceil(batch_size / groups)
    return samples, max(1, min(most, rows // samples))


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
    group_size: int | None = None,
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
        group_size: most samples of one pass; all if None. Groups go their way one after another; the last step is one
            of all samples.

    Raises:
        FloatingPointError: NaN reached a node; the message names it.
    """
    run = Run(network, readout, engine, time_steps, chunk_steps, stop, keep_steps, confidence_threshold)
    groups = torch.arange(engine.batch_size, device="cpu").split(group_size or engine.batch_size)
    done = max(run.go(group) for group in groups)
    # Nothing moves any more, or it is the last step: in the QANN's shape. Should that find something to move, a kernel
    # had rounded differently at a tie; the steps that remain then keep this shape, where it cannot.
    while done < time_steps and not run.over:
        run.chunk(1, None, done)
        done += engine.chunk

    assert run.final is not None
    assert run.outputs is not None
    assert isinstance(engine.spike_counts, torch.Tensor)
    run.fill(time_steps)
    proven = engine.settled & (run.decided < 0)
    return Trajectory(
        final=plain(run.outputs),
        readout=run.final,
        per_step=None if run.per_step is None else run.per_step.transpose(0, 1).contiguous(),
        equilibrium_step=torch.where(proven, engine.last_activity, -1),
        decision_step=run.decided if stop == "confidence" else None,
        spike_counts=engine.spike_counts,
        neuron_counts=torch.stack([engine.neurons(tracer) for tracer in engine.tracers.values()], dim=1),
        levels=engine.tracers,
    )


class Run:
    """A simulation on its way. Arguments are those of `simulate`.

    Attributes:
        outputs: of the last pass.
        final: (B, ...) the readout of each sample so far.
        per_step: (T, B, ...) after each step; None if not kept.
        until: (B,) int64, steps that `per_step` holds of each sample.
        decided: (B,) int64, as `Trajectory.decision_step`.
        over: whether nothing is left to do: every sample is proven to be at equilibrium, or decided.
    """

    def __init__(
        self, network, readout, engine: SpikingEngine, time_steps, chunk_steps, stop, keep_steps, confidence_threshold
    ):
        self.network, self.readout, self.engine = network, readout, engine
        self.time_steps, self.chunk_steps, self.stop = time_steps, chunk_steps, stop
        self.keep_steps, self.confidence_threshold = keep_steps, confidence_threshold
        self.outputs: ModelOutput | None = None
        self.final: torch.Tensor | None = None
        self.per_step: torch.Tensor | None = None
        self.until = torch.zeros(engine.batch_size, dtype=torch.int64, device=engine.device)
        self.decided = torch.full((engine.batch_size,), -1, dtype=torch.int64, device=engine.device)
        self.over = False

    def go(self, group: torch.Tensor) -> int:
        """Take samples, (L,) in order, on until nothing moves any more, or up to the last step but one.

        Returns:
            The steps that were done.
        """
        done = 0
        while done < self.time_steps - 1 and not self.over:
            left = self.moving(group, done)
            if not len(left):
                break
            steps = min(self.chunk_steps, self.time_steps - 1 - done)
            self.chunk(steps, None if len(left) == self.engine.batch_size else left, done)
            done += self.engine.chunk
        return done

    def moving(self, group: torch.Tensor, done: int) -> torch.Tensor:
        """Those of a group that have to be simulated further."""
        if self.stop == "never" or not done:
            return group
        at_rest = self.engine.settled if done >= self.engine.input_steps else torch.zeros_like(self.engine.settled)
        return group[~(at_rest | (self.decided > 0)).cpu()[group]]

    def chunk(self, steps: int, samples: torch.Tensor | None, done: int) -> None:
        """One pass: `steps` steps of these samples, None for all, behind `done` steps."""
        engine = self.engine
        engine.advance(steps, samples, done)
        if samples is None:
            self.fill(done)
        self.outputs = self.network(engine)

        every_step = self.keep_steps or self.stop == "confidence"
        readouts = engine.accumulated(self.outputs[self.readout], self.final, every_step)  # (chunk, L, ...)
        if self.final is None:
            self.final = readouts.new_zeros(engine.batch_size, *readouts.shape[2:])
        counted = None
        kept = readouts[-1]
        if self.stop == "confidence":
            counted = decide(engine, readouts, self.decided, self.confidence_threshold)
            last = (counted - 1).clamp_min(0).to(readouts.device)
            kept = readouts[last, torch.arange(readouts.shape[1], device=readouts.device)]
            kept = torch.where(counted[:, None] > 0, kept, engine.chosen(self.final))
        engine.conclude(counted)
        whose = None if engine.samples is None else engine.samples.to(kept.device)
        self.final = kept if whose is None else self.final.index_copy(0, whose, kept)
        if self.keep_steps:
            self.keep(readouts, kept, counted, done)

        whole = engine.chunk == 1 and engine.samples is None  # this step had the QANN's own shape
        at_rest = engine.settled if whole and engine.input_finished else torch.zeros_like(engine.settled)
        self.over = self.stop != "never" and bool((at_rest | (self.decided > 0)).all())

    def keep(self, readouts, kept, counted, done: int) -> None:
        """Note the readouts (chunk, L, ...) of the running chunk's samples: those that are done keep theirs."""
        engine = self.engine
        if counted is not None:
            running = torch.arange(len(readouts), device=readouts.device)[:, None] < counted
            readouts = torch.where(running[..., None], readouts, kept)
        if self.per_step is None:
            self.per_step = readouts.new_zeros(self.time_steps, engine.batch_size, *readouts.shape[2:])
        whose = torch.arange(engine.batch_size, device="cpu") if engine.samples is None else engine.samples
        self.per_step[done : done + engine.chunk, whose.to(readouts.device)] = readouts
        self.until[whose.to(self.until.device)] = done + engine.chunk

    def fill(self, done: int) -> None:
        """Samples that were left out keep their readout, up to so many steps."""
        if self.per_step is None or self.final is None:
            return
        steps = torch.arange(self.time_steps, device=self.per_step.device)[:, None]
        left_out = (steps >= self.until.to(steps.device)) & (steps < done)
        self.per_step[left_out] = self.final.expand_as(self.per_step)[left_out]


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

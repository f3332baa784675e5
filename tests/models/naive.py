"""A simulation with nothing clever in it: every step of every sample is computed, in plain torch, a row for each.

What the engine is held to. Products of levels are done in float64, where they are exact, and scaled afterwards.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch

from spikezip_hf.models import kernels
from spikezip_hf.models.engines import SpikingEngine, accumulate, hand_on
from spikezip_hf.models.neurons import track
from spikezip_hf.models.rows import Rows, unwrap


def level_matrix(weight, scale):
    """Levels of a weight of 8 bits, (in, out)."""
    return torch.floor(weight / scale.detach()[:, None] + 0.5).clamp(-127, 127).T


class NaiveEngine(SpikingEngine):
    """Tensors are accumulated values, (chunk * B, ...), step by step: row t*B + b is sample b after step t.

    Attributes:
        history: {node name: [(chunk, B, ...) levels of each chunk]}, in network order.
        targets: {node name: (B, ...) levels of the quantizer after the running chunk}.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history: dict[str, list[torch.Tensor]] = {}
        self.targets: dict[str, torch.Tensor] = {}

    def repeated(self, x):
        return x.repeat(self.chunk, *(1,) * (x.dim() - 1))

    def token_rows(self):
        return None if self.tokens is None else self.repeated(self.tokens)

    def closed_steps(self, node):
        steps = range(self.step + 1, self.step + self.chunk + 1)
        return sum(step < self.first_firing_step[node.name] for step in steps)

    def coarse_steps(self, node):
        steps = range(self.step + 1, self.step + self.chunk + 1)
        return sum(step < self.first_fine_step[node.name] for step in steps)

    def encode(self, module, inputs, per_step=False):
        if not per_step:
            return self.repeated(module(inputs))  # on B rows, as in the QANN
        frames = torch.arange(self.step, self.step + self.chunk).clamp_max(self.input_steps - 1)
        return module(accumulate(inputs)[:, frames].transpose(0, 1).flatten(0, 1).contiguous())

    def static(self, current):
        return self.repeated(current) if current.shape[0] == self.batch_size else current

    def linear(self, module, x):
        if not isinstance(x, Rows) or x.levels is None or module.weight_quantizer is None:
            return module(x if isinstance(x, Rows) else Rows(x))
        product = x.levels.double() @ level_matrix(module.weight, module.weight_quantizer.scale).double()
        scale = x.scale * module.weight_quantizer.threshold(module.weight.dtype)
        values = product.to(scale.dtype) * scale
        return values if module.bias is None else (values + module.bias.to(scale.dtype)).to(module.weight.dtype)

    def matmul(self, product, a, b):
        if a.levels is None or b.levels is None:
            return a.values @ b.values
        return Rows(integers=a.levels.double() @ b.levels.double(), scale=a.scale * b.scale, dtype=a.dtype)

    def fire(self, node, current):
        current = unwrap(self.silence_padding(current))
        target = node.quantize(current).to(node.level_dtype).unflatten(0, (self.chunk, self.batch_size))
        past = self.history.setdefault(node.name, [])
        start = past[-1][-1] if past else torch.zeros_like(target[0])
        levels = track(target, start, self.graded(node), self.closed_steps(node), self.coarse_steps(node))
        past.append(levels)
        self.targets[node.name] = target[-1]
        return hand_on(node, levels.flatten(0, 1), current.dtype)


@dataclass
class NaiveRun:
    """What it did, step by step.

    Attributes:
        readout: (B, T, ...) after each step.
        counts: (B, T, nodes) spikes in each step.
        levels: {node name: (T, B, ...)}.
        equilibrium_step: (B,) last step at which the input or a level changed; -1 if the last levels are not final.
    """

    readout: torch.Tensor
    counts: torch.Tensor
    levels: dict[str, torch.Tensor]
    equilibrium_step: torch.Tensor

    def until(self, step: int) -> "NaiveRun":
        """What a run that ends after `step` leaves: nothing in a simulation looks ahead."""
        return NaiveRun(
            self.readout[:, :step],
            self.counts[:, :step],
            {name: levels[:step] for name, levels in self.levels.items()},
            torch.where(self.equilibrium_step <= step, self.equilibrium_step, -1),
        )


@contextmanager
def by_references():
    """Without compiled kernels, but with the arithmetic that is theirs on this machine."""
    fixed = kernels.in_fixed_point(torch.zeros(1))
    with mock.patch.object(kernels, "native", None), mock.patch.object(kernels, "in_fixed_point", return_value=fixed):
        yield


@torch.no_grad()
def run_naively(snn, batch: dict, time_steps: int, chunk_steps: int = 16) -> NaiveRun:
    """Simulate `snn` for all of `time_steps`, `chunk_steps` at once, without compiled kernels."""
    inputs = snn.prepare(**batch)
    given = inputs if isinstance(inputs, torch.Tensor) else inputs.given
    engine = NaiveEngine(
        given.shape[0],
        given.device,
        input_steps=given.shape[1] if "pixel_values" in batch and given.dim() == 5 else 1,
        max_spikes_per_step=snn.config.max_spikes_per_step,
        **snn.config.schedule(snn.nodes),
    )
    network = partial(snn.network, inputs)
    readouts = []
    with by_references():
        while engine.step + engine.chunk < time_steps:
            engine.advance(min(chunk_steps, time_steps - engine.step - engine.chunk))
            readout = unwrap(network(engine)[snn.readout])
            readouts.append(readout.unflatten(0, (engine.chunk, engine.batch_size)))
    levels = {name: torch.cat(chunks) for name, chunks in engine.history.items()}
    spikes = [
        x.long().diff(dim=0, prepend=torch.zeros_like(x[:1]).long()).flatten(2).abs().sum(-1) for x in levels.values()
    ]
    counts = torch.stack(spikes, -1)  # (T, B, nodes)
    steps = torch.arange(1, time_steps + 1)[:, None]
    last = torch.where(counts.any(-1), steps, engine.input_steps).amax(0)
    final = [(levels[name][-1] == target).flatten(1).all(1) for name, target in engine.targets.items()]
    settled = torch.stack(final).all(0) & (time_steps >= engine.input_steps)
    return NaiveRun(
        readout=torch.cat(readouts).transpose(0, 1),
        counts=counts.transpose(0, 1),
        levels=levels,
        equilibrium_step=torch.where(settled, last, -1),
    )

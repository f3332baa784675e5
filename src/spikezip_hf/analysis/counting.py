# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The engine that counts operations: the event-driven form, watched. What is counted is said in `operations.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from spikezip_hf.models.engines import EventEngine
from spikezip_hf.models.operators import LayerNorm, Softmax
from spikezip_hf.models.quantization import LSQQuantizer

ADDS = (torch.Tensor.add, torch.add)


@dataclass
class Entry:
    """One kind of operation in one named module.

    Attributes:
        module, kind: where and what; kinds are in `operations.KINDS`.
        count: (B,) int64, how often each sample did it.
        dense: (B,) int64, how often the quantized network does it in its one pass: multiply-adds of a product, else
            what the kind counts.
        integer: whether a product's operands are whole numbers times one scale, so that its sums are of integers.
        weight_bits: of a product with quantized weights.
        each_step: whether every step does it to the same elements.
    """

    module: str
    kind: str
    count: torch.Tensor
    dense: torch.Tensor
    integer: bool = False
    weight_bits: int | None = None
    each_step: bool = False


class Spikes(NamedTuple):
    """What a node fired in the running step; all three have one memory layout, so that a view of one fits all.

    Attributes:
        values: as they travel on; kept, or its memory would be used again.
        sizes: int64, |m| of each spike.
        present: int64, 1 where there is a neuron and 0 at padding.
        node: who fired.
    """

    values: torch.Tensor
    sizes: torch.Tensor
    present: torch.Tensor
    node: LSQQuantizer

    @property
    def integer(self) -> bool:
        """Whether one scale turns all its spikes into whole numbers."""
        return self.node.scale.numel() == 1


def silently(primitive: Callable) -> Callable:
    """An engine's primitive, whose own additions are no residual ones."""

    @wraps(primitive)
    def run(self, *args, **kwargs):
        outer, self.listening = self.listening, False
        try:
            return primitive(self, *args, **kwargs)
        finally:
            self.listening = outer

    return run


class CountingEngine(EventEngine):
    """An `EventEngine` that counts, sample by sample.

    Operands are known for spikes by their memory: views of it (heads, transposes, the first token) share that.

    Attributes:
        entries: {(module, kind): Entry}, in the order in which the network first does them; `count` of what is done
            in `each_step` is that of one step.
        static_elements: (B,) elements of the last static input current (B, N, features).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.entries: dict[tuple[str, str], Entry] = {}
        self.static_elements: torch.Tensor | None = None
        self.pending: dict[tuple[str, str], torch.Tensor] = {}
        self.fired: dict[int, Spikes] = {}
        self.sums: list[tuple[torch.Tensor, torch.Tensor]] = []  # (both sides changed, elements) of each `+`
        self.listening = True

    def advance(self, steps, samples=None, done=None):
        super().advance(steps, samples, done)
        self.pending, self.fired, self.sums = {}, {}, []

    def conclude(self, steps_counted=None):
        super().conclude(steps_counted)
        for key, count in self.pending.items():
            self.entries[key].count += count if steps_counted is None else count * steps_counted.to(count.device)

    def note(self, module: str, kind: str, count: torch.Tensor, dense: torch.Tensor, **about: Any) -> None:
        """Count something that happened in this step."""
        key = module, kind
        if key not in self.entries:
            none = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)
            self.entries[key] = Entry(module, kind, none, dense.to(self.device), **about)
        self.pending[key] = self.pending.get(key, 0) + count.to(self.device)

    def note_each_step(self, module: str, kind: str, elements: torch.Tensor) -> None:
        """Say that each step does this to all `elements` (B,)."""
        if (module, kind) not in self.entries:
            elements = elements.to(self.device)
            self.entries[module, kind] = Entry(module, kind, elements, elements, each_step=True)

    def spikes_of(self, x: torch.Tensor) -> Spikes | None:
        """Sizes and presence of the spikes that `x` is, or is a view of; None if it is something else."""
        fired = self.fired.get(x.untyped_storage().data_ptr())
        if fired is None:
            return None
        sizes, present = (
            whole.as_strided(x.shape, x.stride(), x.storage_offset()) for whole in (fired.sizes, fired.present)
        )
        return Spikes(x, sizes, present, fired.node)

    def remember(self, spikes: Spikes) -> None:
        self.fired[spikes.values.untyped_storage().data_ptr()] = spikes

    @silently
    def encode(self, module, inputs, per_step=False):
        current = super().encode(module, inputs, per_step)
        multiply_adds = self.filled(current[0].numel() * module.weight[0].numel())
        arrives = self.step < (inputs.shape[1] if per_step else 1)
        self.note(module.name, "input product", multiply_adds * arrives, multiply_adds)
        self.note_bias(module, self.filled(current[0].numel()))
        return current

    def static(self, current):
        self.sums.clear()  # what made the current: a look-up, once a sample, alike in every network
        if current.dim() == 3 and len(current) == self.batch_size:
            self.static_elements = self.neurons(current).to(self.device)
        return super().static(current)

    @silently
    def linear(self, module, x):
        current = super().linear(module, x)
        spikes, fan_out = self.spikes_of(x), module.out_features
        quantizer = module.weight_quantizer
        bits = None if quantizer is None else quantizer.bits
        if spikes is not None:
            integer = bits is not None and spikes.integer
            counts = total(spikes.sizes) * fan_out, total(spikes.present) * fan_out
            self.note(module.name, "weights", *counts, integer=integer, weight_bits=bits)
        else:
            changed = total(self.silence_padding(x) != 0) * fan_out
            self.note(module.name, "analog weights", changed, self.neurons(x) * fan_out, weight_bits=bits)
        self.note_bias(module, self.neurons(current))
        return current

    @silently
    def matmul(self, product, a, b):
        left, right = self.spikes_of(a), self.spikes_of(b)
        if left is None or right is None:
            raise ValueError(f"{product.name} takes something else than spikes: its operations cannot be counted.")
        # Sum over i, j, c of (row i, j) x (j, column c), as the sum over j of what the two sides have at j.
        at_j = {id(x): (x.sizes.sum(axis), x.present.sum(axis)) for x, axis in ((left, -2), (right, -1))}
        (a_spikes, a_neurons), (b_spikes, b_neurons) = at_j[id(left)], at_j[id(right)]
        dense = total(a_neurons * b_neurons)
        integer = left.integer and right.integer
        for kind, count in (
            ("SESA S_A B", a_neurons * b_spikes),
            ("SESA A S_B", a_spikes * b_neurons),
            ("SESA A B", a_spikes * b_spikes),
        ):
            self.note(product.name, kind, total(count), dense, integer=integer)
        return super().matmul(product, a, b)

    @silently
    def pool(self, module, x):
        """A mean of spikes needs no addition of its own: 1/N is in the weights of the product that reads it, which
        adds one for each spike. That of the quantized network, and one of a residual stream, has its additions."""
        pooled, spikes = super().pool(module, x), self.spikes_of(x)
        tokens = x[:, module.first :]
        changed = torch.zeros_like(tokens, dtype=torch.bool) if spikes is not None else tokens != 0
        self.note(module.name, "residual", total(changed), self.filled(tokens[0].numel()))
        if spikes is not None:
            sizes = spikes.sizes[:, module.first :].sum(1)
            self.remember(Spikes(pooled, sizes, torch.ones_like(sizes), spikes.node))
        return pooled

    @silently
    def apply(self, operator, x):
        kind = {LayerNorm: "LayerNorm", Softmax: "softmax"}.get(type(operator), "other operator")
        self.note_each_step(operator.name, kind, self.neurons(x))
        if kind == "LayerNorm":
            count, dense = total(self.silence_padding(x) != 0), torch.zeros_like(self.neurons(x))
            for both, elements in self.sums:
                count, dense = count + both, dense + elements
            self.note(operator.name, "residual", count, dense)
        self.sums.clear()
        return super().apply(operator, x)

    @silently
    def fire(self, node, current):
        return super().fire(node, current)

    def spikes(self, node, current):
        before = self.tracers.get(node.name)
        values = super().spikes(node, current)
        after = self.tracers[node.name].long()
        sizes, present = torch.empty_like(values, dtype=torch.int64), torch.ones_like(values, dtype=torch.int64)
        sizes.copy_((after if before is None else after - before).abs())
        present = self.silence_padding(present)
        if self.tokens is not None and current.dim() == 4:  # attention probabilities: positions on both sides
            present = present * self.tokens[:, None, None].to(present.device)
        # An operand's view is taken of all three, so they must lie in memory alike.
        alike = torch.empty_like(sizes)
        self.remember(Spikes(values, sizes, alike.copy_(present), node))
        neurons = self.neurons(current)
        self.note_each_step(node.name, "membrane update", neurons)
        self.note(node.name, "spike", total(sizes), neurons)
        return values

    def first_token(self, x):
        first, spikes = super().first_token(x), self.spikes_of(x)
        if spikes is not None and self.tokens is not None:  # a copy; without padding it is a view
            sizes, present = super().first_token(spikes.sizes), super().first_token(spikes.present)
            self.remember(Spikes(first, sizes, present, spikes.node))
        return first

    def rearrange(self, x, function):
        rearranged, spikes = super().rearrange(x, function), self.spikes_of(x)
        if spikes is not None and self.spikes_of(rearranged) is None:  # a copy, and no view
            # Zeros that were put beside are no neurons.
            self.remember(Spikes(rearranged, function(spikes.sizes), function(spikes.present), spikes.node))
        return rearranged

    def note_bias(self, module, elements: torch.Tensor) -> None:
        if module.bias is not None:
            self.note(module.name, "bias", elements * self.first_step, elements)

    def filled(self, number: int) -> torch.Tensor:
        return torch.full((self.batch_size,), number, dtype=torch.int64, device=self.device)

    def heard(self, a, b) -> None:
        """The network's own `a + b`: an addition wherever both sides change; else one of them passes through."""
        if not (torch.is_tensor(a) and torch.is_tensor(b)) or max(a.dim(), b.dim()) < 3:
            return
        both = self.silence_padding((a != 0) & (b != 0))
        if len(both) == self.batch_size:
            self.sums.append((total(both), self.neurons(both)))


class Residuals(TorchFunctionMode):
    """Residual additions are plain `+` in a network: inside, the engine hears of them."""

    def __init__(self, engine: CountingEngine):
        self.engine = engine

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in ADDS and self.engine.listening and len(args) == 2:
            self.engine.heard(*args)
        return func(*args, **(kwargs or {}))


def total(x: torch.Tensor) -> torch.Tensor:
    """(B, ...) to (B,) int64."""
    return x.flatten(1).sum(1, dtype=torch.int64)

"""An interpreter of spike graphs, in numpy and float64: what another implementation can be held to.

Written from SPIKE_GRAPH.md, without a line of the simulation in `spikezip_hf.models`. It knows both forms of the
format: `EventInterpreter`, in which only changes travel, step by step, and `CumulativeInterpreter`, in which
accumulated values do. Beside numpy it needs the loader, `spike_graph.py`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .spike_graph import BATCH, CURRENT, STATIC, Input, Neurons, Operation, SpikeGraph, load_spike_graph

Array = np.ndarray
# What does one thing to changes and another to accumulated values: methods of the interpreters.
TWO_FORMS = ("linear", "conv2d", "static", "matmul", "softmax", "tanh", "layer_norm", "fire")


@dataclass
class Run:
    """What a network did.

    Attributes:
        outputs: {name: (T, B, ...)} accumulated up to each step.
        spikes: {neurons: (T, B)} int64, spikes of each step; one of size m counts m.
        levels: {neurons: (B, ...)} int64, S_t after the last step.
        equilibrium_step: (B,) int64, last step, from 1, in which the input changed or a neuron fired; -1 where a
            neuron is not at its level after the last step.
    """

    outputs: dict[str, Array]
    spikes: dict[str, Array]
    levels: dict[str, Array]
    equilibrium_step: Array


class Interpreter:
    """State of one run of one batch.

    Args:
        inputs: {name: array}. An input of floats may have a step axis behind the batch, (B, F, ...): what arrives at
            each of the first F steps.

    Attributes:
        step_number: steps done.
        levels: {neurons: (B, ...)} S_t.
        at_target: {neurons: (B,) bool}, whether each neuron of a sample was left at the level of its input.

    Raises:
        ValueError: an input is missing, unknown, or does not fit; the message names it.
    """

    def __init__(self, graph: SpikeGraph, inputs: dict[str, Array]):
        self.graph = graph
        self.neurons = {item.name: item for item in graph.neurons}
        self.step_number = 0
        self.levels: dict[str, Array] = {}
        self.spikes: dict[str, Array] = {}
        self.at_target: dict[str, Array] = {}
        self.given, self.sizes = complete(graph.inputs, inputs)
        self.values: dict[str, Array] = dict(self.given)
        self.currents = [item.name for item in graph.inputs if item.type == "float"]
        self.input_steps = max((self.given[name].shape[1] for name in self.currents), default=1)
        for operation in graph.operations:
            if operation.phase == STATIC:
                self.values[operation.name] = self.apply(operation)

    def tensor(self, operation: Operation, name: str) -> Array | None:
        """A parameter as float64, if the operation has it."""
        key = operation.parameters.get(name)
        return None if key is None else self.graph.tensors[key].astype(np.float64)

    def apply(self, operation: Operation) -> Array:
        """The result of an operation on the present values of its inputs."""
        inputs = [self.values[name] for name in operation.inputs]
        if operation.phase == CURRENT and operation.kind in TWO_FORMS:
            return getattr(self, operation.kind)(operation, *inputs)
        shape = [self.sizes.get(size, size) for size in operation.shape]
        parameters = {name: self.tensor(operation, name) for name in operation.parameters}
        return RULES[operation.kind](*inputs, shape=shape, **parameters, **operation.attributes)

    def step(self) -> dict[str, Array]:
        """Run one step: {neurons: (B, ...) spikes, whole numbers with a sign}."""
        self.step_number += 1
        for name in self.currents:
            self.values[name] = self.arriving(self.given[name])
        for operation in self.graph.operations:
            if operation.phase == CURRENT:
                self.values[operation.name] = self.apply(operation)
        return self.spikes

    def weight(self, operation: Operation) -> Array:
        """W of an affine map: as it stands, or levels times the scale of each output channel."""
        weight, scale = self.tensor(operation, "weight"), self.tensor(operation, "weight_scale")
        assert weight is not None
        return weight if scale is None else weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))

    def arriving(self, x: Array) -> Array:
        """What counts in this step of a current, (B, F, ...)."""
        raise NotImplementedError

    def bias(self, operation: Operation) -> Array | float:
        """The bias, in the steps in which it comes in."""
        raise NotImplementedError

    def linear(self, operation: Operation, x: Array) -> Array:
        return x @ self.weight(operation).T + self.bias(operation)

    def conv2d(self, operation: Operation, x: Array) -> Array:
        bias = np.asarray(self.bias(operation))
        return convolve(x, self.weight(operation), **operation.attributes) + bias.reshape(-1, 1, 1)

    def function(self, operation: Operation, x: Array, f: Callable[[Array], Array]) -> Array:
        """A function of what has come."""
        raise NotImplementedError

    def softmax(self, operation: Operation, x: Array) -> Array:
        return self.function(operation, x, softmax)

    def tanh(self, operation: Operation, x: Array) -> Array:
        return self.function(operation, x, np.tanh)

    def layer_norm(self, operation: Operation, x: Array) -> Array:
        weight, bias, eps = *(self.tensor(operation, name) for name in ("weight", "bias")), operation.attributes["eps"]
        return self.function(operation, x, lambda total: layer_norm(total, weight, bias, eps))

    def may_fire(self, neurons: Neurons, pending: Array) -> Array:
        """Spikes of this step of those that are pending: at most k, and what the gates of the schedule let through."""
        if self.step_number < neurons.first_firing_step:
            return np.zeros_like(pending)
        most = self.graph.max_spikes_per_step
        spikes = np.clip(pending, -most, most)
        if self.step_number < neurons.first_fine_step:
            spikes[np.abs(pending) < 2] = 0
        return spikes

    def note(self, operation: Operation, pending: Array, spikes: Array) -> None:
        self.levels[operation.name] = self.levels.get(operation.name, 0) + spikes.astype(np.int64)
        self.spikes[operation.name] = spikes.astype(np.int64)
        self.at_target[operation.name] = (spikes == pending).reshape(len(spikes), -1).all(1)

    def threshold(self, operation: Operation) -> Array:
        return self.graph.tensors[self.neurons[operation.name].threshold].astype(np.float64)


class EventInterpreter(Interpreter):
    """Values are changes of one step: spikes between neurons, Eq. 4 and Eq. 5 of the paper."""

    def __init__(self, graph: SpikeGraph, inputs: dict[str, Array]):
        self.memory: dict[str, list[Array]] = {}
        super().__init__(graph, inputs)

    def arriving(self, x):
        return x[:, self.step_number - 1] if self.step_number <= x.shape[1] else np.zeros_like(x[:, 0])

    def bias(self, operation):
        bias = self.tensor(operation, "bias")
        return 0.0 if bias is None or self.step_number > 1 else bias

    def static(self, operation, x):
        return x if self.step_number == 1 else np.zeros_like(x)

    def matmul(self, operation, a, b):
        """SESA, Eq. 4: S_A @ B + A @ S_B - A @ B, with both sums of this step included."""
        total = self.memory.setdefault(operation.name, [np.zeros_like(a), np.zeros_like(b)])
        total[0] = total[0] + a
        total[1] = total[1] + b
        return total[0] @ b + a @ total[1] - a @ b

    def function(self, operation, x, f):
        """Eq. 5: its change."""
        total, last = self.memory.get(operation.name, (np.zeros_like(x), np.zeros(())))
        total = total + x
        output = f(total)
        self.memory[operation.name] = [total, output]
        return output - last

    def fire(self, operation, current, tokens=None):
        """Eq. 1: integrate, fire, reset by subtraction."""
        neurons, threshold = self.neurons[operation.name], self.threshold(operation)
        if tokens is not None:
            current = silenced(current, tokens)
        membrane = self.memory.get(operation.name, [threshold / 2])[0] + current
        level = self.levels.get(operation.name, np.zeros(()))
        pending = np.clip(level + np.floor(membrane / threshold), neurons.min_level, neurons.max_level) - level
        spikes = self.may_fire(neurons, pending)
        self.memory[operation.name] = [membrane - threshold * spikes]
        self.note(operation, pending, spikes)
        return threshold * spikes


class CumulativeInterpreter(Interpreter):
    """Values are accumulated up to the present step; only neurons have a memory, their level."""

    def arriving(self, x):
        return x[:, : self.step_number].sum(1)

    def bias(self, operation):
        bias = self.tensor(operation, "bias")
        return 0.0 if bias is None else bias

    def static(self, operation, x):
        return x

    def matmul(self, operation, a, b):
        return a @ b

    def function(self, operation, x, f):
        return f(x)

    def fire(self, operation, current, tokens=None):
        """A neuron goes towards the level of its accumulated input."""
        neurons, threshold = self.neurons[operation.name], self.threshold(operation)
        if tokens is not None:
            current = silenced(current, tokens)
        target = np.clip(np.floor(current / threshold + 0.5), neurons.min_level, neurons.max_level)
        pending = target - self.levels.get(operation.name, np.zeros(()))
        self.note(operation, pending, self.may_fire(neurons, pending))
        return threshold * self.levels[operation.name]


TYPES: dict[str, type] = {"float": np.float64, "int": np.int64, "bool": np.bool_}
FORMS = {"event": EventInterpreter, "cumulative": CumulativeInterpreter}


def run(graph: SpikeGraph, inputs: dict[str, Array], time_steps: int | None = None, form: str = "event") -> Run:
    """Run a network on a batch from rest, for all of `time_steps` (by default the graph's).

    Raises:
        ValueError: an input does not fit, or there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {tuple(FORMS)}, got {form!r}.")
    time_steps = graph.time_steps if time_steps is None else time_steps
    if time_steps < 1:
        raise ValueError(f"time_steps must be at least 1, got {time_steps}.")
    state = FORMS[form](graph, inputs)
    outputs: dict[str, list[Array]] = {name: [] for name in graph.outputs}
    spikes: dict[str, list[Array]] = {item.name: [] for item in graph.neurons}
    last = np.full(state.sizes[BATCH], state.input_steps, dtype=np.int64)
    for step in range(1, time_steps + 1):
        for name, fired in state.step().items():
            counts = np.abs(fired).reshape(len(fired), -1).sum(1)
            spikes[name].append(counts)
            last = np.where(counts > 0, np.maximum(last, step), last)
        for name, value in graph.outputs.items():
            outputs[name].append(state.values[value])
    settled = np.stack(list(state.at_target.values())).all(0)
    return Run(
        outputs={
            name: np.stack(steps).cumsum(0) if form == "event" else np.stack(steps) for name, steps in outputs.items()
        },
        spikes={name: np.stack(steps) for name, steps in spikes.items()},
        levels=state.levels,
        equilibrium_step=np.where(settled & (time_steps >= state.input_steps), last, -1),
    )


def main(arguments: list[str]) -> None:
    """`python -m spikezip_hf.export.interpreter GRAPH INPUTS.npz RESULTS.npz`: run in the event-driven form.

    RESULTS gets outputs/NAME, spikes/NEURONS, levels/NEURONS and equilibrium_step.
    """
    if len(arguments) != 3:
        raise SystemExit("usage: python -m spikezip_hf.export.interpreter GRAPH INPUTS.npz RESULTS.npz")
    folder, inputs, results = arguments
    with np.load(inputs) as given:
        done = run(load_spike_graph(folder), dict(given))
    arrays = {
        f"{field}/{name}": x for field in ("outputs", "spikes", "levels") for name, x in vars(done)[field].items()
    }
    np.savez(results, equilibrium_step=done.equilibrium_step, **arrays)


def complete(wanted: list[Input], given: dict[str, Array]) -> tuple[dict[str, Array], dict[str, int]]:
    """The inputs checked, those of floats as (B, F, ...), those left out filled in; and the sizes that they set."""
    unknown = [name for name in given if name not in [item.name for item in wanted]]
    if unknown:
        raise ValueError(f"{unknown[0]} is no input: the graph takes {', '.join(item.name for item in wanted)}.")
    inputs: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    x: Array
    for item in wanted:
        if item.name in given:
            x = np.asarray(given[item.name]).astype(TYPES[item.type])
            if item.type == "float" and x.ndim == len(item.shape):
                x = x[:, None]
            shape = x.shape[:1] + x.shape[2:] if item.type == "float" else x.shape
            for named, size in zip(item.shape, shape):
                if isinstance(named, str):
                    sizes.setdefault(named, size)
            if list(shape) != [sizes.get(size, size) for size in item.shape]:
                raise ValueError(f"{item.name} must be {item.shape}, got {list(np.shape(given[item.name]))}.")
        elif item.default is None:
            raise ValueError(f"{item.name} is missing.")
        else:
            x = default(item, [sizes[size] for size in item.shape], inputs)
        inputs[item.name] = x
    return inputs, sizes


def default(item: Input, shape: list[int], inputs: dict[str, Array]) -> Array:
    """An input that was left out."""
    assert item.default is not None
    if item.default["rule"] == "positions":  # counted from the first token of each text
        tokens = inputs["attention_mask"]
        counted = np.arange(tokens.shape[1]) - tokens.argmax(1)[:, None]
        return np.where(tokens, counted, 0) + item.default["first"]
    return np.full(shape, item.default["rule"] == "ones", dtype=TYPES[item.type])


def silenced(current: Array, tokens: Array) -> Array:
    """Nothing at positions of padding, the last axis but one."""
    return np.where(tokens.reshape(len(tokens), *(1,) * (current.ndim - 3), -1, 1), current, 0.0)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 0.0, **_) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return normed * (1.0 if weight is None else weight) + (0.0 if bias is None else bias)


def convolve(x: Array, weight: Array, stride, padding, dilation, groups) -> Array:
    """Cross-correlation in two dimensions, zeros around, (B, C, H, W) to (B, C', H', W')."""
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups, axis=0))
    return np.concatenate([np.einsum("bchwij,ocij->bohw", x, w, optimize=True) for x, w in parts], axis=1)


def embedding(ids: Array, weight: Array, **_) -> Array:
    if ids.min() < 0 or ids.max() >= len(weight):
        raise ValueError(f"An id is outside of 0 to {len(weight) - 1}.")
    return weight[ids]


def index(x: Array, index: list, **_) -> Array:
    return x[tuple(None if i == "new" else slice(*i) if isinstance(i, list) else i for i in index)]


# What acts on values and on changes alike, and what only constants go through. Each takes the inputs of an operation,
# and its shape, parameters and attributes by name.
RULES: dict[str, Callable[..., Any]] = {
    "constant": lambda value, shape: value,
    "full": lambda value, shape: np.full(shape, value),
    "embedding": embedding,
    "masked_fill": lambda x, mask, value, shape: np.where(mask, value, x),
    "logical_not": lambda x, shape: ~x,
    "add": lambda a, b, shape: a + b,
    "scale": lambda x, factor, shape: x * factor,
    "reshape": lambda x, shape: x.reshape(shape),
    "broadcast": lambda x, shape: np.broadcast_to(x, shape),
    "permute": lambda x, axes, shape: x.transpose(axes),
    "index": index,
    "concatenate": lambda *x, axis, shape: np.concatenate(x, axis),
    "mean": lambda x, axes, keep, shape: x.mean(tuple(axes), keepdims=keep),
    "sum": lambda x, axes, keep, shape: x.sum(tuple(axes), keepdims=keep),
    "pad": lambda x, pads, shape: np.pad(x, pads),
    "roll": lambda x, shifts, axes, shape: np.roll(x, shifts, axes),
    "first_token": lambda x, tokens, shape: x[np.arange(len(x)), tokens.argmax(1)],
    "layer_norm": layer_norm,
}


if __name__ == "__main__":
    main(sys.argv[1:])

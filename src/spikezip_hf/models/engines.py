# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""One network, several meanings. A network calls the primitives below on the engine it is given.

| engine             | its tensors mean                                  | it is for                        |
|--------------------|---------------------------------------------------|----------------------------------|
| `QuantEngine`      | values                                            | training and running the QANN    |
| `CumulativeEngine` | values accumulated up to a step, steps as rows    | exact simulation, in chunks of T |
| `EventEngine`      | what changes in one step: spikes, Eq. 4 and Eq. 5 | the paper to the letter          |

The primitives: `encode` (input to current), `static` (a constant current), `linear` (an affine module), `matmul` (both
operands dynamic), `apply` (softmax, LayerNorm), `fire` (an activation node). Residual additions are `+`. A network of
sequences says with `attend` which positions hold tokens: the others, padding, never fire and are never counted.

A spiking engine *is* the state of one run on one batch: nothing of it is kept in the modules, so nothing leaks from a
batch to the next and there is nothing to reset.
"""

import torch
from torch import nn

from .neurons import pending_spikes, track
from .operators import SESA, SPIKE_FORMS, MatMul, SpikeOperator
from .quantization import LSQQuantizer


class QuantEngine:
    """The quantized network: every tensor is a value, rows are samples.

    Attributes:
        tokens: (B, N) bool, which positions hold tokens; None where all do.
    """

    tokens: torch.Tensor | None = None

    def attend(self, tokens: torch.Tensor | None) -> None:
        """Say at the start of a pass which positions hold tokens, (B, N) bool, and which are padding.

        Padding is silent: its neurons get no current. What an own token sees, fires and counts is then the same
        however much padding is beside it. Currents are (rows, ..., N, features), or (rows, features) for a head.
        """
        self.tokens = tokens

    def token_rows(self) -> torch.Tensor | None:
        """`tokens` for each row of a pass: (rows, N)."""
        return self.tokens

    def silence_padding(self, current: torch.Tensor) -> torch.Tensor:
        """`current` with nothing at positions of padding."""
        tokens = self.token_rows()
        if tokens is None or current.dim() < 3:
            return current
        padding = ~tokens.reshape(tokens.shape[0], *(1,) * (current.dim() - 3), -1, 1)
        return current.masked_fill(padding.to(current.device), 0.0)

    def neurons(self, current: torch.Tensor) -> torch.Tensor:
        """(B,) int64, neurons that each sample has in a node whose current is (B, features), (B, N, features), or
        (B, heads, N, N) for attention probabilities; those of padding left out."""
        batch_size, *shape = current.shape
        total = torch.Size(shape).numel()
        if self.tokens is None or len(shape) < 2:
            return torch.full((batch_size,), total, device=current.device)
        axes = len(shape) - 1  # how many of the dimensions are positions
        return total // shape[-2] ** axes * self.tokens.sum(1) ** axes

    def first_token(self, x: torch.Tensor) -> torch.Tensor:
        """The first position that is not padding, (rows, N, features) to (rows, features)."""
        tokens = self.token_rows()
        if tokens is None:
            return x[:, 0]
        return x[torch.arange(x.shape[0], device=x.device), tokens.int().argmax(1).to(x.device)]

    def encode(self, module: nn.Module, inputs: torch.Tensor, per_step: bool = False) -> torch.Tensor:
        """Current that the affine `module` makes of the inputs: static, (B, ...), or `per_step`, (B, F, ...).

        Inputs per step add up.
        """
        return module(accumulate(inputs)[:, -1].contiguous() if per_step else inputs)

    def static(self, current: torch.Tensor) -> torch.Tensor:
        """A current that no spike changes (position embedding, class token, attention mask): (1, ...) or (B, ...)."""
        return current

    def linear(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return module(x)

    def matmul(self, product: MatMul, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(a, b)

    def apply(self, operator: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return operator(x)

    def fire(self, node: LSQQuantizer, current: torch.Tensor) -> torch.Tensor:
        return self.emit(node, self.silence_padding(current))

    def emit(self, node: LSQQuantizer, current: torch.Tensor) -> torch.Tensor:
        """What the node makes of the current that reaches it."""
        return node(current)


class RecordingEngine(QuantEngine):
    """A QuantEngine that keeps the level of every node, {node name: (B, ...)}, to hold a simulation against."""

    def __init__(self) -> None:
        self.levels: dict[str, torch.Tensor] = {}

    def emit(self, node, current):
        self.levels[node.name] = node.quantize(current).to(node.level_dtype)
        return super().emit(node, current)


class SpikingEngine(QuantEngine):
    """State of one simulation of one batch: what the two spiking engines share.

    Args:
        batch_size: B, samples in the batch.
        device: where per-sample records are kept.
        input_steps: F, steps over which the input arrives. A static input arrives whole at the first: 1.
        max_spikes_per_step: k of the neurons.
        first_firing_step: {node name: first step, from 1, at which the node may fire}; 1 where not given.

    Attributes:
        increments: whether tensors are changes of one step (to be summed over steps) or accumulated already.
        step: steps done before the running chunk; `chunk` steps are in it.
        tracers: {node name: (B, ...) integer levels S_t}, in network order.
        spike_counts: {node name: (B,) int64 spikes so far}; a spike of size m counts m.
        last_activity: (B,) int64, last step in which the sample's input changed or one of its neurons fired.
        settled: (B,) bool, whether after the running step every tracer equals its target.
        undefined: {node name: bool scalar}, whether NaN reached the node in the running chunk.
    """

    increments = False

    def __init__(
        self,
        batch_size: int,
        device: torch.device,
        input_steps: int = 1,
        max_spikes_per_step: int = 1,
        first_firing_step: dict[str, int] | None = None,
    ):
        self.batch_size = batch_size
        self.input_steps = input_steps
        self.max_spikes_per_step = max_spikes_per_step
        self.first_firing_step = first_firing_step or {}
        self.step = 0
        self.chunk = 0
        self.tracers: dict[str, torch.Tensor] = {}
        self.spike_counts: dict[str, torch.Tensor] = {}
        self.last_activity = torch.full((batch_size,), input_steps, dtype=torch.int64, device=device)
        self.settled = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self.undefined: dict[str, torch.Tensor] = {}

    def advance(self, steps: int) -> None:
        """Begin the next chunk, of at most `steps` steps."""
        self.step += self.chunk
        self.chunk = steps
        self.settled = torch.ones_like(self.settled)

    @property
    def input_finished(self) -> bool:
        """Whether the whole input has arrived by the end of the running chunk."""
        return self.step + self.chunk >= self.input_steps

    def closed_steps(self, node: LSQQuantizer) -> int:
        """Leading steps of the running chunk in which the node may not fire yet."""
        first_step = self.first_firing_step.get(node.name, 1)
        return min(max(first_step - 1 - self.step, 0), self.chunk)

    def graded(self, node: LSQQuantizer) -> int:
        """Most spikes a step of this node; more than L - 1 can never be asked of it."""
        return min(self.max_spikes_per_step, node.levels - 1)

    def check_defined(self) -> None:
        """Raise if NaN reached a node: an integer level cannot carry it on, and the answer would look sound."""
        if bool(torch.stack(list(self.undefined.values())).any()):
            name = next(name for name, undefined in self.undefined.items() if bool(undefined))
            raise FloatingPointError(
                f"The input of {name} is not a number. Look for NaN or infinity among the weights, or for an overflow "
                "if the model is in float16."
            )

    def record(self, node: LSQQuantizer, current: torch.Tensor, spikes: torch.Tensor, at_target: torch.Tensor) -> None:
        """Note what a node did in the running chunk.

        Args:
            current: its input, rows.
            spikes: (steps, B, ...).
            at_target: (B, ...), whether its last tracers are at their targets.
        """
        self.undefined[node.name] = current.isnan().any()
        counts = spikes.flatten(2).abs().sum(-1, dtype=torch.int64)
        self.spike_counts[node.name] = self.spike_counts.get(node.name, 0) + counts.sum(0)
        steps = torch.arange(1, self.chunk + 1, device=counts.device) + self.step
        last_spike = torch.where(counts > 0, steps[:, None], 0).amax(0)
        self.last_activity = torch.maximum(self.last_activity, last_spike)
        self.settled &= at_target.flatten(1).all(1)


class CumulativeEngine(SpikingEngine):
    """Tensors are accumulated values, (steps * B, ...), step by step: row t*B + b is sample b after step t.

    Because an ST-BIF+ neuron tracks its quantizer, every operator but the neuron may act on accumulated values with no
    memory of its own, and the steps of a chunk are rows of one product. Only `fire` goes through time.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accumulated_input: torch.Tensor | None = None

    def token_rows(self):
        return None if self.tokens is None else self.rows(self.tokens)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Repeat (B, ...) for each step of the chunk."""
        return x if self.chunk == 1 else x.repeat(self.chunk, *(1,) * (x.dim() - 1))

    def encode(self, module, inputs, per_step=False):
        if not per_step:
            # Computed on B rows as in the QANN, then repeated: a static current is the same at every step.
            return self.rows(module(inputs))
        if self.accumulated_input is None:
            self.accumulated_input = accumulate(inputs)
        frames = torch.arange(self.step, self.step + self.chunk, device=inputs.device).clamp_max(self.input_steps - 1)
        return module(self.accumulated_input[:, frames].transpose(0, 1).flatten(0, 1).contiguous())

    def static(self, current):
        return self.rows(current) if current.shape[0] == self.batch_size else current

    def emit(self, node, current):
        target = node.quantize(current).to(node.level_dtype).unflatten(0, (self.chunk, self.batch_size))
        start = self.tracers.get(node.name)
        if start is None:
            start = torch.zeros_like(target[0])
        levels = track(target, start, self.graded(node), self.closed_steps(node))
        self.record(node, current, levels.diff(dim=0, prepend=start[None]), levels[-1] == target[-1])
        self.tracers[node.name] = levels[-1].clone()  # a view would keep the whole chunk alive
        return node.dequantize(levels.flatten(0, 1), current.dtype)


class EventEngine(SpikingEngine):
    """Tensors are what changes in one step, (B, ...): the paper's own form, one step at a time.

    An affine module is its map without the bias, which enters once, at the first step. In float32 the sums of changes
    drift by rounding, by nature of this form: it is the oracle in float64, and it counts operations.
    """

    increments = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.membranes: dict[str, torch.Tensor] = {}
        self.products: dict[str, SESA] = {}
        self.operators: dict[str, SpikeOperator] = {}

    def advance(self, steps):
        super().advance(1)

    @property
    def first_step(self) -> bool:
        return self.step == 0

    def encode(self, module, inputs, per_step=False):
        frames = inputs if per_step else inputs.unsqueeze(1)
        change = frames[:, self.step] if self.step < frames.shape[1] else torch.zeros_like(frames[:, 0])
        return module(change, bias=self.first_step)

    def static(self, current):
        return current if self.first_step else torch.zeros_like(current)

    def linear(self, module, x):
        return module(x, bias=self.first_step)

    def matmul(self, product, a, b):
        return self.products.setdefault(product.name, SESA()).step(a, b)

    def apply(self, operator, x):
        if operator.name not in self.operators:
            self.operators[operator.name] = SPIKE_FORMS.get(type(operator), SpikeOperator)(operator)
        return self.operators[operator.name].step(x)

    def emit(self, node, current):
        threshold = node.threshold(current.dtype)
        if node.name not in self.membranes:  # V_0 = V_thr / 2, S_0 = 0
            self.membranes[node.name] = torch.zeros_like(current, dtype=threshold.dtype) + threshold / 2
            self.tracers[node.name] = torch.zeros_like(current, dtype=node.level_dtype)
        membrane = self.membranes[node.name] + current
        tracer = self.tracers[node.name].to(membrane.dtype)

        k = 0 if self.closed_steps(node) else self.graded(node)
        pending = pending_spikes(membrane, tracer, threshold, node.min_level, node.max_level)
        spikes = pending.clamp(-k, k)

        self.membranes[node.name] = membrane - threshold * spikes
        self.tracers[node.name] = (tracer + spikes).to(node.level_dtype)
        self.record(node, current, spikes[None], spikes == pending)
        return node.dequantize(spikes, current.dtype)


def accumulate(frames: torch.Tensor) -> torch.Tensor:
    """Input accumulated up to each of its steps: (B, F, ...) to (B, F, ...).

    The QANN of a network with input per step sees the last of these; the one sum serves both so that they agree to
    the bit.
    """
    return frames.cumsum(1)

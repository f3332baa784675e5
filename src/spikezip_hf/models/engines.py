# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""One network, several meanings. A network calls the primitives below on the engine it is given.

| engine             | its tensors mean                                  | it is for                        |
|--------------------|---------------------------------------------------|----------------------------------|
| `QuantEngine`      | values                                            | training and running the QANN    |
| `CumulativeEngine` | values accumulated up to a step, steps as rows    | exact simulation, in chunks of T |
| `EventEngine`      | what changes in one step: spikes, Eq. 4 and Eq. 5 | the paper to the letter          |

In inference the first two hand on `Rows`, which know the levels behind a value; in training tensors are plain ones.

The primitives: `encode` (input to current), `static` (a constant current), `linear` (an affine module), `matmul` (both
operands dynamic), `probabilities` (softmax of attention scores), `pool` (a mean over positions), `rearrange` (another
order of positions), `apply` (LayerNorm and other operators), `fire` (an activation node). Residual additions are `+`.
A network of sequences says with `attend` which positions hold tokens: the others, padding, never fire and are never
counted.

A spiking engine *is* the state of one run on one batch: nothing of it is kept in the modules, so nothing leaks from a
batch to the next and there is nothing to reset.
"""

import torch
from torch import nn

from .neurons import fire, levels_of, pending_spikes, silenced, undefined_current
from .operators import SESA, SPIKE_FORMS, MatMul, MeanPool, Softmax, SpikeOperator
from .quantization import LSQQuantizer
from .rows import Rows, Timeline, in_inference, unwrap


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

    def silence_padding(self, current):
        """`current` with nothing at positions of padding."""
        return silenced(current, self.tokens_of(current))

    def tokens_of(self, current: torch.Tensor | Rows) -> torch.Tensor | None:
        """(rows, N) where a current has tokens, on its device; None if everywhere, or if it has no positions."""
        tokens = self.token_rows()
        return None if tokens is None or current.dim() < 3 else tokens.to(current.device)

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

    def rearrange(self, x, function):
        """`function` of x: positions of each row in another order, or zeros beside them. Spikes stay spikes."""
        return x.reshaped(function, how=("rearranged",)) if isinstance(x, Rows) else function(x)

    def encode(self, module: nn.Module, inputs: torch.Tensor, per_step: bool = False) -> torch.Tensor:
        """Current that the affine `module` makes of the inputs: static, (B, ...), or `per_step`, (B, F, ...).

        Inputs per step add up.
        """
        return module(accumulate(inputs)[:, -1].contiguous() if per_step else inputs)

    def static(self, current: torch.Tensor) -> torch.Tensor:
        """A current that no spike changes (position embedding, class token, attention mask): (1, ...) or (B, ...)."""
        return current

    def linear(self, module: nn.Module, x):
        return module(x)

    def matmul(self, product: MatMul, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(a, b)

    def pool(self, module: MeanPool, x: torch.Tensor) -> torch.Tensor:
        """Mean over positions, (rows, N, features) to (rows, features).

        It is a static linear map: of spikes, its weights 1/N are part of those of the product that reads it.
        """
        return module(x)

    def apply(self, operator: nn.Module, x: torch.Tensor, *others) -> torch.Tensor:
        return operator(x, *others)

    def probabilities(self, softmax: Softmax, scores, bias: torch.Tensor | None = None):
        """What `softmax` makes of attention scores, (rows, [windows,] heads, N, N). Nothing looks at padding.

        Args:
            bias: (B, windows or 1, heads, N, N) or the like, a static term of the scores.
        """
        if bias is not None:
            scores = scores + self.static(bias)
        if self.tokens is None:
            return self.apply(softmax, scores)
        return self.apply(softmax, *self.without_padding(scores, self.tokens))

    def without_padding(self, scores, tokens: torch.Tensor) -> tuple:
        """What a softmax is given so that it looks at no padding: scores, and which of them count."""
        return scores, self.static(tokens[:, None, None])

    def fire(self, node: LSQQuantizer, current):
        """What the node makes of the current: its levels in inference, else values; at padding it gets none."""
        if not in_inference(node):
            return node(self.silence_padding(current))
        return node(current, self.infer)

    def infer(self, node: LSQQuantizer, current: torch.Tensor | Rows) -> Rows:
        """Levels, and values with a gradient where one is asked for."""
        # By `forward`: the call that this is part of has run the hooks.
        values = node.forward(unwrap(self.silence_padding(current))) if torch.is_grad_enabled() else None
        with torch.no_grad():
            levels = levels_of(node, current, self.tokens_of(current))
            return hand_on(node, levels, current.dtype, values)


def hand_on(node: LSQQuantizer, levels: torch.Tensor, dtype, values=None, timeline=None) -> Rows:
    """Levels as what follows a node gets them: values are made of them where they are asked for.

    Args:
        dtype: of the values.
        values: the values, if they are there already.
    """
    peak, scale, sources = max(-node.min_level, node.max_level), node.threshold(dtype), (node.name,)
    return Rows(values, integers=levels, scale=scale, peak=peak, dtype=dtype, timeline=timeline, sources=sources)


class RecordingEngine(QuantEngine):
    """A QuantEngine that keeps the level of every node, {node name: (B, ...)}, to hold a simulation against."""

    def __init__(self) -> None:
        self.levels: dict[str, torch.Tensor] = {}

    def fire(self, node, current):
        fired = super().fire(node, current)
        self.levels[node.name] = fired.integers
        return fired


class SpikingEngine(QuantEngine):
    """State of one simulation of one batch: what the two spiking engines share.

    Args:
        batch_size: B, samples in the batch.
        device: where per-sample records are kept.
        input_steps: F, steps over which the input arrives. A static input arrives whole at the first: 1.
        max_spikes_per_step: k of the neurons.
        first_firing_step: {node name: first step, from 1, at which the node may fire}; 1 where not given.
        first_fine_step: {node name: first step, from 1, at which it no longer fires coarsely}; 1 where not given.

    Attributes:
        step: steps that the samples of the running chunk have done before it; `chunk` steps are in it.
        samples: (L,) int64, on the CPU, the samples that the running chunk simulates, in order; None for all.
        tracers: {node name: (B, ...) integer levels S_t}, in network order.
        spike_counts: (B, nodes) int64 spikes so far; a spike of size m counts m. A number before the first chunk.
        last_activity: (B,) int64, last step in which the sample's input changed or one of its neurons fired.
        at_target: (B, nodes) bool, whether after the last step that the sample was simulated in the node's tracers
            equal their targets. None before the first chunk.
        firing: {node name: (counts, at_target, undefined)} of the running chunk, as in `neurons.Firing`.
    """

    def __init__(
        self,
        batch_size: int,
        device: torch.device,
        input_steps: int = 1,
        max_spikes_per_step: int = 1,
        first_firing_step: dict[str, int] | None = None,
        first_fine_step: dict[str, int] | None = None,
    ):
        self.batch_size = batch_size
        self.device = device
        self.input_steps = input_steps
        self.max_spikes_per_step = max_spikes_per_step
        self.first_firing_step = first_firing_step or {}
        self.first_fine_step = first_fine_step or {}
        self.step = 0
        self.chunk = 0
        self.samples: torch.Tensor | None = None
        self.tracers: dict[str, torch.Tensor] = {}
        self.spike_counts: torch.Tensor | int = 0
        self.last_activity = torch.full((batch_size,), input_steps, device=device)
        self.at_target: torch.Tensor | None = None
        self.firing: dict[str, tuple] = {}

    def advance(self, steps: int, samples: torch.Tensor | None = None, done: int | None = None) -> None:
        """Begin the next chunk, of at most `steps` steps, with these samples; None for all.

        Args:
            done: steps that these samples have done; those before it and in it, of the last chunk, if None.
        """
        self.step = self.step + self.chunk if done is None else done
        self.chunk = steps
        self.samples = samples
        self.firing = {}

    @property
    def settled(self) -> torch.Tensor:
        """(B,) bool, whether all nodes of a sample are at their targets."""
        if self.at_target is None:
            return torch.zeros(self.batch_size, dtype=torch.bool, device=self.device)
        return self.at_target.all(1)

    @property
    def num_samples(self) -> int:
        """L, how many samples the running chunk simulates."""
        return self.batch_size if self.samples is None else len(self.samples)

    @property
    def input_finished(self) -> bool:
        """Whether the whole input has arrived by the end of the running chunk."""
        return self.step + self.chunk >= self.input_steps

    def closed_steps(self, node: LSQQuantizer) -> int:
        """Leading steps of the running chunk in which the node may not fire yet."""
        return self.steps_before(self.first_firing_step.get(node.name, 1))

    def coarse_steps(self, node: LSQQuantizer) -> int:
        """Leading steps of the running chunk in which the node may not fire, or fires coarsely."""
        return self.steps_before(self.first_fine_step.get(node.name, 1))

    def steps_before(self, step: int) -> int:
        """How many steps of the running chunk come before `step`."""
        return min(max(step - 1 - self.step, 0), self.chunk)

    def graded(self, node: LSQQuantizer) -> int:
        """Most spikes a step of this node; more than L - 1 can never be asked of it."""
        return min(self.max_spikes_per_step, node.levels - 1)

    def accumulated(self, readout, before: torch.Tensor | None, every_step: bool) -> torch.Tensor:
        """What the network gave in the running chunk, accumulated up to its steps.

        Args:
            readout: its output.
            before: (B, ...) accumulated before the chunk; None before the first.
            every_step: up to each step and not up to the last one alone.

        Returns:
            (chunk or 1, L, ...).
        """
        raise NotImplementedError

    def chosen(self, x: torch.Tensor) -> torch.Tensor:
        """Those of (B, ...) that the running chunk simulates."""
        return x if self.samples is None else x[self.samples.to(x.device)]

    def conclude(self, steps_counted: torch.Tensor | None = None) -> None:
        """End the running chunk: note what its neurons did.

        Args:
            steps_counted: (L,) steps of the chunk that count, for each sample; None for all.

        Raises:
            FloatingPointError: NaN reached a node; the message names it.
        """
        everything = slice(None) if self.samples is None else self.samples.to(self.device)
        counts = torch.stack([counts for counts, _, _ in self.firing.values()], -1)  # (chunk, L, nodes)
        flags = [flag for _, _, flag in self.firing.values()]
        if not all(isinstance(flag, bool) for flag in flags):
            flags = torch.stack([torch.as_tensor(flag, device=self.device) for flag in flags]).tolist()
        if any(flags):
            raise undefined_current(list(self.firing)[flags.index(True)])
        steps = torch.arange(1, self.chunk + 1, device=self.device)
        if steps_counted is not None:
            counts = counts * (steps[:, None] <= steps_counted)[..., None]
        if isinstance(self.spike_counts, int):
            self.spike_counts = counts.new_zeros(self.batch_size, counts.shape[-1])
            self.at_target = torch.zeros_like(self.spike_counts, dtype=torch.bool)
        self.spike_counts[everything] += counts.sum(0)
        active = torch.where(counts.any(-1), steps[:, None] + self.step, 0).amax(0)
        self.last_activity[everything] = torch.maximum(self.last_activity[everything], active)
        assert self.at_target is not None
        self.at_target[everything] = torch.stack([at_target for _, at_target, _ in self.firing.values()], 1)


class CumulativeEngine(SpikingEngine):
    """Tensors are accumulated values, (rows, ...), a row for each step and sample at which something changed.

    Because an ST-BIF+ neuron tracks its quantizer, every operator but the neuron may act on accumulated values with no
    memory of its own, and the steps of a chunk are rows of one product. Only `fire` goes through time. A row that is
    the same as one step earlier is not there: see `Timeline`. On a GPU all are, as looking for such rows would have
    every node wait for the device. On a CPU a node `rests` while nothing can move it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.currents: dict[str, torch.Tensor] = {}  # of static inputs: the same at every step
        self.accumulated_input: torch.Tensor | None = None
        self.sources: dict[str, tuple] = {}  # of each node's current, as of `Rows`: the same so far, empty if not

    def advance(self, steps, samples=None, done=None):
        super().advance(steps, samples, done)
        self.constant = Timeline.constant(steps, self.num_samples)
        self.moved: set[str] = set()  # nodes that fired in the running chunk; of interest where others may rest
        self.resting: set[str] = set()  # nodes that the last chunk left at their targets, in all running samples
        spikes = torch.zeros(steps, self.num_samples, dtype=torch.int64, device=self.device)
        self.no_spikes = spikes, torch.ones_like(spikes[0], dtype=torch.bool), False  # of a node that rests
        if self.at_target is not None and self.device.type == "cpu":
            at_target = self.chosen(self.at_target).all(0).tolist()
            self.resting = {name for name, resting in zip(self.tracers, at_target) if resting}

    def rows(self, x: torch.Tensor | Rows) -> Rows:
        """What stays the same at all steps, (L, ...), as rows.

        Raises:
            ValueError: it has another number of rows.
        """
        if isinstance(x, Rows):
            return x
        if len(x) != self.num_samples:
            raise ValueError(
                f"A plain tensor of {len(x)} rows came where {self.num_samples} samples are simulated: a hook must "
                "hand on what torch functions make of the Rows that it gets, which know their steps."
            )
        return Rows(x, timeline=self.constant)

    def encode(self, module, inputs, per_step=False):
        if not per_step:
            # Computed on B rows as in the QANN, once.
            if module.name not in self.currents:
                self.currents[module.name] = module(inputs)
            return self.rows(self.chosen(self.currents[module.name]))
        if self.accumulated_input is None:
            self.accumulated_input = accumulate(inputs)
        steps = torch.arange(self.step, self.step + self.chunk, device="cpu")
        arrives = steps < self.input_steps
        arrives[0] = True
        frames = steps[arrives].clamp_max(self.input_steps - 1)
        accumulated = self.chosen(self.accumulated_input)[:, frames.to(inputs.device)]
        timeline = Timeline(arrives[:, None].expand(-1, self.num_samples))
        return Rows(module(accumulated.transpose(0, 1).flatten(0, 1).contiguous()), timeline=timeline)

    def static(self, current):
        return self.rows(self.chosen(current)) if current.shape[0] == self.batch_size else current

    def first_token(self, x):
        if self.tokens is None:
            return x[:, 0]
        first = self.chosen(self.tokens).int().argmax(1)
        of_row = x.timeline.changed.nonzero()[:, 1].to(first.device)
        rows = torch.arange(x.shape[0], device=first.device)
        return x[rows, first[of_row]]

    def fire(self, node, current):
        current = self.rows(current)
        tokens = None if self.tokens is None or current.dim() < 3 else self.chosen(self.tokens).to(current.device)

        def step(node, current):
            if self.rests(node, current):
                return self.rest(node, current)
            tracer = self.tracers.get(node.name)
            before = None if tracer is None else self.chosen(tracer)
            gate = self.graded(node), self.closed_steps(node), self.coarse_steps(node)
            fired = fire(node, current, before, tokens, *gate)
            self.firing[node.name] = fired.counts, fired.at_target, fired.undefined
            if self.samples is None:
                self.tracers[node.name] = fired.tracer
            else:
                if tracer is None:
                    tracer = fired.tracer.new_zeros(self.batch_size, *fired.tracer.shape[1:])
                    self.tracers[node.name] = tracer
                tracer[self.samples.to(current.device)] = fired.tracer
            if self.resting and bool(fired.counts.any()):
                self.moved.add(node.name)
            return hand_on(node, fired.levels, current.dtype, timeline=fired.timeline)

        return node(current, step)

    def rests(self, node: LSQQuantizer, current: Rows) -> bool:
        """Whether nothing happens in the running chunk: the node is at its target, and its current, which need not be
        looked at, is made of the same levels as in the step before. Asked in each chunk, as it notes the sources."""
        if self.sources.setdefault(node.name, current.sources) != current.sources:
            self.sources[node.name] = ()  # a hook that comes and goes
        sources = self.sources[node.name]
        return node.name in self.resting and bool(sources) and self.moved.isdisjoint(sources)

    def rest(self, node: LSQQuantizer, current: Rows) -> Rows:
        """The running chunk of a node that `rests`; a product that was still to be done is not."""
        self.firing[node.name] = self.no_spikes
        tracer = self.chosen(self.tracers[node.name]).clone()  # the next chunk uses its memory up
        return hand_on(node, tracer, current.dtype, timeline=self.constant)

    def accumulated(self, readout, before, every_step):
        readout = self.rows(readout)
        index = readout.timeline.index[0 if every_step else -1 :]
        return readout.values[index.to(readout.device)]


class EventEngine(SpikingEngine):
    """Tensors are what changes in one step, (B, ...): the paper's own form, one step at a time.

    An affine module is its map without the bias, which enters once, at the first step. In float32 the sums of changes
    drift by rounding, by nature of this form: it is the oracle in float64, and it counts operations.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.membranes: dict[str, torch.Tensor] = {}
        self.products: dict[str, SESA] = {}
        self.operators: dict[str, SpikeOperator] = {}

    def advance(self, steps, samples=None, done=None):
        super().advance(1, None, done)  # all samples: its state is in many places

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

    def without_padding(self, scores, tokens):
        return (scores + self.static(padding_bias(tokens, scores.dtype)),)

    def apply(self, operator, x):
        if operator.name not in self.operators:
            self.operators[operator.name] = SPIKE_FORMS.get(type(operator), SpikeOperator)(operator)
        return self.operators[operator.name].step(x)

    def fire(self, node, current):
        return node(self.silence_padding(current), self.spikes)

    def spikes(self, node: LSQQuantizer, current: torch.Tensor) -> torch.Tensor:
        """Spikes, s times their sign and size, of the neurons of `node` in this step (paper Eq. 1)."""
        threshold = node.threshold(current.dtype)
        if node.name not in self.membranes:  # V_0 = V_thr / 2, S_0 = 0
            self.membranes[node.name] = torch.zeros_like(current) + threshold / 2
            self.tracers[node.name] = torch.zeros_like(current)
        membrane = self.membranes[node.name] + current
        tracer = self.tracers[node.name]

        k = 0 if self.closed_steps(node) else self.graded(node)
        pending = pending_spikes(membrane, tracer, threshold, node.min_level, node.max_level)
        spikes = pending.clamp(-k, k)
        if self.coarse_steps(node):
            spikes = spikes.masked_fill(pending.abs() < 2, 0)

        self.membranes[node.name] = membrane - threshold * spikes
        self.tracers[node.name] = (tracer + spikes).to(node.level_dtype)
        counts = spikes.flatten(1).abs().sum(1, dtype=torch.int64)[None]
        at_target = (spikes == pending).flatten(1).all(1)
        self.firing[node.name] = counts, at_target, current.isnan().any()
        return node.dequantize(spikes, current.dtype)

    def accumulated(self, readout, before, every_step):
        return (readout if before is None else before + readout)[None]


def padding_bias(tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, 1, N) static term of attention scores that keeps padding out of every softmax."""
    bias = torch.zeros(tokens.shape, dtype=dtype, device=tokens.device)
    return bias.masked_fill(~tokens, torch.finfo(dtype).min)[:, None, None]


def accumulate(frames: torch.Tensor) -> torch.Tensor:
    """Input accumulated up to each of its steps: (B, F, ...) to (B, F, ...).

    The QANN of a network with input per step sees the last of these; the one sum serves both so that they agree to
    the bit.
    """
    return frames.cumsum(1)

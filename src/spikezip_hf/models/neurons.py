# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The ST-BIF+ neuron (paper section 3.1, Eq. 1), in two equal forms. State goes in and comes out; none is kept here.

    V_t = V_{t-1} + V_in_t - V_thr * Theta_t                Theta_t = +1  if V >= V_thr and S < S_max
    S_t = S_{t-1} + Theta_t                                           -1  if V < 0      and S > S_min
                                                                       0  otherwise,  with V = V_{t-1} + V_in_t

With V_0 = s/2 and V_thr = s, let U_t be the accumulated input and Q(U) = clamp(floor(U/s + 1/2), S_min, S_max) the
level that the neuron's quantizer gives. Then V_t = U_t + s/2 - s*S_t, so the two conditions above say S < Q(U) and
S > Q(U): the neuron *tracks its quantizer*, one level a step,

    S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -k, k)           with k = 1.

k > 1 (graded spikes) has the same fixed point. So has a neuron that may not fire before some step, or that for some
steps fires *coarsely*: only if its target is two levels away or more, that is at V >= 2 V_thr or V < -V_thr. A
difference of one level, most often a passing one while its inputs still move, is left for later.
"""

from typing import NamedTuple

import torch

from .kernels import compiled
from .quantization import LSQQuantizer
from .rows import Rows, Timeline


class Firing(NamedTuple):
    """What the neurons of a node do in a chunk of T steps.

    Attributes:
        levels: (rows, ...) levels S_t after those steps at which they move, and after the first.
        timeline: the steps that rows stand for.
        tracer: (B, ...) levels after the last step.
        counts: (T, B) int64 spikes of each step; a spike of size m counts m.
        at_target: (B,) bool, whether the last levels are the quantizer's.
        undefined: bool, or bool scalar: whether NaN was among the currents.
    """

    levels: torch.Tensor
    timeline: Timeline
    tracer: torch.Tensor
    counts: torch.Tensor
    at_target: torch.Tensor
    undefined: torch.Tensor | bool


def fire(
    node: LSQQuantizer,
    current: Rows,
    tracer: torch.Tensor | None,
    tokens: torch.Tensor | None = None,
    max_spikes: int = 1,
    closed_steps: int = 0,
    coarse_steps: int = 0,
) -> Firing:
    """Run the neurons of `node` through a chunk, by a compiled kernel if there is one.

    Args:
        current: accumulated, (rows, ...), on the timeline of the chunk.
        tracer: (B, ...) levels before the chunk, 0 at padding; its memory is used up. None for 0 everywhere.
        tokens: (B, N) bool: where there is none, at a position of padding, neurons get no current, and so never fire.
            Positions are the last dimension but one.
        max_spikes, closed_steps, coarse_steps: as in `track`; the first of any size.
    """
    assert current.timeline is not None
    max_spikes = min(max_spikes, node.levels - 1)  # no two levels are further apart, and it is held in their type
    threshold, index = node.threshold(torch.float32), current.timeline.index
    given, fresh = sums_of(current), tracer is None
    if tracer is None:
        shape = index.shape[1], *current.shape[1:]
        tracer = torch.empty(shape, dtype=node.level_dtype, device=current.device)
    kernels = compiled(*given, threshold, tracer, tokens, neurons=True)
    fits = current.dtype == torch.float32 and current.timeline.num_rows <= current.shape[0]
    if kernels is None or not fits or not kernels.takes_neurons(*given, threshold, index, tracer, tokens):
        tracer = tracer.zero_() if fresh else tracer
        return fire_reference(node, current, tracer, tokens, max_spikes, closed_steps, coarse_steps)
    bounds = node.min_level, node.max_level
    levels, changed, row_of, *report = kernels.fire(
        *given, threshold, bounds, index, tracer, tokens, max_spikes, closed_steps, coarse_steps, fresh
    )
    return Firing(levels, Timeline(changed, row_of, len(levels)), tracer, *report)


def sums_of(current: Rows):
    """What a kernel makes currents of: whole sums, or the product that they come of, with scale and bias; else the
    values, or a softmax that has still to be done, and nothing."""
    if current.product is not None and current.product.with_neurons:
        return current.product, current.scale, current.bias
    if current.pending is not None:  # only the kernels for a CPU put a softmax off
        return current.pending, None, None
    integers = current.integers
    # On a GPU products of integers are done in floats, which hold whole sums.
    whole = (torch.int32, torch.float32) if current.device.type == "cuda" else (torch.int32,)
    if integers is not None and integers.dtype in whole:
        return integers, current.scale, current.bias
    return current.values, None, None


def levels_of(node: LSQQuantizer, current: torch.Tensor | Rows, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """The quantizer's levels, whole numbers in an integer type; on a GPU in a floating one, which can hold NaN.

    Args:
        current: (rows, ...), any layout.
        tokens: (rows, N) bool, as for `fire`.

    Raises:
        FloatingPointError: NaN is among the currents, on a CPU.
    """
    rows = current if isinstance(current, Rows) else Rows(current)
    if rows.device.type != "cpu":
        return node.quantize(silenced(rows.values, tokens))
    # One step of neurons that may fire as often as it takes.
    one_step = rows.retimed(Timeline.constant(1, rows.shape[0]))
    fired = fire(node, one_step, None, tokens, max_spikes=node.levels)
    if bool(fired.undefined):
        raise undefined_current(node.name)
    return fired.levels


def undefined_current(name: str) -> FloatingPointError:
    """The error of NaN at a node: an integer level cannot carry it on, and the answer would look sound."""
    return FloatingPointError(
        f"The input of {name} is not a number. Look for NaN or infinity among the weights, or for an overflow if the "
        "model is in float16."
    )


def silenced(current, tokens: torch.Tensor | None):
    """A current (rows, ..., N, features), but none at padding; tokens (rows, N), None where there is no padding."""
    return current if tokens is None else current.masked_fill(padding_of(tokens, current.dim()), 0.0)


def padding_of(tokens: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Where a current of so many dimensions, (rows, ..., N, features), is at padding: (rows, 1, ..., N, 1) bool."""
    return ~tokens.reshape(tokens.shape[0], *(1,) * (dimensions - 3), -1, 1)


def fire_reference(
    node: LSQQuantizer,
    current: Rows,
    tracer: torch.Tensor,
    tokens: torch.Tensor | None = None,
    max_spikes: int = 1,
    closed_steps: int = 0,
    coarse_steps: int = 0,
) -> Firing:
    """`fire` in plain torch: what every kernel is held to."""
    assert current.timeline is not None
    index = current.timeline.index.to(tracer.device)
    target = node.quantize(current.values).to(node.level_dtype)
    if current.timeline.num_rows != index.numel():
        target = target[index.flatten()]
    target = target.unflatten(0, tuple(index.shape))
    values = current.values
    if tokens is not None:
        values = values[index.flatten()].unflatten(0, tuple(index.shape))
        padding = padding_of(tokens, tracer.dim())
        target, values = target.masked_fill(padding, 0), values.masked_fill(padding, 0.0)
    undefined = values.max().isnan()  # the largest is NaN if any is: one pass, and no tensor of bool
    levels = track(target, tracer, max_spikes, closed_steps, coarse_steps)
    counts = levels.diff(dim=0, prepend=tracer[None]).flatten(2).abs().sum(-1)  # int64, as any sum of integers
    # On a GPU to look which rows have changed would wait for the device, at every node: there all are kept.
    on_cpu = levels.device.type == "cpu"
    changed = counts > 0 if on_cpu else torch.ones(counts.shape, dtype=torch.bool, device="cpu")
    changed[0] = True
    timeline = Timeline(changed)
    rows = levels.flatten(0, 1)
    return Firing(
        rows if timeline.num_rows == len(rows) else rows[changed.flatten()],
        timeline,
        levels[-1].clone(),  # a view would keep the whole chunk alive
        counts,
        (levels[-1] == target[-1]).flatten(1).all(1),
        undefined,
    )


def track(
    target: torch.Tensor, tracer: torch.Tensor, max_spikes: int = 1, closed_steps: int = 0, coarse_steps: int = 0
) -> torch.Tensor:
    """Tracer form: levels S_t after each of T steps, from the quantizer's levels of the accumulated inputs.

    Args:
        target: (T, B, ...) integer levels Q(U_t).
        tracer: (B, ...) levels S_0 before the first of these steps, same type (`LSQQuantizer.level_dtype`, which
            holds differences of two levels without wrapping).
        max_spikes: k, most spikes a step.
        closed_steps: the first so many steps the neuron may not fire.
        coarse_steps: the first so many steps, those among them, it leaves a difference of one level alone.

    Returns:
        (T, B, ...) levels; the spikes of step t are `levels[t] - levels[t-1]`.
    """
    levels = torch.empty_like(target)
    for t in range(target.shape[0]):
        if t >= closed_steps:
            behind = target[t] - tracer
            if t < coarse_steps:
                behind = behind.masked_fill(behind.abs() < 2, 0)
            tracer = tracer + behind.clamp(-max_spikes, max_spikes)
        levels[t] = tracer
    return levels


def pending_spikes(
    membrane: torch.Tensor, tracer: torch.Tensor, threshold: torch.Tensor, min_level: int, max_level: int
) -> torch.Tensor:
    """Spikes (signed, any number) that separate a neuron with membrane V from rest: Q(U) - S.

    Args:
        membrane: (B, ...) potential V_{t-1} + V_in_t.
        tracer: (B, ...) levels S_{t-1}, whole numbers of any type.
        threshold: V_thr = s, (1,) or (features,).
    """
    return (tracer + torch.floor(membrane / threshold)).clamp(min_level, max_level) - tracer

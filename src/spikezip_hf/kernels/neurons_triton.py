# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The neurons of a node on a GPU, in Triton: what `gpu.py` launches. Imported by it alone, as it needs triton.

Exact because of three things. `tl.div_rn` is the correctly rounded division (`div.rn.f32`), where `/` is one that may
be off by two units in the last place. It must be launched with `enable_fp_fusion=False`, or sum * scale + bias becomes
one fma, which rounds once where the reference rounds twice. Bounds are compared with `where`, whose answer for NaN is
written here and does not depend on what a backend's minimum does. (Its floor may take the tiniest numbers for
zero, which changes nothing: x / s + 1/2 is zero or at least 2^-25.)
"""

import time

import torch
import triton
import triton.language as tl

PLAIN_NUMBERS = (
    "positions", "steps", "samples", "low", "high", "most", "closed", "coarse",
    "scales", "biases", "thresholds", "size_class",
)  # fmt: skip


@triton.jit(do_not_specialize=PLAIN_NUMBERS)
def neurons(
    current,  # (rows, neurons) float32 or int32
    scale,  # float32, one or one a feature; None: currents are values
    bias,  # as scale; or None
    threshold,  # as scale
    tokens,  # (samples, positions) bytes, 0 at padding; or None
    index,  # (steps, samples) int64, the row of a step; None: each step of each sample has its own, in that order
    tracer,  # (samples, neurons) int8 before the first step
    levels,  # (steps, samples, neurons) int8, to be filled
    report,  # int64 zeros, added to: spikes (steps, samples), neurons not at their target (samples), NaN (1)
    count,  # neurons of a sample
    features,
    positions,
    steps,
    samples,
    low,  # bounds of a level, floating point
    high,
    most,  # spikes of a neuron in a step
    closed,  # steps in which nothing may fire
    coarse,  # steps in which nothing fires at a difference of one level
    scales,  # distance of two features' numbers: 1, or 0 where all have the same
    biases,
    thresholds,
    size_class,  # what the choice of a configuration depends on; not read here
    BLOCK: tl.constexpr,
):
    """A block of neurons of one sample, through all steps.

    What it reads it leaves alone, but for `report`: once that is zero it can run again, as autotuning has it do.
    """
    blocks = tl.cdiv(count, BLOCK)
    sample = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    feature = i % features
    awake = there
    if tokens is not None:
        position = (i // features) % positions
        awake = there & (tl.load(tokens + sample * positions + position, mask=there, other=0) != 0)
    s = tl.load(threshold + feature * thresholds, mask=there, other=1.0)
    if scale is not None:
        factor = tl.load(scale + feature * scales, mask=there, other=1.0)
    if bias is not None:
        offset = tl.load(bias + feature * biases, mask=there, other=0.0)

    wide = tl.cast(count, tl.int64)  # a chunk may have more than 2^31 levels
    level = tl.load(tracer + sample * wide + i, mask=there, other=0).to(tl.int32)
    target = level
    undefined = tl.zeros([BLOCK], tl.int32)
    for step in range(steps):
        place = step * samples + sample
        row = tl.load(index + place) if index is not None else tl.cast(place, tl.int64)
        x = tl.load(current + row * wide + i, mask=awake, other=0).to(tl.float32)
        if scale is not None:
            x = x * factor
        if bias is not None:
            x = x + offset
        undefined = undefined | ((x != x) & awake).to(tl.int32)
        wanted = tl.floor(tl.div_rn(x, s) + 0.5)
        wanted = tl.where(wanted < high, wanted, high)  # also of NaN, as in neurons.h; it is reported
        wanted = tl.where(wanted > low, wanted, low)
        target = tl.where(awake, wanted, 0.0).to(tl.int32)

        k = tl.where(step < closed, 0, most)
        jump = target - level
        fewest = tl.where(step < coarse, 2, 1)
        jump = tl.where(tl.abs(jump) < fewest, 0, jump)
        jump = tl.where(jump < k, jump, k)
        jump = tl.where(jump > -k, jump, -k)
        level = level + jump
        tl.store(levels + place * wide + i, level.to(tl.int8), mask=there)
        spikes = tl.sum(tl.where(there, tl.abs(jump), 0), 0)
        tl.atomic_add(report + place, spikes.to(tl.int64), mask=spikes > 0, sem="relaxed")

    behind = tl.sum(((target != level) & there).to(tl.int32), 0)
    tl.atomic_add(report + steps * samples + sample, behind.to(tl.int64), mask=behind > 0, sem="relaxed")
    nans = tl.sum(undefined, 0)
    tl.atomic_add(report + (steps + 1) * samples, nans.to(tl.int64), mask=nans > 0, sem="relaxed")


RUNS = 8  # timed for each configuration


def duration(call, quantiles=None) -> list[float]:
    """Time of some runs, for autotuning. Triton's own way takes 256 MB, which a GPU full of a network may not have."""
    call()
    wait()
    start = time.perf_counter()
    for _ in range(RUNS):
        call()
    wait()
    return [time.perf_counter() - start] * 3


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


CONFIGURATIONS = [
    triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in ((256, 2), (512, 4), (1024, 4), (2048, 8))
]
tuned_neurons = triton.autotune(CONFIGURATIONS, key=["size_class"], reset_to_zero=["report"], do_bench=duration)(
    neurons
)

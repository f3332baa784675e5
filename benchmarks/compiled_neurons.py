"""Neurons of one node by torch.compile, by the kernel in C, and in plain torch: seconds of a chunk, and of compiling.

    python benchmarks/compiled_neurons.py

The current is one of int32 sums, with scale and bias, of 13 steps of ViT-S/16's widest node. Prints JSON.
"""

import json
import statistics
import time

import torch

from spikezip_hf.kernels import native
from spikezip_hf.models.neurons import track


def plain(sums, scale, bias, threshold, tracer):
    """(T, N, features) int32 to levels (T, N, features) and spikes of each step (T,)."""
    target = ((sums * scale + bias) / threshold + 0.5).floor().clamp(0, 15).to(torch.int8)
    levels = track(target, tracer)
    return levels, levels.diff(dim=0, prepend=tracer[None]).abs().flatten(1).sum(1, dtype=torch.int64)


def seconds(run, repeats: int = 21) -> tuple[float, float]:
    """Of the first call, and the median of the others."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken[0], statistics.median(taken[1:])


def main() -> None:
    torch.manual_seed(0)
    steps, positions, features = 13, 197, 1536
    sums = torch.randint(-9000, 9000, (steps, positions, features), dtype=torch.int32)
    scale, bias, threshold = torch.rand(features) / 3000, torch.randn(features) / 10, torch.full((features,), 0.1)
    tracer, index = torch.zeros(positions, features, dtype=torch.int8), torch.arange(steps).view(steps, 1)
    kernels = native.library()
    assert kernels is not None, "This needs the kernels: a C compiler."

    def ours():
        rest = tracer.clone()[None]
        return kernels.fire(sums, scale, bias, threshold, (0, 15), index, rest, None, 1, 0)

    compiled = torch.compile(plain, dynamic=False)
    rows = {
        "plain torch": lambda: plain(sums, scale, bias, threshold, tracer),
        "torch.compile": lambda: compiled(sums, scale, bias, threshold, tracer),
        "kernel in C": ours,
    }
    answer = {}
    for name, run in rows.items():
        first, other = seconds(run)
        answer[name] = {"first call": round(first, 3), "milliseconds": round(1000 * other, 2)}
    levels = plain(sums, scale, bias, threshold, tracer)[0]
    answer["torch.compile"]["same levels"] = torch.equal(rows["torch.compile"]()[0], levels)
    found = ours()
    answer["kernel in C"]["same levels"] = torch.equal(found[0][found[2].flatten()], levels)
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()

"""What T and the chunk cost: seconds and memory of a simulation of ViT-S/16, each in a process of its own.

    python benchmarks/simulation_scaling.py

All T steps are simulated (stop="never"). Memory is how far the process grew over what it took before, at its largest.
Prints JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from simulation import make


def peak() -> int:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def one(steps: int, chunk: int | None, weight_bits: int | None, batch: int) -> dict[str, float]:
    """One setting, in this process."""
    _, snn, inputs = make("vit_s_16", 16, weight_bits, batch)
    snn(**inputs, execution="equilibrium")  # kernels and weights are there
    before = peak()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        snn(**inputs, time_steps=steps, chunk_steps=chunk, stop="never")
        seconds.append(time.perf_counter() - start)
    return {"seconds": round(statistics.median(seconds), 3), "MiB more": round((peak() - before) / 2**20, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        steps, chunk, bits, batch = (None if value == "None" else int(value) for value in args.one)
        print(json.dumps(one(steps, chunk, bits, batch)))
        return

    def run(*setting) -> dict[str, float]:
        command = [sys.executable, __file__, "--one", *map(str, setting)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    lengths = (16, 32, 64, 128, 256, 512)
    answer = {
        "T (float32, batch 1, chunk chosen)": {steps: run(steps, None, None, 1) for steps in lengths},
        "T (8 bits, batch 1, chunk chosen)": {steps: run(steps, None, 8, 1) for steps in lengths},
        "chunk (8 bits, batch 1, T = 64)": {str(chunk): run(64, chunk, 8, 1) for chunk in (1, 8, 63, None)},
        "batch (8 bits, T = 32, chunk chosen)": {batch: run(32, None, 8, batch) for batch in (1, 4)},
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()

"""What T and the chunk cost: seconds and memory of a simulation of ViT-S/16, each in a process of its own.

    python benchmarks/simulation_scaling.py

All T steps are simulated (stop="never"). Memory is how far the process grew over what it took before, at its largest.
Then how long chunks should be: a small ViT to equilibrium and through all T steps, in turns in one process.
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
from simulation import SMALL, make, medians


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


@torch.no_grad()
def chunks(dtype: torch.dtype, batch: int, stop: str, steps: int = 512) -> dict:
    """Milliseconds of a run, by the length of its chunks."""
    _, snn, inputs = make(SMALL, 32, None, batch)
    snn, inputs = snn.to(dtype), {name: x.to(dtype) for name, x in inputs.items()}
    runs = {
        str(chunk): lambda chunk=chunk: snn(**inputs, time_steps=steps, stop=stop, chunk_steps=chunk)
        for chunk in (steps - 1, 128, 64, 32)
    }
    seconds = medians(runs, 5)
    T_eq = int(runs["64"]().equilibrium_step.max())
    return {"T_eq": T_eq, "milliseconds": {chunk: round(1000 * value, 1) for chunk, value in seconds.items()}}


def lengths_of_chunks() -> dict:
    found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for dtype, batch in ((torch.float32, 1), (torch.float32, 8), (torch.float64, 1)):
        for stop in ("equilibrium", "never"):
            found[f"{dtype}, batch {batch}, {stop}".removeprefix("torch.")] = chunks(dtype, batch, stop)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--chunks", action="store_true", help="Only how long chunks should be, of a small ViT.")
    args = parser.parse_args()
    if args.one:
        steps, chunk, bits, batch = (None if value == "None" else int(value) for value in args.one)
        print(json.dumps(one(steps, chunk, bits, batch)))
        return

    def run(*setting) -> dict[str, float]:
        command = [sys.executable, __file__, "--one", *map(str, setting)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    if args.chunks:
        print(json.dumps(lengths_of_chunks(), indent=2))
        return
    lengths = (16, 32, 64, 128, 256, 512)
    answer = {
        "T (float32, batch 1, chunk chosen)": {steps: run(steps, None, None, 1) for steps in lengths},
        "T (8 bits, batch 1, chunk chosen)": {steps: run(steps, None, 8, 1) for steps in lengths},
        "chunk (8 bits, batch 1, T = 64)": {str(chunk): run(64, chunk, 8, 1) for chunk in (1, 8, 63, None)},
        "batch (8 bits, T = 32, chunk chosen)": {batch: run(32, None, 8, batch) for batch in (1, 4)},
        # The last: a process hands its largest memory so far on to those that it starts.
        "chunks (ViT of 4 layers, 64 wide, 32 levels, T = 512)": lengths_of_chunks(),
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()

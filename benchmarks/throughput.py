"""Samples a second of whole simulations: by network, type of weights and batch, on a GPU or on a CPU.

    python benchmarks/throughput.py --output outputs/throughput.json                  # all networks, T = 64
    python benchmarks/throughput.py --networks vit_s_16 --types float32 "8 bits" --batches 1 8 64 --seconds 240

Each row is one network, type and batch: the QANN's forward pass, all T steps, and to proven equilibrium. Against
them stands the *dense limit*, T forward passes of the QANN, with as many samples at once as a pass of all T steps
has rows. A CPU computes only what is new in a step, and goes beyond it; a GPU computes every step, and goes beyond
it only by ending early, or by a kernel for neurons that is faster than the QANN's quantizers. With a kernel for
neurons on a GPU, all T steps are run without it, too.

A row says how far the logits are off the QANN's (0.0 is the same bits) and how many samples were proven at
equilibrium. "8 bits" are quantized weights in float32. Weights are random; texts have 64 tokens. Rows are made with
small batches first, and each is kept when it is there, whatever ends the script. Prints JSON.
"""

import argparse
import gc
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from unittest import mock

import torch
from simulation import NETWORKS, SMALL, make, medians

from spikezip_hf.files import write_json
from spikezip_hf.kernels import gpu
from spikezip_hf.models.simulation import default_chunk

TYPES = {
    "float32": (torch.float32, None),
    "8 bits": (torch.float32, 8),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
}


def waited(run: Callable[[], object], device: str) -> Callable[[], object]:
    """`run`, until the device has done it."""

    def inner() -> object:
        result = run()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return inner


def memory(device: str) -> tuple[str, int]:
    """The most that there was, in bytes, and of what: of the last run on a GPU, of the process so far on a CPU."""
    if device == "cuda":
        return "MiB at most, both networks and the simulation", torch.cuda.max_memory_allocated()
    return "MiB of the process so far", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def row(qann, snn, inputs: dict[str, torch.Tensor], steps: int, repeats: int, device: str) -> dict:
    """One setting."""
    main = inputs[snn.main_input_name]
    batch = len(main)
    samples, chunk = default_chunk(batch, steps, snn.row_bytes(main), main.device, "never")
    rows = samples * min(chunk, max(1, steps - 1))
    many = {name: x[torch.arange(rows, device=device) % batch] for name, x in inputs.items()}

    def simulated(stop: str):
        return snn(**inputs, time_steps=steps, stop=stop)

    runs: dict[str, Callable[[], object]] = {
        "QANN": lambda: qann(**inputs),
        "QANN, rows of a chunk": lambda: qann(**many),
        "all T steps": lambda: simulated("never"),
        "to proven equilibrium": lambda: simulated("equilibrium"),
    }
    if device == "cuda" and gpu.gpu_library(main.device) is not None:

        def without_kernel():
            with mock.patch.object(gpu, "gpu_library", return_value=None):
                return simulated("never")

        runs["all T steps, neurons in plain torch"] = without_kernel
    seconds = medians({name: waited(run, device) for name, run in runs.items()}, repeats)
    expected = qann(**inputs).logits
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    outputs = simulated("equilibrium")
    whose, most = memory(device)
    per_second = {name: (rows if "rows" in name else batch) / value for name, value in seconds.items()}
    limit = per_second.pop("QANN, rows of a chunk") / steps
    return {
        "rows of a chunk": rows,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "samples a second": {name: float(f"{value:.4g}") for name, value in per_second.items()},
        "dense limit, samples a second": float(f"{limit:.4g}"),
        "times the dense limit": {
            name: round(value / limit, 3) for name, value in per_second.items() if name != "QANN"
        },
        "off the QANN": float((outputs.logits.float() - expected.float()).abs().max()),
        "proven": int((outputs.equilibrium_step > 0).sum()),
        "T_eq": int(outputs.equilibrium_step.max()),
        whose: round(most / 2**20),
    }


def setting(args: argparse.Namespace, network: str, name: str, batch: int) -> dict:
    """What there is of one network, type and batch."""
    dtype, weight_bits = TYPES[name]
    qann, snn, inputs = make(network, args.levels, weight_bits, batch, args.device)
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    return row(qann.to(dtype), snn.to(dtype), inputs, args.time_steps, args.repeats, args.device)


def machine(device: str) -> dict:
    found = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    if device == "cuda":
        kernel = gpu.gpu_library(torch.device("cuda", torch.cuda.current_device()))
        found |= {"GPU": torch.cuda.get_device_name(), "kernel for neurons": kernel is not None}
    return found | {"processor": platform.processor() or platform.machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=[name for name in NETWORKS if name != SMALL]
    )
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["float32", "8 bits"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--levels", type=int, default=32)
    parser.add_argument("--time-steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Begin no row after so many.")
    parser.add_argument(
        "--output", type=Path, help="A file, written after each row; else they are printed at the end."
    )
    args = parser.parse_args()
    begun = time.monotonic()
    settings = list(product(sorted(args.batches), args.networks, args.types))
    answer = {"T": args.time_steps, "levels": args.levels, "repeats": args.repeats, **machine(args.device)}
    answer |= {"left out": len(settings), "rows": []}
    try:
        for batch, network, name in settings:
            if time.monotonic() - begun > args.seconds:
                break
            found = {"network": network, "weights": name, "batch": batch}
            try:
                found |= setting(args, network, name, batch)
            except Exception as error:  # of memory, a compiler, a driver: the others may do
                found["error"] = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            gc.collect()
            torch.cuda.empty_cache()  # does nothing where there is no GPU
            answer["rows"].append(found)
            print(json.dumps(found), file=sys.stderr, flush=True)
            answer["left out"] -= 1
            if args.output:
                write_json(args.output, answer)
    finally:
        print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()

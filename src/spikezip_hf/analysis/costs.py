"""What simulation and training cost: time and memory against T (paper, Table 3), hours and energy (paper, Table 7).

Table 3 says how time and memory of the operators grow with the number of time-steps T: time O(T), memory not at all.
`simulation_costs` measures both for whole networks, on the machine at hand. These are costs of simulating spikes, not
of spiking hardware. Two executions: "event", the paper's operators step by step, and "cumulative", the default, which
computes only the steps at which something changes, so that its time grows with what moves and not with T.

Table 7 has hours, and kilowatt-hours that are these hours times 300 to 450 W for each GPU (`paper_training`).
`training_costs` does likewise with what a trainer has put on record, for watts that the user knows.
"""

import ctypes
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.models.engines import SpikingEngine
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from spikezip_hf.models.simulation import Trajectory

STEPS = (16, 32, 64, 128)
EXECUTIONS = {"cumulative": "SNN", "event": "SNN, step by step"}
MIB = 2**20
SIMULATION_DEFINITIONS = {
    "SNN": "The default simulation: only steps at which something changes are computed.",
    "SNN, step by step": 'The paper\'s operators, each step computed (execution="event").',
    "T": "Time-steps asked for; until equilibrium: at most so many.",
    "stillness": "Nothing moved any more, and yet some level is not the quantized network's: in float32 the sums of "
    "the step-by-step form drift.",
    "seconds": "Of simulating the whole batch: the shortest of the runs, after one that warms up. Of this machine "
    "with whatever else ran on it; it says nothing of spiking hardware.",
    "extra memory (MiB)": "Most memory of the run beyond what was in use before it (network, inputs, libraries). On "
    "a CPU the growth of the process's resident memory, which has a grain of some tenths of a MiB, and holds what the "
    "allocator keeps without using it; on a GPU what torch had allocated.",
}
TRAINING_DEFINITIONS = {
    "hours": "Wall clock of the training loop, with its evaluations; loading data and saving are not in it. Of a "
    "training that was cut off and resumed: of the last part alone, so a lower bound.",
    "kWh": "Hours times the watts that were given, of all its machines together: nothing is measured. The paper's "
    "Table 7 comes to 300 to 450 W for each GPU.",
}
# (network, data set, GPUs, hours, kWh) as printed in the paper's Table 7.
PRINTED = (
    ("SpikeGPT", "SST-2", 4, 48.0, 57.6),
    ("SpikeZIP-TF", "SST-2", 1, 1.03, 0.36),
    ("SpikformerV2", "ImageNet", 8, 196.7, 472.08),
    ("SpikeZIP-TF", "ImageNet", 8, 30.0, 108.0),
)


def simulation_costs(
    snn: SpikePreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    time_steps: Sequence[int] = STEPS,
    *,
    most_steps: int = 512,
    executions: Sequence[str] = tuple(EXECUTIONS),
    repeats: int = 2,
) -> dict[str, Any]:
    """Time and memory of simulating a batch, for several T and until equilibrium, beside one pass of the QANN.

    Args:
        inputs: of the model; "labels" are left aside.
        time_steps: the T to measure, each simulated to its end (stop="never").
        most_steps: T of the run until equilibrium.
        executions: "cumulative", "event", or both.
        repeats: runs of each, after one that warms up.

    Returns:
        Ready for JSON: "table" (a row for each run), "says", "about" and "definitions".

    Raises:
        TypeError: `snn` is no Spike model.
        ValueError: a number of steps or repeats below 1, none, or an execution there is not.
    """
    if not isinstance(snn, SpikePreTrainedModel):
        raise TypeError(f"snn is a {type(snn).__name__}: make a Spike model of it with from_quantized.")
    for name, values in (("time_steps", time_steps), ("most_steps", (most_steps,)), ("repeats", (repeats,))):
        if not values:
            raise ValueError(f"{name} is empty.")
        for value in values:
            check_positive_integer(name, value)
    for execution in executions:
        if execution not in EXECUTIONS:
            raise ValueError(f"executions must be of {', '.join(EXECUTIONS)}, got {execution!r}.")
    inputs = snn.inputs_of(inputs)
    qann = snn.to_quantized().eval()
    settings = [
        (execution, steps, stop)
        for execution in executions
        for steps, stop in [*((steps, "never") for steps in sorted(set(time_steps))), (most_steps, "equilibrium")]
    ]
    rows = []
    with torch.no_grad(), tqdm(total=1 + len(settings), desc="measuring costs", unit="setting") as bar:
        seconds, extra, _ = least(lambda: qann(**inputs), snn.device, repeats)
        rows.append(cost_row("QANN", "-", "-", 1, seconds, extra))
        bar.update()
        for execution, steps, stop in settings:

            def simulate(execution=execution, steps=steps, stop=stop):
                return snn.trajectory(**inputs, time_steps=steps, stop=stop, execution=execution)

            seconds, extra, run = least(simulate, snn.device, repeats)
            until, taken = "T", steps
            if stop == "equilibrium":
                until, taken = how_it_ended(run, steps_run(snn, simulate), steps)
            rows.append(cost_row(EXECUTIONS[execution], steps, until, taken, seconds, extra))
            bar.update()
    return {
        "table": rows,
        "says": growth(rows),
        "about": {
            "samples": len(next(iter(inputs.values()))),
            "device": torch.cuda.get_device_name(snn.device) if snn.device.type == "cuda" else snn.device.type,
            "threads": torch.get_num_threads(),
            "runs of each": repeats,
        },
        "definitions": {
            name: text
            for name, text in SIMULATION_DEFINITIONS.items()
            if name != "stillness" or any(row["until"].startswith(name) for row in rows)
        },
    }


def steps_run(snn: SpikePreTrainedModel, simulate: Callable[[], Any]) -> int:
    """How many steps a simulation runs, those that prove equilibrium among them."""
    engines = []

    def note(module, args, kwargs):
        if isinstance(kwargs.get("engine"), SpikingEngine):
            engines.append(kwargs["engine"])

    handle = snn.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        simulate()
    finally:
        handle.remove()
    return engines[-1].step + engines[-1].chunk


def how_it_ended(run: Trajectory, ran: int, most: int) -> tuple[str, int]:
    """(until what a simulation that stops at equilibrium went on, steps)."""
    assert run.equilibrium_step is not None
    reached = run.equilibrium_step > 0
    if bool(reached.all()):
        return "equilibrium", int(run.equilibrium_step.max())
    proven = f"({int(reached.sum())} of {len(reached)} at equilibrium)"
    return f"{'stillness' if ran < most else 'T'} {proven}", ran


def cost_row(network: str, steps: int | str, until: str, taken: int, seconds: float, extra: int | None):
    return {
        "network": network,
        "T": steps,
        "until": until,
        "steps": taken,
        "seconds": seconds,
        "ms a step": 1e3 * seconds / taken,
        "extra memory (MiB)": None if extra is None else extra / MIB,
    }


def growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each execution: how time and memory grew from the least to the most steps."""
    said = []
    for name in EXECUTIONS.values():
        some = [row for row in rows if row["network"] == name and row["until"] == "T"]
        if len(some) < 2:
            continue
        first, last = some[0], some[-1]
        sentence = (
            f"{name}: from T = {first['T']} to {last['T']}, {last['T'] / first['T']:.3g} times the steps, the time "
            f"grew {last['seconds'] / first['seconds']:.2g}-fold"
        )
        memory = first["extra memory (MiB)"], last["extra memory (MiB)"]
        if None not in memory:
            sentence += f", and memory went from {memory[0]:.1f} to {memory[1]:.1f} MiB"
        said.append(f"{sentence}.")
    return [*said, "Table 3 of the paper: time O(T), memory the same for every T."] if said else []


def least(run: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, int | None, Any]:
    """(shortest time in seconds, most extra bytes, result) of some runs after one that warms up."""
    run()
    found = [measured(run, device) for _ in range(repeats)]
    sizes = [extra for _, extra, _ in found]
    return (
        min(seconds for seconds, _, _ in found),
        None if None in sizes else max(sizes),  # type: ignore[type-var]
        found[-1][2],
    )


def measured(run: Callable[[], Any], device: torch.device) -> tuple[float, int | None, Any]:
    """(seconds, extra bytes at the peak, result) of a run; None for bytes where the system does not say."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        before = start_peak()
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")
    return seconds, None if before is None or peak is None else max(0, peak - before), result


def start_peak() -> int | None:
    """Bytes of this process that are in memory now, from where its peak counts anew; None where that cannot be."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs have freed would be used again, and not be seen
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):  # no glibc, no Linux, or not allowed
        return None
    return resident("VmRSS")


def resident(entry: str) -> int | None:
    """Bytes of this process in memory ("VmRSS"), or the most of them ("VmHWM"); None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")), None)


def training_costs(records: Sequence[str | Path], watts: float | None = None) -> dict[str, Any]:
    """Hours, and energy if watts are given, of trainings on record.

    Args:
        records: JSON files: training.json of a trained network, or results that hold several stages.
        watts: of all that a training ran on together, while it ran. There is no default: nobody knows it but you.

    Returns:
        Ready for JSON: "table", a row for each stage and one of all; "about" and "definitions".

    Raises:
        OSError: a file cannot be read.
        ValueError: it holds no training, or `watts` is no number above 0.
    """
    if watts is not None and not (isinstance(watts, int | float) and 0 < watts < float("inf")):
        raise ValueError(f"watts must be a number above 0, got {watts!r}.")
    rows = []
    for path in map(Path, records):
        try:
            found = stages(json.loads(path.read_text(encoding="utf-8")), path)
        except ValueError as error:
            raise ValueError(f"{path} is no record of a training: {error}") from error
        rows += [training_row(name, stage, watts) for name, stage in found.items()]
    if not rows:
        raise ValueError("records is empty.")
    if len(rows) > 1:
        total: dict[str, Any] = {"training": "all of these", "hours": sum(row["hours"] for row in rows)}
        rows.append(total | ({} if watts is None else {"kWh": sum(row["kWh"] for row in rows)}))
    definitions = {name: text for name, text in TRAINING_DEFINITIONS.items() if name in rows[0]}
    return {"table": rows, "about": {"watts": watts}, "definitions": definitions}


def stages(record: Any, path: Path) -> dict[str, Mapping[str, Any]]:
    """{name: stage} of the trainings in a record."""
    if not isinstance(record, Mapping):
        raise ValueError("it is no object.")
    if is_seconds(record.get("seconds")):
        return {path.resolve().parent.name if path.name == "training.json" else path.stem: record}
    found = {
        f"{path.stem}: {name}": stage
        for name, stage in record.items()
        if isinstance(stage, Mapping) and is_seconds(stage.get("seconds"))
    }
    if not found:
        raise ValueError('nothing in it has "seconds".')
    return found


def is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def training_row(name: str, stage: Mapping[str, Any], watts: float | None) -> dict[str, Any]:
    hours = stage["seconds"] / 3600
    row: dict[str, Any] = {"training": name, "hours": hours}
    if watts is not None:
        row["kWh"] = hours * watts / 1000
    return row | {
        "data": stage.get("data"),
        "hardware": stage.get("hardware"),
        "processes": stage.get("processes"),
        "resumed": stage.get("resumed"),
    }


def paper_training() -> list[dict[str, Any]]:
    """Rows of the paper's Table 7, with the watts for each GPU that hours and kilowatt-hours imply."""
    return [
        {
            "network": network,
            "data": data,
            "GPUs": gpus,
            "hours": hours,
            "kWh": kwh,
            "watts a GPU": 1000 * kwh / hours / gpus,
        }
        for network, data, gpus, hours, kwh in PRINTED
    ]

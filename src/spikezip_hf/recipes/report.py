"""A checkpoint on a test set, looked at in time: what `spikezip report` does."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.analysis.closeup import close_up
from spikezip_hf.analysis.costs import simulation_costs, training_costs
from spikezip_hf.analysis.energy import EnergyReport, energy
from spikezip_hf.analysis.energy_account import part_table
from spikezip_hf.analysis.operations import Operations, count_operations
from spikezip_hf.analysis.page import shown
from spikezip_hf.analysis.recording import record
from spikezip_hf.analysis.report import HTML, check_folder, nodes_to_see, write_report
from spikezip_hf.analysis.watching import visible
from spikezip_hf.errors import memory_advice
from spikezip_hf.loading import class_of, is_text, load_network
from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.recipes import stage
from spikezip_hf.recipes.evaluate import about_data, by_length, check_no_stream, twins_of
from spikezip_hf.recipes.inputs import (
    DataArguments,
    check_labels,
    data_name,
    load_data,
    model_inputs,
    reported_split,
    settle_frames,
)
from spikezip_hf.training.snn_evaluation import evenly_spread_rows

COUNTED_PARTS = 4  # batches in which operations are counted, at least: so that a bar of progress says something
COSTED_SAMPLES = 4  # samples of the batch of which time and memory are measured


@dataclass
class ReportArguments:
    """How to report."""

    output: str | None = field(default=None, metadata={"help": "Folder for the report."})
    time_steps: int = field(default=512, metadata={"help": "Most time-steps that a sample is simulated for."})
    limit: int | None = field(default=256, metadata={"help": "Samples to simulate, evenly spread; None for all."})
    sample: int | None = field(default=None, metadata={"help": "Row to look at closely; the first one simulated."})
    batch_size: int = field(default=16, metadata={"help": "Samples simulated at once."})
    energy_samples: int = field(
        default=8, metadata={"help": "Samples whose operations are counted, for energy; 0 leaves energy out."}
    )
    costs: bool = field(default=False, metadata={"help": "Measure time and memory of the simulation against T."})
    training_records: list[str] = field(
        default_factory=list, metadata={"help": "JSON records of trainings, to have their hours in the report."}
    )
    watts: float | None = field(default=None, metadata={"help": "Of what they ran on, to have energy, too."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator, though there is one."})

    def __post_init__(self):
        for name in ("time_steps", "batch_size"):
            check_positive_integer(name, getattr(self, name))
        if self.limit is not None:
            check_positive_integer("limit", self.limit)
        if self.energy_samples != 0:
            check_positive_integer("energy_samples", self.energy_samples)
        if self.watts is not None and not self.training_records:
            raise ValueError("watts: there is no training to take them for; name its record (training_records).")

    def folder(self, source: str, data: DataArguments) -> Path:
        """Where the report goes: by default beside the checkpoint, or for a Hub id to outputs/."""
        if self.output is not None:
            return Path(self.output)
        local = Path(source).is_dir()
        place = Path(source).absolute() if local else Path("outputs") / source.replace("/", "--")
        folder = place.with_name(f"{place.name}-report-{data_name(data)}")
        return Path(os.path.relpath(folder)) if local else folder


@memory_advice("lower batch_size; and limit, for what is recorded of all samples is kept.")
def report(source: str, data: DataArguments, arguments: ReportArguments) -> dict[str, Any]:
    """Simulate a checkpoint's spiking network on a test set, and write what it did in time.

    Args:
        source: folder or Hub id of a Spike model; or of a Quant model, whose spiking twin is then looked at.

    Returns:
        What report.json holds, and "written to", the folder.

    Raises:
        ValueError, OSError: something is wrong with an argument, the data or the network; one line.
    """
    check_no_stream(data)
    training = training_costs(arguments.training_records, arguments.watts) if arguments.training_records else None
    cls, config = class_of(source)
    if not cls.__name__.endswith(("ForSequenceClassification", "ForImageClassification")):
        raise ValueError(
            f"{source} holds a {cls.__name__}: only classifiers of texts and images are reported on here."
        )
    folder = arguments.folder(source, data)
    check_folder(folder)
    home = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise NotADirectoryError(f"output: {folder} cannot be written, for {home} is no folder to write in.")
    of_text = is_text(config.model_type)
    splits = load_data(data, is_text=of_text, needs_training=False)
    model, processor = load_network(source)
    settle_frames(processor, data)
    check_labels(splits, model.config, source)
    split = reported_split(splits)
    size = len(splits[split])
    if arguments.sample is not None and not 0 <= arguments.sample < size:
        raise ValueError(f"sample must be from 0 to {size - 1}, a row of the {split} split, got {arguments.sample}.")

    inputs, collate = model_inputs(splits, processor, data, of_text)
    chosen = evenly_spread_rows(size, arguments.limit or size)
    order = [chosen[place] for place in by_length(inputs[split].select(chosen))]
    parts = [order[start : start + arguments.batch_size] for start in range(0, size, arguments.batch_size)]
    batches = Batches([part for part in parts if part], inputs[split], collate)
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.use_cpu else "cpu")
    qann, snn = (one.to(device) for one in twins_of(model, arguments.time_steps))
    recording = record(snn, batches, arguments.time_steps, twin=qann).select(
        sorted(range(len(order)), key=order.__getitem__)
    )
    rows = sorted(order)

    row = rows[0] if arguments.sample is None else arguments.sample
    one = collate([inputs[split][row]])
    one = {name: value for name, value in one.items() if name != "labels"}
    seen = close_up(snn, one, nodes_to_see(snn), arguments.time_steps, twin=qann)
    priced, counted_in = None, None
    if arguments.energy_samples:
        start = time.perf_counter()
        some = [order[place] for place in evenly_spread_rows(len(order), arguments.energy_samples)]
        priced = priced_operations(snn, some, inputs[split], collate, arguments)
        counted_in = f"{time.perf_counter() - start:.0f} s"
    costs = None
    if arguments.costs:
        some = [order[place] for place in evenly_spread_rows(len(order), COSTED_SAMPLES)]
        costs = simulation_costs(snn, collate([inputs[split][row] for row in some]), most_steps=arguments.time_steps)
    texts = splits[split]["text"] if of_text else None
    label = splits[split].features["label"].int2str(splits[split][row]["label"])
    of_sample = f"row {row} of the {split} split, labelled {label}"
    content = write_report(
        folder,
        snn.cpu(),
        recording,
        about={
            **about_data(data),
            "split": split,
            "checkpoint": Path(source).name,
            **told(stage.provenance()),
            "operations counted in": counted_in,
        },
        index=rows,
        texts=None if texts is None else [texts[number] for number in rows],
        seen=seen,
        tokens=None if texts is None else processor.convert_ids_to_tokens(one["input_ids"][0].tolist()),
        picture=None if of_text else visible(one["pixel_values"][0]),
        says=f"{texts[row]} ({of_sample})" if texts is not None else of_sample.capitalize(),
        energy=priced,
        costs=costs,
        training=training,
        title=f"{Path(source).name} on {data_name(data)}, {split} split",
    )
    return {**content, "written to": str(folder)}


def summary(content: dict[str, Any]) -> str:
    """The numbers of a report, line by line."""
    course = content["time course"]
    lines = [f"{name}: {shown(name, course[name])}" for name in content["definitions"]]
    if counted_in := content["about"].get("operations counted in"):
        counted = content["accounts"]["energy"]["counted"]["samples"]
        lines.append(f"operations counted: on {counted} samples, in {counted_in}")
    for name in ("energy", "simulation_costs", "training_costs"):
        if name in content["accounts"]:
            lines += ["", *(written_table(name, content)), *content["accounts"][name].get("says", ())]
    return "\n".join(
        [*lines, *([""] if content["accounts"] else []), f"written to {Path(content['written to']) / HTML}"]
    )


def priced_operations(snn, rows: Sequence[int], split, collate, arguments: ReportArguments) -> EnergyReport:
    """Energy, from the operations that are counted on some rows of a split."""
    size = min(arguments.batch_size, math.ceil(len(rows) / COUNTED_PARTS))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    counted = [
        count_operations(snn, dict(batch), arguments.time_steps, stop="equilibrium")
        for batch in tqdm(Batches(parts, split, collate), desc="counting operations", unit="batch")
    ]
    return energy(Operations.join(counted))


def written_table(name: str, content: dict[str, Any]) -> list[str]:
    """The table that goes with an account, in lines of text."""
    if name == "energy":
        unit, rows = part_table(content["energy"])
        rows = [{f"energy ({unit})": row.pop(""), **row} for row in rows]
    else:
        rows = [{key: value for key, value in row.items() if key != "hardware"} for row in content[name]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([shown(key, row.get(key)) for key in columns] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]


class Batches:
    """Batches made when they are asked for, with a length for the bar of progress."""

    def __init__(self, parts: Sequence[Sequence[int]], inputs, collate):
        self.parts, self.inputs, self.collate = parts, inputs, collate

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self):
        for part in self.parts:
            yield dict(self.collate([self.inputs[row] for row in part]))


def told(provenance: dict[str, Any]) -> dict[str, Any]:
    """Versions and hardware in one line each."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return {**provenance, "versions": versions}

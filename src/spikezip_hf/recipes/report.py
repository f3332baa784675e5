"""A checkpoint on a test set, looked at in time: what `spikezip report` does."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spikezip_hf.analysis.closeup import close_up
from spikezip_hf.analysis.page import shown
from spikezip_hf.analysis.recording import record
from spikezip_hf.analysis.report import HTML, check_folder, nodes_to_see, write_report
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
)
from spikezip_hf.training.snn_evaluation import evenly_spread_rows


@dataclass
class ReportArguments:
    """How to report."""

    output: str | None = field(default=None, metadata={"help": "Folder for the report."})
    time_steps: int = field(default=512, metadata={"help": "Most time-steps that a sample is simulated for."})
    limit: int | None = field(default=256, metadata={"help": "Samples to simulate, evenly spread; None for all."})
    sample: int | None = field(default=None, metadata={"help": "Row to look at closely; the first one simulated."})
    batch_size: int = field(default=16, metadata={"help": "Samples simulated at once."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator, though there is one."})

    def __post_init__(self):
        for name in ("time_steps", "batch_size"):
            check_positive_integer(name, getattr(self, name))
        if self.limit is not None:
            check_positive_integer("limit", self.limit)

    def folder(self, source: str, data: DataArguments) -> Path:
        """Where the report goes: by default beside the checkpoint, or for a Hub id to outputs/."""
        if self.output is not None:
            return Path(self.output)
        local = Path(source).is_dir()
        place = Path(source).absolute() if local else Path("outputs") / source.replace("/", "--")
        folder = place.with_name(f"{place.name}-report-{data_name(data)}")
        return Path(os.path.relpath(folder)) if local else folder


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
    texts = splits[split]["text"] if of_text else None
    label = splits[split].features["label"].int2str(splits[split][row]["label"])
    of_sample = f"row {row} of the {split} split, labelled {label}"
    content = write_report(
        folder,
        snn.cpu(),
        recording,
        about={**about_data(data), "split": split, "checkpoint": Path(source).name, **told(stage.provenance())},
        index=rows,
        texts=None if texts is None else [texts[number] for number in rows],
        seen=seen,
        tokens=None if texts is None else processor.convert_ids_to_tokens(one["input_ids"][0].tolist()),
        picture=None if of_text else visible(one["pixel_values"][0]),
        says=f"{texts[row]} ({of_sample})" if texts is not None else of_sample.capitalize(),
        title=f"{Path(source).name} on {data_name(data)}, {split} split",
    )
    return {**content, "written to": str(folder)}


def summary(content: dict[str, Any]) -> str:
    """The numbers of a report, line by line."""
    course = content["time course"]
    lines = [f"{name}: {shown(name, course[name])}" for name in content["definitions"]]
    return "\n".join([*lines, f"written to {Path(content['written to']) / HTML}"])


class Batches:
    """Batches made when they are asked for, with a length for the bar of progress."""

    def __init__(self, parts: list[list[int]], inputs, collate):
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


def visible(pixels: torch.Tensor) -> torch.Tensor:
    """What a network was shown, ([F,] channels, H, W) in its own scale, as a picture (H, W, 3 or 1), 0 to 1."""
    pixels = pixels.float().sum(0) if pixels.dim() == 4 else pixels.float()
    if len(pixels) not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    low, high = pixels.min(), pixels.max()
    return ((pixels - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0)

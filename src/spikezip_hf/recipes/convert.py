"""Third stage: the spiking twin, and all three networks on the test set."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.analysis import accuracy, compare_twins, table
from spikezip_hf.auto import spiking_class
from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.models.modeling_quantization import eval_mode
from spikezip_hf.recipes import stage
from spikezip_hf.recipes.inputs import (
    DataArguments,
    check_labels,
    data_name,
    load_data,
    model_inputs,
    reported_split,
)
from spikezip_hf.recipes.parsing import parse
from spikezip_hf.recipes.qat import is_text, load_network, model_type
from spikezip_hf.training.snn_evaluation import evenly_spread


@dataclass
class ConversionArguments:
    """What to convert, and what to find out about it."""

    qann: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained Quant model."})
    ann: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the network it was made from; by default, its record's."}
    )
    output_dir: str = field(default="outputs/snn", metadata={"help": "Folder of the spiking network and the figures."})
    results: str | None = field(default=None, metadata={"help": "JSON file of the figures, if elsewhere."})
    time_steps: int = field(default=512, metadata={"help": "Most time-steps that a sample is simulated for."})
    report_time_steps: list[int] = field(
        default_factory=lambda: [16, 32, 64, 128], metadata={"help": "Numbers of time-steps T to report."}
    )
    simulate: int | None = field(
        default=None, metadata={"help": "Test samples to simulate, evenly spread. Default: all."}
    )
    batch_size: int = field(default=16, metadata={"help": "Samples simulated at once."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator, though there is one."})

    def __post_init__(self):
        if self.qann is None:
            raise ValueError("No network to convert: give --qann (folder or Hub id).")
        for name in ("time_steps", "batch_size"):
            check_positive_integer(name, getattr(self, name))
        if self.simulate is not None:
            check_positive_integer("simulate", self.simulate)
        for steps in self.report_time_steps:
            check_positive_integer("report_time_steps", steps)
        if max(self.report_time_steps, default=0) > self.time_steps:
            raise ValueError(f"report_time_steps must be at most time_steps ({self.time_steps}).")


def record_of(source: str) -> dict[str, Any] | None:
    """The record of the training that made the network in a folder, if there is one."""
    path = Path(source) / stage.RECORD
    return json.loads(path.read_text()) if path.is_file() else None


def batches(split, collate, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches; of text, of texts of like length."""
    order = list(range(len(split)))
    if "input_ids" in split.column_names:
        order.sort(key=[len(ids) for ids in split["input_ids"]].__getitem__)
    for start in range(0, len(order), size):
        yield dict(collate([split[row] for row in order[start : start + size]]))


@torch.no_grad()
def accuracy_on(network, split, collate, size: int = 64) -> float:
    """Share of the samples that the network, in its own precision, gets right."""
    logits, labels = [], []
    total = -(-len(split) // size)
    with eval_mode(network):
        for batch in tqdm(batches(split, collate, size), total=total, desc="evaluating", unit="batch"):
            labels.append(batch.pop("labels"))
            inputs = {key: value.to(network.device) for key, value in batch.items()}
            logits.append(network(**inputs).logits.cpu())
    return accuracy(torch.cat(logits), torch.cat(labels))


def check_writable(path: Path) -> None:
    """Raise OSError if no file can be written there."""
    if path.is_dir():
        raise IsADirectoryError(f"results: {path} is a folder.")
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise NotADirectoryError(f"results: {path} cannot be written, for {home} is no folder to write in.")


def convert(arguments: ConversionArguments, data: DataArguments) -> dict[str, Any]:
    """Convert, save to `output_dir`, and hold the three networks against one another on the test set.

    Returns:
        What is written as results, with a "table" for people beside it.

    Raises:
        ValueError, OSError: something is wrong with an argument, the data or a network; one line.
    """
    if data.streaming:
        raise ValueError(
            "streaming: the samples to simulate are chosen from all, which a stream does not let: leave it out."
        )
    folder = Path(arguments.output_dir)
    qann_record = record_of(str(arguments.qann))
    results_path = Path(arguments.results) if arguments.results else folder / "results.json"
    check_writable(results_path)
    kind = model_type(str(arguments.qann))
    if not kind.startswith("quant_"):
        raise ValueError(f"{arguments.qann} holds a network of type {kind!r}, not a Quant model: train one first.")
    source = arguments.ann or (qann_record or {}).get("settings", {}).get("ann")
    if source is None:
        raise ValueError(f"{arguments.qann} has no record of the network it was made from: give --ann.")
    splits = load_data(data, is_text=is_text(kind))
    qann, processor = load_network(str(arguments.qann))
    ann, _ = load_network(source)
    check_labels(splits, qann.config, str(arguments.qann))
    inputs, collate = model_inputs(splits, processor, data, is_text(kind))
    test = inputs[reported_split(splits)]

    snn = spiking_class(type(qann)).from_quantized(qann, time_steps=arguments.time_steps)
    snn.save_pretrained(folder)
    processor.save_pretrained(folder)
    device = "cpu" if arguments.use_cpu or not torch.cuda.is_available() else "cuda"
    for network in (ann, qann, snn):
        network.to(device)
    whole = {
        "samples": len(test),
        "ANN": accuracy_on(ann, test, collate),
        "QANN": accuracy_on(qann, test, collate),
    }
    simulated = evenly_spread(test, arguments.simulate or len(test))
    figures = compare_twins(
        ann,
        qann,
        snn,
        list(batches(simulated, collate, arguments.batch_size)),
        arguments.report_time_steps,
        arguments.time_steps,
    )
    for key in ("logits per step", "T_eq per sample"):
        del figures[key]
    results = {
        **stage.provenance(),
        "data": data_name(data),
        "split": reported_split(splits),
        "architecture": qann.config.model_type.removeprefix("quant_"),
        "parameters": sum(parameter.numel() for parameter in ann.parameters()),
        "quantization_levels": qann.config.quantization_levels,
        "weight_bits": qann.config.weight_bits,
        "scale_granularity": qann.config.scale_granularity,
        "ReLU fine-tuning": record_of(source),
        "quantization-aware training": qann_record,
        "products": str(snn.product_inputs()).split("\n"),
        "accuracy on the whole split": whole,
        "simulated": figures,
    }
    stage.write(results_path, results)
    return {**results, "table": table(figures)}


def main(argv: Sequence[str]) -> None:
    """Parse a recipe and flags, convert, and print the table."""
    description = "Convert a trained Quant model to its spiking twin, and compare the three networks on the test set."
    results = convert(*parse("convert", (ConversionArguments, DataArguments), description, argv))
    whole = results["accuracy on the whole split"]
    print(  # noqa: T201
        f"{results['table']}\n\n"
        f"accuracy on all {whole['samples']} samples: ANN {whole['ANN']:.2%}, QANN {whole['QANN']:.2%}"
    )

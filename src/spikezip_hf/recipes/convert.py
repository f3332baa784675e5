"""Third stage: the spiking twin, and all three networks on the test set."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from spikezip_hf.analysis import table
from spikezip_hf.auto import spiking_class
from spikezip_hf.hub import network_digest, write_card
from spikezip_hf.hub.results import check_results_path, write_results
from spikezip_hf.loading import is_text, load_network, model_type
from spikezip_hf.recipes import stage
from spikezip_hf.recipes.evaluate import EvaluationArguments, check_no_stream, check_writable, measure
from spikezip_hf.recipes.inputs import DataArguments, check_labels, load_data, settle_frames
from spikezip_hf.recipes.parsing import parse


@dataclass
class ConversionArguments(EvaluationArguments):
    """What to convert, and what to find out about it."""

    qann: str | None = field(default=None, metadata={"help": "Folder or Hub id of the trained Quant model."})
    ann: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the network it was made from; by default, its record's."}
    )
    output_dir: str = field(default="outputs/snn", metadata={"help": "Folder of the spiking network and the figures."})

    def __post_init__(self):
        if self.qann is None:
            raise ValueError("No network to convert: give --qann (folder or Hub id).")
        super().__post_init__()


def record_of(source: str) -> dict[str, Any] | None:
    """The record of the training that made the network in a folder, if there is one."""
    path = Path(source) / stage.RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def convert(arguments: ConversionArguments, data: DataArguments) -> dict[str, Any]:
    """Convert, save to `output_dir`, and hold the three networks against one another on the test set.

    Returns:
        What is written as results, with a "table" for people beside it.

    Raises:
        ValueError, OSError: something is wrong with an argument, the data or a network; one line.
    """
    check_no_stream(data)
    folder = Path(arguments.output_dir)
    qann_record = record_of(str(arguments.qann))
    results_path = Path(arguments.results) if arguments.results else folder / "results.json"
    check_writable(results_path)
    check_results_path(results_path)
    kind = model_type(str(arguments.qann))
    if not kind.startswith("quant_"):
        raise ValueError(f"{arguments.qann} holds a network of type {kind!r}, not a Quant model: train one first.")
    source = arguments.ann or (qann_record or {}).get("settings", {}).get("ann")
    if source is None:
        raise ValueError(f"{arguments.qann} has no record of the network it was made from: give --ann.")
    splits = load_data(data, is_text=is_text(kind))
    qann, processor = load_network(str(arguments.qann))
    settle_frames(processor, data)
    ann, _ = load_network(source)
    check_labels(splits, qann.config, str(arguments.qann))

    snn = spiking_class(type(qann)).from_quantized(qann, time_steps=arguments.time_steps)
    snn.save_pretrained(folder, processing_class=processor)
    digest = network_digest(snn)
    tables = arguments.tables(results_path, data, digest)
    measured = measure(ann, qann, snn, splits, processor, data, arguments, tables)
    results = {
        **stage.provenance(),
        "network_digest": digest,
        "architecture": qann.config.model_type.removeprefix("quant_"),
        "parameters": sum(parameter.numel() for parameter in ann.parameters()),
        "quantization_levels": qann.config.quantization_levels,
        "weight_bits": qann.config.weight_bits,
        "scale_granularity": qann.config.scale_granularity,
        "ReLU fine-tuning": stage.shareable(record_of(source)),
        "quantization-aware training": stage.shareable(qann_record),
        "products": str(snn.product_inputs()).split("\n"),
        **measured,
    }
    write_results(results_path, [results])
    write_card(snn.cpu(), folder, results=results)
    return {**results, "table": table(results["simulated"])}


KINDS = (ConversionArguments, DataArguments)
DESCRIPTION = "Convert a trained Quant model to its spiking twin, and compare the three networks on the test set."


def main(argv: Sequence[str]) -> None:
    """Parse a recipe and flags, convert, and print the table."""
    convert_and_print(*parse("convert", KINDS, DESCRIPTION, argv))


def convert_and_print(arguments: ConversionArguments, data: DataArguments) -> None:
    """Convert, and print the table."""
    results = convert(arguments, data)
    whole = results["accuracy on the whole split"]
    typer.echo(
        f"{results['table']}\n\n"
        f"accuracy on all {whole['samples']} samples: ANN {whole['ANN']:.2%}, QANN {whole['QANN']:.2%}"
    )

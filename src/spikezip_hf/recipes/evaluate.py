"""A network on a test set: accuracy of the spiking network over time beside its twins', with certificate."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spikezip_hf.analysis import table
from spikezip_hf.analysis.predictions import predict
from spikezip_hf.analysis.processes import PartialState, processes
from spikezip_hf.analysis.twins import figures
from spikezip_hf.auto import spiking_class
from spikezip_hf.hub import network_digest, read_results, write_card
from spikezip_hf.hub.results import FILE, check_results_path, same_data, write_results
from spikezip_hf.loading import class_of, is_text, load_network
from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel
from spikezip_hf.recipes import stage
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


@dataclass
class EvaluationArguments:
    """How to evaluate."""

    results: str | None = field(default=None, metadata={"help": "JSON file of the figures, if elsewhere."})
    predictions: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the predictions on every sample, if elsewhere; a run cut off goes on from there."
        },
    )
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
        for name in ("time_steps", "batch_size"):
            check_positive_integer(name, getattr(self, name))
        if self.simulate is not None:
            check_positive_integer("simulate", self.simulate)
        for steps in self.report_time_steps:
            check_positive_integer("report_time_steps", steps)
        if max(self.report_time_steps, default=0) > self.time_steps:
            raise ValueError(f"report_time_steps must be at most time_steps ({self.time_steps}).")

    def tables(self, results: Path, data: DataArguments, digest: str) -> Path:
        """Folder for the predictions on every sample: another for each network and setting."""
        if self.predictions is not None:
            return Path(self.predictions)
        setting = f"T{self.time_steps}-{self.simulate or 'all'}-by-{self.batch_size}"
        # Beginning with _, it is not pushed with the checkpoint.
        return results.parent / "_predictions" / f"{data_name(data)}-{setting}-{digest[:8]}"

    @cached_property
    def processes(self) -> PartialState:
        """The processes that share the work, and the device of this one."""
        return processes(use_cpu=self.use_cpu or not torch.cuda.is_available())


def by_length(split) -> list[int]:
    """Rows of a split in the order to simulate them: texts of like length together, which need less padding."""
    order = list(range(len(split)))
    if "input_ids" in split.column_names:
        order.sort(key=[len(ids) for ids in split["input_ids"]].__getitem__)
    return order


def check_writable(path: Path) -> None:
    """Raise OSError if no file can be written there."""
    if path.is_dir():
        raise IsADirectoryError(f"results: {path} is a folder.")
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        raise NotADirectoryError(f"results: {path} cannot be written, for {home} is no folder to write in.")


def check_no_stream(data: DataArguments) -> None:
    """Raise ValueError if the data is to be read as a stream."""
    if data.streaming:
        raise ValueError(
            "streaming: the samples to simulate are chosen from all, which a stream does not let: leave it out."
        )


def twins_of(model: TwinPreTrainedModel, time_steps: int) -> tuple[TwinPreTrainedModel, SpikePreTrainedModel]:
    """The quantized and the spiking network of which `model` is one."""
    if isinstance(model, SpikePreTrainedModel):
        return model.to_quantized(), model
    return model, spiking_class(type(model)).from_quantized(model, time_steps=time_steps)


def measure(
    ann: PreTrainedModel | None,
    qann: TwinPreTrainedModel,
    snn: SpikePreTrainedModel,
    splits,
    processor,
    data: DataArguments,
    arguments: EvaluationArguments,
    tables: Path,
) -> dict[str, Any]:
    """Accuracies of the networks on the split to report on; the SNN on the samples to be simulated.

    Args:
        tables: folder for the predictions on every sample, from which a run that was cut off goes on.
    """
    inputs, collate = model_inputs(splits, processor, data, is_text(qann.config.model_type))
    test = inputs[reported_split(splits)]
    chosen = evenly_spread_rows(len(test), arguments.simulate or len(test))
    simulated = test.select(chosen)
    networks = {"ANN": ann, "QANN": qann, "SNN": snn}
    found = {}
    for name, network in networks.items():
        if network is not None:
            spiking = name == "SNN"
            found[name] = predict(
                network.to(arguments.processes.device),
                simulated if spiking else test,
                collate,
                tables / name.lower(),
                twin=qann if spiking else None,
                order=by_length(simulated if spiking else test),
                time_steps=arguments.time_steps if spiking else None,
                batch_size=arguments.batch_size,
                part_size=(4 if spiking else 64) * arguments.batch_size,  # what a run that is cut off loses at most
                processes=arguments.processes,
            )
    whole = {name: share_right(found[name]) for name in ("ANN", "QANN") if name in found}
    shown = {name: (table if name == "SNN" else table.select(chosen))[:] for name, table in found.items()}
    return {
        **about_data(data),
        "split": reported_split(splits),
        "accuracy on the whole split": {"samples": len(test), **whole},
        "simulated": figures(shown, arguments.report_time_steps, arguments.time_steps),
    }


def share_right(table) -> float:
    """Share of the samples that a table of predictions has right."""
    return sum(said == is_so for said, is_so in zip(table["prediction"], table["label"])) / len(table)


def evaluate(
    source: str,
    data: DataArguments,
    arguments: EvaluationArguments,
    ann: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate a Quant or Spike checkpoint, and its twin with it; write results, and the card in its folder anew.

    Args:
        source: folder or Hub id of the checkpoint.
        ann: folder or Hub id of the ordinary network, to have beside it.
        overwrite: replace figures of more samples of the same data, too.

    Under `accelerate launch` the samples are shared among the processes; the first of them writes.

    Returns:
        The results, with a "table" for people beside what is written.

    Raises:
        ValueError, OSError: something is wrong with an argument, the data or a network; one line.
    """
    check_no_stream(data)
    cls, config = class_of(source)
    kind = config.model_type
    if not cls.__name__.endswith(("ForSequenceClassification", "ForImageClassification")):
        raise ValueError(f"{source} holds a {cls.__name__}: only classifiers of texts and images are evaluated here.")
    folder = Path(source) if Path(source).is_dir() else None
    path = (
        Path(arguments.results)
        if arguments.results
        else (folder or Path("outputs") / source.replace("/", "--")) / FILE
    )
    check_writable(path)
    check_results_path(path)
    splits = load_data(data, is_text=is_text(kind), needs_training=False)
    model, processor = load_network(source)
    settle_frames(processor, data)
    check_labels(splits, model.config, source)
    ordinary = None if ann is None else load_network(ann)[0]
    if ordinary is not None:
        check_labels(splits, ordinary.config, str(ann))
    digest = network_digest(model)
    if not overwrite:
        check_no_loss(path, digest, splits, data, arguments.simulate)
    tables = arguments.tables(path, data, digest)
    results = {
        **stage.provenance(),
        "network_digest": digest,
        **measure(ordinary, *twins_of(model, arguments.time_steps), splits, processor, data, arguments, tables),
    }
    if arguments.processes.is_main_process:
        known = [*others(path, results), results]
        write_results(path, known)
        if folder is not None:
            write_card(model.cpu(), folder, results=known)
    return {**results, "table": table(results["simulated"]), "written to": str(path), "predictions": str(tables)}


def check_no_loss(path: Path, digest: str, splits, data: DataArguments, simulate: int | None) -> None:
    """Raise ValueError if figures of this network on the same data, of more samples, would be replaced."""
    split = reported_split(splits)
    samples = min(simulate or len(splits[split]), len(splits[split]))
    asked = {**about_data(data), "split": split}
    for one in read_results(path) if path.is_file() else []:
        known = one["simulated"]["samples"]
        if one.get("network_digest") == digest and same_data(one, asked) and known > samples:
            raise ValueError(
                f"simulate: {path} holds figures of {known} samples, and {samples} would replace them: write these "
                "elsewhere (results), or say overwrite."
            )


def about_data(data: DataArguments) -> dict[str, Any]:
    """Which data results are of, but for the split."""
    hub_id = data.hub_id()
    return {"data": data_name(data), "dataset": hub_id, "subset": data.dataset_subset if hub_id else None}


def others(path: Path, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of the same network on other data, which stay in the file."""
    if not path.is_file():
        return []
    try:
        known = read_results(path)
    except ValueError:
        return []
    return [
        one for one in known if one.get("network_digest") == results["network_digest"] and not same_data(one, results)
    ]

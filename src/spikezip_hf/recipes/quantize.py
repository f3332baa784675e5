"""Quantization after training: scales by calibration alone, and what they cost on held-out data."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from spikezip_hf.analysis.answers import answers
from spikezip_hf.conversion.ann import quantized_class
from spikezip_hf.conversion.calibration import METHODS, PERCENTILE, check_percentile
from spikezip_hf.hub import network_digest
from spikezip_hf.loading import is_text, load_network, model_type
from spikezip_hf.models.configuration_quantization import check_choice, check_positive_integer
from spikezip_hf.models.modeling_quantization import eval_mode
from spikezip_hf.models.quantization import level_bounds
from spikezip_hf.recipes import stage
from spikezip_hf.recipes.evaluate import about_data, by_length, check_no_stream
from spikezip_hf.recipes.inputs import (
    DataArguments,
    check_labels,
    data_name,
    load_data,
    model_inputs,
    reported_split,
    settle_frames,
)
from spikezip_hf.training.sampling import calibration_batches
from spikezip_hf.training.snn_evaluation import evenly_spread_rows


@dataclass
class CalibrationArguments:
    """How to quantize a network without training it.

    Args:
        quantization_levels, weight_bits, scale_granularity: fields of the config; None for the architecture's own.
        head_act: activation in the head of a text classifier. The ordinary network has a tanh there, and keeps it by
            default: ReLU, which a network that is trained gets, would change its answers.
        method, percentile: as for `QuantPreTrainedModel.calibrate`; `percentile` is for that method alone.
        calibration_samples: training samples that set the scales.
        seed: of their choice; as for `QATTrainer`, whose first step starts from the same scales.
        replace_activations: put ReLU where the network has something else.
        limit: held-out samples to measure both networks on, evenly spread; all if there are no more.
        evaluate: whether to measure at all.
        batch_size: samples at once, where they are measured.
        use_cpu: use no accelerator, though there is one.

    Raises:
        ValueError: an argument is out of range; names it.
    """

    quantization_levels: int = 32
    weight_bits: int | None = None
    scale_granularity: str | None = None
    head_act: str | None = None
    method: str = "mse"
    percentile: float | None = None
    calibration_samples: int = 256
    seed: int = 42
    replace_activations: bool = False
    limit: int = 500
    evaluate: bool = True
    batch_size: int = 32
    use_cpu: bool = False

    def __post_init__(self):
        level_bounds(self.quantization_levels, signed=True)
        check_choice("method", self.method, METHODS)
        if self.percentile is not None:
            if self.method != "percentile":
                raise ValueError(f"percentile is for the method 'percentile', and not for {self.method!r}.")
            check_percentile("percentile", self.percentile)
        for name in ("calibration_samples", "limit", "batch_size"):
            check_positive_integer(name, getattr(self, name))

    def fields(self, of_text: bool) -> dict[str, Any]:
        """Config fields of the quantized network."""
        given = {name: getattr(self, name) for name in ("quantization_levels", "weight_bits", "scale_granularity")}
        given["head_act"] = self.head_act or ("tanh" if of_text else None)
        return {name: value for name, value in given.items() if value is not None}

    def rule(self) -> str:
        """The calibration rule, in words."""
        return f"percentile ({self.percentile or PERCENTILE:g})" if self.method == "percentile" else self.method


def check_output(output: Path) -> None:
    """Raise ValueError unless a network can be saved to `output` and nothing is there yet."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: {output} is a file: name a folder.")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"output: {output} is not empty: name another folder, or empty it.")


def quantize(ann: str, output: Path, data: DataArguments, arguments: CalibrationArguments) -> dict[str, Any]:
    """Quantize an ordinary network, calibrate it on training samples, measure it, and save it with its card.

    Args:
        ann: folder or Hub id of the ordinary network.
        output: folder to save the Quant model to, with tokenizer or image processor; new, or empty.

    Returns:
        What is written as results.json where the networks were measured, and "seconds" of calibration.

    Raises:
        ValueError, OSError: something is wrong with an argument, the data or the network; one line.
    """
    check_output(output)
    check_no_stream(data)
    kind = model_type(ann)
    if kind.startswith(("quant_", "spike_")):
        raise ValueError(f"{ann} holds a network of type {kind!r}, which is quantized already: name the ordinary one.")
    of_text = is_text(kind)
    data.source()  # refuses data that is not there before a network is loaded
    network, processor = load_network(ann)
    quant_class = quantized_class(network)
    qann = quant_class.from_ann(
        network, replace_activations=arguments.replace_activations, **arguments.fields(of_text)
    ).eval()
    settle_frames(processor, data)
    splits = load_data(data, is_text=of_text)
    if arguments.evaluate:
        check_labels(splits, network.config, ann)
    inputs, collate = model_inputs(splits, processor, data, of_text)

    qann.to("cuda" if torch.cuda.is_available() and not arguments.use_cpu else "cpu")
    start = time.perf_counter()
    batches = calibration_batches(inputs["train"], arguments.calibration_samples, arguments.seed, collate)
    qann.calibrate(batches, arguments.method, percentile=arguments.percentile or PERCENTILE)
    seconds = round(time.perf_counter() - start, 2)

    used = min(arguments.calibration_samples, len(inputs["train"]))
    words = [
        f"None: quantized after training. Its scales were calibrated on {used} training samples of {data_name(data)} "
        f"(seed {arguments.seed}) by the rule {arguments.rule()}, and its weights are those of the ordinary network."
    ]
    if arguments.replace_activations:
        words.append("Activations other than ReLU were replaced by ReLU, so its accuracy is lost until it is trained.")
    results = None
    if arguments.evaluate:
        split = reported_split(splits)
        results = {
            **stage.provenance(),
            "network_digest": network_digest(qann),
            "architecture": qann.config.model_type.removeprefix("quant_"),
            "quantization_levels": qann.config.quantization_levels,
            "weight_bits": qann.config.weight_bits,
            "scale_granularity": qann.config.scale_granularity,
            "calibration": {
                "rule": arguments.rule(),
                "samples": used,
                "seed": arguments.seed,
                "seconds": seconds,
            },
            **about_data(data),
            "split": split,
            "simulated": compare(network.to(qann.device), qann, inputs[split], collate, arguments),
        }
    qann.cpu().save_pretrained(
        output,
        processing_class=processor,
        results=results,
        card={"training": " ".join(words), "tags": ["post-training-quantization"]},
    )
    return {**(results or {}), "seconds": seconds}


def summary(answer: Mapping[str, Any]) -> str:
    """What `quantize` returned, for people."""
    if "simulated" not in answer:
        return f"Calibrated in {answer['seconds']} s; not measured."
    figures = answer["simulated"]
    (ann, qann) = (row["accuracy"] for row in figures["rows"])
    return (
        f"accuracy on {figures['samples']} samples of the {answer['split']} split: ANN {ann:.2%}, QANN {qann:.2%}, "
        f"calibrated only ({answer['calibration']['rule']}, {answer['seconds']} s)"
    )


def compare(
    ann: PreTrainedModel, qann: PreTrainedModel, inputs, collate, arguments: CalibrationArguments
) -> dict[str, Any]:
    """Accuracy of the ordinary and of the quantized network on the same samples, in the form of results.json."""
    chosen = inputs.select(evenly_spread_rows(len(inputs), arguments.limit))
    rows = by_length(chosen)
    parts = [rows[start : start + arguments.batch_size] for start in range(0, len(rows), arguments.batch_size)]
    batches = [dict(collate([chosen[row] for row in part])) for part in parts]
    found = {name: predictions(network, batches, name) for name, network in (("ANN", ann), ("QANN", qann))}

    def equal(said: list[int], expected: list[int]) -> float:
        return sum(map(int.__eq__, said, expected)) / len(rows)

    return {
        "samples": len(rows),
        "rows": [
            {
                "network": name,
                "T": "-",
                "accuracy": equal(columns["prediction"], columns["label"]),
                "agrees with QANN": equal(columns["prediction"], found["QANN"]["prediction"]),
            }
            for name, columns in found.items()
        ],
    }


def predictions(network: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], name: str) -> dict[str, list]:
    """Columns "label" and "prediction" of a classifier, sample by sample."""
    columns: dict[str, list] = {"label": [], "prediction": []}
    with eval_mode(network):
        for batch in tqdm(batches, desc=f"evaluating the {name}", unit="batch"):
            said = answers(network, batch)
            for column in columns:
                columns[column] += said[column]
    return columns

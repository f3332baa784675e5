"""What a model card says of a model and of its results. What is not known is left out, or said to be unknown."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from spikezip_hf.hub.card_data import is_spiking
from spikezip_hf.models.checkpoints import plain_class
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.placement import ProductReport
from spikezip_hf.models.quantization import level_bounds


@dataclass(frozen=True)
class Plan:
    """What a network is made by, other than its weights: networks of equal plans have one structure."""

    cls: type[TwinPreTrainedModel]
    config: Any = field(compare=False)
    told: str  # all that is in the config, as it was
    construction: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, model: TwinPreTrainedModel) -> "Plan":
        told = model.config.to_json_string(use_diff=False)
        return cls(plain_class(type(model)), model.config, told, tuple(model.construction.items()))

    def make(self, config: Any) -> TwinPreTrainedModel:
        return self.cls(config, **dict(self.construction))


def outline(model: TwinPreTrainedModel) -> ProductReport:
    """What the products of a network see, observed in a copy of it that is one channel wide a head.

    The model itself may be large, on a GPU, or in shards on several machines, where a pass of one of them would hang.
    """
    return outline_of(Plan.of(model))


# Kept, as a training writes one card with each checkpoint.
@lru_cache(maxsize=8)
def outline_of(plan: Plan) -> ProductReport:
    config = copy.deepcopy(plan.config)
    config.make_thin()
    with torch.random.fork_rng(devices=[]):
        return plan.make(config).float().product_inputs()


@lru_cache(maxsize=8)
def parameters_of(plan: Plan) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in plan.make(plan.config).parameters())


def facts(model: TwinPreTrainedModel, report: ProductReport) -> dict[str, str]:
    """What the model is, by name."""
    config = model.config
    low, high = level_bounds(config.quantization_levels, signed=True)
    weights = str(model.dtype).removeprefix("torch.")
    if config.weight_bits:
        weights = f"{config.weight_bits} bits, one scale for each output channel (stored as {weights})"
    where = "on accumulated potentials" if is_spiking(model) else "in floating point"
    told = {
        "Class": f"`{plain_class(type(model)).__name__}`",
        "Made from": f"`{config.source_model}`" if config.source_model else "unknown",
        "Levels of activations": f"{config.quantization_levels}: {low} to {high}, and 0 to {high - low} behind ReLU "
        "and softmax",
        "Thresholds": config.scale_granularity,
        "Weights": weights,
        "Activation nodes": str(len(model.nodes)),
        "Products with analog input": ", ".join(f"`{name}`" for name in report.analog) or "none",
        f"Operators {where}": report.operator_counts,
    }
    if is_spiking(model):
        schedule = config.firing_schedule
        if schedule == "layerwise":
            schedule += f", window {config.firing_window or config.quantization_levels // 2}"
        elif schedule != "synchronous":
            last = max((config.fine_steps or config.firing_steps).values())
            schedule += f", made for this network: steps of its nodes are in the config, up to {last}"
        told |= {
            "Time-steps T": f"at most {config.time_steps}",
            "Spikes in a step k": f"at most {config.max_spikes_per_step}",
            "Firing schedule": schedule,
        }
    return told


def count(number: int) -> str:
    """A large number, for people: 22.7M."""
    for power, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.1f}{letter}"
    return str(number)


def size(model: TwinPreTrainedModel) -> str:
    """Layers, channels and parameters; counted without the model's own, which may be in shards."""
    config, parameters = model.config, count(parameters_of(Plan.of(model)))
    return f"{config.depth} layers, {config.hidden_size} channels, {parameters} parameters"


def architecture(model: TwinPreTrainedModel) -> str:
    """The name of the architecture, as it is usually written."""
    name = type(model.config).__name__.removeprefix("Quant").removeprefix("Spike").removesuffix("Config")
    return {"Bert": "BERT", "Roberta": "RoBERTa"}.get(name, name)


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"


def equilibrium_line(figures: Mapping[str, Any], time_steps: int) -> str:
    """Whether T reaches equilibrium, and on what share of the samples, as far as that is known."""
    if "equilibrium steps" in figures:
        counts = {int(step): count for step, count in figures["equilibrium steps"].items()}
        settled = sum(count for step, count in counts.items() if step <= time_steps)
        line = f"T = {time_steps} reaches equilibrium on {settled} of {figures['samples']} samples"
        if settled < figures["samples"] and figures["T"] < time_steps:
            line = f"{settled} of {figures['samples']} samples reach equilibrium by T = {figures['T']}; what more "
            line += f"T = {time_steps} would bring was not measured"
    elif "at equilibrium" in figures:
        line = f"{figures['at equilibrium']} of {figures['samples']} samples reach equilibrium"
        line += f" by T = {figures['T']}" if "T" in figures else ""
    else:
        return f"Whether T = {time_steps} reaches equilibrium is not known."
    if t_eq := figures.get("T_eq"):
        line += f"; T_eq: mean {t_eq['mean']}, 95th percentile {t_eq['95th percentile']}, max {t_eq['max']}"
    return f"{line}."


def evaluation(results: Mapping[str, Any], time_steps: int | None, picture: str | None) -> dict[str, Any]:
    """What the template says of the results on one data set; `time_steps` of a spiking model."""
    figures = results["simulated"]
    whole = results.get("accuracy on the whole split", {})
    lines = []
    if whole:
        accuracies = ", ".join(f"{name} {percent(whole[name])}" for name in ("ANN", "QANN") if name in whole)
        lines.append(f"On all {whole['samples']} samples: {accuracies}.")
    if time_steps is not None:
        lines.append(equilibrium_line(figures, time_steps))
        if "spikes per neuron" in figures:
            until = f"equilibrium, or T = {figures['T']}" if "T" in figures else "equilibrium"
            lines.append(f"Spikes per neuron until {until}: {figures['spikes per neuron']:.2f}.")
        lines.append(f"Certificate: {figures.get('certificate', 'none on record')}.")
    return {
        "data": results["data"],
        "split": results["split"],
        "samples": figures["samples"],
        "whole": whole.get("samples") if whole.get("samples") != figures["samples"] else None,
        "rows": [
            {
                "network": row["network"],
                "T": row["T"],
                "accuracy": percent(row["accuracy"]),
                "agrees": percent(row.get("agrees with QANN")),
            }
            for row in figures["rows"]
            if time_steps is not None or row["network"] != "SNN"
        ],
        "lines": lines,
        "picture": picture,
    }


def limits(model: TwinPreTrainedModel, report: ProductReport) -> list[str]:
    """What a user has to know before trusting it."""
    config = model.config
    lines = []
    if is_spiking(model):
        lines += [
            f"A sample that has not settled by T = {config.time_steps} has `equilibrium_step` -1: its answer may be "
            "right, but is not certified to be the quantized network's.",
            "Equality to the bit holds for equal batch shapes, on one kind of hardware. In another shape a product "
            "may round differently, which at a tie moves a level.",
            "It runs here as a simulation, slower than the quantized network. Fewer spikes than a threshold are "
            "needed before spiking hardware saves energy, and this card does not claim that.",
        ]
    lines.append("It inherits errors and biases of the network it was made from and of the data that trained it.")
    operators = ", ".join(sorted(set(report.operators.values())))
    lines.append(
        f"{operators} act on {'accumulated potentials' if is_spiking(model) else 'values'}, in floating point."
    )
    if config.weight_bits:
        lines.append(
            "Its 8-bit weights are multiplied as integers where what they meet has one threshold, and as "
            "floating-point numbers else; the file holds floating-point numbers of the same values."
        )
    return lines

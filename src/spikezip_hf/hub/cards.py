"""Model cards, written from a model and what is known of it. What is not known is left out, or said to be unknown."""

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard

from spikezip_hf.files import write_json, write_text
from spikezip_hf.hub.card_data import OUR_TAGS, SpikeCardData, is_spiking, pipeline_of
from spikezip_hf.hub.results import FILE, results_of
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.placement import ProductReport
from spikezip_hf.models.quantization import level_bounds
from spikezip_hf.models.version import __version__

CARD = "README.md"
NOTICE = "<!-- Written by spikezip_hf, which writes it anew with the model. Remove this line to keep your words. -->"
# What is taken over from the card that is written anew, since no model knows it.
KEPT = ("license", "license_name", "license_link", "language", "datasets", "base_model")
PURPOSES = {
    "text-classification": "for text classification",
    "token-classification": "for token classification",
    "image-classification": "for image classification",
}


def template_path() -> Path:
    """The template: in `model_cards/` of a checkout, inside the package where it was installed."""
    installed = Path(__file__).parent / "templates"
    return (installed if installed.is_dir() else Path(__file__).parents[3] / "model_cards") / "model_card.md.jinja"


def outline(model: TwinPreTrainedModel) -> ProductReport:
    """What the products of a network see, observed in a copy of it that is one channel wide a head.

    The model itself may be large, on a GPU, or in shards on several machines, where a pass of one of them would hang.
    """
    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size = config.num_attention_heads, 1
    if hasattr(config, "image_size"):
        config.image_size = config.patch_size
    with torch.random.fork_rng(devices=[]):
        small = type(model)(config, **model.construction)
        return small.float().product_inputs()


def facts(model: TwinPreTrainedModel, report: ProductReport) -> dict[str, str]:
    """What the model is, by name."""
    config = model.config
    low, high = level_bounds(config.quantization_levels, signed=True)
    weights = str(model.dtype).removeprefix("torch.")
    if config.weight_bits:
        weights = f"{config.weight_bits} bits, one scale for each output channel (stored as {weights})"
    operators: dict[str, int] = {}
    for kind in report.operators.values():
        operators[kind] = operators.get(kind, 0) + 1
    told = {
        "Class": f"`{type(model).__name__}`",
        "Made from": f"`{config.source_model}`" if config.source_model else "unknown",
        "Levels of activations": f"{config.quantization_levels}: {low} to {high}, and 0 to {high - low} behind ReLU "
        "and softmax",
        "Thresholds": config.scale_granularity,
        "Weights": weights,
        "Activation nodes": str(len(model.nodes)),
        "Products with analog input": ", ".join(f"`{name}`" for name in report.analog) or "none",
        "Operators on accumulated potentials": ", ".join(f"{count} {kind}" for kind, count in operators.items()),
    }
    if is_spiking(model):
        window = config.firing_window or config.quantization_levels // 2
        schedule = config.firing_schedule + (f", window {window}" if config.firing_schedule == "layerwise" else "")
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


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def equilibrium_line(figures: Mapping[str, Any], time_steps: int) -> str:
    """Whether T reaches equilibrium, and on what share of the samples."""
    counts = {int(step): count for step, count in figures.get("equilibrium steps", {}).items()}
    settled = sum(count for step, count in counts.items() if step <= time_steps)
    line = f"T = {time_steps} reaches equilibrium on {settled} of {figures['samples']} samples"
    if counts:
        t_eq = figures["T_eq"]
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
        lines.append(f"Spikes per neuron until then: {figures['spikes per neuron']:.2f}.")
        lines.append(f"Certificate: {figures['certificate']}.")
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
                "agrees": percent(row["agrees with QANN"]),
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
    lines.append(f"{operators} act on accumulated potentials, in floating point.")
    if config.weight_bits:
        lines.append("Its 8-bit weights are multiplied as floating-point numbers still: smaller, not faster.")
    return lines


def pictures(results: Sequence[Mapping[str, Any]], folder: Path | None) -> list[str | None]:
    """Draw accuracy against time-steps for each data set into `folder`; None where that cannot be done."""
    names: list[str | None] = []
    for index, one in enumerate(results):
        name = "accuracy_over_time.png" if index == 0 else f"accuracy_over_time_{index + 1}.png"
        drawn = None
        if folder is not None and one["simulated"].get("accuracy per step"):
            try:
                from spikezip_hf.analysis.plots import plot_accuracy_over_time

                title = f"{one['data']}: accuracy against time-steps"
                plot_accuracy_over_time(folder / name, one["simulated"], title)
                drawn = name
            except ImportError:
                pass  # without matplotlib, the table has to do
        names.append(drawn)
    return names


def model_card(
    model: TwinPreTrainedModel,
    name: str,
    results: Any = None,
    *,
    repo_id: str | None = None,
    training: str | None = None,
    picture_folder: Path | None = None,
    **metadata: Any,
) -> ModelCard:
    """The card of a Quant or Spike model.

    Args:
        model: the model.
        name: what to call it.
        results: see `hub.results.read_results`; None if it was not evaluated.
        repo_id: what to load it by, for the examples; `name` if None.
        training: a text about its training.
        picture_folder: folder to draw the picture into; None for no picture.
        metadata: fields of `ModelCardData`: `license`, `language`, `datasets`, `tags`, ...

    Raises:
        ValueError: the results are of another network, or are no results.
    """
    known = results_of(model, results) if results is not None else []
    config, report, task = model.config, outline(model), pipeline_of(model)
    spiking = is_spiking(model)
    drawn = pictures(known, picture_folder if spiking else None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    auto_class = type(model)._auto_class
    return ModelCard.from_template(
        SpikeCardData(model, name, known, **metadata),
        template_path=str(template_path()),
        notice=NOTICE,
        name=name,
        repo_id=repo_id or name,
        spiking=spiking,
        class_name=type(model).__name__,
        auto_class=auto_class,
        architecture={"vit": "ViT", "bert": "BERT", "roberta": "RoBERTa"}[config.model_type.partition("_")[2]],
        size=f"{config.num_hidden_layers} layers, {config.hidden_size} channels, {count(parameters)} parameters",
        purpose=PURPOSES.get(str(task), "without a head"),
        source=f"[{config.source_model}](https://huggingface.co/{config.source_model})"
        if config.source_model
        else "an ordinary network that is not on record",
        is_text=hasattr(config, "vocab_size"),
        example='"a text"' if hasattr(config, "vocab_size") else '"image.png"',
        facts=list(facts(model, report).items()),
        time_steps=getattr(config, "time_steps", None),
        readout="last_hidden_state" if auto_class == "AutoModel" else "logits",
        evaluations=[
            evaluation(one, config.time_steps if spiking else None, picture)
            for one, picture in zip(known, drawn, strict=True)
        ],
        training=training,
        limits=limits(model, report),
        version=__version__,
    )


def is_generated(path: Path) -> bool:
    """Whether the card at `path` was written here, and by nobody since."""
    return path.is_file() and NOTICE.encode() in path.read_bytes()


def kept_metadata(card: ModelCard) -> dict[str, Any]:
    """Metadata of a generated card that no model knows: licence, language, data, and tags that somebody added."""
    data = card.data.to_dict()
    tags = [tag for tag in data.get("tags") or [] if tag not in OUR_TAGS]
    return {key: data[key] for key in KEPT if data.get(key)} | ({"tags": tags} if tags else {})


def read_card(path: str | os.PathLike, where: str) -> ModelCard:
    """The card in a file.

    Raises:
        ValueError: it cannot be read; says which it is, by `where`, and what to do.
    """
    try:
        return ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The model card {where} cannot be read ({error}): mend it, or remove it.") from error


def write_card(
    model: TwinPreTrainedModel,
    folder: str | os.PathLike,
    *,
    destination: str | os.PathLike | None = None,
    results: Any = None,
    name: str | None = None,
    **fields: Any,
) -> bool:
    """Write README.md, its picture and results.json for a model that is saved to a folder.

    Args:
        folder: folder to write to.
        destination: folder whose files they will replace; `folder` by default. A README.md that somebody wrote there
            is kept, of a generated one licence, language and the like.
        results: of the model; by default those in `destination`, or where the model was loaded from, if they are
            of this very network.
        name, fields: as for `model_card`; the name of the folder by default.

    Returns:
        Whether there is a new card.

    Raises:
        ValueError: as for `model_card`.
    """
    folder, destination = Path(folder), Path(folder if destination is None else destination)
    known = results_of(model, results, destination, model.home_folder)
    if known:
        write_json(folder / FILE, known if len(known) > 1 else known[0])
    there = destination / CARD
    if there.is_file() and not is_generated(there):
        return False
    if there.is_file():
        kept = kept_metadata(read_card(there, str(there)))
        fields = {**kept, **{key: value for key, value in fields.items() if value is not None}}
        tags = [fields["tags"]] if isinstance(fields.get("tags"), str) else fields.get("tags") or []
        fields["tags"] = list(dict.fromkeys([*kept.get("tags", []), *tags]))
    title = name or destination.absolute().name
    with tempfile.TemporaryDirectory(prefix="_partial-", dir=folder) as aside:
        card = model_card(model, title, known or None, picture_folder=Path(aside), **fields)
        write_text(folder / CARD, str(card))
        for picture in Path(aside).iterdir():
            os.replace(picture, folder / picture.name)
    return True

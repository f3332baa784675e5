"""A report of a spiking network at work: one HTML file for people, and the same as JSON, CSV and Parquet.

recording = record(snn, batches)
seen = close_up(snn, one_sample, nodes_to_see(snn))
priced = energy(count_operations(snn, a_few_samples))
write_report("report", snn, recording, seen=seen, picture=pixels, energy=priced, about={"data": "digits"})
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spikezip_hf.analysis import figures
from spikezip_hf.analysis.closeup import CloseUp, attention_nodes, attention_of_head, within_windows
from spikezip_hf.analysis.energy import EnergyReport
from spikezip_hf.analysis.energy_account import account, part_table
from spikezip_hf.analysis.page import MARK, OPTIONAL_TABLES, html
from spikezip_hf.analysis.recording import Recording
from spikezip_hf.analysis.time_course import (
    DEFINITIONS,
    anytime_table,
    node_table,
    sample_table,
    step_table,
    time_course,
)
from spikezip_hf.analysis.watching import nodes_of_raster
from spikezip_hf.files import write_json, write_text
from spikezip_hf.hub.card_text import facts, outline, size
from spikezip_hf.hub.results import network_digest
from spikezip_hf.models.checkpoint_files import moved_in_whole
from spikezip_hf.models.configuration_quantization import pair
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from spikezip_hf.models.version import __version__

try:
    import pyarrow.parquet
except ImportError as error:
    raise ImportError(f"Reports need more than the models do ({error}): pip install 'spikezip-hf[demo]'.") from error

HTML, JSON = "report.html", "report.json"
ATTENTION, CONTEXT, LEFT = "attention\nprobability", "context\n(rms)", "distance\n(levels)"
CAPTIONS = {
    "accuracy": "Accuracy, and agreement with the quantized network, after each time-step (paper, Figure 5). "
    "Triangle: T_up, half way from chance to the final accuracy.",
    "equilibrium": "How many samples reached equilibrium at which step.",
    "firing_rate": "Spikes of either sign per neuron per step, mean over all samples; settled ones fire none.",
    "image": "Attention of what the head reads (the class token, or the mean of the patches) in the last layer, mean "
    "over heads, accumulated up to T and in the quantized network; root mean square of the context it makes; mean "
    "distance of that from the quantized network's, in levels; and the input masked with the attention (paper, "
    "Figure 6).",
    "heads": "The same attention, head by head.",
    "tokens": "Attention of the first token in the last layer to each token, mean over heads, accumulated up to T, "
    "and below in the quantized network.",
    "distance": "How far each token still is from the quantized network: mean distance of its context in the last "
    "layer, in levels.",
    "energy": "Energy of an inference by kind of operation: in the four networks, and as shares of each one's total. "
    "ANN: ordinary network; QANN: its quantized twin; QANN INT8: in 8-bit integers; SNN: the spiking network.",
    "raster": "Spikes of some neurons of this sample, spread evenly over the first node, the middle one and the last.",
}


def nodes_to_see(model: SpikePreTrainedModel) -> list[str]:
    """Nodes of which a report shows levels: first, middle and last, and attention and context of the last layer."""
    attention = attention_nodes(model)
    return list(dict.fromkeys([*nodes_of_raster(model.node_names), attention[-1], context_node(model.node_names)]))


def context_node(names: Iterable[str]) -> str:
    """The last of the nodes that attention hands its context to."""
    return [name for name in names if name.endswith(".context_node")][-1]


def check_folder(folder: str | Path) -> None:
    """Raise OSError if a report cannot go there: it is a file, or somebody else's files would be overwritten."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output: {folder} is a file: name a folder for the report.")
    if not any((folder / name).exists() for name in (HTML, JSON)):
        return
    try:
        found = json.loads((folder / JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or MARK not in found:
        raise FileExistsError(
            f"output: {folder} holds something else under the names of a report: name another folder."
        )


def write_report(
    folder: str | Path,
    model: SpikePreTrainedModel,
    recording: Recording,
    *,
    about: Mapping[str, Any] | None = None,
    index: Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    seen: CloseUp | None = None,
    tokens: Sequence[str] | None = None,
    picture: torch.Tensor | None = None,
    says: str | None = None,
    energy: EnergyReport | None = None,
    costs: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Write report.html, report.json, tables and figures to a folder; all of them, or nothing.

    Args:
        model: the network that was recorded.
        about: what to say of the data and of the run, by name.
        index: of the samples in their data set; by default they are numbered.
        texts: what the samples are, if they are texts.
        seen: a sample looked at closely, with the nodes of `nodes_to_see`.
        tokens: of it, one for each position that is not padding; or
        picture: (H, W, 3 or 1), 0 to 1, what it shows.
        says: a line about it.
        energy: of `energy(count_operations(...))`: adds tables of operations and energy, and a figure.
        costs: of `simulation_costs`: adds time and memory against T.
        training: of `training_costs`: adds hours and energy of training.

    Returns:
        What report.json holds.

    Raises:
        OSError: the folder cannot be written, or holds something else under these names.
    """
    check_folder(folder)
    names = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
    course = time_course(recording)
    tables = {
        "steps": step_table(recording),
        "nodes": node_table(recording),
        "samples": sample_table(recording, index),
    }
    for number, row in enumerate(tables["samples"]):
        row |= {key: names[row[key]] for key in ("label", "prediction", "QANN prediction") if key in row}
        row |= {} if texts is None else {"text": texts[number]}
    accounts: dict[str, Any] = {
        "energy": None if energy is None else account(energy),
        "simulation_costs": costs and {**costs, "tables": {"simulation_costs": costs["table"]}},
        "training_costs": training and {**training, "tables": {"training_costs": training["table"]}},
    }
    for name, found in accounts.items():
        if found:
            tables |= found["tables"]
            accounts[name] = {key: value for key, value in found.items() if key not in ("table", "tables")}
    drawn = {
        "accuracy": figures.accuracy_figure(course),
        "equilibrium": figures.equilibrium_figure(course),
        "firing_rate": figures.rate_figure(recording),
    }
    if energy is not None:
        drawn["energy"] = figures.energy_figure(*part_table(tables["energy"]))
    if seen is not None:
        drawn |= close_figures(model, seen, tokens, picture)
    content: dict[str, Any] = {
        MARK: __version__,
        "title": title or f"{type(model).__name__}: {len(recording)} samples in time",
        "about": dict(about or {}),
        "network": network(model),
        "time course": course,
        "definitions": {name: text for name, text in DEFINITIONS.items() if name in course},
        "accounts": {name: found for name, found in accounts.items() if found},
        "sample": None if seen is None else sample_facts(seen, names, says),
        "figures": {name: CAPTIONS[name] for name in drawn},
        **tables,
    }
    with moved_in_whole(folder) as aside:
        (aside / "figures").mkdir()
        for name, figure in drawn.items():
            figures.save(figure, aside / "figures", name)
        for name, rows in tables.items():
            write_csv(aside / f"{name}.csv", rows)
        pyarrow.parquet.write_table(anytime_table(recording, index, names).data.table, aside / "anytime.parquet")
        write_json(aside / JSON, content)
        write_text(aside / HTML, html(content, aside / "figures"))
    remove_outdated(Path(folder), drawn, tables)
    return content


def remove_outdated(folder: Path, drawn: Iterable[str], tables: Iterable[str]) -> None:
    """Remove what an earlier report in the folder had, and this one has not."""
    for name in set(CAPTIONS) - set(drawn):
        for kind in ("png", "svg"):
            (folder / "figures" / f"{name}.{kind}").unlink(missing_ok=True)
    for name in set(OPTIONAL_TABLES) - set(tables):
        (folder / f"{name}.csv").unlink(missing_ok=True)


def network(model: SpikePreTrainedModel) -> dict[str, Any]:
    """What the network is: facts for people, digest, config."""
    config = json.loads(model.config.to_json_string())
    config.pop("auto_map", None)
    told = {name: text.replace("`", "") for name, text in facts(model, outline(model)).items()}
    return {"facts": {**told, "Size": size(model), "Digest": network_digest(model)}, "config": config}


def sample_facts(seen: CloseUp, names: Sequence[str], says: str | None) -> dict[str, Any]:
    answers = [names[number] for number in seen.logits_per_step.argmax(-1).tolist()]
    return {
        "what": says,
        "answer after each step": answers,
        "answer of the quantized network": names[int(seen.expected_logits.argmax())],
        "T_eq": seen.equilibrium_step,
    }


def close_figures(
    model: SpikePreTrainedModel, seen: CloseUp, tokens: Sequence[str] | None, picture: torch.Tensor | None
) -> dict[str, Any]:
    """Figures of the sample looked at closely: rasters, and maps over its patches or tokens."""
    drawn: dict[str, Any] = {}
    attention, context = attention_nodes(model)[-1], context_node(model.node_names)
    distance = (seen.levels[context].float() - seen.expected_levels[context]).abs().mean(-1)
    probs = seen.values(attention), seen.expected_values(attention)
    if picture is not None and not within_windows(model.config):
        drawn |= patch_figures(model.config, seen, picture, *probs, distance)
    elif tokens is not None:
        mask = seen.inputs.get("attention_mask")
        there = torch.arange(distance.shape[-1]) if mask is None else mask[0].nonzero().flatten()
        first, expected_first = (p.mean(-3)[..., there[0], there] for p in probs)
        drawn["tokens"] = figures.token_figure(tokens, first, expected_first, "attention probability")
        left = distance[:, there]
        drawn["distance"] = figures.token_figure(tokens, left, None, "distance from the QANN (levels)")
    drawn["raster"] = figures.raster_figure(seen, nodes_of_raster(model.node_names))
    return drawn


def patch_figures(config, seen: CloseUp, picture: torch.Tensor, probs, expected_probs, distance) -> dict[str, Any]:
    """Maps over the patches of an image.

    Args:
        probs, expected_probs: (T, heads, N, N) and (heads, N, N) attention in the last layer.
        distance: (T, N) of its context from the quantized network's, in levels.
    """
    (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
    grid = (height // patch_height, width // patch_width)

    def patches(x: torch.Tensor) -> torch.Tensor:  # (..., N), of which the first are class tokens
        return x[..., config.prefix_tokens :].unflatten(-1, grid)

    context = context_node(seen.levels)
    maps, expected = (
        {
            ATTENTION: patches(attention_of_head(config, p.mean(-3))),
            CONTEXT: patches(values.pow(2).mean(-1).sqrt()),
            LEFT: patches(left),
        }
        for p, values, left in (
            (probs, seen.values(context), distance),
            (expected_probs, seen.expected_values(context), torch.zeros_like(distance[0])),
        )
    )
    heads, expected_heads = (
        {
            f"head {head + 1}\nprobability": patches(attention_of_head(config, p[..., head, :, :]))
            for head in range(min(8, p.shape[-3]))
        }
        for p in (probs, expected_probs)
    )
    return {
        "image": figures.image_figure(picture, maps, expected, masked=ATTENTION),
        "heads": figures.image_figure(picture, heads, expected_heads),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the names of their columns above them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)

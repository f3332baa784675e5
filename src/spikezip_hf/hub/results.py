"""What is known of a network's answers, as `spikezip evaluate` and the recipes write it: results.json."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spikezip_hf.files import write_json
from spikezip_hf.models.checkpoints import plain_class
from spikezip_hf.models.configuration_quantization import VIT_FIELDS, pair
from spikezip_hf.models.configuration_spike_swin import SwinFields
from spikezip_hf.models.configuration_spike_vit import ViTFields

FILE = "results.json"
# Fields of a config that decide what a network answers, beside its weights.
DECISIVE = (
    "num_attention_heads",
    "layer_norm_eps",
    "pad_token_id",
    "quantization_levels",
    "weight_bits",
    "node_placement",
    "head_act",
    "max_spikes_per_step",
    "firing_schedule",
    "firing_window",
)


def network_digest(model: PreTrainedModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> str:
    """sha256 of a network's weights, thresholds and the fields that decide what it answers: what results are of.

    Args:
        state_dict: of the model, where it was gathered already; a model in shards has no other whole one.
    """
    fields = {name: getattr(model.config, name, None) for name in DECISIVE}
    if isinstance(model.config, ViTFields):  # but for their defaults: digests of older networks stay what they are
        own = {name: getattr(model.config, name) for name in VIT_FIELDS}
        fields.update({name: value for name, value in own.items() if value != getattr(ViTFields, name)})
    if isinstance(model.config, SwinFields):  # whose weights do not show it
        fields["image_size"] = pair(model.config.image_size)  # type: ignore[attr-defined]
    for name in ("firing_steps", "fine_steps"):
        if steps := getattr(model.config, name, None):  # sorted, as they are in a file
            fields[name] = dict(sorted(steps.items()))
    digest = hashlib.sha256(json.dumps([plain_class(type(model)).__name__, fields]).encode())
    for name, tensor in sorted((model.state_dict() if state_dict is None else state_dict).items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_results(source: Any) -> list[dict[str, Any]]:
    """Results as a list, one for each data set.

    Args:
        source: path of a results.json, what such a file holds, or a list of either.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not hold results; says what is missing.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"results: there is no file {path}.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # of bytes that are no text, too
            raise ValueError(f"results: {path} is not JSON ({error}).") from error
        # A text in it is no path: a file does not say which other one is read.
        if not all(isinstance(one, Mapping) for one in (content if isinstance(content, list) else [content])):
            raise ValueError(f"results: {path} holds something else than results.")
        try:
            return read_results(content)
        except ValueError as error:
            raise ValueError(f"{error} The file is {path}.") from error
    if isinstance(source, Mapping):
        missing = [key for key in ("data", "split", "simulated") if key not in source]
        if missing:
            raise ValueError(
                f"results: {', '.join(missing)} is missing, so this is not what `spikezip evaluate` or a recipe wrote."
            )
        figures = source["simulated"]
        rows = figures.get("rows") if isinstance(figures, Mapping) else None
        if not isinstance(rows, Sequence) or "samples" not in figures:
            raise ValueError("results: simulated has no samples or no rows, so nothing is known of any accuracy.")
        for row in rows:
            if not isinstance(row, Mapping) or {"network", "T", "accuracy"} - set(row):
                raise ValueError(f"results: a row needs network, T and accuracy, got {row!r}.")
            if not isinstance(row["accuracy"], Real) or not 0 <= float(row["accuracy"]) <= 1:
                raise ValueError(f"results: accuracy must be a number from 0 to 1, got {row['accuracy']!r}.")
        return [dict(source)]
    if isinstance(source, Sequence):
        return [one for part in source for one in read_results(part)]
    raise ValueError(f"results must be a path, a dict or a list of these, got {type(source).__name__}.")


def results_of_metrics(
    metrics: Mapping[str, float],
    *,
    data: str,
    split: str,
    samples: int,
    time_steps: int | None = None,
    dataset: str | None = None,
    subset: str | None = None,
) -> dict[str, Any]:
    """Results for a card from what `evaluate` computed: the metrics "accuracy" or "accuracy_over_time".

    Args:
        metrics: what `compute` of the metric, or of an evaluator, returned.
        data, split, samples: name and split of the data set, and number of samples.
        time_steps: T, of a Spike model; None for a Quant model.
        dataset, subset: id of the set on the Hub, and its configuration, if it is there.

    Raises:
        ValueError: there is no accuracy among the metrics.
    """
    if "accuracy" not in metrics:
        raise ValueError(f"metrics holds {', '.join(metrics) or 'nothing'}, and no accuracy.")
    last = "-" if time_steps is None else time_steps
    rows = [
        {"network": "SNN", "T": int(name.removeprefix("accuracy_T")), "accuracy": value}
        for name, value in metrics.items()
        if name.startswith("accuracy_T") and name != f"accuracy_T{time_steps}"
    ]
    share = metrics.get("equilibrium_share")
    settled = "equilibrium" if share == 1 else last
    rows.append({"network": "QANN" if time_steps is None else "SNN", "T": settled, "accuracy": metrics["accuracy"]})
    figures: dict[str, Any] = {"samples": samples, "rows": rows}
    if time_steps is not None:
        figures["T"] = time_steps
    if share is not None:
        figures["at equilibrium"] = round(share * samples)
    return {"data": data, "dataset": dataset, "subset": subset, "split": split, "simulated": figures}


def results_of(
    model: PreTrainedModel,
    given: Any,
    *folders: str | os.PathLike | None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Results of this very network: those given, or else those in the first of the folders that has some.

    Args:
        given: as for `read_results`. What says of no network is taken as of this one, and says so from now on.
        state_dict: as for `network_digest`.

    Raises:
        ValueError: those given are of another network.
    """
    if given is not None:
        results = read_results(given)
        if not results:
            return []
        digest = network_digest(model, state_dict)
        if any(one.get("network_digest", digest) != digest for one in results):
            raise ValueError(
                "results are of another network than this one: evaluate it again with `spikezip evaluate`."
            )
        return [{"network_digest": digest, **one} for one in results]
    for folder in folders:
        known = own_results(folder)
        if known and all("network_digest" in one for one in known):
            digest = network_digest(model, state_dict)
            if all(one["network_digest"] == digest for one in known):
                return known
    return []


def own_results(folder: str | os.PathLike | None) -> list[dict[str, Any]] | None:
    """What the results.json of a folder holds: nothing if there is none, None if it is somebody else's."""
    path = None if folder is None else Path(folder) / FILE
    if path is None or not path.is_file():
        return []
    try:
        return read_results(path)
    except (ValueError, UnicodeDecodeError):
        return None


def check_results_path(path: str | os.PathLike) -> None:
    """Raise FileExistsError if a results.json that is not ours is there."""
    path = Path(path)
    if path.name == FILE and own_results(path.parent) is None:
        raise FileExistsError(f"results: {path} holds something else: name another file, or move that one away.")


def write_results(path: str | os.PathLike, results: Sequence[Mapping[str, Any]]) -> None:
    """Write results.json.

    Raises:
        FileExistsError: there is a file of that name which is not ours.
    """
    check_results_path(path)
    write_json(path, results if len(results) > 1 else results[0])


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results are of the same split of the same data."""
    return all(one.get(key) == other.get(key) for key in ("data", "dataset", "subset", "split"))

"""What a classifier predicts for each sample of a data set, written part by part, so that a run may be cut off."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from spikezip_hf.files import write_json
from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, eval_mode

try:
    import pyarrow
    import pyarrow.parquet
    from datasets import ClassLabel, Dataset, Features, List, Value
except ImportError as error:
    raise ImportError(
        f"Tables of predictions need more than the models do ({error}): pip install 'spikezip-hf[train]'."
    ) from error

logger = logging.get_logger(__name__)

SETTINGS = "settings.json"
# Of a config, what says where a model comes from and not what it predicts; the time-steps have a field of their own.
INCIDENTAL = {"_name_or_path", "architectures", "auto_map", "dtype", "source_model", "spikezip_version"}
INCIDENTAL |= {"time_steps", "transformers_version"}


def predict(
    model: PreTrainedModel,
    inputs: Dataset,
    collate: Callable[[list], Any],
    folder: str | Path,
    *,
    time_steps: int | None = None,
    batch_size: int = 16,
    part_size: int = 256,
) -> Dataset:
    """Predictions of a classifier, ordinary, Quant or Spike, for each row of a data set.

    Rows are predicted in parts, each of which is a Parquet file in `folder` once it is finished. A run that was cut
    off, started again with the same arguments, goes on with the first part that is missing.

    Args:
        model: on its device, in its precision.
        inputs: rows as the model takes them in: tokenized, or with a transform of images (`with_transform`).
        collate: makes a batch of rows, a dict of tensors; "labels" are among them if there are any.
        folder: of the parts and of settings.json, which says what they depend on; another one for each table.
        time_steps: T, of Spike models only; the config's by default.
        batch_size: rows predicted at once.
        part_size: rows of a part: the most that is done again after a run was cut off.

    Returns:
        A row for each of `inputs`, in their order: "index", "label" (if there are labels), "prediction" (class),
        "score" (its softmax probability). Of a Spike model also "prediction_per_step" (classes after steps 1 to T),
        "equilibrium_step" (-1: not proven), "spikes" and "neurons" (of the sample, over all nodes).

    Raises:
        ValueError: an argument is out of range, there are no rows, the model gives no logits (B, classes), or `folder`
            holds predictions with other settings; names the field.
    """
    check_positive_integer("batch_size", batch_size)
    check_positive_integer("part_size", part_size)
    spiking = isinstance(model, SpikePreTrainedModel)
    if spiking:
        time_steps = model.config.time_steps if time_steps is None else time_steps
        check_positive_integer("time_steps", time_steps)
    elif time_steps is not None:
        raise ValueError(f"time_steps: {type(model).__name__} is no Spike model; leave it out.")
    if len(inputs) == 0:
        raise ValueError("inputs: the data set is empty, there is nothing to predict.")
    features = columns(inputs, "labels" in collate([inputs[0]]), spiking)
    home = Path(folder)
    claim(
        home,
        {
            **model_settings(model),
            "time_steps": time_steps,
            "batch_size": batch_size,
            "part_size": part_size,
            "rows": len(inputs),
            "inputs": inputs._fingerprint,
        },
    )
    parts = []
    with eval_mode(model):
        for start in range(0, len(inputs), part_size):
            rows = range(start, min(start + part_size, len(inputs)))
            path = home / f"part-{start // part_size:05d}.parquet"
            part = read_part(path, rows, features)
            if part is None:
                made = Dataset.from_dict({"index": rows}).map(
                    lambda batch: answers(model, collate([inputs[row] for row in batch["index"]]), time_steps),
                    batched=True,
                    batch_size=batch_size,
                    features=features,
                    keep_in_memory=True,  # what is left in a cache folder, nobody removes
                    load_from_cache_file=False,
                    new_fingerprint=path.stem,  # else datasets makes one of the model's weights, for each part
                    desc=f"predicting rows {rows.start} to {rows.stop - 1} of {len(inputs)}",
                )
                part = made.data.table.select(list(features)).cast(features.arrow_schema)
                aside = path.with_name(f".{path.name}.partial")
                pyarrow.parquet.write_table(part, aside, write_page_checksum=True)
                os.replace(aside, path)
            parts.append(part)
    return Dataset(pyarrow.concat_tables(parts))


def columns(inputs: Dataset, labelled: bool, spiking: bool) -> Features:
    """Columns of the table, in their order; a label keeps the names of its classes."""
    whole = Value("int64")
    features = {"index": whole}
    if labelled:
        known = [inputs.features[name] for name in ("label", "labels") if name in inputs.features]
        features["label"] = known[0] if known and isinstance(known[0], ClassLabel) else whole
    features |= {"prediction": whole, "score": Value("float32")}
    if spiking:
        features |= {"prediction_per_step": List(whole), "equilibrium_step": whole, "spikes": whole, "neurons": whole}
    return Features(features)


@torch.no_grad()
def answers(model: PreTrainedModel, batch: Any, time_steps: int | None) -> dict[str, list]:
    """The columns of a batch, beside the index; `time_steps` is None for a model without."""
    tensors = {name: value.to(model.device) for name, value in batch.items()}
    found = {"label": tensors.pop("labels")} if "labels" in tensors else {}
    spiking = {} if time_steps is None else {"time_steps": time_steps, "output_time_steps": True}
    out = model(**tensors, **spiking, return_dict=True)
    logits = out.get("logits")
    if logits is None or logits.dim() != 2:
        raise ValueError(
            f"model: {type(model).__name__} gives no logits (B, classes): it is no classifier of samples."
        )
    found["score"], found["prediction"] = logits.float().softmax(-1).max(-1)
    if spiking:
        found["prediction_per_step"] = out.logits_per_step.argmax(-1)
        found["equilibrium_step"] = out.equilibrium_step
        found["spikes"], found["neurons"] = out.spike_counts.sum(-1), out.neuron_counts.sum(-1)
    return {name: value.tolist() for name, value in found.items()}


def model_settings(model: PreTrainedModel) -> dict[str, Any]:
    """What the predictions of a model depend on: its class, its config, and a hash of its weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = json.loads(model.config.to_json_string(use_diff=False))
    fields = {f"config.{name}": value for name, value in sorted(config.items()) if name not in INCIDENTAL}
    return {"class": type(model).__name__, **fields, "weights": digest.hexdigest()}


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of the parts to `folder`, or raise ValueError if it has parts with others."""
    path = folder / SETTINGS
    remedy = "Name another folder, or remove that one."
    if path.exists():
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}). {remedy}") from error
        for key in {**settings, **found}:
            if found.get(key) != settings.get(key):
                there, asked = (f"{one.get(key)!r:.80}" for one in (found, settings))
                raise ValueError(f"{folder} holds predictions with {key} {there}, not {asked}. {remedy}")
    elif any(folder.glob("part-*.parquet")):
        raise ValueError(f"{folder} holds predictions without {SETTINGS}, which says of what. {remedy}")
    else:
        write_json(path, settings)


def read_part(path: Path, rows: range, features: Features) -> pyarrow.Table | None:
    """A finished part; None if it is not there, or damaged, of which a warning says."""
    if not path.exists():
        return None
    try:
        part = pyarrow.parquet.read_table(path, page_checksum_verification=True)
        if part.schema.equals(features.arrow_schema) and part["index"].to_pylist() == list(rows):
            return part
        problem: object = "it has other rows or columns"
    except (OSError, pyarrow.ArrowException) as error:
        problem = error
    logger.warning(f"{path} is damaged ({problem}) and made anew.")
    return None

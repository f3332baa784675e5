"""What a classifier predicts for each sample of a data set, written part by part, so that a run may be cut off."""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from spikezip_hf.analysis.answers import answers
from spikezip_hf.analysis.processes import PartialState, gathered, my_share, told_to_end
from spikezip_hf.conversion.certificate import check_twins
from spikezip_hf.errors import memory_advice
from spikezip_hf.files import write_json, written_whole
from spikezip_hf.hub.results import network_digest
from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel, SpikePreTrainedModel, eval_mode

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


@memory_advice("lower batch_size; of a spiking network, chunk_steps of its config, too.")
def predict(
    model: PreTrainedModel,
    inputs: Dataset,
    collate: Callable[[list], Any],
    folder: str | Path,
    *,
    twin: QuantPreTrainedModel | None = None,
    order: Sequence[int] | None = None,
    time_steps: int | None = None,
    batch_size: int = 16,
    part_size: int = 256,
    processes: PartialState | None = None,
) -> Dataset:
    """Predictions of a classifier, ordinary, Quant or Spike, for each row of a data set.

    Rows are predicted in parts, each of which is a Parquet file in `folder` once it is finished. A run that was cut
    off, started again with the same arguments, goes on with the first part that is missing.

    Args:
        model: on its device, in its precision.
        inputs: rows as the model takes them in: tokenized, or with a transform of images (`with_transform`).
        collate: makes a batch of rows, a dict of tensors; "labels" are among them if there are any.
        folder: of the parts and of settings.json, which says what they depend on; another one for each table.
        twin: of a Spike model, the Quant model to hold it against: the table then has a column "exact".
        order: of the rows, to be predicted in; texts of like length together need less padding.
        time_steps: T, of Spike models only; the config's by default.
        batch_size: rows predicted at once.
        part_size: rows of a part: the most that is done again after a run was cut off.
        processes: to share the parts among the processes of this run, all of which must make this call. Batches are
            those of one process, so predictions are too. Each process reads what is finished in its `folder`.

    Returns:
        A row for each of `inputs`, in their order: "index", "label" (if there are labels), "prediction" (class),
        "score" (its softmax probability). Of a Spike model also "prediction_per_step" (classes after steps 1 to T),
        "equilibrium_step" (-1: not proven), "spikes" and "neurons" (of the sample, over all nodes); and "exact",
        whether it is at equilibrium with every level and logit of its twin.

    Raises:
        ValueError: an argument is out of range, there are no rows, the model gives no logits (B, classes), or `folder`
            holds predictions with other settings; names the field.
        ProcessEndedError: another process of the run is gone.
    """
    check_positive_integer("batch_size", batch_size)
    check_positive_integer("part_size", part_size)
    spiking = isinstance(model, SpikePreTrainedModel)
    if spiking:
        time_steps = model.config.time_steps if time_steps is None else time_steps
        check_positive_integer("time_steps", time_steps)
        if twin is not None:
            check_twins(twin, model)
    elif time_steps is not None or twin is not None:
        name = "twin" if time_steps is None else "time_steps"
        raise ValueError(f"{name}: {type(model).__name__} is no Spike model; leave it out.")
    if len(inputs) == 0:
        raise ValueError("inputs: the data set is empty, there is nothing to predict.")
    features = columns(inputs, "labels" in collate([inputs[0]]), spiking, twin is not None)
    rows_in_order = list(range(len(inputs)) if order is None else order)
    if sorted(rows_in_order) != list(range(len(inputs))):
        raise ValueError(f"order must hold each row from 0 to {len(inputs) - 1} once.")
    home = Path(folder)
    claim(
        home,
        {
            **model_settings(model),
            "twin": None if twin is None else network_digest(twin),
            "order": None if order is None else hashlib.sha256(str(rows_in_order).encode()).hexdigest(),
            "time_steps": time_steps,
            "batch_size": batch_size,
            "part_size": part_size,
            "rows": len(inputs),
            "inputs": inputs._fingerprint,
        },
    )
    parts: list[tuple[int, pyarrow.Table]] = []
    count = -(-len(inputs) // part_size)
    paths = [home / f"part-{number:05d}.parquet" for number in range(count)]
    with eval_mode(model), told_to_end(processes):
        # What is left to do is dealt out, as the first process sees it; what is finished, too, to be read.
        (finished, *_) = gathered([[path.exists() for path in paths]], processes)
        share = [my_share([n for n in range(count) if finished[n] is there], processes) for there in (True, False)]
        for number in chain(*share):
            rows = rows_in_order[number * part_size : (number + 1) * part_size]
            path = paths[number]
            part = read_part(path, rows, features)
            if part is None:
                made = Dataset.from_dict({"index": rows}).map(
                    lambda batch: answers(model, collate([inputs[row] for row in batch["index"]]), time_steps, twin),
                    batched=True,
                    batch_size=batch_size,
                    features=features,
                    keep_in_memory=True,  # what is left in a cache folder, nobody removes
                    load_from_cache_file=False,
                    new_fingerprint=path.stem,  # else datasets makes one of the model's weights, for each part
                    desc=f"predicting, part {number + 1} of {count}",
                )
                part = made.data.table.select(list(features)).cast(features.arrow_schema)
                with written_whole(path) as aside:
                    pyarrow.parquet.write_table(part, aside, write_page_checksum=True)
            parts.append((number, part))
        parts = gathered(parts, processes)
    return Dataset(pyarrow.concat_tables([part for _, part in sorted(parts, key=itemgetter(0))]).sort_by("index"))


def columns(inputs: Dataset, labelled: bool, spiking: bool, certified: bool) -> Features:
    """Columns of the table, in their order; a label keeps the names of its classes."""
    whole = Value("int64")
    features = {"index": whole}
    if labelled:
        known = [inputs.features[name] for name in ("label", "labels") if name in inputs.features]
        features["label"] = known[0] if known and isinstance(known[0], ClassLabel) else whole
    features |= {"prediction": whole, "score": Value("float32")}
    if spiking:
        features |= {"prediction_per_step": List(whole), "equilibrium_step": whole, "spikes": whole, "neurons": whole}
    if certified:
        features["exact"] = Value("bool")
    return Features(features)


def model_settings(model: PreTrainedModel) -> dict[str, Any]:
    """What the predictions of a model depend on: its class, its config, and a digest of the network."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    fields = {f"config.{name}": value for name, value in sorted(config.items()) if name not in INCIDENTAL}
    return {"class": type(model).__name__, **fields, "weights": network_digest(model)}


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


def read_part(path: Path, rows: list[int], features: Features) -> pyarrow.Table | None:
    """A finished part; None if it is not there, or damaged, of which a warning says."""
    if not path.exists():
        return None
    try:
        part = pyarrow.parquet.read_table(path, page_checksum_verification=True)
        if part.schema.equals(features.arrow_schema) and part["index"].to_pylist() == rows:
            return part
        problem: object = "it has other rows or columns"
    except (OSError, pyarrow.ArrowException) as error:
        problem = error
    logger.warning(f"{path} is damaged ({problem}) and made anew.")
    return None

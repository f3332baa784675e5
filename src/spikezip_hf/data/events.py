"""Sets of recordings of event cameras: from Parquet, folders of files, the Hub, or tonic."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers.utils import logging

from spikezip_hf.data.class_folders import read_class_folders
from spikezip_hf.data.columns import Labels, find_column, has_labels, join_labels, refuse_columns
from spikezip_hf.data.event_files import ENDINGS, EVENT, read_events
from spikezip_hf.data.sources import AnyDataset, open_source, split_files
from spikezip_hf.data.tables import read_parquet

logger = logging.get_logger(__name__)

COLUMNS = ("x", "y", "p", "t")


def load_events(
    name: str, *, subset: str | None = None, label_column: str | None = None, test_share: float = 0.0
) -> DatasetDict:
    """A set of labelled recordings: splits "train", "validation" and "test", those there are.

    Rows have `x`, `y`, `p` and `t`, one value for each event (see `event_files.Recording`), and `label`. A folder is
    one of these:
    - a .parquet file for each split, with these columns as lists.
    - train/<class>/<files> and likewise validation and test, as N-MNIST has it; or the classes without a folder above
      them, as CIFAR10-DVS has it, which are one training split. Files are read when a row is looked at.

    Args:
        name: a folder, or the name of one inside SPIKEZIP_DATA, or of a data set on the Hub, in this order.
        subset: a folder inside that folder, or a configuration of the set on the Hub.
        label_column: found by its name if None. Not for files, which are in folders named for their class.
        test_share: of each class, take the last recordings for a test split where there is none; see `split_off_test`.

    Raises:
        FileNotFoundError: there is no such set, or the folder has no such files.
        ValueError: a file cannot be read, a column is missing, or a label is not one.
    """
    source = open_source(name, subset, streaming=False)
    if not isinstance(source, Path):
        splits = from_columns(source, label_column, name)
    elif files := split_files(source, [".parquet"]):
        splits = read_event_parquet(files, label_column)
    else:
        refuse_columns(f"{source}, which is folders of recordings,", label_column=label_column)
        splits = read_event_folder(source)
    if test_share and "test" in splits:
        logger.warning(f"test_share={test_share} is left out: {name} has a test split of its own.")
        return splits
    return split_off_test(splits, test_share) if test_share else splits


def from_columns(splits: Mapping[str, AnyDataset], label_column: str | None, where: str) -> DatasetDict:
    """Splits with the columns of recordings, and their label as a class."""
    found: dict[str, Labels] = {}
    for split, data in splits.items():
        check_columns(data.column_names or [], where)
        label = find_column("label", data.column_names or [], label_column, where)
        splits = {**splits, split: data.select_columns([*COLUMNS, label]).rename_columns({label: "label"})}
        kind = data.features[label]
        values = data.with_format("arrow")[:][label].to_pylist()
        names = kind.names if isinstance(kind, ClassLabel) else None
        if split != "test" or has_labels(values):
            found[split] = Labels(values, f"{where}, {split} row", names=names)
    label_class = join_labels(found)
    return DatasetDict({split: splits[split].cast_column("label", label_class) for split in found})


def check_columns(columns: list[str], where: object) -> None:
    """Raise ValueError unless these are columns of recordings."""
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(
            f"{where} has no column {missing[0]!r}, only {columns}: recordings have x, y, p and t, lists with one "
            "value for each event."
        )


def read_event_parquet(files: Mapping[str, list[Path]], label_column: str | None) -> DatasetDict:
    """The splits of Parquet files with recordings."""

    def columns_of(schema: pyarrow.Schema, path: Path) -> tuple[str, ...]:
        check_columns(schema.names, path)
        return (*COLUMNS, find_column("label", schema.names, label_column, path))

    data = read_parquet(files, columns_of)
    label = next(iter(data.values())).column_names[-1]
    return data if label == "label" else data.rename_column(label, "label")


def read_event_folder(folder: Path) -> DatasetDict:
    """Recordings as files in folders named for their class, which are read when a row is looked at."""
    label, splits = read_class_folders(folder, ENDINGS, "recordings")
    features = Features({"path": Value("string"), "label": label})
    return DatasetDict(
        {
            split: Dataset.from_dict({"path": paths, "label": indices}, features=features).with_transform(with_events)
            for split, (paths, indices) in splits.items()
        }
    )


def with_events(batch: dict[str, list]) -> dict[str, list]:
    """A batch of a set with the events of its files, if it is one of files."""
    if "path" not in batch:
        return batch
    recordings = [read_events(path).events for path in batch["path"]]
    columns: dict[str, list] = {name: [events[name] for events in recordings] for name in COLUMNS}
    return {**columns, **{name: values for name, values in batch.items() if name != "path"}}


def split_off_test(data: DatasetDict, share: float = 0.1) -> DatasetDict:
    """The same set with the last `share` of each class of "train" as "test", in the order of the files' names.

    For CIFAR10-DVS, which has no split of its own, 0.1 is the one of the paper's code (and of SpikingJelly's
    `split_to_train_test_set(0.9, ...)`, from which it has it): 9000 recordings to train with, 1000 to test.

    Raises:
        ValueError: the share is out of range, or there is nothing to split.
    """
    if not 0 < share < 1:
        raise ValueError(f"test_share is {share}: the share to test with should lie between 0 and 1.")
    if "train" not in data or "test" in data:
        raise ValueError(f"test_share is for a set with a train and without a test split; this one has {list(data)}.")
    train = data["train"]
    labels = np.asarray(train.with_format("arrow")[:]["label"].to_pylist())
    chosen = []
    for value in np.unique(labels):
        rows = np.flatnonzero(labels == value)
        kept = math.ceil(round(len(rows) * (1 - share), 6))  # 1 - 0.7 is a little more than 0.3
        chosen.append(rows[kept:])
    test = np.concatenate(chosen)
    if not len(test):
        raise ValueError(f"test_share is {share}: of classes as small as these, that is no recording to test with.")
    parts = {"train": train.select(np.setdiff1d(np.arange(len(train)), test)), "test": train.select(test)}
    return DatasetDict({**data, **parts})


def from_tonic(dataset: Any, label_names: list[str] | None = None) -> Dataset:
    """A tonic data set, or any sequence of (structured array of events, index of the class), as `load_events` has it.

    Events are read when a row is looked at, so transforms of tonic that give events act anew each time. Targets are
    taken from the data set's `targets` where it has them, as tonic's do, else from a pass over it.

    Args:
        label_names: of the classes; tonic's `classes` where there are such, else their numbers.

    Raises:
        ValueError: it gives something else than events with x, y, t, p and the index of a class.

    Example:
        >>> recordings = from_tonic(tonic.datasets.NMNIST("data", train=False))
    """
    targets = getattr(dataset, "targets", None) or [dataset[row][1] for row in range(len(dataset))]
    names = label_names or getattr(dataset, "classes", None)
    label = join_labels({"train": Labels(list(targets), "tonic's data set, row", names=names and list(names))})
    features = Features({"row": Value("int64"), "label": label})
    rows = Dataset.from_dict({"row": list(range(len(dataset))), "label": list(targets)}, features=features)

    def events_of(row: int) -> np.ndarray:
        events = dataset[row][0]
        if getattr(events, "dtype", None) is None or not {*COLUMNS} <= {*(events.dtype.names or ())}:
            raise ValueError(
                f"row {row} of tonic's data set is a {type(events).__name__} and no structured array with x, y, t and "
                "p: leave out transforms that make frames."
            )
        return events.astype(EVENT) if events.dtype["t"].kind == "f" else events

    def read(batch: dict[str, list]) -> dict[str, list]:
        recordings = [events_of(row) for row in batch["row"]]
        columns: dict[str, list] = {name: [events[name] for events in recordings] for name in COLUMNS}
        return {**columns, **{name: values for name, values in batch.items() if name != "row"}}

    return rows.with_transform(read)

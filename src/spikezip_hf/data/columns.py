"""Which columns are text, image and label, and labels of any kind as one ClassLabel for all splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, DatasetDict, Features, IterableDataset, IterableDatasetDict

from spikezip_hf.data.sources import AnyDataset, AnyDatasetDict

CANDIDATES = {
    "text": ("sentence", "text", "review", "content", "comment"),
    "image": ("image", "img", "pixel_values"),
    "label": ("label", "labels", "target", "class", "sentiment"),
}
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
PEEK = 100  # examples of a stream's test split that are read to see whether it has labels


def find_column(role: str, columns: Iterable[str], told: str | None, where: object) -> str:
    """The column that is the "text", "image" or "label".

    Args:
        told: by the user; checked, and taken.
        where: the columns are, for errors.

    Raises:
        ValueError: no column fits, or several do, or the one told does not exist.
    """
    columns = list(columns)
    if told is not None:
        if told not in columns:
            raise ValueError(f"{where} has no column {told!r}, only {columns}: mend {role}_column=.")
        return told
    fitting = [column for column in CANDIDATES[role] if column in columns]
    if len(fitting) == 1:
        return fitting[0]
    problem = f"has the columns {fitting}" if fitting else f"has no column {' or '.join(CANDIDATES[role])}"
    raise ValueError(f"{where} {problem}, among {columns}: pass {role}_column=, the one that is the {role}.")


def refuse_columns(where: object, **told: str | None) -> None:
    """Raise ValueError, naming it, if a column is named of data that has none."""
    for name, column in told.items():
        if column is not None:
            raise ValueError(f"{name}={column!r}: {where} has no columns: leave it out.")


@dataclass
class Labels:
    """The labels of one split or file, as found.

    Args:
        values: whole numbers, or strings.
        source: where they are, for errors: ends with the unit of `places`, "row" or "line".
        places: of the values in it; their positions from 0 if None.
        names: of the classes, if they are known.
    """

    values: Sequence[Any]
    source: str
    places: Sequence[int] | None = None
    names: list[str] | None = None

    def where(self, row: int) -> str:
        """The place of a value, for errors."""
        return f"{self.source} {self.places[row] if self.places else row}"


def has_labels(values: Iterable[Any]) -> bool:
    """Whether some label is not -1, the mark of an example whose label is kept secret."""
    return any(str(value) != "-1" for value in values)


def join_labels(splits: Mapping[Any, Labels], binary: Sequence[str] = ("0", "1")) -> ClassLabel:
    """One ClassLabel for all splits.

    Whole numbers are the classes from 0, also where they are written as strings; other strings are names, sorted.

    Args:
        binary: names of two classes that have none.

    Raises:
        ValueError: a label is missing, or is not a whole number from 0 where there are numbers, or exceeds the
            classes that are known, or the splits know different names.
    """
    if not splits:
        raise ValueError("The set has no labels: all those of its only split, test, are -1.")
    names = {split: labels.names for split, labels in splits.items()}
    known = next(iter(names.values()))
    if any(other != known for other in names.values()):
        raise ValueError(f"The splits disagree on the names of the classes: {names}.")
    for labels in splits.values():
        if labels.values and isinstance(labels.values[0], list | dict):
            raise ValueError(f"{labels.where(0)}: label {labels.values[0]!r} is more than one label.")
    found = {value for labels in splits.values() for value in labels.values}
    if not any(map(is_number, found)) and not known:
        wrong = {value for value in found if not isinstance(value, str) or not value.strip()}
        for labels in splits.values():
            refuse(wrong, labels, "is not a label")
        return ClassLabel(names=sorted(found))
    for labels in splits.values():
        refuse({value for value in found if whole(value) is None}, labels, "is not a whole number from 0")
    if known:
        for labels in splits.values():
            refuse({value for value in found if (whole(value) or 0) >= len(known)}, labels, f"is not one of {known}")
        return ClassLabel(names=known)
    if not found:
        places = [labels.source.rpartition(",")[0] for labels in splits.values()]
        raise ValueError(f"{' and '.join(places)}: there are no examples.")
    count = 1 + max(whole(value) or 0 for value in found)
    return ClassLabel(names=list(binary) if count == 2 else [str(index) for index in range(count)])


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and NUMBER.fullmatch(value) is not None)


def whole(value: Any) -> int | None:
    """The whole number from 0 that a label is, or is written as."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else None
    return int(value) if isinstance(value, int | float) and value >= 0 and value == int(value) else None


def refuse(wrong: set, labels: Labels, problem: str) -> None:
    for row, value in enumerate(labels.values if wrong else ()):
        if value in wrong:
            raise ValueError(f"{labels.where(row)}: label {value!r} {problem}.")


def encode(values: Iterable[Any], label: ClassLabel) -> list[int]:
    """Labels as indices of classes."""
    index = {name: position for position, name in enumerate(label.names)}
    numbers = {value: whole(value) for value in set(values)}
    return [index[value] if (number := numbers[value]) is None else number for value in values]


def standardize(
    splits: dict[str, AnyDataset],
    role: str,
    feature: Any,
    name: str,
    content_column: str | None,
    label_column: str | None,
    binary: Sequence[str] = ("0", "1"),
) -> AnyDatasetDict:
    """Splits of any columns with just the columns `role` and "label"; a test split without labels is dropped.

    The labels of a stream are read once for their classes, unless the set itself says what these are.

    Args:
        splits: of one set, with the same columns.
        role: "text" or "image".
        feature: the type of its column.
        name: of the set, for errors.
        content_column: which column it is, `label_column` likewise; found by its name if None.
        binary: names of two classes that have none.

    Raises:
        ValueError: a column or a label is not what it should be.
    """
    first = next(iter(splits.values()))
    columns = first.column_names or list(next(iter(first)))
    content = find_column(role, columns, content_column, name)
    label = find_column("label", columns, label_column, name)
    kind = (first.features or {}).get(label)
    names = kind.names if isinstance(kind, ClassLabel) else None
    labels: dict[str, Labels] = {}
    for split, data in splits.items():
        if not isinstance(data, IterableDataset) and not len(data):
            raise ValueError(f"{name}: the split {split} is empty.")
        if names and isinstance(data, IterableDataset):  # nothing to learn; a pass over it would be dear
            values = [row[label] for row in data.select_columns([label]).take(PEEK)] if split == "test" else []
        elif isinstance(data, IterableDataset):
            values = [row[label] for row in data.select_columns([label])]
        else:
            values = data.select_columns([label]).with_format("arrow")[:][label].to_pylist()
        if split != "test" or has_labels(values):
            labels[split] = Labels(values, f"{name}, {split} row", names=names)
    features = Features({role: feature, "label": join_labels(labels, binary)})
    result = {}
    for split in labels:
        data = splits[split].select_columns([content, label])
        new_names = {old: new for old, new in ((content, role), (label, "label")) if old != new}
        data = data.rename_columns(new_names) if new_names else data
        # Casting writes the whole set anew.
        result[split] = data if data.features == features else data.cast(features)
    return as_dict(result)


def as_dict(splits: dict[str, AnyDataset], streaming: bool = False) -> AnyDatasetDict:
    """Splits as one set; those in memory or on disk as streams if `streaming`."""
    if any(isinstance(data, IterableDataset) for data in splits.values()):
        return IterableDatasetDict(splits)
    if streaming:
        # A folder of classes is read class by class, which no buffer of a stream would mix.
        mixed = {split: data.shuffle(seed=0) if split == "train" else data for split, data in splits.items()}
        return IterableDatasetDict({split: data.to_iterable_dataset() for split, data in mixed.items()})
    return DatasetDict(splits)

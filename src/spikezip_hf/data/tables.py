"""Text and labels from files: TSV, CSV, JSON, JSON lines and Parquet, checked, with the place of each row."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Features

from spikezip_hf.data.columns import Labels, has_labels, join_labels
from spikezip_hf.data.sources import AnyDatasetDict

ENDINGS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")

# How csv reads the two: in a TSV file a quotation mark is an ordinary character.
DIALECTS: dict[str, dict[str, Any]] = {
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
    ".csv": {"strict": True},
}


def read_columns(path: Path) -> list[str]:
    """The names of the columns, from as little of the file as tells them."""
    if path.suffix == ".parquet":
        return parquet_schema(path).names
    _, record = next(read_json(path) if path.suffix.startswith(".json") else read_lines(path), (0, None))
    if record is None:
        raise ValueError(f"{path} has no examples.")
    return list(record)


def read_table(path: Path, text: str, label: str) -> tuple[list[str], Labels]:
    """The columns `text` and `label` of one file.

    Raises:
        ValueError: the file cannot be read as what its name says, has no rows, or a row lacks its text.
    """
    unit, names, places = "row", None, None
    if path.suffix == ".parquet":
        names = class_names(parquet_schema(path), label)
        columns = pyarrow.parquet.read_table(path, columns=[text, label])
        texts, values = columns[text].to_pylist(), columns[label].to_pylist()
    else:
        records = list(read_json(path) if path.suffix.startswith(".json") else read_lines(path))
        texts, values = ([record.get(column) for _, record in records] for column in (text, label))
        places = [place for place, _ in records]
        unit = "row" if path.suffix == ".json" and is_array(path) else "line"
    labels = Labels(values, f"{path}, {unit}", places, names)
    for row, value in enumerate(texts):
        if not isinstance(value, str):
            raise ValueError(f"{labels.where(row)}: {text} {value!r} is not a text.")
    if not texts:
        raise ValueError(f"{path} has no examples.")
    return texts, labels


def read_parquet(
    files: Mapping[str, list[Path]],
    columns_of: Callable[[pyarrow.Schema, Path], tuple[str, ...]],
    kind: Any = None,
    streaming: bool = False,
) -> AnyDatasetDict:
    """The splits of Parquet files. Columns and labels are checked before anything else is read.

    Args:
        columns_of: the columns to read of a file, the label last; raises ValueError if they are not there.
        kind: type of the columns but the label; the files' own if None.

    Raises:
        ValueError: a file is no Parquet, a split is empty, files differ in their columns, or a label is not one.
    """
    columns: set[tuple[str, ...]] = set()
    labels: dict[tuple[str, Path], Labels] = {}
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        schema = parquet_schema(path)
        *contents, label = found = columns_of(schema, path)
        values = pyarrow.parquet.read_table(path, columns=[label])[label].to_pylist()
        columns.add(found)
        labels[split, path] = Labels(values, f"{path}, row", names=class_names(schema, label))
    for split, paths in files.items():
        if not any(labels[split, path].values for path in paths):
            raise ValueError(f"{' and '.join(map(str, paths))}: there are no examples.")
    if len(columns) > 1:
        raise ValueError(f"{path.parent} has files with other columns than each other: {sorted(columns)}.")
    if "test" in files and not any(has_labels(labels["test", path].values) for path in files["test"]):
        labels = {place: found for place, found in labels.items() if place[0] != "test"}
    kinds = Features.from_arrow_schema(schema) if kind is None else dict.fromkeys(contents, kind)
    features = Features({**{name: kinds[name] for name in contents}, label: join_labels(labels)})
    return datasets.load_dataset(
        "parquet",
        data_files={split: [str(path) for path in files[split]] for split in dict.fromkeys(key[0] for key in labels)},
        columns=list(features),
        features=features,
        streaming=streaming,
    )


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Records of a TSV or CSV file with a header, each with the line it starts on. Empty lines are passed over."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, **DIALECTS[path.suffix])
            header = next(reader, [])
            line = reader.line_num + 1
            for fields in reader:
                if fields and len(fields) != len(header):
                    problem = f"line {line} has {len(fields)} fields, the header {len(header)}"
                    hint = " A text may not hold tabs." if path.suffix == ".tsv" else ""
                    raise ValueError(f"{path} cannot be read: {problem}.{hint}")
                if fields:
                    yield line, dict(zip(header, fields))
                line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def is_array(path: Path) -> bool:
    """Whether a JSON file is one array, rather than an object a line."""
    with path.open(encoding="utf-8-sig") as file:
        return next((line.lstrip()[0] for line in file if line.strip()), "") == "["


def read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file: with their row from 0 where it is one array, with their line where each has its own."""
    try:
        whole = is_array(path)
        with path.open(encoding="utf-8-sig") as file:
            if whole:
                records: Iterator[tuple[int, Any]] = enumerate(json.load(file))
            else:
                records = ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())
            for place, record in records:
                if not isinstance(record, dict):
                    raise ValueError(f"{path}, {'row' if whole else 'line'} {place}: {record!r} is not an object.")
                yield place, record
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. It should be one array of objects, or an object a line."
        ) from error


def parquet_schema(path: Path) -> pyarrow.Schema:
    try:
        return pyarrow.parquet.read_schema(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def class_names(schema: pyarrow.Schema, label: str) -> list[str] | None:
    """The names of the classes, where datasets has written them into a Parquet file."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    feature = Features.from_arrow_schema(schema).get(label)
    return feature.names if isinstance(feature, ClassLabel) else None

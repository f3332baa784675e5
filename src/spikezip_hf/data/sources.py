"""Where a data set is (a folder, or the Hub), and which of its files and splits are which."""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeAlias

try:
    import datasets
    import pyarrow.parquet
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from huggingface_hub.errors import HfHubHTTPError
except ImportError as error:
    raise ImportError(
        f"Data sets need more than the models do ({error}): pip install 'spikezip-hf[train]'."
    ) from error

AnyDataset: TypeAlias = "Dataset | IterableDataset"
AnyDatasetDict: TypeAlias = "DatasetDict | IterableDatasetDict"

# What files, folders and the Hub call the splits. The result has them in this order.
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "t10k": "test",
}
# "train", or one of several parts as the Hub stores them: "train-00000-of-00002".
STEM = re.compile(r"(?P<split>[a-z0-9]+)(-\d+-of-(?P<parts>\d+))?")


def places_of(name: str, subset: str | None = None) -> list[Path]:
    """Where the folder `name` may be: as it stands, then inside the folder that SPIKEZIP_DATA names."""
    home = os.environ.get("SPIKEZIP_DATA")
    places = [Path(name).expanduser(), *([Path(home).expanduser() / name] if home else [])]
    return [place / subset if subset else place for place in places]


def find_data(name: str, subset: str | None = None) -> Path:
    """The folder `name`: as it stands, or inside the folder that the environment variable SPIKEZIP_DATA names.

    Args:
        subset: a folder inside it.

    Raises:
        FileNotFoundError: it is in neither place; says where was looked.
    """
    places = places_of(name, subset)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"No data folder at {looked_at(places)}.")


def looked_at(places: list[Path]) -> str:
    hint = (
        "" if len(places) > 1 else " (and the environment variable SPIKEZIP_DATA, the home of data sets, is not set)"
    )
    return f"{' or '.join(map(str, places))}{hint}"


def holds_events(name: str, subset: str | None = None) -> bool:
    """Whether a local set is one of recordings of event cameras, by the columns or the endings of its files.

    A name that is no folder here is none: a set on the Hub does not tell before it is there.
    """
    from spikezip_hf.data import event_files

    folder = next((place for place in places_of(name, subset) if place.is_dir()), None)
    if folder is None:
        return False
    if tables := [path for paths in split_files(folder, [".parquet"]).values() for path in paths]:
        return {"x", "y", "p", "t"} <= {*pyarrow.parquet.read_schema(tables[0]).names}
    # Recordings are in folders of classes; what lies in the folder itself is something else, like CIFAR's .bin files.
    files = (path for path in folder.glob("*/**/*") if path.is_file() and not path.name.startswith("."))
    first = next((path.suffix.lower() for path in files if path.suffix), None)
    return first in event_files.ENDINGS


def open_source(name: str, subset: str | None, streaming: bool) -> Path | dict[str, AnyDataset]:
    """The folder of a local set, or the splits of one from the Hub, by their usual names.

    A folder comes before the Hub, and a name that looks like a path is never sought there.

    Raises:
        FileNotFoundError: no such folder, and no such set on the Hub or no way to reach it.
        ValueError: no split of the set on the Hub is one for training, validation or test.
    """
    path_like = name.startswith((".", "/", "~")) or name.count("/") > 1
    try:
        return find_data(name, subset)
    except FileNotFoundError:
        if path_like:
            raise
    try:
        data = datasets.load_dataset(name, subset, streaming=streaming)
    except (ConnectionError, FileNotFoundError, HfHubHTTPError) as error:
        reason = "has no such set" if isinstance(error, FileNotFoundError) else "cannot be reached"
        raise FileNotFoundError(
            f"No data set {name!r}: no folder at {looked_at(places_of(name, subset))}, and the Hub {reason}. "
            "Give the path of a folder, or set SPIKEZIP_DATA to the folder that holds it."
        ) from error
    groups = group_splits(data, f"{name} on the Hub")
    if not groups:
        raise ValueError(f"{name} on the Hub has no split {' or '.join(SPLITS)}, only {list(data)}.")
    return {split: data[names[0]] for split, names in groups.items()}


def group_splits(names: Iterable[str], where: str | Path) -> dict[str, list[str]]:
    """{split: its one name here}, in the usual order; names of anything else are left out.

    Raises:
        ValueError: two names for one split.
    """
    names = list(names)
    groups = {split: [name for name in names if SPLITS.get(name) == split] for split in SPLITS.values()}
    for split, found in groups.items():
        if len(found) > 1:
            raise ValueError(f"{where} has more than one {split} split: {', '.join(sorted(found))}. Keep one.")
    return {split: found for split, found in groups.items() if found}


def split_files(folder: Path, endings: Collection[str]) -> dict[str, list[Path]]:
    """{split: its files}: train.csv and the like, or parts of it (train-00000-of-00002.csv), here or in data/.

    Args:
        endings: of the names, with their dots.

    Raises:
        ValueError: two files for one split that are not parts of one.
        FileNotFoundError: a part is missing.
    """
    found: dict[tuple[str, str], list[tuple[Path, int]]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.iterdir()) if place.is_dir() and not found else ():
            match = STEM.fullmatch(path.stem)
            if match and path.suffix in endings and match["split"] in SPLITS:
                found.setdefault((match["split"], path.suffix), []).append((path, int(match["parts"] or 1)))
    files: dict[str, list[Path]] = {}
    for split in dict.fromkeys(SPLITS.values()):
        groups = [group for (name, _), group in found.items() if SPLITS[name] == split]
        paths = [path for group in groups for path, _ in group]
        parts = {count for group in groups for _, count in group}
        if len(groups) > 1 or len(parts) > 1:
            listed = ", ".join(path.name for path in paths)
            raise ValueError(f"{folder} has more than one {split} split: {listed}. Keep one.")
        if paths and len(paths) != max(parts):
            raise FileNotFoundError(f"{folder} has {len(paths)} of the {max(parts)} parts of its {split} split.")
        if paths:
            files[split] = paths
    return files


def with_validation(data: AnyDatasetDict, share: float = 0.1, seed: int = 0) -> AnyDatasetDict:
    """The same set, with a "validation" split: its own, or a share of "train" with the classes in proportion.

    Args:
        data: with a ClassLabel column "label".
        share: of the training examples to hold out, between 0 and 1.
        seed: of the draw.

    Raises:
        ValueError: there is neither "validation" nor "train", the set streams (nothing can be drawn from a stream),
            the share is out of range, or a class has too few examples to be shared out.
    """
    if "validation" in data:
        return data
    if isinstance(data, IterableDatasetDict):
        raise ValueError("A streaming set without a validation split cannot be split: load it with streaming=False.")
    if "train" not in data:
        raise ValueError(f"No train split to hold out validation examples from, only {list(data)}.")
    if not 0 < share < 1:
        raise ValueError(f"share is {share}: the share to hold out should lie between 0 and 1.")
    parts = data["train"].train_test_split(test_size=share, stratify_by_column="label", seed=seed)
    rest = {name: split for name, split in data.items() if name != "train"}
    return DatasetDict({"train": parts["train"], "validation": parts["test"], **rest})

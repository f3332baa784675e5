"""Files in folders that are named for their class, under a folder for each split or without one."""

from collections.abc import Collection
from pathlib import Path

from datasets import ClassLabel

from spikezip_hf.data.sources import SPLITS, group_splits


def read_class_folders(
    folder: Path, endings: Collection[str], what: str
) -> tuple[ClassLabel, dict[str, tuple[list[str], list[int]]]]:
    """The classes, sorted and the same for all splits, and {split: (paths, indices of their classes)}.

    Splits are folders train, validation and the like, in any case of their letters; without one, the classes are one
    training split.

    Args:
        endings: of the files, with their dots.
        what: they are, for errors: "images".

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: two folders for one split.
    """
    homes_by_name = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    names = [name for name in homes_by_name if name in SPLITS]
    homes = {split: homes_by_name[found[0]] for split, found in group_splits(names, folder).items()}
    homes = homes or {"train": folder}
    files = {split: class_files(home, endings) for split, home in homes.items()}
    for split, home in homes.items():
        if not files[split]:
            raise FileNotFoundError(
                f"{home} has no {what} in folders named for their class (looked for {', '.join(sorted(endings))}; "
                "files of whole splits, as Parquet, are named for their split)."
            )
    label = ClassLabel(names=sorted({name for classes in files.values() for name in classes}))
    return label, {
        split: (
            [str(path) for paths in classes.values() for path in paths],
            [label.str2int(name) for name, paths in classes.items() for _ in paths],
        )
        for split, classes in files.items()
    }


def class_files(home: Path, endings: Collection[str]) -> dict[str, list[Path]]:
    """{class: its files, sorted}, at any depth of its folder; hidden files and folders are none."""
    classes = {}
    for folder in sorted(home.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            files = (path for path in folder.resolve().rglob("*") if path.suffix.lower() in endings)
            classes[folder.name] = sorted(path for path in files if not path.name.startswith("."))
    return {name: files for name, files in classes.items() if files}

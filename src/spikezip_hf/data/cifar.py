"""CIFAR-10 and CIFAR-100 as their authors distribute them, in the binary version: records of labels and pixels.

A record is one byte for each label (CIFAR-100: coarse, then fine) and 3 x 32 x 32 bytes of pixels, channel by channel.
See https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPE = (3, 32, 32)
# Netpbm is a header before the pixels: an image file without the work of compressing 60000 of them.
HEADER = b"P6 32 32 255\n"


@dataclass(frozen=True)
class Version:
    """One of the two sets.

    Args:
        splits: {split: its files}.
        labels: {column as on the Hub: file of its names}, in the order of the bytes; the last is the default.
        pickled: files that the "python version" has instead.
    """

    splits: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    pickled: tuple[str, ...]


VERSIONS = (
    Version(
        {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
        {"label": "batches.meta.txt"},
        ("data_batch_1", "batches.meta"),
    ),
    Version(
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"coarse_label": "coarse_label_names.txt", "fine_label": "fine_label_names.txt"},
        ("train", "meta"),
    ),
)


def cifar_version(folder: Path) -> Version | None:
    """Which of the two a folder holds; None for neither.

    Raises:
        ValueError: it holds the "python version", which is pickled, and reading a pickle runs what is in it.
    """
    for version in VERSIONS:
        if any((folder / name).is_file() for names in version.splits.values() for name in names):
            return version
        if all((folder / name).is_file() for name in version.pickled):
            raise ValueError(
                f"{folder} holds the python version of CIFAR, pickles, which are not read here since they can run any "
                "code: take the binary version, or the Hub's uoft-cs/cifar10 or uoft-cs/cifar100."
            )
    return None


def read_cifar(
    folder: Path, version: Version, label_column: str | None
) -> tuple[dict[str, list[bytes]], dict[tuple[str, Path], list[int]], list[str]]:
    """{split: images as PPM files}, {(split, file): labels} and the names of the classes.

    Args:
        label_column: "fine_label" (default) or "coarse_label" of CIFAR-100.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is cut short, classes are not named, or there is no such label.
    """
    columns = list(version.labels)
    column = columns[-1] if label_column is None else label_column
    if column not in columns:
        raise ValueError(f"{folder} has no column {column!r}, only {columns}: mend label_column=.")
    listed = complete(folder, version.labels[column])
    names = [line for line in listed.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    if not names or len({*names}) < len(names):
        raise ValueError(f"{listed} does not name each class once: it is damaged, or another file.")
    images: dict[str, list[bytes]] = {}
    labels: dict[tuple[str, Path], list[int]] = {}
    for split, files in version.splits.items():
        images[split] = []
        for path in (complete(folder, name) for name in files):
            records = read_records(path, len(columns))
            labels[split, path] = records[:, columns.index(column)].tolist()
            pixels = records[:, len(columns) :].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
            images[split] += [HEADER + image.tobytes() for image in pixels]
    return images, labels, names


def complete(folder: Path, name: str) -> Path:
    """The file, which has to be there."""
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} lacks {name}, which belongs to the binary version of CIFAR.")
    return folder / name


def read_records(path: Path, labels: int) -> np.ndarray:
    """The records of a file: uint8, (N, labels + 3072)."""
    values = np.fromfile(path, np.uint8)
    size = labels + int(np.prod(SHAPE))
    if not len(values) or len(values) % size:
        raise ValueError(f"{path} has {len(values)} bytes, no records of {size}: it is cut short, or another.")
    return values.reshape(-1, size)

"""Image classification sets, from folders or from the Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image

from spikezip_hf.data.class_folders import read_class_folders
from spikezip_hf.data.columns import Labels, as_dict, find_column, has_labels, join_labels, standardize
from spikezip_hf.data.idx import read_idx
from spikezip_hf.data.sources import AnyDatasetDict, group_splits, open_source, split_files
from spikezip_hf.data.tables import class_names, parquet_schema

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_images(
    name: str,
    *,
    subset: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> AnyDatasetDict:
    """An image classification set: splits "train", "validation" and "test", those there are, with `image` and `label`.

    Images are decoded to PIL when they are read from the set. A folder is one of these:
    - train/<class>/<images> and likewise validation (or valid, val, dev) and test; or the classes without a folder
      above them, which are one training split.
    - a .parquet file for each split, named like those folders, with encoded images.
    - IDX files as of MNIST: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and t10k- for test.

    Labels are whole numbers from 0, or strings, which become classes in sorted order. A test split whose labels are
    all -1 is left out.

    Args:
        name: a folder, or the name of one inside SPIKEZIP_DATA, or of a data set on the Hub, in this order.
        subset: a folder inside that folder, or a configuration of the set on the Hub.
        image_column: the column of the image; found by its name if None. `label_column` likewise.
        streaming: an IterableDatasetDict, read as it is used.

    Raises:
        FileNotFoundError: there is no such set, or the folder has no such files; says where was looked.
        ValueError: a file cannot be read, a column is missing or cannot be told, or a label is not one.
    """
    source = open_source(name, subset, streaming)
    if not isinstance(source, Path):
        return standardize(source, "image", Image(), name, image_column, label_column)
    if idx_splits(source):
        return as_dict(read_idx_folder(source), streaming)
    if files := split_files(source, [".parquet"]):
        return read_parquet(files, image_column, label_column, streaming)
    return as_dict(read_image_folder(source), streaming)


def idx_splits(folder: Path) -> dict[str, list[str]]:
    """{split: the name its IDX files start with}."""
    stems = dict.fromkeys(path.name.split("-")[0] for path in sorted(folder.glob("*-idx[13]-ubyte*")))
    return group_splits(stems, folder)


def read_idx_folder(folder: Path) -> dict[str, Dataset]:
    """{split: gray images with the class's number as its name}."""
    images: dict[str, list[bytes]] = {}
    labels: dict[str, Labels] = {}
    for split, (stem,) in idx_splits(folder).items():
        pixels = read_idx(idx_file(folder, f"{stem}-images-idx3-ubyte"), axes=3)
        path = idx_file(folder, f"{stem}-labels-idx1-ubyte")
        classes = read_idx(path, axes=1)
        if len(pixels) != len(classes):
            raise ValueError(f"{path} has {len(classes)} labels for {len(pixels)} images.")
        # Netpbm is a header before the pixels: an image file without the work of compressing 60000 of them.
        header = f"P5 {pixels.shape[2]} {pixels.shape[1]} 255\n".encode()
        images[split] = [header + image.tobytes() for image in pixels]
        labels[split] = Labels(classes.tolist(), f"{path}, row")
    label = join_labels(labels)
    return {split: in_memory(pyarrow.array(images[split]), labels[split].values, label) for split in images}


def idx_file(folder: Path, name: str) -> Path:
    """The file, compressed or not."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} lacks {name}.gz.")


def read_parquet(
    files: Mapping[str, list[Path]], image_column: str | None, label_column: str | None, streaming: bool
) -> AnyDatasetDict:
    """The splits of Parquet files. Columns and labels are checked before an image is read."""
    columns: set[tuple[str, str]] = set()
    labels: dict[tuple[str, Path], Labels] = {}
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        schema = parquet_schema(path)
        image = find_column("image", schema.names, image_column, path)
        label = find_column("label", schema.names, label_column, path)
        check_encoded(schema.field(image), path)
        values = pyarrow.parquet.read_table(path, columns=[label])[label].to_pylist()
        columns.add((image, label))
        labels[split, path] = Labels(values, f"{path}, row", names=class_names(schema, label))
    if len(columns) > 1:
        raise ValueError(f"{path.parent} has files with other columns than each other: {sorted(columns)}.")
    if "test" in files and not any(has_labels(labels["test", path].values) for path in files["test"]):
        labels = {place: found for place, found in labels.items() if place[0] != "test"}
    features = Features({image: Image(), label: join_labels(labels)})
    data = datasets.load_dataset(
        "parquet",
        data_files={split: [str(path) for path in files[split]] for split in dict.fromkeys(key[0] for key in labels)},
        columns=list(features),
        features=features,
        streaming=streaming,
    )
    new_names = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    return data.rename_columns(new_names) if new_names else data


def check_encoded(field: pyarrow.Field, path: Path) -> None:
    """That a column holds image files: bytes, or as datasets has it a struct with "bytes"."""
    kind = field.type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not pyarrow.types.is_binary(kind) and not pyarrow.types.is_large_binary(kind):
        raise ValueError(f"{path}: column {field.name!r} is of type {field.type}, not the bytes of image files.")


def read_image_folder(folder: Path) -> dict[str, Dataset]:
    """{split: images in folders named for their class}."""
    label, splits = read_class_folders(folder, ENDINGS, "images")
    return {split: in_memory(pyarrow.array(paths), indices, label) for split, (paths, indices) in splits.items()}


def in_memory(images: pyarrow.Array, labels: Sequence[int], label: ClassLabel) -> Dataset:
    """Images as the bytes or the paths of files."""
    features = Features({"image": Image(), "label": label})
    return Dataset.from_dict({"image": images, "label": np.asarray(labels, np.int64)}, features=features)

"""Image classification sets, from folders or from the Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image

from spikezip_hf.data.cifar import Version, cifar_version, read_cifar
from spikezip_hf.data.class_folders import class_files, read_class_folders, with_indices
from spikezip_hf.data.columns import Labels, as_dict, find_column, join_labels, refuse_columns, standardize
from spikezip_hf.data.idx import read_idx
from spikezip_hf.data.imagenet import class_table, images_home, loose_images, sort_by_table
from spikezip_hf.data.sources import AnyDatasetDict, group_splits, open_source, split_files
from spikezip_hf.data.tables import read_parquet

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
    - the binary version of CIFAR-10 or CIFAR-100: data_batch_1.bin and so on, or train.bin and test.bin.
    - ImageNet as Kaggle has it: validation images in one folder, whose classes are in LOC_val_solution.csv.

    Labels are whole numbers from 0, or strings, which become classes in sorted order: that of WordNet ids is the order
    of ImageNet's classes. A test split whose labels are all -1 is left out.

    Args:
        name: a folder, or the name of one inside SPIKEZIP_DATA, or of a data set on the Hub, in this order.
        subset: a folder inside that folder, or a configuration of the set on the Hub.
        image_column: the column of the image; found by its name if None. `label_column` likewise; of CIFAR-100's files
            "fine_label" (default) or "coarse_label". Other files have no columns, and none can be named.
        streaming: an IterableDatasetDict, read as it is used.

    Raises:
        FileNotFoundError: there is no such set, or the folder has no such files; says where was looked.
        ValueError: a file cannot be read, a column is missing or cannot be told, or a label is not one.
    """
    source = open_source(name, subset, streaming)
    if not isinstance(source, Path):
        return standardize(source, "image", Image(), name, image_column, label_column)
    told = {"image_column": image_column, "label_column": label_column}
    if idx_splits(source):
        refuse_columns(f"{source}, which is IDX files,", **told)
        return as_dict(read_idx_folder(source), streaming)
    if version := cifar_version(source):
        refuse_columns(f"{source}, which is CIFAR's files,", image_column=image_column)
        return as_dict(read_cifar_folder(source, version, label_column), streaming)
    if files := split_files(source, [".parquet"]):
        return read_image_parquet(files, image_column, label_column, streaming)
    refuse_columns(f"{source}, which is folders of images,", **told)
    home = images_home(source)
    if table := class_table(home):
        return as_dict(read_imagenet(home, table), streaming)
    return as_dict(read_image_folder(home), streaming)


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


def read_cifar_folder(folder: Path, version: Version, label_column: str | None) -> dict[str, Dataset]:
    """{split: images with their labels} of the binary version of CIFAR."""
    images, values, names = read_cifar(folder, version, label_column)
    labels = {place: Labels(found, f"{place[1]}, record", names=names) for place, found in values.items()}
    label = join_labels(labels)
    return {
        split: in_memory(
            pyarrow.array(images[split]),
            [index for place, found in values.items() if place[0] == split for index in found],
            label,
        )
        for split in images
    }


def idx_file(folder: Path, name: str) -> Path:
    """The file, compressed or not."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} lacks {name}.gz.")


def read_image_parquet(
    files: Mapping[str, list[Path]], image_column: str | None, label_column: str | None, streaming: bool
) -> AnyDatasetDict:
    """The splits of Parquet files with encoded images."""

    def columns_of(schema: pyarrow.Schema, path: Path) -> tuple[str, str]:
        image = find_column("image", schema.names, image_column, path)
        check_encoded(schema.field(image), path)
        return image, find_column("label", schema.names, label_column, path)

    data = read_parquet(files, columns_of, Image(), streaming)
    old_names = next(iter(data.values())).column_names
    new_names = {old: new for old, new in zip(old_names, ("image", "label"), strict=True) if old != new}
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
    return on_disk(*read_class_folders(folder, ENDINGS, "images"))


def read_imagenet(home: Path, table: Path) -> dict[str, Dataset]:
    """{split: images} of ImageNet with Kaggle's table; those for testing have no labels and are left out.

    Raises:
        FileNotFoundError, ValueError: there are no validation images, or they are half sorted.
    """
    loose = loose_images(home / "val")
    validation = class_files(home / "val", ENDINGS)
    if loose and validation:
        raise ValueError(f"{home / 'val'} has images both in folders of classes and beside them: finish sorting them.")
    validation = validation or sort_by_table(loose, table)
    if not validation:
        raise FileNotFoundError(f"{home / 'val'} has no images: neither ILSVRC2012_val_*.JPEG nor folders of classes.")
    training = class_files(home / "train", ENDINGS) if (home / "train").is_dir() else {}
    files = {"train": training, "validation": validation}
    return on_disk(*with_indices({split: classes for split, classes in files.items() if classes}))


def on_disk(label: ClassLabel, splits: Mapping[str, tuple[list[str], list[int]]]) -> dict[str, Dataset]:
    """{split: images}, of paths and indices of classes."""
    return {split: in_memory(pyarrow.array(paths), indices, label) for split, (paths, indices) in splits.items()}


def in_memory(images: pyarrow.Array, labels: Sequence[int], label: ClassLabel) -> Dataset:
    """Images as the bytes or the paths of files."""
    features = Features({"image": Image(), "label": label})
    return Dataset.from_dict({"image": images, "label": np.asarray(labels, np.int64)}, features=features)

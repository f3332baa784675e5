"""Image sets: folders of classes, Parquet, IDX; pixels as they were stored."""

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDatasetDict, Value
from PIL import Image as Pillow

from spikezip_hf.data.images import load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """datasets keeps what it reads from Parquet."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(pixels):
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "png")
    return file.getvalue()


def pixels_of(data):
    return [np.asarray(row["image"]) for row in data]


def check(data, streaming=False, names=("0", "1")):
    """That the train split is PIXELS, labelled 1, 0, 1, 1."""
    assert isinstance(data, IterableDatasetDict if streaming else DatasetDict)
    assert data["train"].features == Features({"image": Image(), "label": ClassLabel(names=list(names))})
    assert [row["label"] for row in data["train"]] == [1, 0, 1, 1]
    assert all(isinstance(row["image"], Pillow.Image) for row in data["train"])
    assert np.array_equal(pixels_of(data["train"]), PIXELS)


def write_classes(folder, names=("cat", "dog")):
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{index}.png").write_bytes(png(PIXELS[index]))


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_classes(tmp_path, monkeypatch, streaming):
    for home, names in {"train": ["dog", "cat"], "val": ["dog"], "test": ["ant", "cat"]}.items():
        write_classes(tmp_path / "set" / home, names)
    (tmp_path / "set" / "train" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "set" / "train" / ".cache").mkdir()
    (tmp_path / "set" / "train" / ".cache" / "x.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    data = load_images("set", streaming=streaming)
    monkeypatch.chdir("/")  # images are decoded later
    assert isinstance(data, IterableDatasetDict if streaming else DatasetDict)
    assert list(data) == ["train", "validation", "test"]
    assert all(split.features["label"].names == ["ant", "cat", "dog"] for split in data.values())
    assert [row["label"] for row in data["train"]] == [1, 2]
    assert [row["label"] for row in data["test"]] == [0, 1]
    assert np.array_equal(pixels_of(data["train"]), PIXELS[[1, 0]])


def test_folder_without_splits(tmp_path):
    write_classes(tmp_path)
    data = load_images(str(tmp_path))
    assert list(data) == ["train"]
    assert data["train"].features["label"].names == ["cat", "dog"]


def test_folder_without_images(tmp_path):
    write_classes(tmp_path / "train")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "0.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(FileNotFoundError, match=r"dev has no images in folders named for their class .*\.png"):
        load_images(str(tmp_path))
    write_classes(tmp_path / "val")
    with pytest.raises(ValueError, match="more than one validation split: dev, val"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("struct", [False, True])
def test_parquet(tmp_path, struct, streaming):
    images = [{"bytes": png(pixels), "path": None} if struct else png(pixels) for pixels in PIXELS]
    table = pyarrow.table({"index": [7, 8, 9, 10], "img": images, "labels": [1, 0, 1, 1]})
    pyarrow.parquet.write_table(table.slice(0, 1), tmp_path / "train-00000-of-00002.parquet")
    pyarrow.parquet.write_table(table.slice(1), tmp_path / "train-00001-of-00002.parquet")
    pyarrow.parquet.write_table(table.slice(2), tmp_path / "val.parquet")
    pyarrow.parquet.write_table(table.set_column(2, "labels", [[-1] * 4]), tmp_path / "test.parquet")
    data = load_images(str(tmp_path), streaming=streaming)
    check(data, streaming)
    assert list(data) == ["train", "validation"]  # test has no labels


def test_parquet_with_names(tmp_path):
    table = pyarrow.table({"image": list(map(png, PIXELS)), "label": ["dog", "cat", "dog", "dog"]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    check(load_images(str(tmp_path)), names=["cat", "dog"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a"], "label": [0]}, r"column 'image' is of type string, not the bytes"),
        ({"image": [b"a"], "img": [b"a"], "label": [0]}, r"columns \['image', 'img'\].*pass image_column="),
        ({"x": [b"a"], "label": [0]}, r"no column image or .*among \['x', 'label'\]: pass image_column="),
        ({"image": [b"a"], "kind": [0]}, r"no column label or .*pass label_column="),
        ({"image": [b"a"] * 2, "label": [0, -2]}, r"train\.parquet, row 1: label -2"),
        ({"image": [b"a"] * 2, "label": [0, None]}, r"train\.parquet, row 1: label None"),
    ],
)
def test_bad_parquet(tmp_path, columns, message):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path))


def idx(values):
    values = np.asarray(values, np.uint8)
    shape = np.array(values.shape, ">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS[..., 0])))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx([1, 0, 1, 1])))
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx(idx_folder, streaming, compressed):
    if not compressed:
        for path in idx_folder.glob("*.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    data = load_images(str(idx_folder), streaming=streaming)
    assert list(data) == ["train", "test"]
    assert [row["label"] for row in data["test"]] == [1, 0, 1, 1]
    assert data["test"].features == Features({"image": Image(), "label": ClassLabel(names=["0", "1"])})
    assert np.array_equal(pixels_of(data["test"]), PIXELS[..., 0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3", gzip.compress(idx(PIXELS)), r"images.*starts with 00000804, not with .* 00000803"),
        ("images-idx3", gzip.compress(idx(PIXELS[..., 0])[:-1]), r"has 119 bytes of data, not .* \(4, 6, 5\)"),
        ("images-idx3", gzip.compress(idx(PIXELS[..., 0])[:9]), r"ends within its header"),
        ("images-idx3", gzip.compress(idx(PIXELS[..., 0]))[:-20], r"images.*cannot be decompressed"),
        ("labels-idx1", idx([1, 0, 1, 1]), r"labels.*cannot be decompressed"),
        ("labels-idx1", gzip.compress(idx([1, 0, 1])), r"labels.*has 3 labels for 4 images"),
    ],
    # Not of the bytes, which hold the second they were compressed in: all processes have to collect the same tests.
    ids=["colored", "short", "header only", "cut off", "not compressed", "labels missing"],
)
def test_bad_idx(idx_folder, name, content, message):
    (idx_folder / f"train-{name}-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_images(str(idx_folder))


def test_idx_without_labels(idx_folder):
    (idx_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        load_images(str(idx_folder))


def test_no_example_at_all(tmp_path):
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict({"image": [], "label": []}, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet: there are no examples"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("column", ["image_column", "label_column"])
def test_columns_of_files_that_have_none(idx_folder, tmp_path, column):
    """Else who names one believes that it was read."""
    (tmp_path / "folders").mkdir()
    write_classes(tmp_path / "folders" / "train")
    for folder, what in ((idx_folder, "IDX files"), (tmp_path / "folders", "folders of images")):
        with pytest.raises(ValueError, match=f"^{column}='kind': .*, which is {what}, has no columns: leave it out"):
            load_images(str(folder), **{column: "kind"})


@pytest.fixture
def real_data():
    if not os.environ.get("SPIKEZIP_DATA"):
        pytest.skip("needs the data sets: set SPIKEZIP_DATA to their folder")


@pytest.mark.usefixtures("real_data")
def test_fashion_mnist():
    data = load_images("fashion_mnist")
    assert {name: split.num_rows for name, split in data.items()} == {"train": 60000, "test": 10000}
    assert np.bincount(data["test"]["label"]).tolist() == [1000] * 10
    pixels = np.stack(pixels_of(data["test"]))
    assert pixels.shape == (10000, 28, 28)
    file = Path(os.environ["SPIKEZIP_DATA"]) / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    assert pixels.tobytes() == gzip.decompress(file.read_bytes())[16:]


@pytest.mark.usefixtures("real_data")
def test_cifar10():
    data = load_images("cifar10")
    sizes = {name: split.num_rows for name, split in data.items()}
    assert sizes == {"train": 10000, "validation": 2000, "test": 1000}
    # The known counts of data_batch_1.
    assert np.bincount(data["train"]["label"]).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    first = data["train"][0]
    assert first["label"] == 6
    assert np.asarray(first["image"])[0, 0].tolist() == [59, 62, 63]  # the frog that opens CIFAR-10

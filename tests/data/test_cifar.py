"""CIFAR as its authors distribute it: labels, pixels and names as they were stored, and what is no such file."""

import numpy as np
import pytest
from datasets import ClassLabel, Features, Image

from spikezip_hf.data.images import load_images
from spikezip_hf.data.sources import holds_events

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COARSE, FINE = ["fish", "flowers"], ["aquarium_fish", "orchid", "ray"]


def pixels(count: int, seed: int) -> np.ndarray:
    """(count, 32, 32, 3), as an image has them."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write(path, labels, images) -> None:
    """Records: a byte for each label, then the red, the green and the blue pixels."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    np.concatenate([np.array(labels, np.uint8).reshape(len(images), -1), planes], 1).tofile(path)


@pytest.fixture
def ten(tmp_path):
    for number in range(1, 6):
        write(tmp_path / f"data_batch_{number}.bin", [number, 9], pixels(2, number))
    write(tmp_path / "test_batch.bin", [0, 3, 9], pixels(3, 6))
    (tmp_path / "batches.meta.txt").write_text("\n".join([*TEN, "", ""]))
    return tmp_path


@pytest.fixture
def hundred(tmp_path):
    write(tmp_path / "train.bin", [[1, 1], [0, 2]], pixels(2, 1))
    write(tmp_path / "test.bin", [[0, 0]], pixels(1, 2))
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    (tmp_path / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    return tmp_path


def test_ten(ten):
    data = load_images(str(ten))
    assert list(data) == ["train", "test"]
    assert data["train"].features == Features({"image": Image(), "label": ClassLabel(names=TEN)})
    assert data["train"]["label"] == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert data["test"]["label"] == [0, 3, 9]
    stored = np.concatenate([pixels(2, number) for number in range(1, 6)])
    assert np.array_equal([np.asarray(image) for image in data["train"]["image"]], stored)
    assert data["test"][0]["image"].mode == "RGB"


@pytest.mark.parametrize(
    ("column", "names", "labels"),
    [(None, FINE, [1, 2]), ("fine_label", FINE, [1, 2]), ("coarse_label", COARSE, [1, 0])],
)
def test_hundred(hundred, column, names, labels):
    data = load_images(str(hundred), label_column=column)
    assert data["train"].features["label"].names == names
    assert data["train"]["label"] == labels
    assert np.array_equal([np.asarray(image) for image in data["test"]["image"]], pixels(1, 2))


def test_as_a_stream(ten):
    data = load_images(str(ten), streaming=True)
    assert [row["label"] for row in data["test"]] == [0, 3, 9]


def test_a_file_is_missing(ten):
    (ten / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3\.bin"):
        load_images(str(ten))


def test_names_are_missing(hundred):
    (hundred / "fine_label_names.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks fine_label_names\.txt"):
        load_images(str(hundred))


@pytest.mark.parametrize("size", [0, 3072, 3073 * 2 - 1])
def test_a_file_is_cut_short(ten, size):
    (ten / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"test_batch\.bin has {size} bytes, no records of 3073"):
        load_images(str(ten))


def test_a_label_that_is_none(ten):
    write(ten / "test_batch.bin", [10], pixels(1, 0))
    with pytest.raises(ValueError, match=r"test_batch\.bin, record 0: label 10 is not one of"):
        load_images(str(ten))


def test_an_image_column(ten):
    with pytest.raises(ValueError, match=r"image_column='img': .* has no columns: leave it out"):
        load_images(str(ten), image_column="img")


def test_a_label_column_that_is_none(hundred):
    with pytest.raises(ValueError, match=r"no column 'label', only \['coarse_label', 'fine_label'\]: mend label_col"):
        load_images(str(hundred), label_column="label")


@pytest.mark.parametrize("names", [("data_batch_1", "batches.meta"), ("train", "test", "meta")])
def test_pickles_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x02}q")
    with pytest.raises(
        ValueError, match=r"python version of CIFAR, pickles, .* take the binary version, or the Hub's"
    ):
        load_images(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\xff\n\xff\n", b"airplane\nbird\nairplane\n"])
def test_names_that_are_none(ten, content):
    (ten / "batches.meta.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"batches\.meta\.txt does not name each class once"):
        load_images(str(ten))


def test_these_are_no_recordings(hundred):
    """Though .bin is an ending of theirs, too."""
    for path in hundred.glob("*.txt"):
        path.unlink()  # so that the first file that is found is one of these
    assert not holds_events(str(hundred))
    (hundred / "train" / "0").mkdir(parents=True)
    (hundred / "train" / "0" / "00002.bin").write_bytes(bytes(5))
    assert holds_events(str(hundred))

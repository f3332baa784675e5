"""ImageNet's layouts: folders of WordNet ids, and validation images in one folder with Kaggle's table."""

from pathlib import Path

import pytest
from PIL import Image

from spikezip_hf.data.images import load_images

# The first, a middle and the last class of ImageNet. Their WordNet ids are in the order of their numbers.
IDS = ["n01440764", "n02085620", "n15075141"]
VALIDATION = {"ILSVRC2012_val_00000001": IDS[2], "ILSVRC2012_val_00000002": IDS[0], "ILSVRC2012_val_00000003": IDS[2]}


def write(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(path, "jpeg")


def write_training(home: Path) -> None:
    for name in reversed(IDS):
        write(home / "train" / name / f"{name}_10026.JPEG")


def write_flat(home: Path, table: Path | None) -> None:
    for number, name in enumerate(VALIDATION):
        write(home / "val" / f"{name}.JPEG", 50 * number)
    if table is not None:
        rows = [f"{name},{found} 85 1 499 272 {found} 1 2 3 4 " for name, found in reversed(VALIDATION.items())]
        table.write_text("\n".join(["ImageId,PredictionString", *rows, ""]))


def check_validation(data) -> None:
    assert data["train"].features["label"].names == IDS
    assert data["train"]["label"] == [0, 1, 2]
    assert data["validation"]["label"] == [0, 2, 2]
    shades = [image.getpixel((0, 0))[0] for image in data["validation"]["image"]]
    assert shades == pytest.approx([50, 0, 100], abs=3)  # JPEG is not exact


def test_folders_of_ids_are_in_the_order_of_the_classes(tmp_path):
    write_training(tmp_path)
    for name in (IDS[2], IDS[0]):
        write(tmp_path / "val" / name / "ILSVRC2012_val_00000001.JPEG")
    data = load_images(str(tmp_path))
    assert data["train"].features["label"].names == IDS
    assert data["train"]["label"] == [0, 1, 2]
    assert data["validation"]["label"] == [0, 2]


def test_table_beside_the_images(tmp_path):
    write_training(tmp_path)
    write_flat(tmp_path, tmp_path / "LOC_val_solution.csv")
    check_validation(load_images(str(tmp_path)))


@pytest.mark.parametrize("named", ["", "ILSVRC/Data/CLS-LOC"])
def test_archive_of_kaggle(tmp_path, monkeypatch, named):
    """By its own folder or by that of the images; test images have no labels."""
    home = tmp_path / "imagenet" / "ILSVRC" / "Data" / "CLS-LOC"
    write_training(home)
    write_flat(home, tmp_path / "imagenet" / "LOC_val_solution.csv")
    write(home / "test" / "ILSVRC2012_test_00000001.JPEG")
    monkeypatch.chdir(tmp_path)
    data = load_images(str(Path("imagenet", named)))
    monkeypatch.chdir("/")  # images are decoded later
    assert list(data) == ["train", "validation"]
    check_validation(data)


def test_table_is_missing(tmp_path):
    write_training(tmp_path)
    write_flat(tmp_path, None)
    message = r"val has images, such as ILSVRC2012_val_00000001\.JPEG, but not in .* Kaggle's LOC_val_solution\.csv"
    with pytest.raises(FileNotFoundError, match=message):
        load_images(str(tmp_path))


def test_table_lacks_an_image(tmp_path):
    write_training(tmp_path)
    write_flat(tmp_path, tmp_path / "LOC_val_solution.csv")
    write(tmp_path / "val" / "ILSVRC2012_val_00000004.JPEG")
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv has no class for ILSVRC2012_val_00000004\.JPEG"):
        load_images(str(tmp_path))


def test_table_is_another(tmp_path):
    write_training(tmp_path)
    write_flat(tmp_path, None)
    (tmp_path / "LOC_val_solution.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no rows of ImageId and PredictionString"):
        load_images(str(tmp_path))


def test_images_that_somebody_has_sorted(tmp_path):
    """Beside the table they stay where they are; test images have no labels."""
    write_training(tmp_path)
    write_flat(tmp_path, tmp_path / "LOC_val_solution.csv")
    for path in (tmp_path / "val").iterdir():
        path.unlink()
    write(tmp_path / "val" / IDS[1] / "ILSVRC2012_val_00000001.JPEG")
    write(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    data = load_images(str(tmp_path))
    assert list(data) == ["train", "validation"]
    assert data["validation"]["label"] == [1]


def test_validation_alone_has_the_classes_that_it_holds(tmp_path):
    write_flat(tmp_path, tmp_path / "LOC_val_solution.csv")
    data = load_images(str(tmp_path))
    assert data["validation"].features["label"].names == [IDS[0], IDS[2]]


def test_order_of_ids_is_that_of_the_classes_of_every_checkpoint():
    """As timm has them, whose networks' first output is for the first line."""
    synsets = pytest.importorskip("timm.data.imagenet_info", reason="needs timm's list of classes").ImageNetInfo()
    listed = synsets.label_names()
    assert len(listed) == 1000
    assert listed == sorted(listed)


@pytest.mark.parametrize("content", [b"ImageId,PredictionString\na," + b"x" * 200_000, b"\xff\xfe\x00"])
def test_table_that_is_none(tmp_path, content):
    write_flat(tmp_path, None)
    (tmp_path / "LOC_val_solution.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv is no table"):
        load_images(str(tmp_path))


def test_validation_images_that_are_half_sorted_or_not_there(tmp_path):
    write_training(tmp_path)
    write_flat(tmp_path, tmp_path / "LOC_val_solution.csv")
    write(tmp_path / "val" / IDS[1] / "ILSVRC2012_val_00000004.JPEG")
    with pytest.raises(ValueError, match="both in folders of classes and beside them"):
        load_images(str(tmp_path))
    for path in (tmp_path / "val").rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="val has no images"):
        load_images(str(tmp_path))

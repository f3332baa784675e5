"""ImageNet's validation images in one folder, as Kaggle distributes them, with their classes in a table."""

import csv
from pathlib import Path

TABLE = "LOC_val_solution.csv"
# Where Kaggle's archive has its images, some folders below its tables.
IMAGES = Path("ILSVRC", "Data", "CLS-LOC")


def images_home(folder: Path) -> Path:
    """The folder of train/, val/ and test/: inside of Kaggle's archive, or the folder itself."""
    return folder / IMAGES if (folder / IMAGES).is_dir() else folder


def loose_images(folder: Path) -> list[Path]:
    """ImageNet's validation images that are in the folder itself, sorted."""
    return sorted(folder.resolve().glob("ILSVRC2012_val_*.JPEG"))


def class_table(home: Path) -> Path | None:
    """Kaggle's table of the validation images' classes, beside val/ or above it as in the archive.

    Raises:
        FileNotFoundError: there is none, and without it nobody knows the classes of these images.
    """
    if not (home / "val").is_dir():
        return None
    for place in (home, *home.resolve().parents[: len(IMAGES.parts)]):
        if (place / TABLE).is_file():
            return place / TABLE
    if loose := loose_images(home / "val"):
        raise FileNotFoundError(
            f"{home / 'val'} has images, such as {loose[0].name}, but not in folders named for their class: put "
            f"Kaggle's {TABLE} into {home}, or sort them into folders of WordNet ids."
        )
    return None


def sort_by_table(images: list[Path], table: Path) -> dict[str, list[Path]]:
    """{WordNet id: its images}.

    Args:
        images: named for their id, ILSVRC2012_val_00000001.JPEG.

    Raises:
        ValueError: the table is no such table, or has no row for an image.
    """
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} is no table of comma-separated values ({error}).") from error
    if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
        raise ValueError(f"{table} has no rows of ImageId and PredictionString: it is not Kaggle's table.")
    # A prediction is "n01440764 x y x y", once for each box; all boxes of an image are of one class.
    class_of = {row["ImageId"]: (row["PredictionString"] or "").split(" ")[0] for row in rows}
    classes: dict[str, list[Path]] = {}
    for image in images:
        if not class_of.get(image.stem):
            raise ValueError(f"{table} has no class for {image.name}.")
        classes.setdefault(class_of[image.stem], []).append(image)
    return dict(sorted(classes.items()))

"""ImageNet's validation images in one folder, as Kaggle distributes them, with their classes in a table."""

import csv
from pathlib import Path

SOLUTION = "LOC_val_solution.csv"
# Where Kaggle's archive has its images, some folders below its tables.
IMAGES = Path("ILSVRC", "Data", "CLS-LOC")


def images_home(folder: Path) -> Path:
    """The folder of train/, val/ and test/: inside of Kaggle's archive, or the folder itself."""
    return folder / IMAGES if (folder / IMAGES).is_dir() else folder


def solution_file(home: Path) -> Path | None:
    """Kaggle's table of the validation images' classes: beside the splits, or above them as in its archive."""
    places = [home, *home.resolve().parents[: len(IMAGES.parts)]]
    return next((place / SOLUTION for place in places if (place / SOLUTION).is_file()), None)


def sort_by_solution(images: list[Path], solution: Path) -> dict[str, list[Path]]:
    """{class: its images}, by WordNet id in sorted order, which is the order of ImageNet's classes.

    Args:
        images: named for their id, ILSVRC2012_val_00000001.JPEG.

    Raises:
        ValueError: the table is no such table, or has no row for an image.
    """
    with solution.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"ImageId", "PredictionString"} <= set(rows[0]):
        raise ValueError(f"{solution} has no rows of ImageId and PredictionString: it is not Kaggle's table.")
    # A prediction is "n01440764 x y x y", once for each box; all boxes of an image are of one class.
    class_of = {row["ImageId"]: (row["PredictionString"] or "").split(" ")[0] for row in rows}
    classes: dict[str, list[Path]] = {}
    for image in images:
        if not class_of.get(image.stem):
            raise ValueError(f"{solution} has no class for {image.name}.")
        classes.setdefault(class_of[image.stem], []).append(image)
    return dict(sorted(classes.items()))

"""Text classification sets as folders of train.tsv, dev.tsv and test.tsv, with columns `sentence` and `label`."""

import csv
import os
from pathlib import Path

try:
    import pandas
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
except ImportError as error:
    raise ImportError(
        f"Data sets need more than the models do ({error}): pip install 'spikezip-hf[train]'."
    ) from error

SPLITS = ("train", "dev", "test")
COLUMNS = ["sentence", "label"]


def find_data(name: str) -> Path:
    """The folder `name`: as it stands, or inside the folder that the environment variable SPIKEZIP_DATA names.

    Raises:
        FileNotFoundError: it is in neither place; says where was looked.
    """
    home = os.environ.get("SPIKEZIP_DATA")
    places = [Path(name), *([Path(home) / name] if home else [])]
    for place in places:
        if place.is_dir():
            return place
    hint = "" if home else " (and the environment variable SPIKEZIP_DATA, the home of data sets, is not set)"
    raise FileNotFoundError(f"No data folder at {' or '.join(map(str, places))}{hint}.")


def load_text(name: str) -> DatasetDict:
    """A text classification set: splits "train", "dev" and "test" with `sentence` and `label`.

    A line of a file is one example; a quotation mark is an ordinary character.

    Args:
        name: a folder, or the name of one inside SPIKEZIP_DATA.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file has no column `sentence` or `label`, or a label is not an integer; names file and column.
    """
    folder = find_data(name)
    missing = [f"{split}.tsv" for split in SPLITS if not (folder / f"{split}.tsv").is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}.")
    tables = {split: read_table(folder / f"{split}.tsv") for split in SPLITS}
    classes = 1 + max(int(table["label"].max()) for table in tables.values())
    label = ClassLabel(names=["negative", "positive"] if classes == 2 else [str(index) for index in range(classes)])
    features = Features({"sentence": Value("string"), "label": label})
    return DatasetDict(
        {split: Dataset.from_dict(table.to_dict(orient="list"), features=features) for split, table in tables.items()}
    )


def read_table(path: Path) -> "pandas.DataFrame":
    """One file, checked."""
    try:
        table = pandas.read_csv(
            path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False, dtype=str, index_col=False
        )
    except pandas.errors.ParserError as error:
        raise ValueError(f"{path} cannot be read: {str(error).strip()}. A text may not hold tabs.") from error
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent or not len(table):
        problem = f"has no column {absent[0]!r}, only {list(table.columns)}" if absent else "has no examples"
        raise ValueError(f"{path} {problem}: it should have {' and '.join(COLUMNS)}, with tabs between.")
    wrong = ~table["label"].str.fullmatch(r"\d+")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise ValueError(f"{path}, line {row + 2}: label {table['label'][row]!r} is not a whole number from 0.")
    return table[COLUMNS].astype({"label": "int64"})

"""Text classification sets, from folders or from the Hub."""

from pathlib import Path

from datasets import Dataset, Features, Value

from spikezip_hf.data.columns import as_dict, encode, find_column, has_labels, join_labels, standardize
from spikezip_hf.data.sources import AnyDatasetDict, open_source, split_files
from spikezip_hf.data.tables import ENDINGS, read_columns, read_table

BINARY = ("negative", "positive")


def load_text(
    name: str,
    *,
    subset: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> AnyDatasetDict:
    """A text classification set: splits "train", "validation" and "test", those there are, with `text` and `label`.

    A folder holds a file for each split, named train, validation (or valid, val, dev) and test:
    - .tsv: a header, then one example a line with tabs between; a quotation mark is an ordinary character.
    - .csv: a header, and quotation as usual.
    - .jsonl: one object a line; .json: the same, or one array of objects.
    - .parquet.

    Labels are whole numbers from 0, or strings, which become classes in sorted order. Two classes without names are
    "negative" and "positive". A test split whose labels are all -1 is left out.

    Args:
        name: a folder, or the name of one inside SPIKEZIP_DATA, or of a data set on the Hub, in this order.
        subset: a folder inside that folder, or a configuration of the set on the Hub ("sst2" of "glue").
        text_column: the column of the text; found by its name if None. `label_column` likewise.
        streaming: an IterableDatasetDict, read as it is used; files of a local folder are read at once all the same.

    Raises:
        FileNotFoundError: there is no such set, or the folder has no such files; says where was looked.
        ValueError: a file cannot be read, a column is missing or cannot be told, or a label is not one; names file
            and line.
    """
    source = open_source(name, subset, streaming)
    if isinstance(source, Path):
        return as_dict(read_folder(source, text_column, label_column), streaming)
    return standardize(source, "text", Value("string"), name, text_column, label_column, BINARY)


def read_folder(folder: Path, text_column: str | None, label_column: str | None) -> dict[str, Dataset]:
    """{split: examples} of the files in a folder. The columns of all are checked before any is read."""
    files = split_files(folder, ENDINGS)
    if not files:
        endings = ", ".join(ENDINGS[:-1])
        raise FileNotFoundError(
            f"{folder} has no file train, validation (or dev) or test, {endings} or {ENDINGS[-1]}."
        )
    columns = {}
    for path in (path for paths in files.values() for path in paths):
        found = read_columns(path)
        where = f"{path} (tabs between?)" if path.suffix == ".tsv" and len(found) == 1 else path
        columns[path] = (
            find_column("text", found, text_column, where),
            find_column("label", found, label_column, where),
        )
    tables = {split: [read_table(path, *columns[path]) for path in paths] for split, paths in files.items()}
    # The parts of a split are not joined before their labels are checked: an error names the file.
    labels = {
        (split, part): found
        for split, parts in tables.items()
        if split != "test" or any(has_labels(found.values) for _, found in parts)
        for part, (_, found) in enumerate(parts)
    }
    label = join_labels(labels, BINARY)
    features = Features({"text": Value("string"), "label": label})
    return {
        split: Dataset.from_dict(
            {
                "text": [text for texts, _ in tables[split] for text in texts],
                "label": [index for _, found in tables[split] for index in encode(found.values, label)],
            },
            features=features,
        )
        for split in dict.fromkeys(split for split, _ in labels)
    }

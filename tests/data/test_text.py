"""Text sets from folders: what is in the files, or a line that says what is wrong with them."""

import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict, Value

from spikezip_hf.data.text import load_text


def write(folder, name="train.tsv", text="sentence\tlabel\ngood\t1\nbad\t0\n"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "dev", "test"):
        write(tmp_path / "set", f"{split}.tsv")
    return tmp_path / "set"


def test_splits_and_labels(folder):
    data = load_text(str(folder))
    assert isinstance(data, DatasetDict)
    assert {name: split.num_rows for name, split in data.items()} == {"train": 2, "validation": 2, "test": 2}
    assert data["test"]["text"][:] == ["good", "bad"]
    assert data["test"]["label"][:] == [1, 0]
    expected = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    assert all(split.features == expected for split in data.values())


def test_characters_that_other_readers_take_for_markup(folder):
    write(folder, "train.tsv", "sentence\tlabel\n\"quoted\t1\nNA\t0\nnull\t1\n it 's # 1,000 \t0\n")
    data = load_text(str(folder))
    assert data["train"]["text"][:] == ['"quoted', "NA", "null", " it 's # 1,000 "]


def test_more_than_two_classes(folder):
    write(folder, "dev.tsv", "sentence\tlabel\nso so\t4\n")
    assert load_text(str(folder))["train"].features["label"].names == ["0", "1", "2", "3", "4"]


def test_columns_in_another_order_and_more_of_them(folder):
    write(folder, "train.tsv", "id\tlabel\tsentence\n7\t1\tgood\n")
    data = load_text(str(folder))["train"]
    assert data.column_names == ["text", "label"]
    assert data[0] == {"text": "good", "label": 1}


def test_empty_column_at_the_end_and_empty_lines(folder):
    write(folder, "train.tsv", "sentence\tlabel\t\n\ngood\t1\t\n\n")
    assert load_text(str(folder))["train"][:] == {"text": ["good"], "label": [1]}


RECORDS = [{"review": 'He said "so,\nso"', "target": 2}, {"review": "好", "target": 0}]
FORMATS = {
    "csv": 'review,target\n"He said ""so,\nso""",2\n好,0\n',
    "json": json.dumps(RECORDS),
    "jsonl": "\n".join(map(json.dumps, RECORDS)) + "\n\n",
}


@pytest.mark.parametrize("ending", [*FORMATS, "lines in json", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_formats(tmp_path, ending, streaming):
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "train.parquet")
    elif ending == "lines in json":
        write(tmp_path, "train.json", FORMATS["jsonl"])
    else:
        write(tmp_path, f"train.{ending}", FORMATS[ending])
    write(tmp_path, "valid.tsv")  # formats may differ between splits
    data = load_text(str(tmp_path), streaming=streaming)
    assert isinstance(data, IterableDatasetDict if streaming else DatasetDict)
    assert list(data) == ["train", "validation"]
    assert list(data["train"]) == [{"text": 'He said "so,\nso"', "label": 2}, {"text": "好", "label": 0}]
    assert data["train"].features == data["validation"].features
    assert data["train"].features["label"].names == ["0", "1", "2"]


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_labels_that_are_names(tmp_path, ending):
    """One mapping for all splits, also for a class that is not in all."""
    for split, labels in {"train": ["pos", "neg"], "test": ["neutral", "pos"]}.items():
        lines = {
            "tsv": ["text\tsentiment", *(f"a\t{label}" for label in labels)],
            "jsonl": [json.dumps({"text": "a", "sentiment": label}) for label in labels],
        }
        write(tmp_path, f"{split}.{ending}", "\n".join(lines[ending]))
    data = load_text(str(tmp_path))
    assert data["train"].features["label"].names == ["neg", "neutral", "pos"]
    assert data["train"]["label"][:] == [2, 0]
    assert data["test"]["label"][:] == [1, 2]


def test_names_of_classes_in_parquet(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "train.parquet")
    assert load_text(str(tmp_path))["train"].features == features
    other = Features({"text": Value("string"), "label": ClassLabel(names=["spam", "ham"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features=other).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="splits disagree on the names"):
        load_text(str(tmp_path))


def test_parts_of_a_split(tmp_path):
    (tmp_path / "data").mkdir()
    for part in (1, 0):
        table = pyarrow.table({"text": [f"text {part}"], "label": [part]})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"train-0000{part}-of-00002.parquet")
    assert load_text(str(tmp_path))["train"][:] == {"text": ["text 0", "text 1"], "label": [0, 1]}
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 2 parts of its train split"):
        load_text(str(tmp_path))
    write(tmp_path, "train.tsv")  # data/ is looked into where the folder itself has nothing
    assert load_text(str(tmp_path))["train"]["text"][:] == ["good", "bad"]


def test_told_columns(folder):
    text = "text\tsentence\tlabel\tlabels\na\tb\t0\t1\n"
    for split in ("train", "dev", "test"):
        write(folder, f"{split}.tsv", text)
    data = load_text(str(folder), text_column="sentence", label_column="labels")
    assert data["train"][0] == {"text": "b", "label": 1}
    with pytest.raises(ValueError, match=r"has the columns \['sentence', 'text'\], among .*pass text_column="):
        load_text(str(folder))
    with pytest.raises(ValueError, match=r"has the columns \['label', 'labels'\], among .*pass label_column="):
        load_text(str(folder), text_column="text")
    with pytest.raises(ValueError, match=r"train\.tsv has no column 'title', only \['text', .*mend text_column="):
        load_text(str(folder), text_column="title")


def test_columns_are_checked_before_rows_are_read(folder):
    write(folder, "train.tsv", "sentence\tlabel\ngood\t1\nbad\tworse\t0\n")
    write(folder, "test.tsv", "sentence\tgrade\nbad\t0\n")
    with pytest.raises(ValueError, match=r"test\.tsv has no column label or .*pass label_column="):
        load_text(str(folder))


def test_test_split_without_labels(folder):
    write(folder, "test.tsv", "sentence\tlabel\ngood\t-1\nbad\t-1\n")
    assert list(load_text(str(folder))) == ["train", "validation"]
    (folder / "train.tsv").unlink()
    (folder / "dev.tsv").unlink()
    with pytest.raises(ValueError, match="has no labels"):
        load_text(str(folder))


def test_no_file_and_two_for_one_split(folder, tmp_path):
    write(folder, "val.csv", "text,label\na,0\n")
    with pytest.raises(ValueError, match=r"more than one validation split: (val\.csv, dev\.tsv|dev\.tsv, val\.csv)"):
        load_text(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no file train, .*\.tsv, \.csv, \.json, \.jsonl or \.parq"):
        load_text(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "words\tlabel\ngood\t1\n",
            r"dev\.tsv has no column sentence or text .*among \['words', 'label'\]: pass text_c",
        ),
        ("sentence,label\ngood,1\n", r"dev\.tsv \(tabs between\?\) has no column"),
        ("sentence\tlabel\n", r"dev\.tsv has no examples"),
        ("", r"dev\.tsv has no examples"),
        ("sentence\tlabel\ngood\t1\nbad\tno\n", r"dev\.tsv, line 3: label 'no' is not a whole number"),
        ("sentence\tlabel\n\ngood\t-1\n", r"dev\.tsv, line 3: label '-1'"),
        ("sentence\tlabel\ngood\t1.5\n", r"dev\.tsv, line 2: label '1\.5'"),
        ("sentence\tlabel\ngood\t\n", r"dev\.tsv, line 2: label ''"),
        ("sentence\tlabel\ngood\t1\nbad\tworse\t0\n", r"dev\.tsv cannot be read: line 3.*may not hold tabs"),
        ("sentence\tlabel\ngood\n", r"dev\.tsv cannot be read: line 2 has 1 fields, the header 2"),
    ],
)
def test_bad_tsv(folder, text, message):
    write(folder, "dev.tsv", text)
    with pytest.raises(ValueError, match=message):
        load_text(str(folder))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", 'text,label\n"a\nb",1\nc,x\n', r"train\.csv, line 4: label 'x'"),
        ("train.csv", 'text,label\n"a,1\n', r"train\.csv cannot be read: unexpected end of data"),
        (
            "train.jsonl",
            '{"text": "a", "label": 0}\n\n{"text": null, "label": 1}',
            r"jsonl, line 3: text None is not a",
        ),
        ("train.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}', r"train\.jsonl, line 2: label None"),
        ("train.jsonl", '{"text": "a", "label": 0}\n{"text": ', r"train\.jsonl cannot be read: .*an object a line"),
        ("train.jsonl", '{"text": "a", "label": [0, 1]}', r"train\.jsonl, line 1: label \[0, 1\] is more than one"),
        ("train.json", '[{"text": "a", "label": 0}, {"text": "b", "label": 0.5}]', r"train\.json, row 1: label 0\.5"),
        ("train.json", '["a", "b"]', r"train\.json, row 0: 'a' is not an object"),
        ("train.parquet", "text", r"train\.parquet cannot be read"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message):
        load_text(str(tmp_path))


def test_not_utf8(tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"text\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(ValueError, match=r"train\.tsv cannot be read: 'utf-8' codec"):
        load_text(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "sizes", "counts"),
    [  # counts: of each label in the last split
        ("sst2", (6920, 872, 1821), (912, 909)),
        ("sst2_glue", (67349, 872), (428, 444)),
        ("sst5", (8544, 1101, 2210), (279, 633, 389, 510, 399)),
        ("mr", (8530, 1066, 1066), None),
        ("chnsenticorp", (9600, 1200, 1200), (592, 608)),
        ("chnsenticorp_htl", (6213, 776, 776), None),
    ],
)
def test_real_sets(name, sizes, counts):
    if not os.environ.get("SPIKEZIP_DATA"):
        pytest.skip("needs the data sets: set SPIKEZIP_DATA to their folder")
    data = load_text(name)
    assert tuple(data) == ("train", "validation", "test")[: len(sizes)]
    assert tuple(split.num_rows for split in data.values()) == sizes
    last = list(data.values())[-1]
    assert all(last["text"])
    labels = last["label"][:]
    assert counts is None or tuple(labels.count(label) for label in range(len(counts))) == counts

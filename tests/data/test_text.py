"""Text sets from folders: what is in the files, or a line that says what is wrong with them."""

import os

import pytest

from spikezip_hf.data.text import find_data, load_text


def write(folder, name="train.tsv", text="sentence\tlabel\ngood\t1\nbad\t0\n"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "dev", "test"):
        write(tmp_path / "set", f"{split}.tsv")
    return tmp_path / "set"


def test_splits_and_labels(folder):
    data = load_text(str(folder))
    assert {name: split.num_rows for name, split in data.items()} == {"train": 2, "dev": 2, "test": 2}
    assert data["test"]["sentence"][:] == ["good", "bad"]
    assert data["test"]["label"][:] == [1, 0]
    assert data["test"].features["label"].names == ["negative", "positive"]


def test_characters_that_other_readers_take_for_markup(folder):
    write(folder, "train.tsv", "sentence\tlabel\n\"quoted\t1\nNA\t0\nnull\t1\n it 's # 1,000 \t0\n")
    data = load_text(str(folder))
    assert data["train"]["sentence"][:] == ['"quoted', "NA", "null", " it 's # 1,000 "]


def test_more_than_two_classes(folder):
    write(folder, "dev.tsv", "sentence\tlabel\nso so\t4\n")
    assert load_text(str(folder))["train"].features["label"].names == ["0", "1", "2", "3", "4"]


def test_columns_in_another_order_and_more_of_them(folder):
    write(folder, "train.tsv", "id\tlabel\tsentence\n7\t1\tgood\n")
    data = load_text(str(folder))["train"]
    assert data.column_names == ["sentence", "label"]
    assert data[0] == {"sentence": "good", "label": 1}


def test_empty_column_at_the_end(folder):
    write(folder, "train.tsv", "sentence\tlabel\t\ngood\t1\t\n")
    assert load_text(str(folder))["train"][0] == {"sentence": "good", "label": 1}


def test_folder_by_name(folder, monkeypatch):
    monkeypatch.setenv("SPIKEZIP_DATA", str(folder.parent))
    assert load_text("set")["train"].num_rows == 2


def test_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SPIKEZIP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"No data folder at nothing .*SPIKEZIP_DATA.*not set"):
        find_data("nothing")
    monkeypatch.setenv("SPIKEZIP_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"No data folder at nothing or {tmp_path}/nothing"):
        find_data("nothing")


def test_missing_file(folder):
    (folder / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"set lacks dev\.tsv"):
        load_text(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tlabel\ngood\t1\n", r"dev\.tsv has no column 'sentence', only \['text', 'label'\]"),
        ("sentence,label\ngood,1\n", r"dev\.tsv has no column 'sentence'.*tabs between"),
        ("sentence\tlabel\n", r"dev\.tsv has no examples"),
        ("sentence\tlabel\ngood\t1\nbad\tno\n", r"dev\.tsv, line 3: label 'no' is not a whole number"),
        ("sentence\tlabel\ngood\t-1\n", r"dev\.tsv, line 2: label '-1'"),
        ("sentence\tlabel\ngood\t1\nbad\tworse\t0\n", r"dev\.tsv cannot be read: .*line 3.*may not hold tabs"),
    ],
)
def test_bad_files(folder, text, message):
    write(folder, "dev.tsv", text)
    with pytest.raises(ValueError, match=message):
        load_text(str(folder))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("sst2", (6920, 872, 1821)), ("sst5", (8544, 1101, 2210)), ("chnsenticorp_htl", (6213, 776, 776))],
)
def test_real_sets(name, sizes):
    if not os.environ.get("SPIKEZIP_DATA"):
        pytest.skip("needs the data sets: set SPIKEZIP_DATA to their folder")
    data = load_text(name)
    assert tuple(data[split].num_rows for split in ("train", "dev", "test")) == sizes
    assert all(data["test"]["sentence"])

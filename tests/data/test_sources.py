"""Where sets are sought, what comes from the Hub (here: from a stand-in), and validation splits."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDatasetDict, Value
from datasets.exceptions import DatasetNotFoundError

import spikezip_hf.data
from spikezip_hf.data.images import load_images
from spikezip_hf.data.sources import find_data, with_validation
from spikezip_hf.data.text import load_text


@pytest.fixture
def hub(monkeypatch):
    """Sets the answer of `datasets.load_dataset`, and keeps what it was asked."""

    class Hub:
        def __init__(self):
            self.asked = []

        def answers(self, answer):
            def load_dataset(name, subset, streaming):
                self.asked.append((name, subset, streaming))
                if isinstance(answer, Exception):
                    raise answer
                splits = {split: data.to_iterable_dataset() for split, data in answer.items()}
                return IterableDatasetDict(splits) if streaming else answer

            monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    monkeypatch.delenv("SPIKEZIP_DATA", raising=False)
    return Hub()


def glue(names=("negative", "positive")):
    label = ClassLabel(names=list(names)) if names else Value("int64")
    features = Features({"sentence": Value("string"), "label": label, "idx": Value("int32")})

    def split(labels):
        columns = {"sentence": [f"text {label}" for label in labels], "label": labels, "idx": [0] * len(labels)}
        return Dataset.from_dict(columns, features=features)

    return DatasetDict(train=split([0, 1, 1]), unsupervised=split([-1]), val=split([1, 0]), test=split([-1, -1]))


@pytest.mark.parametrize("names", [("bad", "good"), None])
@pytest.mark.parametrize("streaming", [False, True])
def test_text_from_the_hub(hub, names, streaming):
    hub.answers(glue(names))
    data = load_text("glue", subset="sst2", streaming=streaming)
    assert hub.asked == [("glue", "sst2", streaming)]
    assert isinstance(data, IterableDatasetDict if streaming else DatasetDict)
    assert list(data) == ["train", "validation"]
    label = ClassLabel(names=list(names or ("negative", "positive")))
    assert data["train"].features == Features({"text": Value("string"), "label": label})
    assert list(data["validation"]) == [{"text": "text 1", "label": 1}, {"text": "text 0", "label": 0}]


@pytest.mark.parametrize("labels", [["b", "c", "a"], ["1", "2", "0"], [True, False, True]])
@pytest.mark.parametrize("streaming", [False, True])
def test_labels_of_other_types_from_the_hub(hub, labels, streaming):
    hub.answers(DatasetDict(train=Dataset.from_dict({"review": ["x", "y", "z"], "target": labels})))
    data = load_text("some/set", streaming=streaming)["train"]
    names = {"b": ["a", "b", "c"], "1": ["0", "1", "2"], True: ["negative", "positive"]}[labels[0]]
    assert data.features["label"].names == names
    expected = [1, 2, 0] if len(names) == 3 else [1, 0, 1]
    assert [row["label"] for row in data] == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_images_from_the_hub(hub, streaming):
    pixels = [[[0, 50], [100, 255]]] * 2
    features = Features({"img": Image(), "fine_label": ClassLabel(names=["a", "b"]), "coarse_label": Value("int64")})
    columns = {"img": [np.uint8(image) for image in pixels]}
    split = Dataset.from_dict({**columns, "fine_label": [0, 1], "coarse_label": [0, 0]}, features=features)
    hub.answers(DatasetDict(train=split))
    with pytest.raises(ValueError, match=r"cifar100 has no column label or .*fine_label.*pass label_column="):
        load_images("cifar100", streaming=streaming)
    data = load_images("cifar100", label_column="fine_label", streaming=streaming)["train"]
    assert data.features == Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    assert [(row["image"].size, row["label"]) for row in data] == [((2, 2), 0), ((2, 2), 1)]


def test_wrong_label_and_splits_from_the_hub(hub):
    data = glue()
    data["train"] = data["test"]
    hub.answers(data)
    with pytest.raises(ValueError, match=r"glue, train row 0: label -1 is not a whole number"):
        load_text("glue")
    hub.answers(DatasetDict(unsupervised=data["test"]))
    with pytest.raises(ValueError, match=r"glue on the Hub has no split train or .*only \['unsupervised'\]"):
        load_text("glue")
    hub.answers(DatasetDict(train=data["val"], val=data["val"], dev=data["val"]))
    with pytest.raises(ValueError, match="more than one validation split: dev, val"):
        load_text("glue")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionError("offline"), "cannot be reached"), (DatasetNotFoundError("gone"), "has no such set")],
)
def test_no_set(hub, tmp_path, monkeypatch, error, reason):
    hub.answers(error)
    with pytest.raises(
        FileNotFoundError, match=rf"'some/set': no folder at some/set .*not set.*Hub {reason}"
    ) as caught:
        load_text("some/set")
    assert caught.value.__cause__ is error
    monkeypatch.setenv("SPIKEZIP_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no folder at some/set or {tmp_path}/some/set, and .* SPIKEZIP_DATA"):
        load_images("some/set")


@pytest.mark.parametrize("name", ["./nothing", "/nothing", "~/nothing", "a/b/c"])
def test_paths_are_not_sought_on_the_hub(hub, name):
    hub.answers(AssertionError("asked the Hub"))
    with pytest.raises(FileNotFoundError, match=r"No data folder at .*(nothing|a/b/c) .*SPIKEZIP_DATA.*not set"):
        load_text(name)


def test_order_of_places(hub, tmp_path, monkeypatch):
    hub.answers(AssertionError("asked the Hub"))
    home, work = tmp_path / "home", tmp_path / "work"
    for place in (home, work):
        (place / "set" / "part").mkdir(parents=True)
        (place / "set" / "part" / "train.csv").write_text(f"text,label\n{place.name},0\n")
    monkeypatch.setenv("SPIKEZIP_DATA", str(home))
    assert load_text("set", subset="part")["train"]["text"][:] == ["home"]
    monkeypatch.chdir(work)
    assert load_text("set", subset="part")["train"]["text"][:] == ["work"]
    assert load_text("set/part")["train"]["text"][:] == ["work"]


def test_find_data(tmp_path, monkeypatch):
    monkeypatch.delenv("SPIKEZIP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"No data folder at nothing .*SPIKEZIP_DATA.*not set"):
        find_data("nothing")
    monkeypatch.setenv("SPIKEZIP_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"No data folder at nothing or {tmp_path}/nothing"):
        find_data("nothing")
    (tmp_path / "nothing").mkdir()
    assert find_data("nothing") == tmp_path / "nothing"


def unsplit(rows=40):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    labels = [int(row % 4 == 0) for row in range(rows)]
    return Dataset.from_dict({"text": [str(row) for row in range(rows)], "label": labels}, features=features)


def test_validation_held_out():
    data = DatasetDict(train=unsplit(), test=unsplit(4))
    split = with_validation(data, share=0.2, seed=1)
    assert list(split) == ["train", "validation", "test"]
    for seed in range(5):
        assert with_validation(data, share=0.2, seed=seed)["validation"]["label"][:].count(1) == 2
    assert split["validation"].num_rows == 8
    assert sorted([*split["train"]["text"], *split["validation"]["text"]]) == sorted(data["train"]["text"])
    assert split["validation"]["text"][:] == with_validation(data, share=0.2, seed=1)["validation"]["text"][:]
    assert split["validation"]["text"][:] != with_validation(data, share=0.2, seed=2)["validation"]["text"][:]


def test_validation_that_is_there():
    data = DatasetDict(train=unsplit(), validation=unsplit(4))
    assert with_validation(data) is data


def test_no_validation_to_be_had():
    with pytest.raises(ValueError, match="streaming set without a validation split"):
        with_validation(IterableDatasetDict(train=unsplit().to_iterable_dataset()))
    with pytest.raises(ValueError, match=r"No train split .*only \['test'\]"):
        with_validation(DatasetDict(test=unsplit()))
    with pytest.raises(ValueError, match=r"share is 1\.0"):
        with_validation(DatasetDict(train=unsplit()), share=1.0)


def test_names_of_the_package():
    assert spikezip_hf.data.load_text is load_text
    assert all(callable(getattr(spikezip_hf.data, name)) for name in spikezip_hf.data.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        spikezip_hf.data.nothing  # noqa: B018

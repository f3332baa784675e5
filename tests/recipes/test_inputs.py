"""A data set as a network's input: the same samples for all stages, and arguments that fit."""

import pytest
from datasets import ClassLabel, Dataset, Features
from transformers import BertConfig

from spikezip_hf.recipes.inputs import DataArguments, check_labels, load_data


@pytest.fixture
def folder(tmp_path):
    """40 texts for training, and no other split."""
    lines = [f"text number {i}\t{i % 2}" for i in range(40)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return str(tmp_path)


def test_what_is_held_out_follows_from_the_split_seed_alone(folder):
    """Else what one stage is judged by, another has learned from."""
    import random

    import torch

    def held_out(**fields):
        random.seed(fields.pop("seed", 0))
        torch.manual_seed(random.randrange(1000))
        return load_data(DataArguments(data_dir=folder, **fields), is_text=True)["validation"]["text"][:]

    assert len(held_out()) == 4
    assert held_out(seed=1) == held_out(seed=2)
    assert held_out(split_seed=1) != held_out(split_seed=2)


def test_training_samples_are_drawn_and_not_the_first(folder):
    data = load_data(DataArguments(data_dir=folder, max_train_samples=6), is_text=True)
    whole = load_data(DataArguments(data_dir=folder), is_text=True)
    assert len(data["train"]) == 6
    assert set(data["train"]["text"]) < set(whole["train"]["text"])
    assert data["train"]["text"][:] != whole["train"]["text"][:6]


@pytest.mark.parametrize(
    "field", [{"auto_augment": "rand-m9"}, {"random_crop": True}, {"horizontal_flip": 0.5}, {"crop_scale": [0.5, 1.0]}]
)
def test_augmentation_of_texts_is_refused(folder, field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} is for images"):
        load_data(DataArguments(data_dir=folder, **field), is_text=True)


def test_labels_of_the_data_in_another_order_are_refused():
    data = {"train": Dataset.from_dict({"label": [0]}, features=Features({"label": ClassLabel(names=["a", "b"])}))}
    check_labels(data, BertConfig(id2label={0: "a", 1: "b"}), "net")
    check_labels(data, BertConfig(num_labels=2), "net")  # LABEL_0, LABEL_1: nothing is known
    with pytest.raises(ValueError, match="net has the labels of the data in another order"):
        check_labels(data, BertConfig(id2label={0: "b", 1: "a"}), "net")

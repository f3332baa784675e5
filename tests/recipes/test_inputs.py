"""A data set as a network's input: the same samples for all stages, and arguments that fit."""

import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from transformers import BertConfig, ViTImageProcessorPil

from spikezip_hf.recipes.inputs import DataArguments, check_labels, label_fields, load_data, model_inputs

FEATURES = {"image": Image(), "label": ClassLabel(names=["dark", "light"])}


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


def test_gray_images_for_a_network_of_one_channel():
    """How many channels there are is the processor's to know."""
    pictures = [PIL.Image.new("L", (8, 8), 100 * i) for i in range(2)]
    data = {"train": Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=Features(FEATURES))}
    processor = ViTImageProcessorPil(size={"height": 4, "width": 4}, image_mean=[0.5], image_std=[0.5])
    inputs, _ = model_inputs(data, processor, DataArguments(dataset="gray"), is_text=False)
    assert inputs["train"][0]["pixel_values"].shape == (1, 4, 4)


def test_one_class_makes_no_classifier(tmp_path):
    """transformers would make a regression of a network with one label."""
    rows = "\n".join(f"text number {row}\tgood" for row in range(20))
    (tmp_path / "train.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    splits = load_data(DataArguments(data_dir=str(tmp_path)), is_text=True)
    with pytest.raises(ValueError, match="All examples of the data are of one class, 'good': a classifier needs two"):
        label_fields(splits)


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_split(tmp_path, monkeypatch, split):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    picture = PIL.Image.new("L", (8, 8))
    for name in ("train", "validation", "test"):
        rows = 0 if name == split else 4
        columns = {"image": [picture] * rows, "label": [0, 1, 0, 1][:rows]}
        Dataset.from_dict(columns, features=Features(FEATURES)).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=rf"{split}\.parquet: there are no examples"):
        load_data(DataArguments(data_dir=str(tmp_path)), is_text=False)

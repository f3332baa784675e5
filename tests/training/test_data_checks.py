"""Data that cannot be trained on is refused before any work, with the place and the remedy."""

import pytest
import torch
from datasets import Dataset, Value
from transformers.utils import logging

from spikezip_hf import DistillationTrainer, DistillationTrainingArguments, QATTrainer, QuantViTForImageClassification
from tests.conftest import make_ann, make_images, make_text_ann
from tests.training.common import make_args, make_data

ROWS = 12
CLASSES = 5
NAN = float("nan")


@pytest.fixture(params=["qat", "distillation"])
def make_trainer(request, tmp_path, monkeypatch):
    """A function that makes a trainer of one of the two; whoever begins to calibrate or to train fails the test."""

    def make(data, eval_data=None, **fields):
        ann = make_ann(num_labels=fields.pop("num_labels", CLASSES))
        if request.param == "qat":
            model = QuantViTForImageClassification.from_ann(ann, quantization_levels=8)
            args = make_args(tmp_path, max_steps=1, **fields)
            return QATTrainer(model, args, train_dataset=data, eval_dataset=eval_data)
        args = make_args(tmp_path, DistillationTrainingArguments, max_steps=1, **fields)
        return DistillationTrainer(ann, args, train_dataset=data, eval_dataset=eval_data)

    def begun(*args, **kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(QuantViTForImageClassification, "calibrate", begun)
    monkeypatch.setattr(DistillationTrainer, "training_step", begun)
    return make


def as_list(labels):
    images = make_images(make_ann().config, len(labels))
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels)]


def as_dataset(labels, kind=None):
    columns = {"pixel_values": make_images(make_ann().config, len(labels)).tolist(), "labels": labels}
    data = Dataset.from_dict(columns)
    return data if kind is None else data.cast_column("labels", Value(kind))


def labels_with(bad, at=7):
    return [bad if row == at else row % CLASSES for row in range(ROWS)]


BAD = {
    "too large": (5, "the label 5 is not one of 0 to 4: mend the data, or give the model more labels"),
    "negative": (-1, "the label -1 is not one of 0 to 4"),
    "none": (None, "the label None is none: leave such samples out"),
}


@pytest.mark.parametrize("form", [as_list, as_dataset], ids=["list", "dataset"])
@pytest.mark.parametrize("bad", BAD)
def test_label(make_trainer, form, bad):
    label, problem = BAD[bad]
    with pytest.raises(ValueError, match=f"^train_dataset, column 'labels', sample 7: {problem}"):
        make_trainer(form(labels_with(label))).train()


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([str(row) for row in range(ROWS)], r"sample 0: the label '0' is a str, no number: class_encode_column"),
        ([float(row % CLASSES) for row in range(ROWS)], r"sample 0: the label 0\.0 is no whole number"),
        ([0.0, 1.0, NAN] * 4, r"sample 0: the label 0\.0 is no whole number"),
        ([-100] * ROWS, "no sample has a label, all are -100"),
    ],
    ids=["strings", "floats", "NaN", "none at all"],
)
@pytest.mark.parametrize("form", [as_list, as_dataset], ids=["list", "dataset"])
def test_labels_of_another_kind(make_trainer, form, labels, problem):
    with pytest.raises(ValueError, match=problem):
        make_trainer(form(labels)).train()


def test_nan_to_come_near_to(make_trainer):
    with pytest.raises(ValueError, match="sample 7: the label nan is none"):
        make_trainer(as_list([NAN if row == 7 else 0.5 for row in range(ROWS)]), num_labels=1).train()


@pytest.mark.parametrize("empty", [[], Dataset.from_dict({"pixel_values": [], "labels": []})], ids=["list", "dataset"])
def test_empty(make_trainer, empty):
    good = make_data(make_ann().config, ROWS)
    with pytest.raises(ValueError, match=r"^train_dataset is empty"):
        make_trainer(empty).train()
    with pytest.raises(ValueError, match=r"^eval_dataset is empty"):
        make_trainer(good, empty, eval_strategy="epoch").train()
    with pytest.raises(ValueError, match=r"^eval_dataset is empty"):
        make_trainer(good, empty).evaluate()
    with pytest.raises(ValueError, match=r"^eval_dataset\['other'\] is empty"):
        make_trainer(good, {"one": good, "other": empty}, eval_strategy="epoch").train()
    with pytest.raises(ValueError, match=r"^eval_dataset\['other'\] is empty"):
        make_trainer(good, {"one": good, "other": empty}).evaluate("other")


def test_missing_column(make_trainer):
    data = as_dataset([row % CLASSES for row in range(ROWS)])
    with pytest.raises(ValueError, match=r"has no column 'labels', only \['pixel_values', 'klass'\]: ren"):
        make_trainer(data.rename_column("labels", "klass")).train()
    with pytest.raises(ValueError, match=r"has no column 'pixel_values', which \w+ takes, only \['image', 'labels'\]"):
        make_trainer(data.rename_column("pixel_values", "image")).train()
    listed = [{"pixel_values": image["pixel_values"]} for image in make_data(make_ann().config, ROWS)]
    with pytest.raises(ValueError, match="train_dataset has no column 'labels'"):
        make_trainer(listed).train()


def test_evaluation_set(make_trainer):
    """Before the training, and not after an epoch of it."""
    good = make_data(make_ann().config, ROWS)
    trainer = make_trainer(good, as_list(labels_with(5)), eval_strategy="epoch")
    with pytest.raises(ValueError, match=r"^eval_dataset, column 'labels', sample 7: the label 5"):
        trainer.train()
    with pytest.raises(ValueError, match=r"^eval_dataset, column 'labels', sample 7: the label 5"):
        trainer.evaluate()


class Made(torch.utils.data.Dataset):
    """Samples that are made when they are asked for."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def trainer_of(tmp_path, data, **fields):
    args = make_args(tmp_path, DistillationTrainingArguments, max_steps=3, **fields)
    return DistillationTrainer(make_ann(), args, train_dataset=data, eval_dataset=data)


@pytest.mark.parametrize("label", [5, -1])
def test_samples_made_later_are_looked_at_in_their_batch(tmp_path, label):
    trainer = trainer_of(tmp_path, Made(as_list(labels_with(label))))
    with pytest.raises(ValueError, match=rf"labels of the batch, row \d: the label {label} is not one of 0 to 4"):
        trainer.train()
    with pytest.raises(ValueError, match=rf"labels of the batch, row 7: the label {label} is not one of 0 to 4"):
        trainer.evaluate()


def test_data_to_predict_are_other_data(tmp_path):
    """They may have no labels; where they have, those of the training say nothing of them."""
    trainer = trainer_of(tmp_path, as_list(labels_with(4)))
    trainer.train()
    with pytest.raises(ValueError, match="labels of the batch, row 7: the label 5 is not one of 0 to 4"):
        trainer.predict(as_list(labels_with(5)))
    images = [{"pixel_values": image["pixel_values"]} for image in as_list(labels_with(5))]
    assert trainer.predict(images).predictions.shape == (ROWS, CLASSES)


@pytest.mark.parametrize("form", [as_list, as_dataset], ids=["list", "dataset"])
def test_one_class_is_a_warning(tmp_path, caplog, form):
    logger = logging.get_logger("spikezip_hf")
    logger.addHandler(caplog.handler)
    try:
        trainer_of(tmp_path, form([3] * ROWS)).train()
        assert "train_dataset, column 'labels': all 12 samples have the label 3, of 5 classes." in caplog.text
        caplog.clear()
        trainer_of(tmp_path, form([3, -100, 2] * 4)).train()
        assert "samples have the label" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_labels_of_tokens(tmp_path):
    """Lists, in one column; -100 is no label."""
    ann = make_text_ann("bert", "ForTokenClassification")
    columns = {"input_ids": [[5, 6, 7]] * 6, "labels": [[0, 1, -100]] * 4 + [[0, 2, 1], [0, 9, 1]]}
    args = make_args(tmp_path, DistillationTrainingArguments, max_steps=1)
    for data in (Dataset.from_dict(columns), [dict(zip(columns, row)) for row in zip(*columns.values())]):
        with pytest.raises(ValueError, match="sample 5: the label 9 is not one of 0 to 2"):
            DistillationTrainer(ann, args, train_dataset=data).train()
        data = data.select(range(5)) if isinstance(data, Dataset) else data[:5]
        DistillationTrainer(ann, args, train_dataset=data).train()


def collate_names(samples):
    """What no collator of transformers does: numbers of names, from a column that the model does not take."""
    images = torch.stack([torch.as_tensor(sample["pixel_values"]) for sample in samples])
    return {"pixel_values": images, "labels": torch.tensor([int(sample["klass"][1:]) for sample in samples])}


@pytest.mark.parametrize("as_rows", [False, True], ids=["dataset", "list"])
def test_labels_made_by_a_collator(tmp_path, as_rows):
    """From any column, of any kind: they are looked at in their batch."""

    def trainer(bad):
        names = [f"c{label}" for label in labels_with(bad)]
        data = as_dataset([0] * ROWS).remove_columns("labels").add_column("klass", names)
        args = make_args(tmp_path, DistillationTrainingArguments, max_steps=2, remove_unused_columns=False)
        data = list(data) if as_rows else data
        return DistillationTrainer(make_ann(), args, train_dataset=data, data_collator=collate_names)

    assert trainer(4).train().global_step == 2
    with pytest.raises(ValueError, match=r"labels of the batch, row \d: the label 5 is not one of 0 to 4"):
        trainer(5).train()


@pytest.mark.parametrize("column", ["label", "klass"])
def test_labels_made_by_a_transform(tmp_path, column):
    """As recipes make images: what it gives is not known before, even of a column of that name."""

    def trainer(bad):
        shown = Dataset.from_dict({column: [f"c{label}" for label in labels_with(bad)]}).with_transform(
            lambda batch: {
                "pixel_values": make_images(make_ann().config, len(batch[column])),
                "labels": [int(name[1:]) for name in batch[column]],
            }
        )
        return trainer_of(tmp_path, shown, remove_unused_columns=False)

    assert trainer(4).train().global_step == 3
    with pytest.raises(ValueError, match=r"labels of the batch, row \d: the label 5 is not one of 0 to 4"):
        trainer(5).train()

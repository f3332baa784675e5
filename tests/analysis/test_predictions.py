"""Tables of predictions: what the model says, and the same after a run that was cut off."""

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_from_disk
from PIL import Image as Pillow
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    ViTImageProcessor,
    default_data_collator,
)

from spikezip_hf.analysis import accuracy_over_time
from spikezip_hf.analysis.predictions import predict
from spikezip_hf.data import image_transforms
from spikezip_hf.metrics import load_metric
from tests.conftest import make_ann, make_qann, make_text_ann, make_text_qann, spiking_twin
from tests.test_auto_text import TEXTS, make_tokenizer

STEPS = 40
PARTS = {"batch_size": 3, "part_size": 4}
BATCHES = [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9]]  # of ten rows, in parts of four


class Texts:
    """Ten texts of several lengths, and networks for them."""

    collate = staticmethod(DataCollatorWithPadding(make_tokenizer("bert")))

    @staticmethod
    def inputs(**more):
        tokens = make_tokenizer("bert")([*TEXTS, *(f"not {text}" for text in TEXTS)])
        return Dataset.from_dict({**tokens, "label": [row % 3 for row in range(10)], **more})

    @staticmethod
    def network(kind):
        fields = {"max_position_embeddings": 64, "hidden_dropout_prob": 0.5}
        if kind == "ANN":
            return make_text_ann("bert", **fields)
        qann = make_text_qann("bert", levels=8, **fields)
        return qann if kind == "QANN" else spiking_twin(qann, time_steps=STEPS)


class Images:
    """Ten images, which a transform turns into pixels as they are looked at, and networks for them."""

    collate = staticmethod(default_data_collator)

    @staticmethod
    def inputs():
        noise = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3), dtype=np.uint8)
        features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c", "d", "e"])})
        data = {"image": [Pillow.fromarray(image) for image in noise], "label": [row % 5 for row in range(10)]}
        processor = ViTImageProcessor(size={"height": 8, "width": 8})
        return Dataset.from_dict(data, features=features).with_transform(image_transforms(processor)[1])

    @staticmethod
    def network(kind):
        if kind == "ANN":
            return make_ann(seed=2)
        qann = make_qann(seed=2, levels=8)
        return qann if kind == "QANN" else spiking_twin(qann, time_steps=STEPS)


def count_calls(model, at=None, act=None):
    """The sizes of the batches that a model is called with from now on; it acts before the call of number `at`."""
    sizes = []

    name = "trajectory" if hasattr(model, "trajectory") else "forward"  # what is called of Spike models, and of others
    called = getattr(model, name)

    def counted(*args, **inputs):
        if len(sizes) == at:
            act()
        sizes.append(len(args[0] if args else inputs.get("input_ids", inputs.get("pixel_values"))))
        return called(*args, **inputs)

    setattr(model, name, counted)
    return sizes


def interrupt():
    raise KeyboardInterrupt


def refuse():
    raise AssertionError("the model was called")


@torch.no_grad()
def outputs(data, model, **arguments):
    """What the model returns for the batches of ten rows, one field after the other."""
    inputs, model = data.inputs(), model.eval()
    runs = []
    for rows in BATCHES:
        batch = dict(data.collate([inputs[row] for row in rows]))
        del batch["labels"]
        runs.append(model(**batch, **arguments))
    return {name: torch.cat([run[name] for run in runs]) for name in runs[0] if torch.is_tensor(runs[0][name])}


@pytest.mark.parametrize("kind", ["ANN", "QANN", "SNN"])
@pytest.mark.parametrize("data", [Texts, Images], ids=["texts", "images"])
def test_what_the_model_says(data, kind, tmp_path):
    model = data.network(kind).train()  # with dropout, which is not for predictions
    table = predict(model, data.inputs(), data.collate, tmp_path, **PARTS)
    assert model.training is (kind != "SNN")
    expected = outputs(data, model, **({"output_time_steps": True} if kind == "SNN" else {}))
    assert table["index"][:] == list(range(10))
    labels = data.inputs().with_format(None)["label"][:]
    assert table["label"][:] == labels
    assert table["prediction"][:] == expected["logits"].argmax(-1).tolist()
    assert len(set(table["prediction"][:])) > 1
    assert table["score"][:] == expected["logits"].softmax(-1).amax(-1).tolist()
    names = ["index", "label", "prediction", "score"]
    if kind == "SNN":
        names += ["prediction_per_step", "equilibrium_step", "spikes", "neurons"]
        assert table["prediction_per_step"][:] == expected["logits_per_step"].argmax(-1).tolist()
        assert table["equilibrium_step"][:] == expected["equilibrium_step"].tolist()
        assert table["spikes"][:] == expected["spike_counts"].sum(-1).tolist()
        assert table["neurons"][:] == expected["neuron_counts"].sum(-1).tolist()
    assert table.column_names == names
    if data is Images:
        assert table.features["label"].names == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("steps", [8, STEPS], ids=["few_steps", "enough_steps"])
def test_metric_of_the_table(steps, tmp_path):
    model = Texts.network("SNN")
    table = predict(model, Texts.inputs(), Texts.collate, tmp_path, time_steps=steps, **PARTS)
    found = load_metric("accuracy_over_time").compute(
        predictions=table["prediction_per_step"],
        references=table["label"],
        equilibrium_steps=table["equilibrium_step"],
        time_steps=[1, 4, steps],
    )
    expected = outputs(Texts, model, time_steps=steps, output_time_steps=True)
    labels = torch.tensor(table["label"][:])
    curve = accuracy_over_time(expected["logits_per_step"], labels)
    assert [found[f"accuracy_T{step}"] for step in (1, 4, steps)] == curve[[0, 3, steps - 1]].tolist()
    assert found["accuracy"] == curve[-1].item()
    proven = expected["equilibrium_step"] > 0
    assert found["equilibrium_share"] == proven.double().mean().item()
    assert bool(proven.any()) is (steps == STEPS)
    if proven.any():
        right = expected["logits"].argmax(-1) == labels
        assert found["accuracy_at_equilibrium"] == right[proven].double().mean().item()
    else:
        assert "accuracy_at_equilibrium" not in found


def test_rows_without_labels(tmp_path):
    table = predict(Texts.network("QANN"), Texts.inputs().remove_columns("label"), Texts.collate, tmp_path, **PARTS)
    assert table.column_names == ["index", "prediction", "score"]


def test_cut_off_and_resumed(tmp_path):
    model = Texts.network("SNN")
    whole = predict(model, Texts.inputs(), Texts.collate, tmp_path / "whole", **PARTS)
    count_calls(model, at=3, act=interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(model, Texts.inputs(), Texts.collate, tmp_path / "parts", **PARTS)
    first = tmp_path / "parts" / "part-00000.parquet"
    written = first.stat().st_mtime_ns
    again = Texts.network("SNN")
    sizes = count_calls(again)
    table = predict(again, Texts.inputs(), Texts.collate, tmp_path / "parts", **PARTS)
    assert sizes == [3, 1, 2]  # the second part anew, and the third
    assert first.stat().st_mtime_ns == written
    assert table[:] == whole[:]


def test_cut_off_before_a_part_is_in_place(tmp_path, monkeypatch):
    whole = predict(Texts.network("QANN"), Texts.inputs(), Texts.collate, tmp_path / "whole", **PARTS)
    with monkeypatch.context() as patch:
        replace = os.replace
        patch.setattr(os, "replace", lambda old, new: interrupt() if "00001" in str(new) else replace(old, new))
        with pytest.raises(KeyboardInterrupt):
            predict(Texts.network("QANN"), Texts.inputs(), Texts.collate, tmp_path / "parts", **PARTS)
    model = Texts.network("QANN")
    sizes = count_calls(model)
    assert predict(model, Texts.inputs(), Texts.collate, tmp_path / "parts", **PARTS)[:] == whole[:]
    assert sizes == [3, 1, 2]
    names = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "settings.json"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names


def predict_and_die(folder):
    """In another process: predict images, and be killed before the fourth batch."""
    model = Images.network("SNN")
    count_calls(model, at=3, act=lambda: os.kill(os.getpid(), signal.SIGKILL))
    predict(model, Images.inputs(), Images.collate, folder, **PARTS)


def test_killed_and_resumed(tmp_path):
    program = f"from {__name__} import predict_and_die; predict_and_die({str(tmp_path)!r})"
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-00000.parquet", "settings.json"]
    model = Images.network("SNN")
    sizes = count_calls(model)
    table = predict(model, Images.inputs(), Images.collate, tmp_path, **PARTS)
    assert sizes == [3, 1, 2]
    assert table["score"][:] == outputs(Images, model)["logits"].softmax(-1).amax(-1).tolist()


def test_finished_table_is_read(tmp_path):
    """By the same model from a file too, which has learned its type and where it was saved."""
    model = Texts.network("SNN")
    table = predict(model, Texts.inputs(), Texts.collate, tmp_path / "table", **PARTS)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    count_calls(loaded, at=0, act=refuse)
    assert predict(loaded, Texts.inputs(), Texts.collate, tmp_path / "table", **PARTS)[:] == table[:]
    # What says how many steps are run is the argument, wherever it comes from.
    loaded.config.time_steps = 7
    predict(loaded, Texts.inputs(), Texts.collate, tmp_path / "table", time_steps=STEPS, **PARTS)


def other_weight(model):
    with torch.no_grad():
        model.classifier.bias[0] += 1


CHANGES = {
    "weights": {"change": other_weight},
    "config.firing_schedule": {"change": lambda model: setattr(model.config, "firing_schedule", "layerwise")},
    "class": {"model": lambda: Texts.network("QANN")},
    "time_steps": {"time_steps": 8},
    "batch_size": {"batch_size": 2},
    "part_size": {"part_size": 5},
    "inputs": {"inputs": lambda: Texts.inputs(label=[2] * 10)},
    "rows": {"inputs": lambda: Texts.inputs().select(range(9))},
}


@pytest.fixture(scope="module")
def table_of_texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    predict(Texts.network("SNN"), Texts.inputs(), Texts.collate, folder, **PARTS)
    return folder


@pytest.mark.parametrize("field", CHANGES)
def test_other_settings_are_refused(field, table_of_texts):
    change = dict(CHANGES[field])
    model = change.pop("model", lambda: Texts.network("SNN"))()
    change.pop("change", lambda model: None)(model)
    inputs = change.pop("inputs", Texts.inputs)()
    count_calls(model, at=0, act=refuse)
    before = {path: path.stat().st_mtime_ns for path in table_of_texts.iterdir()}
    with pytest.raises(ValueError, match=f"holds predictions with {field} .*Name another folder, or remove that one"):
        predict(model, inputs, Texts.collate, table_of_texts, **{**PARTS, **change})
    assert {path: path.stat().st_mtime_ns for path in table_of_texts.iterdir()} == before


@pytest.mark.parametrize("settings", [None, "{"], ids=["missing", "damaged"])
def test_parts_of_unknown_settings_are_refused(settings, tmp_path):
    model = Texts.network("QANN")
    predict(model, Texts.inputs(), Texts.collate, tmp_path, **PARTS)
    (tmp_path / "settings.json").unlink()
    if settings:
        (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(ValueError, match=r"settings\.json.* Name another folder, or remove that one"):
        predict(model, Texts.inputs(), Texts.collate, tmp_path, **PARTS)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    """In the values of the scores, where nothing but a checksum notices."""
    column = pyarrow.parquet.read_metadata(path).row_group(0).column(3)
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


def other_rows(path):
    path.write_bytes((path.parent / "part-00000.parquet").read_bytes())


@pytest.mark.parametrize("damage", [cut_short, empty, flip_a_bit, other_rows], ids=lambda damage: damage.__name__)
def test_damaged_part_is_made_anew(damage, tmp_path, monkeypatch):
    model = Texts.network("SNN")
    table = predict(model, Texts.inputs(), Texts.collate, tmp_path, **PARTS)
    damage(tmp_path / "part-00001.parquet")
    said = []
    monkeypatch.setattr("spikezip_hf.analysis.predictions.logger.warning", said.append)
    sizes = count_calls(model)
    for _ in range(2):
        assert predict(model, Texts.inputs(), Texts.collate, tmp_path, **PARTS)[:] == table[:]
    assert sizes == [3, 1]
    assert len(said) == 1
    assert "part-00001.parquet is damaged" in said[0]


def test_nothing_is_left_elsewhere(tmp_path):
    Texts.inputs().save_to_disk(tmp_path / "data")
    inputs = load_from_disk(tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    table = predict(Texts.network("QANN"), inputs, Texts.collate, tmp_path / "table", **PARTS)
    assert sorted((tmp_path / "data").rglob("*")) == before
    assert table.cache_files == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"part_size": 0}, "part_size must be"),
        ({"time_steps": 0}, "time_steps must be"),
        ({"inputs": Texts.inputs().select([])}, "inputs: the data set is empty"),
        ({"model": make_text_ann("bert"), "time_steps": 8}, "time_steps: BertForSequenceClassification is no Spike"),
    ],
    ids=["batch_size", "part_size", "time_steps", "empty", "steps_of_an_ann"],
)
def test_refusals(arguments, message, tmp_path):
    arguments = {"model": Texts.network("SNN"), "inputs": Texts.inputs(), **PARTS, **arguments}
    count_calls(arguments["model"], at=0, act=refuse)
    with pytest.raises(ValueError, match=message):
        predict(arguments.pop("model"), arguments.pop("inputs"), Texts.collate, tmp_path / "table", **arguments)
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("task", ["Model", "ForTokenClassification"])
def test_only_classifiers_of_samples(task, tmp_path):
    model = make_text_ann("bert", task, max_position_embeddings=64)
    with pytest.raises(ValueError, match=r"model: Bert\w+ gives no logits \(B, classes\)"):
        predict(model, Texts.inputs(), Texts.collate, tmp_path, **PARTS)


def test_without_datasets(monkeypatch):
    monkeypatch.delitem(sys.modules, "spikezip_hf.analysis.predictions")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'spikezip-hf\[train\]'"):
        import_module("spikezip_hf.analysis.predictions")


def test_in_another_order_and_held_against_the_twin(tmp_path):
    model = Texts.network("SNN")
    plain = predict(model, Texts.inputs(), Texts.collate, tmp_path / "plain", **PARTS)
    sizes, order = count_calls(model), [9, 0, 8, 1, 7, 2, 6, 3, 5, 4]
    twin = Texts.network("QANN")
    table = predict(model, Texts.inputs(), Texts.collate, tmp_path / "other", twin=twin, order=order, **PARTS)
    assert sizes == [3, 1, 3, 1, 2]
    # In this order, and so in other batches: the same answers but for the last bits of the scores.
    assert table.remove_columns(["exact", "score"])[:] == plain.remove_columns("score")[:]
    assert table["exact"] == [step > 0 for step in table["equilibrium_step"]]
    assert any(table["exact"])
    with torch.no_grad():
        twin.nodes[3].scale *= 1.5
    other = predict(model, Texts.inputs(), Texts.collate, tmp_path / "twin", twin=twin, **PARTS)
    assert not any(other["exact"])


@pytest.mark.parametrize("order", [[0, 1, 2], [0] * 10, [*range(9), 10]], ids=["short", "twice", "beyond"])
def test_order_that_is_none(order, tmp_path):
    with pytest.raises(ValueError, match="order must hold each row from 0 to 9 once"):
        predict(Texts.network("QANN"), Texts.inputs(), Texts.collate, tmp_path, order=order)

"""Quantization after training: `spikezip quantize`, what it saves and says, and what goes on from there."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from transformers import AutoTokenizer, ViTImageProcessor
from typer.testing import CliRunner

from spikezip_hf import (
    QuantBertForSequenceClassification,
    QuantSwinForImageClassification,
    QuantViTForImageClassification,
)
from spikezip_hf.cli.app import app
from spikezip_hf.hub import network_digest
from spikezip_hf.recipes.quantize import CalibrationArguments
from spikezip_hf.training import QATTrainer, QATTrainingArguments
from tests.cli.test_commands import complaint, write_texts
from tests.conftest import make_ann, make_qann, make_swin_ann, make_text_ann
from tests.test_auto_text import make_tokenizer

NAMES = {"texts": ["negative", "positive"], "images": ["blue", "red"]}
# What is quantized in the whole chain: a folder, the data it is of, and its Quant class.
NETWORKS = {
    "texts_ann": ("texts", QuantBertForSequenceClassification),
    "images_ann": ("images", QuantViTForImageClassification),
    "swin_ann": ("images", QuantSwinForImageClassification),
}


def with_labels(data: str) -> dict:
    names = NAMES[data]
    return {
        "num_labels": 2,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def write_images(folder: Path) -> None:
    """Noise of 8x8 in folders named for its class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for name in NAMES["images"]:
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data of both kinds, and an ordinary network for each."""
    place = tmp_path_factory.mktemp("place")
    write_texts(place / "texts", {"train": 40, "dev": 10, "test": 24})
    write_images(place / "images")
    make_text_ann("bert", max_position_embeddings=64, **with_labels("texts")).save_pretrained(place / "texts_ann")
    make_tokenizer("bert").save_pretrained(place / "texts_ann")
    make_ann(**with_labels("images")).save_pretrained(place / "images_ann")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(place / "images_ann")
    make_swin_ann(**with_labels("images")).save_pretrained(place / "swin_ann")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(place / "swin_ann")
    return place


@pytest.fixture
def work(place, tmp_path, monkeypatch):
    """A copy of it, as the working directory."""
    shutil.copytree(place, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "work"


def run(*arguments, status: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == status, result.output
    return result


def quantize(data: str, output: str, *flags, status: int = 0):
    return run("quantize", f"{data}_ann", output, "--data-dir", data, "--use-cpu", *flags, status=status)


@pytest.mark.parametrize("ann", NETWORKS)
def test_from_an_ordinary_network_to_a_spiking_one(work, ann):
    data, cls = NETWORKS[ann]
    flags = ["--quantization-levels", "16", "--weight-bits", "8", "--limit", "8", "--use-cpu"]
    told = run("quantize", ann, "qann", "--data-dir", data, *flags).stdout
    assert re.search(
        r"accuracy on 8 samples of the test split: ANN \d+\.\d\d%, QANN \d+\.\d\d%, calibrated only", told
    )
    qann = cls.from_pretrained("qann")
    assert qann.calibrated
    assert (qann.config.quantization_levels, qann.config.weight_bits) == (16, 8)

    results = json.loads(Path("qann/results.json").read_text())
    assert results["network_digest"] == network_digest(qann)
    assert [row["network"] for row in results["simulated"]["rows"]] == ["ANN", "QANN"]
    assert results["calibration"] | {"seconds": 0} == {
        "rule": "mse",
        "samples": 40 if data == "texts" else 21,  # of 24, three are held out for validation
        "seed": 42,
        "seconds": 0,
    }
    assert str(work) not in Path("qann/results.json").read_text()
    card = Path("qann/README.md").read_text()
    assert "None: quantized after training. Its scales were calibrated on" in card
    assert "- quantization-aware-training" not in card
    assert f"| QANN | - | {results['simulated']['rows'][1]['accuracy']:.2%}".replace("%", " %") in card

    run("convert", "qann", "snn", "--time-steps", "300")
    answer = json.loads(
        run("evaluate", "snn", "--data-dir", data, "--simulate", "8", "--time-steps", "300", "--json").stdout
    )
    assert answer["simulated"]["exact"], answer["table"]
    of_qann = {row["network"]: row["accuracy"] for row in answer["simulated"]["rows"]}["QANN"]
    assert of_qann == results["simulated"]["rows"][1]["accuracy"]  # the same eight samples
    run("evaluate", "qann", "--data-dir", data, "--time-steps", "64")
    assert "None: quantized after training." in Path("qann/README.md").read_text()  # what is measured later, too


def test_accuracies_are_those_of_the_networks(work):
    """Of all samples, and of the ordinary network it says what that says."""
    answer = json.loads(quantize("texts", "qann", "--limit", "100", "--json").stdout)
    rows = load_dataset("csv", data_files="texts/test.tsv", sep="\t", split="train")
    tokenizer = AutoTokenizer.from_pretrained("texts_ann")
    ann = make_text_ann("bert", max_position_embeddings=64, **with_labels("texts")).eval()
    qann = QuantBertForSequenceClassification.from_pretrained("qann").eval()
    labels = torch.tensor(rows["label"])
    for network, row in zip((ann, qann), answer["simulated"]["rows"], strict=True):
        with torch.no_grad():
            said = [network(**tokenizer(text, return_tensors="pt")).logits.argmax(-1) for text in rows["sentence"]]
        assert row["accuracy"] == pytest.approx(float((torch.cat(said) == labels).double().mean()))
    assert answer["simulated"]["samples"] == 24


def test_scales_are_those_that_training_would_start_from(work):
    """The same samples by the same seed as of QATTrainer."""
    quantize("texts", "qann", "--calibration-samples", "9", "--no-evaluate", "--head-act", "relu")
    rows = load_dataset("csv", data_files="texts/train.tsv", sep="\t", split="train")
    tokenizer = AutoTokenizer.from_pretrained("texts_ann")
    ann = make_text_ann("bert", max_position_embeddings=64, **with_labels("texts"))
    args = QATTrainingArguments("out", calibration_samples=9, use_cpu=True, report_to=[])
    trainer = QATTrainer(
        QuantBertForSequenceClassification.from_ann(ann, quantization_levels=32),
        args,
        train_dataset=rows.map(lambda row: tokenizer(row["sentence"]), remove_columns="sentence"),
        processing_class=tokenizer,
    )
    trainer.qann.calibrate(trainer.calibration_batches())
    saved = QuantBertForSequenceClassification.from_pretrained("qann")
    assert all(torch.equal(one.scale, other.scale) for one, other in zip(saved.nodes, trainer.qann.nodes, strict=True))


def test_a_text_classifier_keeps_its_tanh(work):
    quantize("texts", "qann", "--no-evaluate")
    assert QuantBertForSequenceClassification.from_pretrained("qann").config.head_act == "tanh"


def test_rules_differ(work):
    scales = {}
    for name, *flags in (("mse",), ("lsq",), ("percentile",), ("low", "--percentile", "90")):
        method = "percentile" if name == "low" else name
        quantize("images", name, "--method", method, *flags, "--no-evaluate")
        qann = QuantViTForImageClassification.from_pretrained(name)
        scales[name] = torch.cat([node.scale.detach() for node in qann.nodes])
        assert ("percentile (90)" in Path(name, "README.md").read_text()) == (name == "low")
    assert bool((scales["low"] <= scales["percentile"]).all())
    assert len({tuple(one.tolist()) for one in scales.values()}) == 4


def test_not_measured(work):
    """Labels of another task are no hindrance, and nothing is claimed."""
    shutil.copytree("images/train/blue", "images/train/green")
    answer = json.loads(quantize("images", "qann", "--no-evaluate", "--json").stdout)
    assert set(answer) == {"seconds"}
    assert not Path("qann/results.json").exists()
    assert "its accuracy is not known" in Path("qann/README.md").read_text()


class TestRefusals:
    """In one line, and before any work: there is no output folder afterwards."""

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--method", "max"], "method must be one of"),
            (["--percentile", "99"], "percentile is for the method 'percentile', and not for 'mse'"),
            (["--method", "percentile", "--percentile", "101"], "percentile must be above 0 and at most 100, got 101"),
            (["--quantization-levels", "7"], "quantization_levels must be an even integer from 4 to 256, got 7"),
            (["--weight-bits", "4"], "weight_bits"),
            (["--calibration-samples", "0"], "calibration_samples must be"),
            (["--limit", "0"], "limit must be"),
            (["--dataset", "some/set"], "two data sets"),
        ],
    )
    def test_arguments(self, work, flags, message):
        assert message in complaint(quantize("images", "qann", *flags, status=1))
        assert not Path("qann").exists()

    def test_no_data(self, work):
        assert "No data: give --dataset" in complaint(run("quantize", "images_ann", "qann", status=1))

    def test_data_that_is_not_there(self, work):
        said = complaint(run("quantize", "images_ann", "qann", "--data-dir", "./nowhere", status=1))
        assert "No data folder at nowhere" in said

    def test_output_that_holds_something(self, work):
        assert "output: texts is not empty" in complaint(quantize("images", "texts", status=1))
        assert "output: images_ann is not empty" in complaint(quantize("images", "images_ann", status=1))
        Path("file").write_text("")
        assert "output: file is a file" in complaint(quantize("images", "file", status=1))

    def test_a_network_that_is_quantized_already(self, work):
        make_qann().save_pretrained("images_ann")
        assert "which is quantized already: name the ordinary one" in complaint(quantize("images", "qann", status=1))

    def test_other_activations(self, work):
        """Refused with the remedy; replaced if asked for, which the card says."""
        make_ann(hidden_act="gelu", **with_labels("images")).save_pretrained("images_ann")
        said = complaint(quantize("images", "qann", status=1))
        assert "only ReLU becomes spikes" in said
        assert "replace_activations" in said
        assert not Path("qann").exists()
        quantize("images", "qann", "--replace-activations", "--limit", "4")
        assert "its accuracy is lost until it is trained" in Path("qann/README.md").read_text()

    def test_labels_of_another_task(self, work):
        shutil.copytree("images/train/blue", "images/train/green")
        assert "images_ann has 2 labels, the data has 3" in complaint(quantize("images", "qann", status=1))
        assert not Path("qann").exists()


def test_defaults_say_which_percentile():
    assert CalibrationArguments(method="percentile").rule() == "percentile (99.9)"
    assert CalibrationArguments().rule() == "mse"

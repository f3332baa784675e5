"""The training script, whole, on texts made here: a very small life; and what it is made of."""

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import make_text_ann, make_texts

SCRIPT = Path(__file__).parents[2] / "training" / "text_classification.py"
GOOD, BAD = ["great", "superb"], ["awful", "dull"]


def run(*arguments, cwd):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts whose label is that of their one word of praise or blame."""
    generator = random.Random(0)
    folder = tmp_path_factory.mktemp("texts")
    for split, count in (("train", 192), ("dev", 32), ("test", 32)):
        lines = ["sentence\tlabel"]
        for index in range(count):
            text = generator.choice((BAD, GOOD)[index % 2]) + " film it was"[: generator.randint(0, 12)]
            lines.append(f"{text}\t{index % 2}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_from_scratch_to_spikes(folder, tmp_path):
    arguments = ["--data", folder, "--architecture", "roberta", "--from-scratch", "--max-length", "32"]
    arguments += ["--epochs", "6", "--qat-epochs", "1", "--levels", "8", "--learning-rate", "5e-4"]
    arguments += ["--output", "out", "--results", "figures/results.json", "--time-steps", "200"]
    first = run(*map(str, arguments), cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    results = json.loads((tmp_path / "figures" / "results.json").read_text())
    assert results["test"]["samples"] == 32
    accuracies = {(row["network"], row["T"]): row["accuracy"] for row in results["test"]["rows"]}
    assert accuracies["SNN", "equilibrium"] == accuracies["QANN", "-"]
    assert results["test"]["exact"] is True, results["test"]["certificate"]
    assert accuracies["ANN", "-"] > 0.9
    assert results["seed"] == 0
    assert results["versions"]["torch"]
    assert results["ReLU fine-tuning"]["seconds"] > 0
    assert len(results["quantization-aware training"]["dev accuracy by epoch"]) == 1
    assert "analog input: none" in results["products"]
    assert (tmp_path / "out" / "snn" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "snn" / "tokenizer.json").is_file()

    # Again: nothing is trained twice, and the figures are the same.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "ann").iterdir()}
    second = run(*map(str, arguments), cwd=tmp_path)
    assert second.returncode == 0, second.stderr[-2000:]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "ann").iterdir()}
    again = json.loads((tmp_path / "figures" / "results.json").read_text())
    for figures in (results, again):
        del figures["test"]["seconds"]
    assert again == results

    # With other settings the networks that are there would not be what the figures say.
    third = run(*map(str, [*arguments, "--seed", "1"]), cwd=tmp_path)
    assert third.returncode == 1
    assert "out/ann was trained with seed 0, now 1. Name another folder with --output." in third.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "error: No data folder at nowhere"),
        (["--levels", "7"], "error: quantization_levels must be an even integer from 4 to 256, got 7"),
        (["--head-act", "gelu"], "error: head_act must be one of 'relu', 'tanh'"),
        (["--time-steps", "20"], "error: --time-steps must be at least 128, got 20"),
        (["--simulate", "0"], "error: --simulate must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_before_any_work(folder, tmp_path, arguments, message, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--data", str(folder), "--from-scratch", *arguments])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(SCRIPT.stem).main()
    assert str(stop.value).startswith(message)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "outputs").exists()


def test_encoder_of_another_architecture_is_refused(folder, tmp_path, monkeypatch):
    make_text_ann("roberta").save_pretrained(tmp_path / "encoder")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    arguments = ["--data", str(folder), "--model", str(tmp_path / "encoder"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments])
    with pytest.raises(SystemExit, match="is a checkpoint of 'roberta', which cannot become 'bert'"):
        importlib.import_module(SCRIPT.stem).main()


def test_roberta_from_bert_is_the_same_encoder(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    bert = make_text_ann("bert", "Model", dtype=torch.float64)
    roberta = importlib.import_module("encoders").roberta_from_bert(bert, {"num_labels": 5}).double().eval()
    texts = make_texts(bert.config, [12, 5])
    with torch.no_grad():
        ours, theirs = (model(**texts).last_hidden_state for model in (roberta.roberta, bert))
    real = texts["attention_mask"] == 1
    assert torch.equal(ours[real], theirs[real])
    assert roberta.config.num_labels == 5
    assert roberta.config.max_position_embeddings == bert.config.max_position_embeddings + 1


def test_character_tokenizer(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    tokenizer = importlib.import_module("encoders").character_tokenizer(["房间很好 OK", "房间不好 ok!"], max_length=8)
    assert tokenizer.convert_ids_to_tokens(tokenizer("房间好 ok")["input_ids"]) == [
        *("[CLS]", "房", "间", "好", "o", "##k", "[SEP]")
    ]
    assert tokenizer.unk_token_id in tokenizer("很")["input_ids"]  # only once in the texts
    assert len(tokenizer("好" * 50, truncation=True)["input_ids"]) == 8

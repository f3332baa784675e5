"""The training script, whole, on texts made here: half a minute of a very small life."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_bad_input_is_refused_before_any_work(folder, tmp_path, arguments, message):
    result = run("--data", str(folder), "--from-scratch", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()

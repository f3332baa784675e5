"""Metrics load from their folder without the Hub, agree with their definition, and serve the Trainer."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from spikezip_hf import metrics
from spikezip_hf.metrics import classification_metrics, load_metric

PREDICTIONS, REFERENCES = [0, 1, 2, 2, 0, 1], [0, 1, 1, 2, 2, 1]


def test_accuracy():
    metric = load_metric("accuracy")
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == {"accuracy": 4 / 6}
    metric.add_batch(predictions=[1, 1], references=[1, 0])
    metric.add(prediction=2, reference=0)
    assert metric.compute() == {"accuracy": 1 / 3}


def test_f1():
    # Precision and recall: class 0: 1/2, 1; class 1: 1, 2/3; class 2: 1/2, 1/2.
    expected = (2 / 3 + 4 / 5 + 1 / 2) / 3
    result = load_metric("f1").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"f1": pytest.approx(expected, abs=1e-12)}  # another order of additions


@pytest.mark.filterwarnings("error")
def test_f1_of_a_class_that_is_never_predicted():
    assert load_metric("f1").compute(predictions=[0, 0], references=[0, 1])["f1"] == pytest.approx(1 / 3)


def test_evaluate_loads_the_folder():
    folder = Path(metrics.__file__).parent / "accuracy"
    assert evaluate.load(str(folder)).compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}


def one_hot(classes):
    return np.eye(3, dtype=np.float32)[classes]


def test_for_the_trainer():
    compute = classification_metrics(("accuracy", "f1"))
    labels = np.array(REFERENCES)
    expected = {"accuracy": 4 / 6, "f1": pytest.approx((2 / 3 + 4 / 5 + 1 / 2) / 3)}
    assert compute(EvalPrediction(one_hot(PREDICTIONS), labels)) == expected
    with_states = (one_hot(PREDICTIONS), np.zeros((6, 4)))
    assert compute(EvalPrediction(with_states, labels)) == expected


def test_positions_that_do_not_count():
    compute = classification_metrics()
    labels = np.array([[0, 1, -100], [2, -100, -100]])
    assert compute(EvalPrediction(one_hot([[0, 2, 1], [2, 0, 0]]), labels)) == {"accuracy": 2 / 3}
    with pytest.raises(ValueError, match="no label is other than -100"):
        compute(EvalPrediction(one_hot([[0]]), np.array([[-100]])))


def test_unknown_metric():
    with pytest.raises(ValueError, match="No metric 'bleu': there are accuracy and f1"):
        classification_metrics(("accuracy", "bleu"))


def test_two_processes_with_one_cache(tmp_path):
    """Both fill the same empty cache at the same time, offline, and print nothing but their result."""
    program = (
        "from spikezip_hf.metrics import load_metric\n"
        "for _ in range(2):\n"
        "    print(load_metric('accuracy').compute(predictions=[1, 0], references=[1, 1])['accuracy'])\n"
    )
    offline = {"HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment = {**os.environ, **offline, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in running] == ["0.5\n0.5\n"] * 2
    assert list((tmp_path / "modules").rglob("accuracy.py"))

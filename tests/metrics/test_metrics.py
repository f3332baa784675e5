"""Metrics load from their folder without the Hub, agree with their definition, and serve the Trainer."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from datasets import Dataset
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
    over_time = evaluate.load(str(folder.parent / "accuracy_over_time"))
    assert over_time.compute(predictions=[[1], [0]], references=[1, 1], equilibrium_steps=[1, -1])["accuracy"] == 0.5


# Four samples over three time-steps; the second was not proven to have settled.
OVER_TIME = {
    "predictions": [[0, 1, 1], [0, 2, 0], [0, 0, 2], [1, 0, 0]],
    "references": [1, 2, 0, 0],
    "equilibrium_steps": [2, -1, 3, 2],
}


def test_accuracy_over_time():
    metric = load_metric("accuracy_over_time")
    settled = {"equilibrium_share": 3 / 4, "accuracy_at_equilibrium": 2 / 3}
    assert metric.compute(**OVER_TIME) == {"accuracy": 2 / 4, "accuracy_T3": 2 / 4, **settled}
    steps = {"accuracy": 2 / 4, "accuracy_T1": 1 / 4, "accuracy_T2": 4 / 4}
    assert metric.compute(**OVER_TIME, time_steps=[1, 2]) == {**steps, **settled}
    arrays = {name: np.array(values) for name, values in OVER_TIME.items()}
    assert metric.compute(**arrays, time_steps=np.array([1, 2])) == {**steps, **settled}
    columns = Dataset.from_dict(OVER_TIME)
    assert metric.compute(**{name: columns[name] for name in OVER_TIME}, time_steps=[1, 2]) == {**steps, **settled}
    for row in columns:
        metric.add(
            prediction=row["predictions"], reference=row["references"], equilibrium_steps=row["equilibrium_steps"]
        )
    assert metric.compute(time_steps=[1, 2]) == {**steps, **settled}


def test_accuracy_over_time_where_nothing_is_proven():
    result = load_metric("accuracy_over_time").compute(**{**OVER_TIME, "equilibrium_steps": [-1] * 4})
    assert result == {"accuracy": 2 / 4, "accuracy_T3": 2 / 4, "equilibrium_share": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_steps": [4]}, "time_steps: 4 is not between 1 and T=3"),
        ({"time_steps": [1, 0]}, "time_steps: 0 is not between 1 and T=3"),
        ({"predictions": [[0], [2, 2], [0, 0], [1, 0]]}, "predictions: samples have between 1 and 2 time-steps"),
        ({"predictions": [[], [], [], []]}, "predictions: there are none"),
        ({"equilibrium_steps": [2, 0, 3, 1]}, "equilibrium_steps: 0 is not between 1 and T=3"),
        ({"equilibrium_steps": [2, 4, 3, 1]}, "equilibrium_steps: 4 is not between 1 and T=3"),
        ({"equilibrium_steps": [2, -2, 3, 1]}, "equilibrium_steps: -2 is not between 1 and T=3"),
    ],
    ids=["late", "early", "ragged", "none", "settled_at_0", "settled_late", "settled_before"],
)
def test_accuracy_over_time_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        load_metric("accuracy_over_time").compute(**{**OVER_TIME, **change})


def test_accuracy_over_time_is_not_for_a_trainer():
    with pytest.raises(ValueError, match=r"'accuracy_over_time' is not for a Trainer.* set snn_eval_every"):
        classification_metrics(("accuracy", "accuracy_over_time"))


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
    with pytest.raises(ValueError, match="No metric 'bleu': there are accuracy, f1, accuracy_over_time"):
        classification_metrics(("accuracy", "bleu"))


@pytest.mark.slow
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

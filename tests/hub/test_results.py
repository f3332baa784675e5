"""What evaluate's metrics and evaluators found, on a model's card."""

import json

import pytest
from huggingface_hub import ModelCard

from spikezip_hf.hub import model_card, read_results, results_of_metrics
from spikezip_hf.metrics import load_metric
from tests.conftest import make_text_qann, spiking_twin

DATA = {"data": "reviews", "split": "test", "dataset": "org/reviews", "samples": 4}
OVER_TIME = {
    "predictions": [[0, 1, 1], [0, 0, 0], [1, 1, 2], [0, 2, 2]],
    "references": [1, 0, 1, 2],
    "time_steps": [1, 2],
}


@pytest.fixture(scope="module")
def snn():
    return spiking_twin(make_text_qann("bert"), time_steps=3)


def entries(card: ModelCard) -> dict:
    """What the metadata has: accuracy by name, and number of time-steps."""
    return {
        one.metric_name: (one.metric_value, (one.metric_args or {}).get("time_steps"))
        for one in card.data.eval_results
    }


def test_accuracy_over_time(snn):
    metrics = load_metric("accuracy_over_time").compute(**OVER_TIME, equilibrium_steps=[2, 1, -1, 3])
    card = model_card(snn, "reviews-snn", results_of_metrics(metrics, time_steps=3, **DATA))
    assert entries(card) == {
        "accuracy after 1 time-steps": (0.5, 1),
        "accuracy after 2 time-steps": (1.0, 2),
        "accuracy after 3 time-steps": (0.75, 3),
    }
    assert {one.dataset_type for one in card.data.eval_results} == {"org/reviews"}
    assert "| SNN | 2 | 100.00 % | unknown |" in card.content
    assert "3 of 4 samples reach equilibrium by T = 3." in card.content
    assert "Certificate: none on record." in card.content


def test_where_all_have_settled(snn):
    metrics = load_metric("accuracy_over_time").compute(**OVER_TIME, equilibrium_steps=[2, 1, 3, 3])
    card = model_card(snn, "reviews-snn", results_of_metrics(metrics, time_steps=3, **DATA))
    assert entries(card)["accuracy at equilibrium"] == (0.75, 3)


def test_accuracy_of_an_evaluator():
    """With the times that an evaluator adds, which are no accuracy."""
    metrics = {"accuracy": 0.5, "total_time_in_seconds": 0.1, "samples_per_second": 40.0, "latency_in_seconds": 0.02}
    card = model_card(make_text_qann("bert"), "reviews-qann", results_of_metrics(metrics, **DATA))
    assert entries(card) == {"accuracy": (0.5, None)}
    assert "| QANN | - | 50.00 % | unknown |" in card.content


def test_no_accuracy():
    with pytest.raises(ValueError, match="metrics holds f1, and no accuracy"):
        results_of_metrics({"f1": 0.5}, **DATA)


FIGURES = {"samples": 4, "rows": [{"network": "QANN", "T": "-", "accuracy": 0.5}]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"data": "reviews"}, "split, simulated is missing"),
        ({**DATA, "simulated": [1]}, "no samples or no rows"),
        ({**DATA, "simulated": {"rows": FIGURES["rows"]}}, "no samples or no rows"),
        ({**DATA, "simulated": {"samples": 4, "rows": 4}}, "no samples or no rows"),
        ({**DATA, "simulated": {**FIGURES, "rows": ["QANN"]}}, "a row needs network, T and accuracy, got 'QANN'"),
        ({**DATA, "simulated": {**FIGURES, "rows": [{"network": "QANN", "T": 1}]}}, "a row needs network, T and acc"),
        ([{**DATA, "simulated": FIGURES}, 3], "results must be a path, a dict or a list of these, got int"),
    ],
)
def test_no_results(source, message):
    with pytest.raises(ValueError, match=message):
        read_results(source)


def test_results_of_several_sets(tmp_path):
    one, two = ({**DATA, "data": name, "simulated": FIGURES} for name in ("reviews", "news"))
    (tmp_path / "results.json").write_text(json.dumps([one]))
    assert read_results([tmp_path / "results.json", two]) == [one, two]
    (tmp_path / "results.json").write_text("[")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        read_results(tmp_path / "results.json")

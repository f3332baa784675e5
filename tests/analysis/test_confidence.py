"""What stopping on confidence costs, from the courses of samples, and the threshold that costs little enough."""

import pytest
import torch

from spikezip_hf.analysis.confidence import Courses, calibrate_confidence
from tests.conftest import make_images, make_qann, make_text_qann, spiking_twin


def made_up():
    """Four samples, five steps: right at once; wrong, then right; right, then wrong; never clear."""
    margins = torch.tensor([[3.0] * 5, [2.0, 0.5, 1.0, 4.0, 4.0], [2.5, 1.0, 0.2, 3.0, 5.0], [0.1] * 5])
    predictions = torch.tensor([[0] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1] * 5])
    return Courses(margins, predictions, torch.tensor([5, 4, 5, 3]), torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("threshold", "steps", "agreement", "accuracy"),
    [
        (None, (5 + 4 + 5 + 3) / 4, 1.0, 0.75),
        (1.5, (1 + 1 + 1 + 3) / 4, 0.5, 0.75),
        (2.2, (1 + 4 + 1 + 3) / 4, 0.75, 1.0),
        (2.8, (1 + 4 + 4 + 3) / 4, 1.0, 0.75),
        (100.0, (5 + 4 + 5 + 3) / 4, 1.0, 0.75),
    ],
)
def test_a_threshold_stops_each_sample_at_its_first_clear_step(threshold, steps, agreement, accuracy):
    point = made_up().stopped_at(threshold)
    assert (point.mean_steps, point.agreement, point.accuracy) == (steps, agreement, accuracy)


def test_forecast_is_what_a_simulation_then_does():
    snn = spiking_twin(make_qann(), time_steps=64)
    batch = {"pixel_values": make_images(snn.config, 24), "labels": torch.arange(24) % 5}
    courses = Courses.of(snn, [batch])
    end = snn(batch["pixel_values"]).logits.argmax(-1)
    for threshold in courses.candidates(8):
        point = courses.stopped_at(threshold)
        run = snn(batch["pixel_values"], stop="confidence", confidence_threshold=threshold)
        taken = torch.where(run.decision_step > 0, run.decision_step, run.equilibrium_step)
        assert point.mean_steps == taken.double().mean().item()
        assert point.agreement == (run.logits.argmax(-1) == end).double().mean().item()
        assert point.accuracy == (run.logits.argmax(-1) == batch["labels"]).double().mean().item()


@pytest.mark.parametrize("labelled", [True, False])
def test_the_chosen_threshold_and_all_larger_ones_are_within_the_tolerance(labelled):
    snn = spiking_twin(make_qann(), time_steps=64)
    batch = {"pixel_values": make_images(snn.config, 40)}
    end = snn(**batch).logits.argmax(-1)
    if labelled:  # mostly what the network says in the end
        batch["labels"] = torch.where(torch.arange(40) % 4 == 0, (end + 1) % 5, end)
    found = calibrate_confidence(snn, [batch], tolerance=0.05)
    chosen, last = found["chosen"], found["to the end"]
    assert found["samples"] == 40
    assert chosen["confidence_threshold"] == found["confidence_threshold"]
    assert chosen["mean_steps"] < last["mean_steps"]
    key = "accuracy" if labelled else "agreement"
    for point in found["curve"]:
        if point["confidence_threshold"] >= found["confidence_threshold"]:
            assert point[key] >= last[key] - 0.05 - 1e-9
    smaller = [p for p in found["curve"] if p["confidence_threshold"] < found["confidence_threshold"]]
    assert smaller[-1][key] < last[key] - 0.05
    assert (chosen["accuracy"] is None) == (not labelled)


def test_errors():
    snn = spiking_twin(make_qann(), time_steps=8)
    with pytest.raises(ValueError, match=r"tolerance must be from 0 to 1, got 2"):
        calibrate_confidence(snn, [], tolerance=2)
    with pytest.raises(ValueError, match="batches is empty"):
        calibrate_confidence(snn, [])
    tokens = spiking_twin(make_text_qann("bert", "ForTokenClassification"), time_steps=8)
    with pytest.raises(ValueError, match="has no classes of samples"):
        calibrate_confidence(tokens, [])

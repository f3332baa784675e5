"""Recordings of event cameras through pipelines and straight to their networks."""

import builtins

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from spikezip_hf.models.image_processing_events import EventImageProcessor
from tests.models.test_event_vit import make_event_ann, make_event_qann, recording
from tests.pipelines.common import logits_of, pipelines, refusal

PROCESSORS = {
    frames: EventImageProcessor({"height": 12, "width": 12}, {"height": 9, "width": 9}, frames=frames)
    for frames in (None, 4)
}


@pytest.fixture(scope="module", params=PROCESSORS, ids=lambda frames: f"frames={frames}")
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return pipelines("image-classification", folder, make_event_ann(), make_event_qann(), PROCESSORS[request.param])


@torch.no_grad()
def check(served, what) -> torch.Tensor:
    """Both twins answer a recording alike: their logits."""
    pixels = served["spike"].image_processor([what], return_tensors="pt")["pixel_values"]
    expected = served["quant"].model(pixels).logits[0]
    for kind in ("quant", "spike"):
        answer = served[kind](what, top_k=99, function_to_apply="none")
        assert torch.equal(logits_of(answer, served[kind]), expected)
    return expected


def test_recordings_empty_ones_and_any_order(served):
    events = recording(0)
    shuffled = events[np.random.default_rng(0).permutation(len(events))]
    assert torch.equal(check(served, events), check(served, shuffled))
    assert not torch.equal(check(served, events), check(served, events[:0]))
    together = served["spike"]([events, events[:0]], batch_size=2)
    assert [len(answer) for answer in together] == [5, 5]


def test_recordings_that_do_not_fit_are_refused(served):
    for column, value, message in (("x", 12, "x of the events"), ("y", 99, "y of the events"), ("p", 2, "p of the")):
        wrong = recording(0)
        wrong[column][3] = value
        error, said = refusal(served["spike"], wrong)
        assert error is ValueError
        assert message in said
        assert "sensor_size is (12, 12)" in said
        assert "\n" not in said
    for what in (Image.new("RGB", (9, 9)), np.zeros((9, 9, 3))):
        error, said = refusal(served["spike"], what)
        assert error is ValueError
        assert "A recording of events has x, y, p and t" in said


def test_loading_asks_nothing(served, monkeypatch):
    """transformers looks for a video processor in the image processor's code, too, and would ask whether to run it."""

    def asked(*_):
        raise AssertionError("the user was asked something")

    monkeypatch.setattr(builtins, "input", asked)
    folder = served["spike"].model.config._name_or_path
    assert pipeline("image-classification", model=folder, trust_remote_code=False).image_processor is not None


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (None, "pixel_values is missing"),
        (torch.zeros(2, 3, 9, 9), r"\(batch, 2, 9, 9\).* got \(2, 3, 9, 9\).*num_channels"),
        (torch.zeros(2, 9, 9), r"got \(2, 9, 9\)"),
        (torch.zeros(1, 1, 1, 2, 9, 9), r"got \(1, 1, 1, 2, 9, 9\)"),
        (torch.zeros(0, 2, 9, 9), r"got \(0, 2, 9, 9\)"),
        (torch.zeros(1, 0, 2, 9, 9), r"got \(1, 0, 2, 9, 9\)"),
        (torch.zeros(1, 2, 8, 9), r"got \(1, 2, 8, 9\).*interpolate_pos_encoding=True"),
        (np.zeros((1, 2, 9, 9)), "must be a tensor, got ndarray"),
        ({"pixel_values": torch.zeros(1, 2, 9, 9)}, r"got dict: give its entries by name, model\(\*\*"),
        (torch.zeros(1, 2, 9, 9, dtype=torch.complex64), "real numbers"),
    ],
)
def test_the_ordinary_event_network_names_what_is_wrong(pixels, message):
    with pytest.raises(ValueError, match=message) as refused:
        make_event_ann()(pixels)
    assert "\n" not in str(refused.value)


def test_the_ordinary_event_network_takes_other_sizes_if_asked():
    ann, images = make_event_ann(), torch.randn(1, 2, 13, 9)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        ann(images)
    assert ann(images, interpolate_pos_encoding=True).logits.shape == (1, 5)
    with pytest.raises(ValueError, match="at least 4, at least 4"):
        ann(torch.randn(1, 2, 3, 9), interpolate_pos_encoding=True)

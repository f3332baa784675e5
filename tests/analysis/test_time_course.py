"""Numbers and tables of a recording: rules on curves made by hand, and against what `compare_twins` says."""

import json

import pytest
import torch

from spikezip_hf.analysis import compare_twins
from spikezip_hf.analysis.recording import Recording, record
from spikezip_hf.analysis.time_course import (
    DEFINITIONS,
    anytime_table,
    half_way,
    node_table,
    reported_steps,
    sample_table,
    settles,
    step_table,
    time_course,
)
from tests.conftest import make_batch, make_qann, spiking_twin


def made_by_hand(labels=(0, 1)) -> Recording:
    """Two samples, three steps, two classes, two nodes. The first sample settles at step 3, the second at step 2."""
    logits = torch.tensor([[[0.0, 1.0], [2.0, 1.0], [3.0, 1.0]], [[0.0, 1.0], [0.0, 4.0], [0.0, 4.0]]])
    spikes = torch.tensor([[[2, 0], [1, 3], [0, 1]], [[2, 1], [1, 0], [0, 0]]], dtype=torch.int32)
    return Recording(
        node_names=("first", "second"),
        time_steps=9,
        logits_per_step=logits,
        spikes=spikes,
        neurons=torch.tensor([[4, 2], [4, 2]]),
        final_levels=torch.tensor([[3, 2], [1, 1]]),
        equilibrium_step=torch.tensor([3, 2]),
        exact=torch.tensor([True, True]),
        expected=torch.tensor([0, 1]),
        labels=None if labels is None else torch.tensor(labels),
    )


@pytest.mark.parametrize(
    ("curve", "chance", "expected"),
    [
        ([0.1, 0.1, 0.2, 0.6, 0.9, 0.9], 0.1, 4),  # half way is 0.5
        ([0.1, 0.5, 0.9], 0.1, 2),  # exactly half way
        ([0.9], 0.1, 1),
        ([0.5, 0.7, 0.4, 0.8], 0.5, 2),  # the first time counts, though it falls again
        ([0.6, 0.5, 0.5], 0.5, None),  # ends no better than chance
        ([0.6, 0.5, 0.4], 0.5, None),
    ],
)
def test_half_way(curve, chance, expected):
    assert half_way(curve, chance) == expected


@pytest.mark.parametrize(
    ("curve", "within", "expected"),
    [
        ([0.1, 0.899, 0.9], 0.001, 2),  # 0.1 points away is near enough
        ([0.1, 0.8985, 0.9], 0.001, 3),
        ([0.9, 0.1, 0.9], 0.001, 3),  # from which on, and not the first time
        ([0.9, 0.95, 0.9], 0.001, 3),  # above counts, too
        ([0.9, 0.9], 0.0, 1),
        ([0.9], 0.0, 1),
    ],
)
def test_settles(curve, within, expected):
    assert settles(curve, within) == expected


def test_time_course_by_hand():
    course = time_course(made_by_hand())
    assert course["accuracy per step"] == course["agreement per step"] == [0.5, 1.0, 1.0]
    assert (course["chance"], course["T_up"]) == (0.5, 2)
    assert (course["T within 0.1 point"], course["T of final answers"]) == (2, 2)
    assert course["T_eq"] == {"min": 2, "mean": 2.5, "median": 2, "95th percentile": 3, "max": 3}
    assert course["equilibrium steps"] == {"2": 1, "3": 1}
    assert course["spikes per neuron"] == 11 / 12
    assert course["lower bound"] == 7 / 12
    assert course["needless spikes"] == pytest.approx(4 / 11)
    assert course["certificate"].startswith("exact: 2 of 2 samples")
    assert set(DEFINITIONS) <= set(course)
    json.dumps(course)


def test_without_labels_accuracy_is_unknown():
    recording = made_by_hand(labels=None)
    course = time_course(recording)
    unknown = ("QANN accuracy", "final accuracy", "accuracy per step", "T_up", "T within 0.1 point")
    assert [course[name] for name in unknown] == [None] * 5
    assert course["final agreement"] == 1.0
    assert step_table(recording)[0]["accuracy"] is None
    assert "label" not in sample_table(recording)[0]
    assert "label" not in anytime_table(recording).column_names


def test_tables_by_hand():
    recording = made_by_hand()
    steps = step_table(recording)
    assert [row["T"] for row in steps] == [1, 2, 3]
    assert [row["spikes per neuron"] for row in steps] == pytest.approx([5 / 12, 10 / 12, 11 / 12])
    assert [row["firing rate"] for row in steps] == pytest.approx([5 / 12, 5 / 12, 1 / 12])
    assert [row["share at equilibrium"] for row in steps] == [0.0, 0.5, 1.0]

    first, second = node_table(recording)
    assert (first["node"], first["neurons"], first["spikes per neuron"], first["lower bound"]) == (
        "first",
        4,
        0.75,
        0.5,
    )
    assert (second["first spike at T"], second["peak at T"], second["last spike at T"]) == (1, 2, 3)
    assert second["peak firing rate"] == 0.75

    samples = sample_table(recording, index=[7, 9])
    assert [row["index"] for row in samples] == [7, 9]
    assert [row["final answer from T"] for row in samples] == [2, 1]
    assert [row["T_eq"] for row in samples] == [3, 2]
    assert [row["spikes per neuron"] for row in samples] == pytest.approx([7 / 6, 4 / 6])


def test_anytime_table_by_hand(tmp_path):
    from datasets import Dataset

    table = anytime_table(made_by_hand(), index=[7, 9], names=["no", "yes"])
    table.to_parquet(tmp_path / "table.parquet")
    table = Dataset.from_parquet(str(tmp_path / "table.parquet"), cache_dir=str(tmp_path))
    assert table["index"][:] == [7, 7, 7, 9, 9, 9]
    assert table["T"][:] == [1, 2, 3] * 2
    assert table["label"][:] == [0, 0, 0, 1, 1, 1]
    assert table["prediction"][:] == [1, 0, 0, 1, 1, 1]
    assert table["agrees"][:] == [False, True, True, True, True, True]
    assert table["settled"][:] == [False, False, True, False, True, True]
    assert table["spikes"][:] == [2, 6, 7, 3, 4, 4]
    assert table["margin"][:] == [1.0, 1.0, 2.0, 1.0, 4.0, 4.0]
    assert table["score"][0] == pytest.approx(torch.tensor([0.0, 1.0]).softmax(0)[1].item())
    assert table.features["label"].names == ["no", "yes"]


def test_unsettled_samples():
    recording = made_by_hand()
    recording.equilibrium_step[:] = -1
    recording.exact[:] = False
    course = time_course(recording)
    assert course["T_eq"] is None
    assert course["at equilibrium"] == 0
    assert course["certificate"].startswith("not exact: 2 of 2 samples not at equilibrium after 9 steps")
    assert not any(anytime_table(recording)["settled"])


def test_reported_steps():
    assert reported_steps(1) == [1]
    assert reported_steps(40) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]
    assert reported_steps(32) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def test_figures_are_those_of_compare_twins():
    qann = make_qann()
    snn = spiking_twin(qann, time_steps=100)
    batch = {**make_batch(qann), "labels": torch.tensor([0, 1, 2, 3, 4, 0])}
    course = time_course(record(snn, [batch]))
    figures = compare_twins(None, qann, snn, [batch], [4], 100)
    assert [round(value, 6) for value in course["accuracy per step"]] == figures["accuracy per step"]
    assert course["equilibrium steps"] == figures["equilibrium steps"]
    assert course["spikes per neuron"] == figures["spikes per neuron"]
    assert course["certificate"] == figures["certificate"]
    assert {name: course["T_eq"][name] for name in figures["T_eq"]} == figures["T_eq"]
    levels = snn.trajectory(batch["pixel_values"]).levels
    least = sum(int(level.long().abs().sum()) for level in levels.values())
    assert course["lower bound"] == least / sum(level.numel() for level in levels.values())
    assert course["lower bound"] < course["spikes per neuron"]

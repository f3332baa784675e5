"""Costs: memory measured is that of the run; hours and watts are read and multiplied, never guessed."""

import json
from pathlib import Path

import pytest
import torch

from spikezip_hf.analysis import costs
from spikezip_hf.analysis.costs import MIB, how_it_ended, measured, paper_training, simulation_costs, training_costs
from spikezip_hf.models.simulation import Trajectory
from tests.conftest import make_batch, make_qann, make_text_qann, spiking_twin

CPU = torch.device("cpu")
needs_peak = pytest.mark.skipif(costs.start_peak() is None, reason="this system does not say how much memory is used")


@pytest.fixture(scope="module")
def snn():
    return spiking_twin(make_qann(levels=8), time_steps=100)


class TestSimulation:
    @pytest.mark.parametrize("kind", ["vit", "bert"])
    def test_rows(self, snn, kind):
        model = snn if kind == "vit" else spiking_twin(make_text_qann(kind, levels=8), time_steps=100)
        batch = {**make_batch(model), "labels": torch.zeros(6, dtype=torch.long)}
        found = simulation_costs(model, batch, (8, 4, 4), most_steps=200, repeats=1)
        rows = found["table"]
        names = ["QANN", *["SNN"] * 3, *["SNN, step by step"] * 3]
        assert [(row["network"], row["T"]) for row in rows] == list(zip(names, ["-", 4, 8, 200, 4, 8, 200]))
        run = model.trajectory(**{name: x for name, x in batch.items() if name != "labels"}, time_steps=200)
        t_eq = int(run.equilibrium_step.max())
        assert [(row["until"], row["steps"]) for row in rows[1:4]] == [("T", 4), ("T", 8), ("equilibrium", t_eq)]
        # In float32 the step-by-step form may drift, and reach no more than stillness.
        assert rows[-1]["until"].startswith(("equilibrium", "stillness"))
        assert rows[-1]["steps"] == pytest.approx(t_eq, abs=5)
        for row in rows:
            assert row["seconds"] > 0
            assert row["ms a step"] == pytest.approx(1000 * row["seconds"] / row["steps"])
        assert found["about"]["samples"] == 6
        assert found["says"][0].startswith("SNN: from T = 4 to 8, 2 times the steps, the time grew ")
        json.dumps(found)

    def test_short_of_equilibrium(self, snn):
        found = simulation_costs(snn, make_batch(snn), (2,), most_steps=3, executions=("cumulative",), repeats=1)
        last = found["table"][-1]
        assert (last["until"], last["steps"]) == ("T (0 of 6 at equilibrium)", 3)
        assert found["says"] == []  # one T shows no growth
        assert "stillness" not in found["definitions"]

    def test_still_but_not_proven(self):
        run = Trajectory(None, torch.zeros(3), equilibrium_step=torch.tensor([7, -1, 9]))
        assert how_it_ended(run, 11, 200) == ("stillness (2 of 3 at equilibrium)", 11)
        assert how_it_ended(run, 200, 200) == ("T (2 of 3 at equilibrium)", 200)

    def test_where_memory_is_not_told(self, snn, monkeypatch):
        monkeypatch.setattr(costs, "start_peak", lambda: None)
        found = simulation_costs(snn, make_batch(snn), (2, 4), executions=("cumulative",), repeats=1)
        assert {row["extra memory (MiB)"] for row in found["table"]} == {None}
        assert "memory went" not in found["says"][0]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"time_steps": ()}, "time_steps is empty"),
            ({"time_steps": (4, 0)}, "time_steps must be an integer of at least 1, got 0"),
            ({"repeats": 0}, "repeats must be an integer of at least 1, got 0"),
            ({"most_steps": 1.5}, "most_steps must be an integer"),
            ({"executions": ("fast",)}, "executions must be of cumulative, event, got 'fast'"),
        ],
    )
    def test_refused(self, snn, given, words):
        with pytest.raises(ValueError, match=words):
            simulation_costs(snn, make_batch(snn), **given)

    def test_no_spiking_model(self, snn):
        with pytest.raises(TypeError, match="from_quantized"):
            simulation_costs(snn.to_quantized(), make_batch(snn))


@needs_peak
def test_memory_is_the_peak_of_the_run_alone():
    def hold(mib):
        held = torch.ones(mib * MIB // 4)
        return float(held[-1])  # freed on return: not there at the end, but at the peak

    for mib in (96, 4, 48):  # the smaller ones see nothing of what was there before
        _, extra, result = measured(lambda mib=mib: hold(mib), CPU)
        assert result == 1
        assert extra / MIB == pytest.approx(mib, abs=2)


class TestTraining:
    def record(self, folder: Path, content) -> Path:
        path = folder / "training.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def test_one_training(self, tmp_path):
        path = self.record(tmp_path, {"seconds": 5400, "hardware": "a GPU", "processes": 4, "resumed": True})
        found = training_costs([path])
        assert [(row["training"], row["hours"]) for row in found["table"]] == [(tmp_path.name, 1.5)]
        assert "kWh" not in found["table"][0]  # nobody has said how many watts
        assert list(found["definitions"]) == ["hours"]
        assert found["table"][0]["resumed"]
        priced = training_costs([path], watts=300)
        assert priced["table"][0]["kWh"] == pytest.approx(0.45)
        assert priced["about"] == {"watts": 300}

    def test_stages_of_results(self, tmp_path):
        stages = {"first": {"seconds": 3600}, "second": {"seconds": 1800.0}, "simulated": {"seconds": {"SNN": 3}}}
        path = tmp_path / "run.json"
        path.write_text(json.dumps({"data": "set", **stages}))
        rows = training_costs([path], 100)["table"]
        assert [row["training"] for row in rows] == ["run: first", "run: second", "all of these"]
        assert (rows[-1]["hours"], rows[-1]["kWh"]) == (1.5, pytest.approx(0.15))

    def test_records_of_this_repository(self):
        paths = sorted(Path(__file__).parents[2].glob("training/results/*_32.json"))
        assert paths
        for path in paths:
            rows = training_costs([path])["table"]
            assert len(rows) == 3
            assert 0 < rows[0]["hours"] < rows[-1]["hours"] < 10

    @pytest.mark.parametrize(
        "content", ["not JSON", [1], {}, {"seconds": True}, {"seconds": -1}, {"simulated": {"seconds": {"SNN": 3}}}]
    )
    def test_no_training(self, tmp_path, content):
        with pytest.raises(ValueError, match=r"training\.json is no record of a training"):
            training_costs([self.record(tmp_path, content)])

    @pytest.mark.parametrize("watts", [0, -1, float("nan"), float("inf"), "much"])
    def test_no_watts(self, tmp_path, watts):
        with pytest.raises(ValueError, match="watts must be a number above 0"):
            training_costs([self.record(tmp_path, {"seconds": 1})], watts)

    def test_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="records is empty"):
            training_costs([])
        with pytest.raises(FileNotFoundError):
            training_costs([tmp_path / "nowhere.json"])

    def test_the_papers_table_is_hours_times_watts(self):
        assert [round(row["watts a GPU"], -1) for row in paper_training()] == [300, 350, 300, 450]

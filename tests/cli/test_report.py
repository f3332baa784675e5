"""`spikezip report`: what it writes, what it says, what it refuses, and what Ctrl-C leaves behind."""

import json
from functools import partial
from pathlib import Path

import pytest

from spikezip_hf.analysis import recording, simulation_costs
from spikezip_hf.recipes import report as recipe
from tests.cli.test_commands import answer, complaint, contents, each_network, here, place, run, work  # noqa: F401

DATA = {"bert": "texts", "vit": "images"}
REPORT = "report bert/snn --data-dir texts"
NEW = ("--energy-samples", "--costs", "--training-record", "--watts")
REFUSED = {
    "ordinary": ("report bert/ann --data-dir texts", "neither a Quant nor a Spike model"),
    "missing": ("report ./no/where --data-dir texts", "No network at ./no/where"),
    "no data": ("report bert/snn", "No data: give"),
    "data": ("report bert/snn --data-dir nowhere", "No data folder at nowhere"),
    "two sets": (f"{REPORT} --dataset org/set", "name two data sets"),
    "limit": (f"{REPORT} --limit 0", "limit must be an integer of at least 1, got 0"),
    "time-steps": (f"{REPORT} --time-steps 0", "time_steps must be an integer of at least 1, got 0"),
    "batch": (f"{REPORT} --batch-size 0", "batch_size must be an integer of at least 1, got 0"),
    "sample": (f"{REPORT} --sample 16", "sample must be from 0 to 15, a row of the test split, got 16"),
    "energy samples": (f"{REPORT} --energy-samples -1", "energy_samples must be an integer of at least 1, got -1"),
    "watts for nothing": (f"{REPORT} --watts 300", "watts: there is no training to take them for"),
    "watts": (f"{REPORT} --watts 0 --training-record bert/qann/config.json", "watts must be a number above 0"),
    "record": (f"{REPORT} --training-record nowhere.json", "nowhere.json"),
    "no record": (f"{REPORT} --training-record bert/snn/config.json", 'nothing in it has "seconds"'),
    "to a file": (f"{REPORT} --output texts/test.tsv", "texts/test.tsv is a file"),
    "below a file": (f"{REPORT} --output texts/test.tsv/report", "is no folder to write in"),
}


@each_network
def test_report(work, network):  # noqa: F811
    before = contents(work)
    printed = run("report", f"{network}/snn", "--data-dir", DATA[network], "--limit", 5, "--batch-size", 2).stdout
    folder = Path(network) / f"snn-report-{DATA[network]}"
    assert printed.endswith(f"written to {folder / 'report.html'}\n")
    assert "certificate: exact: 5 of 5 samples at equilibrium" in printed
    content = json.loads((folder / "report.json").read_text())
    assert [row["index"] for row in content["samples"]] == [
        number * (16 if network == "bert" else 12) // 5 for number in range(5)
    ]
    assert all(row["exact"] for row in content["samples"])
    if network == "bert":
        lines = Path("texts/test.tsv").read_text().splitlines()[1:]
        for row in content["samples"]:
            assert lines[row["index"]] == f"{row['text']}\t{['negative', 'positive'].index(row['label'])}"
    assert content["about"]["split"] == "test"
    assert "tokens" in content["figures"] if network == "bert" else "image" in content["figures"]
    counted = content["accounts"]["energy"]["counted"]
    fired = [row["spikes per neuron"] for row in content["samples"]]
    assert counted["samples"] == counted["at equilibrium"] == 5
    assert counted["spikes per neuron"] == pytest.approx(sum(fired) / 5, rel=0.02)  # float64 breaks ties otherwise
    assert all(text in printed for text in content["accounts"]["energy"]["says"])
    assert [row["network"] for row in content["energy"]] == ["ANN", "QANN", "QANN INT8", "SNN"]
    assert "training_costs" not in content["accounts"]
    made = {name: data for name, data in contents(work).items() if not Path(name).is_relative_to(folder)}
    assert made == before


def test_figures_are_those_of_evaluate(work):  # noqa: F811
    flags = ("--output", "out", "--sample", 3, "--energy-samples", 0)
    found = answer("report", "bert/snn", "--data-dir", "texts", *flags)["time course"]
    measured = answer("evaluate", "bert/snn", "--data-dir", "texts")["simulated"]
    assert [round(value, 6) for value in found["accuracy per step"]] == measured["accuracy per step"]
    for name in ("samples", "equilibrium steps", "spikes per neuron", "certificate"):
        assert found[name] == measured[name]


@pytest.mark.slow
def test_a_quantized_network_is_looked_at_as_its_twin(work):  # noqa: F811
    for kind in ("qann", "snn"):
        flags = ("--output", kind, "--limit", 3, "--time-steps", 300, "--energy-samples", 1)
        run("report", f"vit/{kind}", "--data-dir", "images", *flags)
    qann, snn = (json.loads(Path(kind, "report.json").read_text()) for kind in ("qann", "snn"))
    for name in ("time course", "nodes", "samples", "steps", "energy", "operations"):
        assert qann[name] == snn[name]


@pytest.mark.slow
def test_costs_and_trainings(work, monkeypatch):  # noqa: F811
    monkeypatch.setattr(recipe, "simulation_costs", partial(simulation_costs, time_steps=(2, 4), repeats=1))
    Path("training.json").write_text('{"seconds": 7200, "hardware": "a GPU", "resumed": false}')
    flags = ("--limit", 2, "--time-steps", 300, "--energy-samples", 0, "--costs", "--training-record", "training.json")
    found = answer("report", "vit/snn", "--data-dir", "images", "--output", "out", *flags, "--watts", 250)
    assert list(found["accounts"]) == ["simulation_costs", "training_costs"]
    assert "energy" not in found
    assert (found["training_costs"][0]["hours"], found["training_costs"][0]["kWh"]) == (2, 0.5)
    assert {row["network"] for row in found["simulation_costs"]} == {"QANN", "SNN", "SNN, step by step"}
    names = {path.name for path in Path("out").glob("*.csv")}
    assert names == {"steps.csv", "nodes.csv", "samples.csv", "simulation_costs.csv", "training_costs.csv"}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_nothing_created(here, case):  # noqa: F811
    command, words = REFUSED[case]
    before = contents(here)
    assert words in complaint(run(*command.split(), status=1))
    assert contents(here) == before


def test_interrupted(work, monkeypatch):  # noqa: F811
    before, certify, calls = contents(work), recording.certify, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return certify(*args)

    monkeypatch.setattr(recording, "certify", interrupted)
    result = run("report", "bert/snn", "--data-dir", "texts", "--batch-size", 4, status=130)
    assert "nothing is left half-written" in result.stderr
    assert contents(work) == before


def test_help_shows_an_example():
    shown = " ".join(run("report", "--help").stdout.split())
    assert shown.partition("Example: ")[2].startswith("spikezip report ")
    for flag in ("--limit", "--time-steps", "--output", "--sample", "--json", "--data-dir", *NEW):
        assert flag in shown

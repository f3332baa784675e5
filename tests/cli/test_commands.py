"""The `spikezip` commands: what they say, what they write, what they refuse, and what Ctrl-C leaves behind."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, ViTImageProcessor
from typer.testing import CliRunner

import spikezip_hf
from spikezip_hf import (
    QuantBertForSequenceClassification,
    SpikeBertForSequenceClassification,
    SpikeViTForImageClassification,
)
from spikezip_hf.analysis import predictions
from spikezip_hf.cli.app import app
from spikezip_hf.hub import network_digest
from spikezip_hf.hub.cards import NOTICE
from spikezip_hf.models import checkpoint_files, checkpoints
from tests.conftest import heed_sigint, make_ann, make_qann, make_text_ann, make_text_qann, spiking_twin
from tests.test_auto_text import WORDS, make_tokenizer

COMMANDS = (
    "demo",
    "train",
    "quantize",
    "convert",
    "import",
    "verify",
    "evaluate",
    "report",
    "app",
    "export",
    "card",
    "push",
    "info",
)
DATA = {"bert": "texts", "vit": "images"}
LABELS = {"bert": ["negative", "positive"], "vit": ["blue", "red"]}
SCRIPT = Path(sys.prefix) / "bin" / "spikezip"
SPIKEZIP = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-m", "spikezip_hf"]

each_network = pytest.mark.parametrize("network", DATA)


def write_texts(folder: Path, splits: dict[str, int]) -> None:
    """Words at random, half of the texts positive."""
    generator = random.Random(0)
    folder.mkdir(parents=True)
    for split, count in splits.items():
        texts = [" ".join(generator.choices(WORDS, k=generator.randint(2, 9))) for _ in range(count)]
        lines = [f"{text}\t{index % 2}" for index, text in enumerate(texts)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))


def write_images(folder: Path, count: int) -> None:
    """Noise of 8x8 in folders named for its class, count of each; a test split alone."""
    generator = np.random.default_rng(0)
    for name in LABELS["vit"]:
        (folder / "test" / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "test" / name / f"{index}.png")


def labels(network: str) -> dict:
    names = LABELS[network]
    fields = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    fields["num_labels"] = len(names)
    return fields | ({"max_position_embeddings": 64} if network == "bert" else {})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, and networks of both kinds and architectures. Tests leave it as it is."""
    place = tmp_path_factory.mktemp("place")
    write_texts(place / "texts", {"test": 16})
    write_images(place / "images", 6)
    processors = {"bert": make_tokenizer("bert"), "vit": ViTImageProcessor(size={"height": 8, "width": 8})}
    for network, processor in processors.items():
        qann = (make_qann if network == "vit" else lambda **more: make_text_qann("bert", **more))(**labels(network))
        ann = make_ann(**labels("vit")) if network == "vit" else make_text_ann("bert", **labels("bert"))
        for name, model in (("ann", ann), ("qann", qann), ("snn", spiking_twin(qann, time_steps=300))):
            model.save_pretrained(place / network / name)
            processor.save_pretrained(place / network / name)
    make_text_qann("bert", seed=5, **labels("bert")).save_pretrained(place / "bert" / "other")
    return place


@pytest.fixture
def here(place, monkeypatch):
    """The same, as the working directory."""
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def work(place, tmp_path, monkeypatch):
    """A copy of it to write to, as the working directory."""
    shutil.copytree(place, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(*arguments, status: int = 0):
    """A command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == status, result.output
    return result


def answer(*arguments, status: int = 0) -> dict:
    """What a command says with --json, where nothing else may stand on stdout."""
    return json.loads(run(*arguments, "--json", status=status).stdout)


def complaint(result) -> str:
    """The one line on stderr of a command that refuses, beside bars of progress."""
    lines = [line for line in result.stderr.split("\n") if line and not re.search(r"\d+%\|", line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return lines[0].removeprefix("error: ")


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder; None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_fits(command):
    shown = " ".join(run(command, "--help").stdout.split())
    example = shown.partition("Example: ")[2]
    assert example.startswith(f"spikezip {command} ")
    for flag in re.findall(r"--[a-z-]+(?![a-z_-])", example):
        assert flag in shown.partition("Example: ")[0]
    assert "--json" in shown


def test_help_lists_all_commands():
    shown = run("--help").stdout
    assert [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines() if line] == list(COMMANDS)


def test_unknown_commands_and_flags_are_refused():
    assert "No such command 'fly'" in run("fly", status=2).stderr
    assert "--height" in run("verify", "x", "--height", 3, status=2).stderr


# What is refused

EVALUATE = "evaluate bert/snn --data-dir texts"
REFUSED = {
    "convert ordinary": ("convert bert/ann out", "bert/ann holds an ordinary network of type 'bert'"),
    "convert spiking": ("convert bert/snn out", "a Quant model is needed here"),
    "convert missing": ("convert ./no/where out", "No network at ./no/where: there is no such folder"),
    "convert time-steps": (
        "convert bert/qann out --time-steps 0",
        "time_steps must be an integer of at least 1, got 0",
    ),
    "convert schedule": (
        "convert bert/qann out --firing-schedule odd",
        "firing_schedule must be one of",
    ),
    "convert nodewise": (
        "convert bert/qann out --firing-schedule nodewise",
        'firing_schedule: "nodewise" is made from data',
    ),
    "convert window": ("convert bert/qann out --firing-window 0", "firing_window must be an integer of at least 1"),
    "convert k": ("convert bert/qann out --max-spikes-per-step 0", "max_spikes_per_step must be an integer of at"),
    "convert to file": ("convert bert/qann texts/test.tsv", "texts/test.tsv is a file: name a folder to save to"),
    "verify samples": ("verify bert/snn --samples 0", "samples"),
    "verify batch": ("verify bert/snn --batch-size 0", "batch_size"),
    "verify time-steps": ("verify bert/snn --time-steps 0", "time_steps must be an integer of at least 1, got 0"),
    "verify quant": ("verify bert/qann", "a Spike model is needed here"),
    "verify ordinary": ("verify bert/ann", "bert/ann holds an ordinary network"),
    "verify missing": ("verify ./no/where", "No network at ./no/where"),
    "verify data": ("verify bert/snn --data-dir nowhere", "No data folder at nowhere"),
    "verify column": ("verify bert/snn --data-dir texts --text-column review", "has no column 'review'"),
    "verify spiking twin": ("verify bert/snn --qann bert/snn", "a Quant model is needed here"),
    "verify foreign twin": ("verify bert/snn --qann vit/qann", "are not a Quant model and its Spike twin"),
    "evaluate ordinary": ("evaluate bert/ann --data-dir texts", "neither a Quant nor a Spike model"),
    "evaluate missing": ("evaluate ./no/where --data-dir texts", "No network at ./no/where"),
    "evaluate no data": ("evaluate bert/snn", "No data: give"),
    "evaluate data": ("evaluate bert/snn --data-dir nowhere", "No data folder at nowhere"),
    "evaluate images": ("evaluate bert/snn --data-dir images", "images has no file train"),
    "evaluate texts": ("evaluate vit/snn --data-dir texts", "texts has no images in folders"),
    "evaluate simulate": (f"{EVALUATE} --simulate 0", "simulate must be an integer of at least 1, got 0"),
    "evaluate time-steps": (f"{EVALUATE} --time-steps 0", "time_steps must be an integer of at least 1, got 0"),
    "evaluate batch": (f"{EVALUATE} --batch-size 0", "batch_size must be an integer of at least 1, got 0"),
    "evaluate report": (f"{EVALUATE} --report-time-steps 0", "report_time_steps must be an integer of at least 1"),
    "evaluate late": (f"{EVALUATE} --time-steps 9 --report-time-steps 10", "report_time_steps must be at most"),
    "evaluate results": (f"{EVALUATE} --results images", "results: images is a folder"),
    "evaluate ann": (f"{EVALUATE} --ann ./no/where", "No network at ./no/where"),
    "card ordinary": ("card bert/ann", "bert/ann holds an ordinary network"),
    "card missing": ("card nowhere", "nowhere is no folder with a checkpoint"),
    "card no results": ("card bert/snn --results nowhere.json", "results: there is no file nowhere.json"),
    "card no json": ("card bert/snn --results texts/test.tsv", "test.tsv is not JSON"),
    "info ordinary": ("info bert/ann", "bert/ann holds an ordinary network"),
    "info missing": ("info ./no/where", "No network at ./no/where"),
    "info data": ("info ./texts", "texts"),
    "push missing": ("push nowhere org/name", "nowhere is no folder with a checkpoint"),
    "push ordinary": ("push bert/ann org/name", "bert/ann holds an ordinary network"),
    "train missing": ("train nowhere.yaml", "No recipe at nowhere.yaml"),
    "train stage": ("train nowhere.yaml --stage fly", "stage must be one of finetune, qat, convert; got 'fly'"),
    "train no recipe": ("train bert/qann/config.json", "has none of the sections finetune, qat, convert"),
    "demo levels": (
        "demo --levels 7 --output out",
        "quantization_levels must be an even integer from 4 to",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_nothing_created(here, case):
    command, words = REFUSED[case]
    before = contents(here)
    assert words in complaint(run(*command.split(), status=1))
    assert contents(here) == before


@pytest.mark.parametrize("case", ["convert ordinary", "evaluate data", "card missing", "info missing", "demo levels"])
def test_refused_as_json(here, case):
    command, words = REFUSED[case]
    result = run(*command.split(), "--json", status=1)
    assert words in json.loads(result.stdout)["error"]
    assert words in result.stderr


@pytest.mark.slow
def test_a_module_run_as_a_process_refuses_in_one_line(here):
    ended = subprocess.run(
        [*SPIKEZIP, "convert", "bert/ann", "out"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: bert/ann holds an ordinary network of type 'bert'")
    assert ended.stderr.count("\n") == 1
    assert not (here / "out").exists()


@pytest.mark.parametrize("command", ["info", "verify", "card", "push"])
def test_damaged_weights_are_refused(work, command):
    path = work / "bert" / "snn" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    before = contents(work)
    said = complaint(run(command, "bert/snn", *(["org/name"] if command == "push" else []), status=1))
    assert "model.safetensors is not what was written" in said
    assert contents(work) == before


def test_results_of_another_network_are_refused(work):
    run("evaluate", "bert/snn", "--data-dir", "texts", "--results", "figures.json", "--time-steps", 64)
    found = json.loads(Path("figures.json").read_text())
    Path("figures.json").write_text(json.dumps({**found, "network_digest": "0" * 64}))
    before = contents(work)
    said = complaint(run("card", "bert/snn", "--results", "figures.json", status=1))
    assert "results are of another network than this one" in said
    assert contents(work) == before


@pytest.mark.parametrize("lacking", ["simulated", "figures"])
def test_what_is_no_results_is_refused(work, lacking):
    found = {"data": "words", "split": "test"} | ({"simulated": {}} if lacking == "figures" else {})
    Path("figures.json").write_text(json.dumps(found))
    before = contents(work)
    complaint(run("card", "bert/snn", "--results", "figures.json", status=1))
    assert contents(work) == before


# convert


def test_convert_makes_a_schedule_for_the_network(here, tmp_path):
    result = run("convert", "bert/qann", tmp_path / "snn", "--firing-schedule", "coarse_to_fine")
    assert "firing_schedule: coarse_to_fine" in result.stdout
    assert "firing_steps" not in result.stdout  # a line for each node
    snn = SpikeBertForSequenceClassification.from_pretrained(tmp_path / "snn")
    assert set(snn.config.firing_steps) == set(snn.config.fine_steps) == set(snn.node_names)
    assert "coarse_to_fine, made for this network" in (tmp_path / "snn" / "README.md").read_text()


@each_network
def test_convert_is_from_quantized_and_save(here, network, tmp_path):
    fields = {"time_steps": 77, "max_spikes_per_step": 2, "firing_schedule": "layerwise", "firing_window": 5}
    flags = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", value)]
    result = run("convert", f"{network}/qann", tmp_path / "snn", *flags)
    for word in ("class: Spike", "time_steps: 77", "firing_schedule: layerwise", "quantization_levels: 16"):
        assert word in result.stdout
    kinds = {"bert": SpikeBertForSequenceClassification, "vit": SpikeViTForImageClassification}
    qann = kinds[network].quant_class.from_pretrained(f"{network}/qann")
    kinds[network].from_quantized(qann, **fields).save_pretrained(tmp_path / "expected" / "snn")
    made = contents(tmp_path / "snn")
    assert made == contents(tmp_path / "expected" / "snn")
    assert ("tokenizer.json" if network == "bert" else "preprocessor_config.json") in made
    assert NOTICE in made["README.md"].decode()


def test_convert_as_json(here, tmp_path):
    found = answer("convert", "bert/qann", tmp_path / "snn", "--time-steps", 300)
    expected = answer("info", "bert/snn")
    assert found == {**expected, "checkpoint": str(tmp_path / "snn")}
    assert same(weights(tmp_path / "snn"), weights("bert/snn"))


def test_convert_keeps_what_somebody_wrote(work):
    Path("out").mkdir()
    Path("out/README.md").write_text("# Mine\n")
    Path("out/notes.txt").write_text("mine")
    run("convert", "bert/qann", "out")
    assert (Path("out/README.md").read_text(), Path("out/notes.txt").read_text()) == ("# Mine\n", "mine")


@pytest.mark.parametrize("when", ["sealing", "moving"])
@pytest.mark.parametrize("there", [False, True], ids=["new folder", "old folder"])
def test_convert_interrupted(work, monkeypatch, there, when):
    if there:
        shutil.copytree("bert/snn", "out/snn")
    before = contents(work)
    calls, replace = [], os.replace

    def interrupted(*args):
        calls.append(args)
        if when == "sealing" or (len(calls) == 4 and "_partial-" in str(args[0])):
            raise KeyboardInterrupt
        return replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoints, "seal") if when == "sealing" else (checkpoint_files.os, "replace")), interrupted)
        result = run("convert", "bert/qann", "out/snn", "--time-steps", 5, status=130)
    assert "Interrupted" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert contents(work) == before
    assert answer("convert", "bert/qann", "out/snn", "--time-steps", 5)["time_steps"] == 5


# verify


@each_network
def test_verify_at_random(here, network):
    result = run("verify", f"{network}/snn", "--samples", 6, "--batch-size", 4)
    assert result.stdout.startswith("exact: 6 of 6 samples at equilibrium by step")
    assert "random inputs" in result.stdout
    assert result.stdout.count("\n") == 1


@each_network
def test_verify_on_data(here, network):
    found = answer("verify", f"{network}/snn", "--data-dir", DATA[network], "--samples", 7)
    assert (found["exact"], found["samples"], found["logits_equal"], found["mismatches"]) == (True, 7, True, {})
    assert found["inputs"] == "samples of the test split"
    assert found["certificate"].startswith("exact: 7 of 7")
    assert max(found["equilibrium_step"]) <= found["time_steps"] == 300
    named = answer(
        "verify", f"{network}/snn", "--qann", f"{network}/qann", "--data-dir", DATA[network], "--samples", 7
    )
    assert named == found


def test_verify_takes_all_there_is(here):
    assert answer("verify", "vit/snn", "--data-dir", "images", "--samples", 100)["samples"] == 12


@each_network
def test_too_few_time_steps_are_not_exact(here, network):
    result = run("verify", f"{network}/snn", "--time-steps", 3, "--samples", 4, status=3)
    assert result.stdout.startswith("not exact: 4 of 4 samples not at equilibrium after 3 steps")
    assert "error" not in result.stderr
    found = answer("verify", f"{network}/snn", "--time-steps", 3, "--samples", 4, status=3)
    assert (found["exact"], found["equilibrium_step"], found["time_steps"]) == (False, [-1] * 4, 3)


def test_another_quantized_network_is_no_twin(here):
    found = answer("verify", "bert/snn", "--qann", "bert/other", "--samples", 4, status=3)
    assert found["exact"] is False
    assert found["threshold_mismatches"] or found["mismatches"]


# evaluate


def read(path: str | Path) -> dict:
    return json.loads(Path(path).read_text())


def without_provenance(results: dict) -> dict:
    return {key: value for key, value in results.items() if key not in ("command", "versions", "hardware")}


def accuracies(results: dict) -> dict:
    return {(row["network"], row["T"]): row["accuracy"] for row in results["simulated"]["rows"]}


def test_figures_are_those_computed_directly(work):
    found = answer(
        *("evaluate", "bert/snn", "--data-dir", "texts", "--ann", "bert/ann", "--batch-size", 1),
        *("--report-time-steps", 4, "--report-time-steps", 9, "--time-steps", 64),
    )
    snn = SpikeBertForSequenceClassification.from_pretrained("bert/snn")
    qann = QuantBertForSequenceClassification.from_pretrained("bert/qann").eval()
    ann = make_text_ann("bert", **labels("bert"))
    tokenizer = AutoTokenizer.from_pretrained("bert/snn")
    lines = [line.split("\t") for line in Path("texts/test.tsv").read_text().splitlines()[1:]]
    said = {name: [] for name in ("ANN", "QANN", 4, 9, "equilibrium", "truth", "T_eq")}
    spikes = neurons = 0
    with torch.no_grad():
        for text, label in lines:
            inputs = tokenizer(text, return_tensors="pt")
            run_on = snn(**inputs, time_steps=64)
            said["truth"].append(int(label))
            said["ANN"].append(int(ann(**inputs).logits.argmax()))
            said["QANN"].append(int(qann(**inputs).logits.argmax()))
            said["equilibrium"].append(int(run_on.logits.argmax()))
            said["T_eq"].append(int(run_on.equilibrium_step))
            spikes += int(run_on.spike_counts.sum())
            neurons += int(run_on.neuron_counts.sum())
            for steps in (4, 9):
                said[steps].append(int(snn(**inputs, time_steps=steps).logits.argmax()))
    assert len({tuple(said[name]) for name in ("QANN", 4, 9, "truth")}) == 4  # or the figures could be any
    assert 0 not in [said["QANN"].count(value) for value in (0, 1)]

    def share(first: list, second: list) -> float:
        return sum(a == b for a, b in zip(first, second, strict=True)) / len(lines)

    expected = {
        ("ANN", "-"): "ANN",
        ("QANN", "-"): "QANN",
        ("SNN", 4): 4,
        ("SNN", 9): 9,
        ("SNN", "equilibrium"): "equilibrium",
    }
    rows = {(row["network"], row["T"]): row for row in found["simulated"]["rows"]}
    assert list(rows) == list(expected)
    for key, name in expected.items():
        assert rows[key]["accuracy"] == pytest.approx(share(said[name], said["truth"]), abs=1e-12)  # order of a mean
        assert rows[key]["agrees with QANN"] == pytest.approx(share(said[name], said["QANN"]), abs=1e-12)
    whole = found["accuracy on the whole split"]
    assert whole == {"samples": 16, **{name: share(said[name], said["truth"]) for name in ("ANN", "QANN")}}
    figures = found["simulated"]
    assert figures["equilibrium steps"] == {str(step): said["T_eq"].count(step) for step in sorted(set(said["T_eq"]))}
    assert (figures["at equilibrium"], figures["samples"], figures["exact"]) == (16, 16, True)
    assert figures["T_eq"]["max"] == max(said["T_eq"])
    assert figures["spikes per neuron"] == spikes / neurons
    assert figures["certificate"].startswith(f"exact: 16 of 16 samples at equilibrium by step {max(said['T_eq'])},")


@each_network
def test_evaluate_writes_beside_the_checkpoint(work, network):
    arguments = ("evaluate", f"{network}/snn", "--data-dir", DATA[network], "--time-steps", 64)
    result = run(*arguments)
    found = read(f"{network}/snn/results.json")
    assert f"written to {network}/snn/results.json" in result.stdout
    assert f"certificate: {found['simulated']['certificate']}" in result.stdout
    assert result.stdout.count("| SNN |") == 4
    assert (found["data"], found["split"], found["dataset"]) == (DATA[network], "test", None)
    kind = SpikeBertForSequenceClassification if network == "bert" else SpikeViTForImageClassification
    assert found["network_digest"] == network_digest(kind.from_pretrained(f"{network}/snn"))
    card = Path(f"{network}/snn/README.md").read_text()
    assert f"- Certificate: {found['simulated']['certificate']}." in card
    assert f"**{DATA[network]}**, test split, {found['simulated']['samples']} samples:" in card
    for (_, steps), accuracy in accuracies(found).items():
        assert f"| {steps} | {100 * accuracy:.2f} %" in card
    said = answer(*arguments)
    assert said.pop("written to") == f"{network}/snn/results.json"
    assert Path(said.pop("predictions")).is_dir()
    assert without_provenance(said) == without_provenance(found)


@each_network
def test_both_twins_give_the_same_figures(work, network):
    flags = ("--data-dir", DATA[network], "--time-steps", 64, "--report-time-steps", 8)
    snn, qann = (answer("evaluate", f"{network}/{kind}", *flags) for kind in ("snn", "qann"))
    assert snn["simulated"] == qann["simulated"]
    assert snn["simulated"]["exact"] is True
    assert snn["accuracy on the whole split"] == qann["accuracy on the whole split"]
    assert snn["network_digest"] != qann["network_digest"]
    card = Path(f"{network}/qann/README.md").read_text()
    assert f"| QANN | - | {100 * qann['accuracy on the whole split']['QANN']:.2f} %" in card
    assert "| SNN |" not in card


def test_evaluate_some_samples_only(work):
    found = answer("evaluate", "vit/snn", "--data-dir", "images", "--simulate", 5, "--time-steps", 64)
    assert (found["simulated"]["samples"], found["accuracy on the whole split"]["samples"]) == (5, 12)
    assert "5 of its 12 samples, evenly spread" in Path("vit/snn/README.md").read_text()


def test_too_few_time_steps_are_told(work):
    found = answer("evaluate", "vit/snn", "--data-dir", "images", "--time-steps", 3, "--report-time-steps", 2)
    assert found["simulated"]["exact"] is False
    assert found["simulated"]["certificate"] == (
        "not exact: 12 of 12 samples not at equilibrium after 3 steps (they may need more: raise time_steps)"
    )
    assert [key for key in accuracies(found) if key[0] == "SNN"] == [("SNN", 2), ("SNN", 3)]
    assert "Certificate: not exact" in Path("vit/snn/README.md").read_text()


def test_a_reported_number_of_steps_is_reported_once(work):
    found = answer("evaluate", "vit/snn", "--data-dir", "images", "--time-steps", 3, "--report-time-steps", 3)
    rows = [(row["network"], row["T"]) for row in found["simulated"]["rows"]]
    assert len(rows) == len(set(rows))
    front = yaml.safe_load(Path("vit/snn/README.md").read_text().split("---\n")[1])
    names = [metric["name"] for metric in front["model-index"][0]["results"][0]["metrics"]]
    assert len(names) == len(set(names))


def test_other_data_is_appended_and_the_same_replaced(work):
    write_texts(work / "more", {"test": 10})
    evaluate = ("evaluate", "bert/snn", "--time-steps", 64)
    run(*evaluate, "--data-dir", "texts")
    run(*evaluate, "--data-dir", "more")
    found = read("bert/snn/results.json")
    assert [one["data"] for one in found] == ["texts", "more"]
    card = Path("bert/snn/README.md").read_text()
    assert "**texts**, test split" in card
    assert "**more**, test split" in card
    told = answer("info", "bert/snn")["evaluations"]
    assert [(one["data"], one["samples"]) for one in told] == [("texts", 16), ("more", 10)]
    before = contents(work / "bert")
    assert "holds figures of 16 samples, and 6 would replace them" in complaint(
        run(*evaluate, "--data-dir", "texts", "--simulate", 6, status=1)
    )
    assert contents(work / "bert") == before
    run(*evaluate, "--data-dir", "texts", "--simulate", 6, "--overwrite")
    found = read("bert/snn/results.json")
    assert [(one["data"], one["simulated"]["samples"]) for one in found] == [("more", 10), ("texts", 6)]


def test_results_of_earlier_weights_do_not_stay(work):
    run("evaluate", "bert/snn", "--data-dir", "texts", "--time-steps", 64)
    run("convert", "bert/other", "bert/snn")
    assert "No evaluation on a test set is on record" in Path("bert/snn/README.md").read_text()
    assert answer("info", "bert/snn")["evaluations"] == []
    make_tokenizer("bert").save_pretrained("bert/snn")
    write_texts(work / "more", {"test": 10})
    run("evaluate", "bert/snn", "--data-dir", "more", "--time-steps", 200)
    assert read("bert/snn/results.json")["data"] == "more"


def test_results_elsewhere_are_in_the_card_too(work):
    run("evaluate", "bert/snn", "--data-dir", "texts", "--time-steps", 64, "--results", "figures/bert.json")
    assert read("figures/bert.json")["data"] == "texts"
    assert "**texts**, test split, 16 samples:" in Path("bert/snn/README.md").read_text()


def test_data_in_the_working_directory_has_a_name(work, monkeypatch):
    monkeypatch.chdir(work / "texts")
    assert answer("evaluate", "../bert/snn", "--data-dir", ".", "--time-steps", 64)["data"] == "texts"


def test_evaluate_keeps_the_words_of_somebody(work):
    Path("bert/snn/README.md").write_text("# Mine\n")
    run("evaluate", "bert/snn", "--data-dir", "texts", "--time-steps", 64)
    assert Path("bert/snn/README.md").read_text() == "# Mine\n"
    assert read("bert/snn/results.json")["data"] == "texts"


def parts(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("part-*.parquet"))}


@each_network
def test_evaluate_interrupted_goes_on(work, network, monkeypatch):
    """Part by part; what is finished is not done again, and the end is as if nothing had happened."""
    source = work / network / "snn"
    evaluate = ("evaluate", f"{network}/snn", "--data-dir", DATA[network], "--batch-size", 1, "--time-steps", 64)
    before = contents(source)
    calls, answers = [], predictions.answers

    def interrupted(*args):
        calls.append(1)
        if len(calls) == {"bert": 16, "vit": 12}[network] + 7:  # the Quant model comes first
            raise KeyboardInterrupt
        return answers(*args)

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "answers", interrupted)
        result = run(*evaluate, status=130)
    assert "Interrupted" in result.stderr
    left = contents(source)
    assert {name: left[name] for name in before} == before
    assert all(name.startswith("_predictions") for name in left.keys() - before.keys())
    assert not [name for name in left if name.endswith(".partial")]
    finished = parts(source)
    assert [Path(name).parent.name for name in finished] == ["qann", "snn"]
    found = answer(*evaluate)
    assert finished.items() <= parts(source).items()
    shutil.rmtree(source / "_predictions")
    (source / "results.json").unlink()
    assert without_provenance(answer(*evaluate)) == without_provenance(found)


def test_sigint_to_a_process(work):
    """The real signal; and what a process has finished, another goes on from."""
    write_texts(work / "long", {"test": 80})
    arguments = ["evaluate", "bert/snn", "--data-dir", "long", "--batch-size", "1", "--time-steps", "64"]
    process = subprocess.Popen(
        [*SPIKEZIP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=heed_sigint,
    )
    end = time.monotonic() + 60
    while len(parts(work)) < 6 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=30)
    assert process.returncode == 130, complained
    assert said == ""
    assert "Interrupted; nothing is left half-written." in complained
    assert "Traceback" not in complained
    source = work / "bert" / "snn"
    assert not (source / "results.json").exists()
    assert not list(source.rglob(".*.partial"))
    finished = parts(source)
    assert 6 <= len(finished) < 22  # 2 of the Quant model, 20 of the spiking one
    answer(*arguments)
    assert finished.items() <= parts(source).items()
    assert len(parts(source)) == 22


# card


def test_card(work):
    flags = ["--license", "mit", "--language", "en", "--base-model", "org/ordinary", "--tag", "mine", "--tag", "more"]
    result = run("card", "bert/snn", "--name", "a-name", *flags)
    assert result.stdout == "Written: bert/snn/README.md\n"
    card = Path("bert/snn/README.md").read_text()
    data = yaml.safe_load(card.split("---\n")[1])
    assert (data["license"], data["language"], data["base_model"]) == ("mit", ["en"], "org/ordinary")
    assert {"mine", "more"} <= set(data["tags"])
    assert "\n# a-name\n" in card
    assert answer("card", "bert/snn", "--license", "apache-2.0") == {"card": "bert/snn/README.md"}
    data = yaml.safe_load(Path("bert/snn/README.md").read_text().split("---\n")[1])
    assert (data["license"], data["language"], "mine" in data["tags"]) == ("apache-2.0", ["en"], True)


def test_card_with_results_from_elsewhere(work):
    run("evaluate", "bert/snn", "--data-dir", "texts", "--time-steps", 64)
    shutil.move("bert/snn/results.json", "figures.json")
    run("card", "bert/snn")
    assert "No evaluation" in Path("bert/snn/README.md").read_text()
    run("card", "bert/snn", "--results", "figures.json")
    assert "**texts**, test split" in Path("bert/snn/README.md").read_text()


def test_card_keeps_what_somebody_wrote(work):
    Path("bert/snn/README.md").write_text("# Mine\n")
    before = contents(work)
    said = complaint(run("card", "bert/snn", status=1))
    assert "bert/snn/README.md was written by somebody: remove it to have one made" in said
    assert contents(work) == before


# info


@each_network
@pytest.mark.parametrize("kind", ["qann", "snn"])
def test_info(here, network, kind):
    before = contents(here)
    found = answer("info", f"{network}/{kind}")
    expected = {"qann": "Quant", "snn": "Spike"}[kind]
    assert found["class"].startswith(expected)
    assert (found["quantization_levels"], found["labels"]) == (16, LABELS[network])
    stored = weights(f"{network}/{kind}")
    not_trained = (".scale", ".initialized")
    assert found["parameters"] >= sum(one.numel() for name, one in stored.items() if not name.endswith(not_trained))
    assert len(found["node_names"]) == found["nodes"] == len([name for name in stored if name.endswith(".scale")])
    assert found["evaluations"] == []
    assert (found.get("time_steps"), found.get("firing_schedule")) == (
        (300, "synchronous") if kind == "snn" else (None, None)
    )
    text = run("info", f"{network}/{kind}").stdout
    for line in (
        f"class: {found['class']}",
        "quantization_levels: 16",
        f"nodes: {found['nodes']}",
        "certificate: none",
    ):
        assert line in text
    assert ("time_steps: 300" in text) == (kind == "snn")
    assert contents(here) == before


def test_info_tells_of_evaluations(work):
    found = answer("evaluate", "bert/snn", "--data-dir", "texts", "--time-steps", 64)
    (told,) = answer("info", "bert/snn")["evaluations"]
    assert (told["data"], told["split"], told["samples"]) == ("texts", "test", 16)
    assert told["certificate"] == found["simulated"]["certificate"]
    assert list(told["accuracy"].values()) == list(accuracies(found).values())
    text = run("info", "bert/snn").stdout
    assert f"texts, test split: {told['certificate']}" in text
    assert f"SNN, T = 16: {told['accuracy']['SNN, T = 16']:.2%}" in text
    assert "certificate: none" not in text


# train

RECIPE = """
data: {data_dir: words, max_length: 32}
training:
  per_device_train_batch_size: 8
  per_device_eval_batch_size: 16
  eval_strategy: epoch
  save_strategy: "no"
  max_steps: 2
  disable_tqdm: true
finetune:
  output_dir: out/ann
  architecture: bert
  network: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}
qat: {output_dir: out/qann, ann: out/ann, quantization_levels: 8}
convert: {output_dir: out/snn, qann: out/qann, time_steps: 200, report_time_steps: [8], batch_size: 16}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    write_texts(tmp_path / "words", {"train": 32, "dev": 8, "test": 8})
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_all_stages(recipe):
    assert answer("train", "recipe.yaml") == dict.fromkeys(("finetune", "qat", "convert"), "finished")
    for name, kind in (("ann", "bert"), ("qann", "quant_bert"), ("snn", "spike_bert")):
        assert read(f"out/{name}/config.json")["model_type"] == kind
        assert Path(f"out/{name}/tokenizer.json").is_file()
    results = read("out/snn/results.json")
    assert results["simulated"]["exact"] is True
    assert results["simulated"]["certificate"] in Path("out/snn/README.md").read_text()
    before = contents(recipe / "out" / "qann")
    result = run("train", "recipe.yaml", "--stage", "qat")
    assert "qat: finished" in result.stdout
    assert contents(recipe / "out" / "qann") == before
    # Flags count more than the recipe, wherever they stand.
    run("train", "recipe.yaml", "--quantization_levels", 16, "--stage", "qat", "--output_dir", "out/q16")
    assert read("out/q16/config.json")["quantization_levels"] == 16
    shown = run("train", "recipe.yaml", "--stage", "convert", "--report_time_steps", 4, "--output_dir", "out/s").stdout
    assert "| SNN | 4 |" in shown
    assert "convert: finished" in shown
    said = complaint(run("train", "recipe.yaml", "--stage", "qat", "--quantization_levels", 16, status=1))
    assert "out/qann holds a training with quantization_levels 8, not 16" in said


BAD_RECIPES = {
    "broken": ("finetune: [1", [], "recipe.yaml is not YAML"),
    "empty": ("", [], "has none of the sections"),
    "list": ("- finetune", [], "has none of the sections"),
    "no section": (RECIPE.partition("qat:")[0], ["--stage", "qat"], "has no section 'qat'"),
    "unknown section": (f"{RECIPE}other: {{a: 1}}\n", [], "and no others"),
    "unknown argument": (RECIPE.replace("architecture", "archtecture"), [], "archtecture: no such argument"),
    "unknown flag": (RECIPE, ["--stage", "finetune", "--fly", "high"], "--fly"),
    "levels": (RECIPE.replace("levels: 8", "levels: 7"), ["--stage", "qat"], "quantization_levels must be an even"),
    "no data": (RECIPE.replace("words", "no/data/here"), ["--stage", "finetune"], "No data folder at no/data/here"),
    # The first stage may take hours: what is wrong with a later one has to be said before it begins.
    "unknown argument of a later stage": (RECIPE.replace("batch_size: 16}", "batchsize: 16}"), [], "batchsize"),
    "value of a later stage": (RECIPE.replace("levels: 8", "levels: 7"), [], "quantization_levels must be an even"),
    "flag of no stage": (RECIPE, ["--fly", "high"], "--fly: no such argument of finetune or qat or convert"),
    "one folder for all": (RECIPE, ["--output_dir", "out"], "--output_dir: each stage needs a folder of its own"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes_are_refused_before_any_work(recipe, case):
    text, flags, words = BAD_RECIPES[case]
    (recipe / "recipe.yaml").write_text(text)
    before = contents(recipe)
    assert words in complaint(run("train", "recipe.yaml", *flags, status=1))
    assert contents(recipe) == before


def test_a_flag_goes_to_the_stages_that_know_it(recipe):
    run("train", "recipe.yaml", "--max_steps", "1", "--quantization_levels", "16")
    record = json.loads(Path("out/qann/training.json").read_text())
    assert (record["settings"]["max_steps"], record["settings"]["quantization_levels"]) == (1, 16)
    assert json.loads(Path("out/ann/training.json").read_text())["settings"]["max_steps"] == 1
    assert json.loads(Path("out/snn/results.json").read_text())["quantization_levels"] == 16


def test_version():
    assert run("--version").stdout == f"{spikezip_hf.__version__}\n"


def test_an_ordinary_network_is_told_its_class(work):
    make_text_ann("bert").save_pretrained("ordinary")
    assert "QuantBertForSequenceClassification.from_ann(ann)" in complaint(run("info", "ordinary", status=1))


def test_a_folder_of_another_network_is_not_filled_up(work):
    before = contents(work / "vit")
    assert "vit/snn holds another network" in complaint(run("convert", "bert/qann", "vit/snn", status=1))
    assert contents(work / "vit") == before


def test_which_data(work):
    assert "No data" in complaint(run("evaluate", "bert/snn", status=1))
    both = ["--data-dir", "texts", "--dataset", "org/texts"]
    assert "name two data sets" in complaint(run("evaluate", "bert/snn", *both, status=1))

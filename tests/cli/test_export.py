"""`spikezip export`: what it writes, what it says, what it refuses."""

import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spikezip_hf.cli.app import app
from spikezip_hf.cli.export import describe
from spikezip_hf.export import StreamingStep, load_spike_graph
from spikezip_hf.loading import load_twin
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from tests.conftest import spiking_twin
from tests.export.common import make_quantized
from tests.export.conftest import without_traces  # noqa: F401


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a Quant and a Spike checkpoint."""
    place = tmp_path_factory.mktemp("place")
    qann = make_quantized("vit")
    qann.save_pretrained(place / "qann")
    spiking_twin(qann).save_pretrained(place / "snn")
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def run(*arguments: str, status: int = 0):
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == status, result.output
    return result


@torch.no_grad()
def test_a_program_of_a_step(here, tmp_path):
    result = run("snn", str(tmp_path / "new"), "--format", "torch", "--json")
    told = json.loads(result.stdout)
    assert told["written"] == str(tmp_path / "new" / "model.pt2")
    assert (told["kind"], told["network"]) == ("step", "SpikeViTForImageClassification")
    step = StreamingStep(load_twin("snn", SpikePreTrainedModel))
    program = torch.export.load(told["written"]).module()
    assert torch.equal(program(*step.example(4))[0], step(*step.example(4))[0])


def test_a_spike_checkpoint_as_quantized_network(here, tmp_path):
    result = run("snn", str(tmp_path / "net.pt2"), "--format", "torch", "--what", "quantized")
    assert result.stdout.startswith("Written: ")
    assert "quantized of a QuantViTForImageClassification (12 nodes)" in result.stdout
    assert (tmp_path / "net.pt2").is_file()


def test_an_onnx_file_is_checked_shows_its_progress_and_leaves_stdout_to_json(here, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs pip install 'spikezip-hf[export]'")
    result = run("qann", str(tmp_path / "net.onnx"), "--json")
    told = json.loads(result.stdout)
    assert told["kind"] == "quantized"
    assert told["checked"]["levels"] > 1000
    assert "Checked in onnxruntime: " in describe(told)
    assert "exporting" in result.stderr
    for part in ("making the graph", "writing", "checking"):
        assert part in result.stderr


def test_a_spike_graph(here, tmp_path):
    told = json.loads(run("snn", str(tmp_path / "graph"), "--format", "spike-graph", "--json").stdout)
    assert (told["written"], told["kind"]) == (str(tmp_path / "graph"), "spike graph")
    graph = load_spike_graph(tmp_path / "graph")
    assert told["nodes"] == {item.name: [item.min_level, item.max_level] for item in graph.neurons}
    assert told["operations"]["fire"] == len(graph.neurons)
    assert sum(told["operations"].values()) == len(graph.operations)
    text = run("snn", str(tmp_path / "graph"), "--format", "spike-graph").stdout
    assert f"{tmp_path / 'graph'}, spike graph of a SpikeViTForImageClassification (12 nodes)." in text


def test_affine_maps_as_nir(here, tmp_path):
    nir = pytest.importorskip("nir", reason="needs nir: pip install 'spikezip-hf[export]'")
    told = json.loads(run("snn", str(tmp_path / "nir"), "--format", "nir", "--json").stdout)
    assert sorted(path.name for path in (tmp_path / "nir").iterdir()) == sorted(f"{name}.nir" for name in told["maps"])
    assert told["unsayable"]["fire"] == len(told["nodes"])
    assert told["unsayable"]["softmax"] == 1
    name = "layers.0.mlp.fc1"
    text = run("snn", str(tmp_path / "one"), "--format", "nir", "--subgraph", name).stdout
    assert "affine maps (1) of a SpikeViTForImageClassification (12 nodes)" in text
    assert " 12 fire, " in text
    assert [path.name for path in (tmp_path / "one").iterdir()] == [f"{name}.nir"]
    weight = nir.read(tmp_path / "one" / f"{name}.nir").nodes[name].weight
    fc1 = load_twin("snn", SpikePreTrainedModel).vit.layers[0].mlp.fc1
    np.testing.assert_array_equal(weight, fc1.weight.detach().numpy())
    refused = run("snn", str(tmp_path / "none"), "--format", "nir", "--subgraph", "layers.7", status=1)
    assert "subgraph='layers.7' is no part of the network" in refused.stderr


def test_without_the_packages_the_remedy_is_named(here, monkeypatch):
    for package in ("nir", "onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    for module in ("spikezip_hf.cli.export", "spikezip_hf.export.nir_graph"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for format, source in (("nir", "snn"), ("onnx", "qann")):
        result = run(source, "out", "--format", format, status=1)
        assert "pip install 'spikezip-hf[export]'" in result.stderr
        assert not (here / "out").exists()
    run("snn", "graph", "--format", "spike-graph")  # needs none of them


REFUSED = {
    "a step of a quantized network": (("qann", "out", "--what", "step"), "spikezip convert qann"),
    "another format": (
        ("qann", "out", "--format", "tflite"),
        "format must be one of 'onnx', 'torch', 'spike-graph', 'nir'",
    ),
    "something else": (("qann", "out", "--what", "spikes"), "what must be one of 'quantized', 'step'"),
    "frames of a quantized network": (("qann", "out", "--inputs", "frames"), 'inputs="frames" is for'),
    "a file of another format": (("qann", "out.pt2"), "has to end in .onnx"),
    "the graph of a quantized network": (("qann", "out", "--format", "spike-graph"), "spikezip convert qann"),
    "maps of a quantized network": (("qann", "out", "--format", "nir"), "spikezip convert qann"),
    "a part of a graph": (
        ("snn", "out", "--format", "spike-graph", "--what", "step"),
        "--what is for the format onnx",
    ),
    "frames of maps": (("snn", "out", "--format", "nir", "--inputs", "frames"), "--inputs is for the format onnx"),
    "one map of a file": (("snn", "out", "--subgraph", "classifier"), "--subgraph is for the format nir"),
    "nothing": (("./no/such/folder", "out"), "there is no such folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_nothing_written(here, case):
    arguments, words = REFUSED[case]
    result = run(*arguments, status=1)
    assert words in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not (here / "out").exists()

"""`spikezip export`: what it writes, what it says, what it refuses."""

import json

import pytest
import torch
from typer.testing import CliRunner

from spikezip_hf.cli.app import app
from spikezip_hf.export import StreamingStep
from spikezip_hf.loading import load_twin
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from tests.conftest import spiking_twin
from tests.export.common import make_quantized


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


def test_onnx_is_checked(here, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs pip install 'spikezip-hf[export]'")
    result = run("qann", str(tmp_path / "net.onnx"), "--json")
    told = json.loads(result.stdout)
    assert told["kind"] == "quantized"
    assert told["checked"]["levels"] > 1000
    assert "Checked in onnxruntime: " in run("qann", str(tmp_path)).stdout


REFUSED = {
    "a step of a quantized network": (("qann", "out", "--what", "step"), "spikezip convert qann"),
    "another format": (("qann", "out", "--format", "tflite"), "format must be one of 'onnx', 'torch'"),
    "something else": (("qann", "out", "--what", "spikes"), "what must be one of 'quantized', 'step'"),
    "frames of a quantized network": (("qann", "out", "--inputs", "frames"), 'inputs="frames" is for'),
    "a file of another format": (("qann", "out.pt2"), "has to end in .onnx"),
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

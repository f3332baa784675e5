"""`spikezip import`: a checkpoint of the paper's layout becomes one of ours, or nothing does."""

import json

import pytest
import torch
from typer.testing import CliRunner

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.cli.app import app
from spikezip_hf.conversion import to_spikingjelly
from tests.conftest import make_images, make_qann, make_text_qann


@pytest.fixture
def file(tmp_path):
    """A file whose quantizers say no bounds, as those of the paper's code."""
    state = to_spikingjelly(make_qann()).state_dict()
    torch.save(
        {"model": {name: tensor for name, tensor in state.items() if not name.endswith(("pos_max", "neg_min"))}},
        tmp_path / "vit.pth",
    )
    return tmp_path / "vit.pth"


def run(*arguments):
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def test_import_writes_a_model_and_says_what_it_did(tmp_path, file):
    shown = run(file, tmp_path / "qann", "--levels", 16, "--heads", 4, "--layer-norm-eps", "1e-12")
    assert shown.exit_code == 0, shown.output
    assert "40 weights and 22 scales" in shown.stdout
    assert f"written to {tmp_path / 'qann'}" in shown.stdout
    qann, again = make_qann().eval(), QuantViTForImageClassification.from_pretrained(tmp_path / "qann")
    images = make_images(qann.config, 4)
    assert torch.equal(again(images).logits, qann(images).logits)


def test_import_answers_in_json(tmp_path, file):
    shown = run(file, tmp_path / "qann", "--levels", 16, "--heads", 4, "--json")
    answer = json.loads(shown.stdout)
    assert answer["mapped"]["classifier.weight"] == "head.weight"
    assert answer["written to"] == str(tmp_path / "qann")


def test_import_refuses_in_one_line(tmp_path, file):
    shown = run(file, tmp_path / "qann")
    assert shown.exit_code == 1
    assert not (tmp_path / "qann").exists()
    assert shown.stderr.startswith("error: quantization_levels has to be given")
    assert shown.stderr.count("\n") == 1


def test_import_overwrites_no_other_network(tmp_path, file):
    make_text_qann("roberta").save_pretrained(tmp_path / "other")
    shown = run(file, tmp_path / "other", "--levels", 16, "--heads", 4)
    assert shown.exit_code == 1
    assert "holds another network" in shown.stderr

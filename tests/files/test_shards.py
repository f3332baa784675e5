"""Checkpoints in several files: whole, or refused with the name of the file that is at fault."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from spikezip_hf.models.checkpoint_files import DamagedFile
from tests.conftest import make_qann, spiking_twin

from .common import INDEX, WEIGHTS, answers, edit_json
from .conftest import SHARDED


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


def shard(folder: Path, number: int = 1) -> Path:
    """Of its shards, counted from 0."""
    return folder / sorted(set(index_of(folder)["weight_map"].values()))[number]


def rename(folder: Path, name: str) -> None:
    """Have the index look for a shard elsewhere."""
    old = shard(folder).name
    named = {tensor: name if where == old else where for tensor, where in index_of(folder)["weight_map"].items()}
    edit_json(folder / INDEX, weight_map=named)


def assert_refused(model, folder: Path, message: str, error=DamagedFile) -> None:
    with pytest.raises(error, match=message):
        type(model).from_pretrained(folder)


def test_shards_are_the_network(sharded, model):
    assert len(set(index_of(sharded)["weight_map"].values())) > 3
    for load in (type(model), AutoModelForImageClassification):
        loaded = load.from_pretrained(sharded)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(x, model.state_dict()[name]) for name, x in loaded.state_dict().items())
        assert torch.equal(answers(loaded), answers(model))


def test_a_shard_that_is_missing(sharded, model):
    path = shard(sharded)
    path.unlink()
    assert_refused(model, sharded, path.name, OSError)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: b""])
def test_a_shard_that_is_cut_off(sharded, model, damage):
    path = shard(sharded)
    path.write_bytes(damage(path.read_bytes()))
    assert_refused(model, sharded, rf"{path.name} is cut off")


def test_a_shard_of_another_network(sharded, model, kind, tmp_path):
    """Of the same names and shapes, and sealed: only the index knows better."""
    other = make_qann(seed=5, weight_bits=8)
    (other if kind == "Quant" else spiking_twin(other)).save_pretrained(tmp_path / "other", **SHARDED)
    path = shard(sharded)
    shutil.copy(tmp_path / "other" / path.name, path)
    assert_refused(model, sharded, rf"{path.name} is a shard of another checkpoint")


def test_two_shards_of_one_network_swapped(sharded, model):
    """Whatever the names of files are: tensors are where they were written."""
    first, second = shard(sharded), shard(sharded, 2)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert_refused(model, sharded, r"is a shard of another checkpoint")


def test_shards_written_anew_have_no_digest_and_load(sharded, model):
    for path in sharded.glob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    assert torch.equal(answers(type(model).from_pretrained(sharded)), answers(model))


def test_an_index_of_another_tool_has_no_digests_and_loads(sharded, model):
    edit_json(sharded / INDEX, metadata={"total_size": 1})
    assert torch.equal(answers(type(model).from_pretrained(sharded)), answers(model))


@pytest.mark.parametrize("where", ["..", "sub", "absolute"])
def test_an_index_that_names_files_elsewhere(sharded, model, tmp_path, where):
    """They are not even opened: what they hold would be refused otherwise."""
    elsewhere = {"..": tmp_path, "sub": sharded / "sub", "absolute": tmp_path / "far"}[where]
    elsewhere.mkdir(exist_ok=True)
    path = shard(sharded)
    (elsewhere / path.name).write_bytes(b"no safetensors")
    path.unlink()
    rename(sharded, str(elsewhere / path.name) if where == "absolute" else f"{where}/{path.name}")
    assert_refused(model, sharded, rf"{INDEX} names '.*{path.name}', which is no file of weights beside it")


@pytest.mark.parametrize(
    "name", ["config.json", "pytorch_model.bin", "", None, 3, ["a"], {"a": 1}, "model.safetensors\0"]
)
def test_an_index_that_names_what_is_no_shard(sharded, model, name):
    rename(sharded, name)
    assert_refused(model, sharded, rf"{INDEX} (names|is no index)")


INDEXES = {
    "empty": "",
    "cut off": '{"metadata": {}, "weight_map": {"a": ',
    "a list": "[]",
    "a text": '"model.safetensors"',
    "nothing": "null",
    "no map": '{"metadata": {}}',
    "a map that is a list": '{"metadata": {}, "weight_map": ["model-00001-of-00002.safetensors"]}',
    "digests that are a list": '{"metadata": {"sha256": [1]}, "weight_map": {}}',
    "metadata that is a text": '{"metadata": "", "weight_map": {}}',
    "deep": "[" * 100_000,
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", INDEXES)
def test_an_index_that_is_damaged(sharded, model, content):
    data = INDEXES[content]
    (sharded / INDEX).write_bytes(data if isinstance(data, bytes) else data.encode())
    assert_refused(model, sharded, rf"{INDEX} is no index of shards that can be read")


def test_an_index_of_tensors_that_its_shards_have_not(sharded, model):
    """Who reads is told of the tensor: a shard without it is sealed as it is."""
    path, name = shard(sharded), "vit.layers.1.mlp.fc1.weight"
    path = sharded / index_of(sharded)["weight_map"][name]
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items() if key != name}
    save_file(tensors, path, metadata={"format": "pt"})
    assert_refused(model, sharded, f"lacks {name}", ValueError)


def test_an_index_that_lacks_a_shard(sharded, model):
    gone = shard(sharded).name
    left = {tensor: name for tensor, name in index_of(sharded)["weight_map"].items() if name != gone}
    edit_json(sharded / INDEX, weight_map=left)
    assert_refused(model, sharded, r"lacks vit\.|holds no scales", ValueError)


def test_a_whole_file_goes_before_shards(sharded, originals, kind, model):
    """As transformers has it; so a damaged index beside it harms nobody."""
    shutil.copy(originals[kind, False] / WEIGHTS, sharded)
    (sharded / INDEX).write_text("{")
    assert torch.equal(answers(type(model).from_pretrained(sharded)), answers(model))

"""Checkpoints of one small network and its twin, with weights of 8 bits; tests take copies."""

import shutil

import pytest

from tests.conftest import make_qann, spiking_twin

SHARDED = {"max_shard_size": "10KB"}


@pytest.fixture(scope="session")
def networks():
    """{"Quant": model, "Spike": its twin}. Not to be changed."""
    qann = make_qann(weight_bits=8).eval()
    return {"Quant": qann, "Spike": spiking_twin(qann, time_steps=40)}


@pytest.fixture(scope="session")
def originals(networks, tmp_path_factory):
    """{(kind, whether in shards): folder}. Not to be changed."""
    folders = {}
    for kind, model in networks.items():
        for shards in (False, True):
            folders[kind, shards] = tmp_path_factory.mktemp("original")
            model.save_pretrained(folders[kind, shards], **(SHARDED if shards else {}))
    return folders


@pytest.fixture(params=["Quant", "Spike"])
def kind(request):
    return request.param


@pytest.fixture
def model(networks, kind):
    return networks[kind]


@pytest.fixture
def folder(originals, kind, tmp_path):
    """A copy of its checkpoint."""
    return shutil.copytree(originals[kind, False], tmp_path / "checkpoint")


@pytest.fixture
def sharded(originals, kind, tmp_path):
    """A copy of its checkpoint in shards."""
    return shutil.copytree(originals[kind, True], tmp_path / "shards")

"""Which network a folder holds: what is said where there is none, or another."""

import json

import pytest

from spikezip_hf import QuantViTForImageClassification, SpikeViTForImageClassification
from spikezip_hf.hub.push import files_to_push
from spikezip_hf.loading import class_of, load_processor, model_type
from tests.conftest import make_ann, make_qann, make_text_qann, spiking_twin


@pytest.fixture
def saved(tmp_path):
    make_qann().save_pretrained(tmp_path)
    return tmp_path


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_class_it_was_saved_from(saved, tmp_path_factory):
    assert class_of(str(saved))[0] is QuantViTForImageClassification
    folder = tmp_path_factory.mktemp("snn")
    spiking_twin(make_qann()).save_pretrained(folder)
    cls, config = class_of(str(folder))
    assert cls is SpikeViTForImageClassification
    assert config.model_type == "spike_vit"


@pytest.mark.parametrize("architectures", [None, [], ["QuantViTForSegmentation"]])
def test_a_class_that_is_none_of_ours(saved, architectures):
    change(saved, architectures=architectures)
    with pytest.raises(ValueError, match=r"architectures in config\.json is .*, which is no class here"):
        class_of(str(saved))


def test_an_ordinary_network(tmp_path):
    make_ann().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of type 'vit'.* QuantViTForImageClassification\.from_ann\(ann\)"):
        class_of(str(tmp_path))
    change(tmp_path, architectures=["Unheard"])
    with pytest.raises(ValueError, match="the from_ann of a Quant class"):
        class_of(str(tmp_path))


def test_no_network(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        model_type(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no such folder, and it is no Hub id"):
        model_type(str(tmp_path / "none"))


def test_a_config_that_cannot_be_read_is_not_taken_for_a_missing_folder(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"config\.json") as caught:
        model_type(str(saved))
    assert "there is no such folder" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "what"), [(make_qann, "image processor"), (lambda: make_text_qann("bert"), "tokenizer")]
)
def test_no_processor(tmp_path, make, what):
    make().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"holds no {what}: save the one"):
        load_processor(str(tmp_path))


def test_what_is_pushed(saved):
    (saved / "notes.txt").write_text("mine")
    names = files_to_push(saved)
    assert {"config.json", "model.safetensors", "README.md"} <= set(names)
    assert "notes.txt" not in names
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights in safetensors format"):
        files_to_push(saved)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        files_to_push(saved)

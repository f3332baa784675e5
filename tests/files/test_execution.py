"""Nothing in a file is run: not a pickle, not code beside a checkpoint, not a template, not a tag of YAML."""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    ViTImageProcessorPil,
)

from spikezip_hf import QATTrainer
from spikezip_hf.cli import checkpoints, main
from spikezip_hf.data import load_events, load_images, read_events
from spikezip_hf.export import interpreter
from spikezip_hf.loading import class_of, load_network, load_processor
from spikezip_hf.recipes.parsing import read_recipe
from spikezip_hf.recipes.stages import stages_of
from tests.conftest import make_qann, make_text_qann
from tests.test_auto_text import make_tokenizer
from tests.training.common import make_args, make_data

from .common import WEIGHTS, answers, edit_json


class Canary:
    """Whoever unpickles it makes a folder."""

    def __init__(self, trace: Path):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    """A path at which something appears if anything is run."""
    path = tmp_path / "trace"
    yield path
    assert not path.exists()


def code(trace: Path) -> str:
    return f"import os\nos.mkdir({str(trace)!r})\n"


def attempt(call, *arguments):
    """What a call gives, or the error that it raises, of whatever kind: here it only matters what is not done."""
    try:
        return call(*arguments)
    except Exception as error:
        return error


def test_the_canaries_sing(tmp_path):
    """Each of them does something where it is run: else the tests below would test nothing."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "pickle")))
    exec(code(tmp_path / "code"))
    yaml.unsafe_load(tag(tmp_path / "yaml"))
    np.save(tmp_path / "x.npy", np.array([Canary(tmp_path / "npy")], object))
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"pickle", "code", "yaml", "npy"}


OF_A_TRAINING = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
PICKLES = ["pytorch_model.bin", "model.bin", "x.pkl", *OF_A_TRAINING]


@pytest.mark.parametrize("zipped", [False, True], ids=["pickle", "torch"])
@pytest.mark.parametrize("weights", [True, False], ids=["with weights", "without"])
def test_pickles_in_a_folder(folder, model, trace, weights, zipped):
    for name in PICKLES:
        if zipped:
            torch.save({"x": Canary(trace)}, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps({"x": Canary(trace)}))
    if not weights:
        (folder / WEIGHTS).unlink()
    for load in (
        type(model).from_pretrained,
        AutoModelForImageClassification.from_pretrained,
        AutoModel.from_pretrained,
    ):
        found = attempt(load, folder)
        assert isinstance(found, torch.nn.Module if weights else OSError)
    for call in (class_of, load_network, load_processor, checkpoints.describe):
        attempt(call, str(folder))
    if weights:
        type(model).from_pretrained(folder).save_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "../x.bin", "adapter_model.bin", "other.safetensors"])
def test_a_config_that_names_other_weights(folder, model, trace, name):
    """transformers takes the name of the file from a field of the config, and would look at no seal."""
    (folder / name).write_bytes(pickle.dumps({"x": Canary(trace)}))
    edit_json(folder / "config.json", transformers_weights=name)
    for load in (type(model), AutoModelForImageClassification):
        with pytest.raises(ValueError, match="transformers_weights"):
            load.from_pretrained(folder)


MAPS = {
    "config.json": {
        "AutoConfig": "evil.SpikeViTConfig",
        "AutoModel": "evil.SpikeViTModel",
        "AutoModelForImageClassification": "evil.SpikeViTForImageClassification",
    },
    "preprocessor_config.json": {"AutoImageProcessor": "evil.Processor"},
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", None]},
}


def test_code_beside_a_checkpoint(folder, model, trace):
    """What travels with ours is taken from the package; what somebody else named is not taken at all."""
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    for name in ("evil.py", *(path.name for path in folder.glob("*.py"))):
        (folder / name).write_text(code(trace))
    for name in ("config.json", "preprocessor_config.json"):
        edit_json(folder / name, auto_map=MAPS[name])
    assert torch.equal(answers(AutoModelForImageClassification.from_pretrained(folder)), answers(model))
    assert torch.equal(answers(type(model).from_pretrained(folder)), answers(model))
    for call in (AutoModel.from_pretrained, AutoImageProcessor.from_pretrained):
        attempt(call, folder)
    for call in (class_of, load_network, load_processor, checkpoints.describe):
        attempt(call, str(folder))


def test_code_of_a_type_that_is_unknown(folder, trace):
    (folder / "evil.py").write_text(code(trace))
    edit_json(folder / "config.json", model_type="evil", auto_map=MAPS["config.json"])
    for call in (AutoModel.from_pretrained, class_of, load_network, load_processor, checkpoints.describe):
        with pytest.raises(ValueError, match=r"evil|trust_remote_code"):
            call(str(folder))


def test_a_tokenizer_and_its_template(tmp_path, trace):
    model = make_text_qann("bert", max_position_embeddings=64)
    model.save_pretrained(tmp_path / "model", processing_class=make_tokenizer("bert"))
    (tmp_path / "model" / "evil.py").write_text(code(trace))
    template = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        "{% for c in [].__class__.__base__.__subclasses__() %}"
        f"{{{{ c.__init__.__globals__['os'].mkdir('{trace}') }}}}"
        "{% endfor %}"
    )
    edit_json(
        tmp_path / "model" / "tokenizer_config.json",
        auto_map=MAPS["tokenizer_config.json"],
        chat_template=template,
    )
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    for call in (AutoTokenizer.from_pretrained, load_processor, load_network):
        attempt(call, str(tmp_path / "model"))
    loaded = type(model).from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "again", card={"name": template, "license": template})
    assert (tmp_path / "again" / WEIGHTS).exists()


def test_names_in_a_config_are_no_templates(folder, model):
    """A card is made from a template, and what a config says is text in it."""
    label = "{{ 7 * 191 }}{% for x in [1] %}loop{% endfor %}"
    edit_json(folder / "config.json", id2label={str(i): f"{label} {i}" for i in range(5)}, source_model=label)
    (folder / "README.md").unlink()
    type(model).from_pretrained(folder).save_pretrained(folder)
    assert "1337" not in (folder / "README.md").read_text()


def tag(trace: Path) -> str:
    return f"!!python/object/apply:os.mkdir [{json.dumps(str(trace))}]\n"


@pytest.mark.parametrize("where", ["whole", "value", "key", "other stage"])
def test_tags_in_a_recipe(tmp_path, trace, where):
    run = tag(trace)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        {
            "whole": run,
            "value": f"qat:\n  learning_rate: {run}",
            "key": f"qat:\n  ? {run}  : 1\n",
            "other stage": f"qat:\n  seed: 1\nconvert:\n  seed: {run}",
        }[where]
    )
    for read in (stages_of, lambda path: read_recipe(path, "qat")):
        with pytest.raises(ValueError, match=r"recipe\.yaml is not YAML"):
            read(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 600])
def test_a_recipe_that_is_no_text(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    for read in (stages_of, lambda path: read_recipe(path, "qat")):
        with pytest.raises(ValueError, match=r"recipe\.yaml is not YAML"):
            read(path)


def test_a_card_with_tags(folder, model, trace):
    (folder / "README.md").write_text(f"---\nlicense: {tag(trace)}---\nWords\n")
    type(model).from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text().endswith("Words\n")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pkl", "a.pt", "a.bin", "a.dat", "a.mat", "a.aedat", "a.aedat4"])
def test_pickles_among_data(tmp_path, trace, name):
    """As a recording, as a set of them, and as a set of images."""
    for split in ("train", "test"):
        path = tmp_path / "data" / split / "a class" / name
        path.parent.mkdir(parents=True)
        if name.endswith(("npy", "npz")):
            (np.save if name.endswith("npy") else np.savez)(path, np.array([Canary(trace)], object))
        else:
            path.write_bytes(pickle.dumps([Canary(trace)] * 5))
    for call in (lambda folder: list(load_events(folder)["train"]), load_images):
        attempt(call, str(tmp_path / "data"))
    # Five bytes an event, and no header: to the reader of ATIS files every file is one, if it is of the right length.
    if name != "a.bin":
        with pytest.raises(ValueError, match="a class"):
            read_events(path)


def test_inputs_of_the_interpreter(tmp_path, trace):
    np.savez(tmp_path / "inputs.npz", pixel_values=np.array([Canary(trace)], object))
    with pytest.raises((ValueError, FileNotFoundError)):
        interpreter.main([str(tmp_path), str(tmp_path / "inputs.npz"), str(tmp_path / "results.npz")])


@pytest.mark.parametrize("zipped", [False, True], ids=["pickle", "torch"])
def test_the_command_that_imports(tmp_path, trace, zipped, capsys, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    if zipped:
        torch.save({"model": Canary(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Canary(trace)}))
    monkeypatch.setattr(sys, "argv", ["spikezip", "import", str(path), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code not in (0, None)
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_training_that_is_resumed(tmp_path, trace):
    """Trainer keeps pickles; it reads them with `weights_only`."""
    qann = make_qann()
    data, fields = make_data(qann.config, 8), {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    QATTrainer(qann, make_args(tmp_path, **{**fields, "max_steps": 1}), train_dataset=data).train()
    for name in OF_A_TRAINING:
        assert (tmp_path / "checkpoint-1" / name).exists()
        torch.save({"x": Canary(trace)}, tmp_path / "checkpoint-1" / name)
    again = QATTrainer(make_qann(), make_args(tmp_path, **fields), train_dataset=data)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))

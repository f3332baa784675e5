"""`trust_remote_code=True` where spikezip_hf is not installed: the code that travels with a checkpoint is enough."""

import json
from unittest import mock

import pytest
import torch

from spikezip_hf import auto
from spikezip_hf.models import kernels
from tests.conftest import make_batch, make_qann, make_swin_qann, make_text_qann, spiking_twin
from tests.hub.bare import run_bare

NETWORKS = {
    "vit": lambda: make_qann(),
    "swin": lambda: make_swin_qann(weight_bits=8),
    "bert": lambda: make_text_qann("bert", granularity="mixed", head_act="tanh"),
    "roberta": lambda: make_text_qann("roberta", granularity="mixed"),
    "bert_tokens": lambda: make_text_qann("bert", "ForTokenClassification"),
    "roberta_tokens": lambda: make_text_qann("roberta", "ForTokenClassification"),
}
# Loads each checkpoint by the Auto class of its task and by AutoModel, saves it again, and loads that.
PROGRAM = """
import importlib.util, json, os, sys
for absent in ("spikezip_hf", "accelerate", "datasets", "evaluate", "peft", "timm", "sklearn", "matplotlib"):
    assert importlib.util.find_spec(absent) is None, absent
import torch, transformers

def check(source, stored, **options):
    for auto in (stored["auto"], "AutoModel"):
        model = getattr(transformers, auto).from_pretrained(source, trust_remote_code=True, **options)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            found = model.eval()(**stored["inputs"])[0]
        assert torch.equal(found, stored["outputs"][auto]), (source, auto)
        if auto == stored["auto"]:
            headed = model
        yield type(model).__name__
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True, **options)
    assert config.auto_map == stored["auto_map"], config.auto_map
    headed.save_pretrained(stored["again"])

# Without consent nothing runs; first, for what was consented to once stays known to this process.
try:
    transformers.AutoModel.from_pretrained(torch.load(sys.argv[1])["source"], trust_remote_code=False)
except ValueError as error:
    print("refused", " ".join(str(error).split()))

for path in sys.argv[1:]:
    stored = torch.load(path, weights_only=True)
    names = list(check(stored["source"], stored))
    names += check(stored["again"], {**stored, "again": stored["again"] + "_twice"})
    print(stored["name"], *names)

# What needs the package says so.
qann = transformers.AutoModel.from_pretrained(stored["source"], trust_remote_code=True).to_quantized()
for call in (lambda: type(qann).from_ann(qann), lambda: qann.calibrate([])):
    try:
        call()
    except ImportError as error:
        print("needs", error)
"""


def stored(name, model, source, folder):
    """What the program needs to know of a model: inputs and outputs, to the bit.

    Products with weights of float32 are in floating point there, as they are without the package's kernels.
    """
    inputs = make_batch(model)
    base = model.base_model
    with torch.no_grad(), mock.patch.object(kernels, "in_fixed_point", return_value=False):
        outputs = {type(model)._auto_class: model(**inputs)[0], "AutoModel": base(**inputs)[0]}
    path = folder / f"{name}.pt"
    torch.save(
        {
            "name": name,
            "source": str(source),
            "again": str(folder / f"{name}_again"),
            "auto": type(model)._auto_class,
            "auto_map": type(model.config).make_auto_map(),
            "inputs": inputs,
            "outputs": outputs,
        },
        path,
    )
    return path


def models(*names):
    """The Quant or Spike models of these names; of all architectures and heads, if none is given."""
    for name in names or [f"{kind}_{network}" for network in NETWORKS for kind in ("quant", "spike")]:
        kind, network = name.split("_", 1)
        qann = NETWORKS[network]().eval()
        yield name, qann if kind == "quant" else spiking_twin(qann, time_steps=400)


def check(found: str, expected: dict) -> None:
    """Each model was loaded by both classes, before and after it was saved again."""
    refused, *lines, needs, more_needs = [line.split() for line in found.splitlines()]
    assert "pip install spikezip-hf" in " ".join(needs)
    assert "pip install spikezip-hf" in " ".join(more_needs)
    assert "trust_remote_code=True" in " ".join(refused)
    assert [line[0] for line in lines] == list(expected)
    for name, *classes in lines:
        model = expected[name]
        assert classes == [type(model).__name__, type(model.base_model).__name__] * 2


def test_from_a_folder(site, tmp_path):
    """One of each architecture, a Spike model last; all of them, over HTTP, are slow."""
    expected, paths = {}, []
    for name, model in models("quant_vit", "spike_swin", "quant_bert", "spike_roberta_tokens"):
        model.save_pretrained(tmp_path / name)
        paths.append(stored(name, model, tmp_path / name, tmp_path))
        expected[name] = model
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    check(run_bare(with_arguments(paths), site, environment), expected)


@pytest.mark.slow
def test_over_http(site, tmp_path, hub):
    expected, paths = {}, []
    for name, model in models():
        repo = f"org/{name.replace('_', '-')}-8"  # as people name them: a hyphen, and a digit at the end
        model.push_to_hub(repo)
        paths.append(stored(name, model, repo, tmp_path))
        expected[name] = model
    check(run_bare(with_arguments(paths), site, hub.environment(OMP_NUM_THREADS="1")), expected)


def test_pipeline_by_name_alone(site, tmp_path, hub):
    """With a tokenizer beside it; the package is not there, so neither is its registration."""
    from tests.test_auto_text import TEXTS, make_tokenizer

    qann = make_text_qann("roberta", max_position_embeddings=64)
    snn = spiking_twin(qann, time_steps=400)
    tokenizer = make_tokenizer("roberta")
    snn.push_to_hub("org/spike", processing_class=tokenizer)
    program = f"""
from transformers import pipeline
import json
print(json.dumps(pipeline(model="org/spike", trust_remote_code=True)({TEXTS!r})))
"""
    answers = json.loads(run_bare(program, site, hub.environment(OMP_NUM_THREADS="1")))
    with torch.no_grad():
        logits = [qann(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    assert [answer["label"] for answer in answers] == [qann.config.id2label[int(one.argmax())] for one in logits]


def with_arguments(paths) -> str:
    return f"import sys; sys.argv = ['', *{[str(path) for path in paths]!r}]\n{PROGRAM}"


@pytest.mark.parametrize("config", auto.CONFIGS, ids=lambda config: config.__name__)
def test_every_class_is_in_the_map(config):
    """The map names all Auto classes that the package registers, and each class knows its own entry."""
    made = config().auto_map
    assert made["AutoConfig"].endswith(f".{config.__name__}")
    registered = auto.MODELS[config]
    assert set(made) == {"AutoConfig", *(auto_class.__name__ for auto_class in registered)}
    for auto_class, model in registered.items():
        assert model._auto_class == auto_class.__name__
        assert made[auto_class.__name__] == f"{model.__module__.rpartition('.')[2]}.{model.__name__}"

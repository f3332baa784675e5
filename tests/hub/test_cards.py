"""What a model card says, and what it keeps silent about; and which network results are of."""

import copy
import functools
import json
import re
import sys

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants
from packaging.version import Version
from transformers import AutoModel, ViTModel

from spikezip_hf import QuantViTForImageClassification, QuantViTModel
from spikezip_hf.conversion.ann import quantized_class
from spikezip_hf.hub import model_card, network_digest, write_card
from spikezip_hf.hub.card_text import outline_of, parameters_of
from spikezip_hf.hub.cards import NOTICE
from tests.conftest import (
    make_ann,
    make_images,
    make_qann,
    make_swin_ann,
    make_swin_qann,
    make_text_ann,
    make_text_qann,
    spiking_twin,
    text_class,
)
from tests.hub.routes import front_matter
from tests.models.test_event_vit import PROCESSOR, make_event_qann

TASKS = {
    "vit": {"Model": "image-feature-extraction", "ForImageClassification": "image-classification"},
    "swin": {"ForImageClassification": "image-classification"},
    "bert": {
        "Model": "feature-extraction",
        "ForSequenceClassification": "text-classification",
        "ForTokenClassification": "token-classification",
    },
}
TASKS["roberta"] = TASKS["bert"]
NAMES = {"vit": "ViT", "swin": "Swin", "bert": "BERT", "roberta": "RoBERTa"}

IMAGES = ("vit", "swin")
KINDS = ("Quant", "Spike")
HEADS = {
    "vit": "ForImageClassification",
    "swin": "ForImageClassification",
    "bert": "ForSequenceClassification",
    "roberta": "ForSequenceClassification",
}
ALL = [(network, task) for network, tasks in TASKS.items() for task in tasks]

# The bare models of text and those for tokens are as the classifiers in what is looked at here.
every_model = pytest.mark.parametrize(
    ("network", "task"),
    [
        pytest.param(
            *one, id="".join(one), marks=pytest.mark.slow if one[0] == "bert" and one not in HEADS.items() else ()
        )
        for one in ALL
    ],
)
every_classifier = pytest.mark.parametrize(("network", "task"), HEADS.items(), ids=list(HEADS))
each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def made(network: str, task: str, fields: tuple = ()):
    if network == "swin":
        return make_swin_qann(**dict(fields))
    if network != "vit":
        return make_text_qann(network, task, **dict(fields))
    if task != "Model":
        return make_qann(**dict(fields))
    torch.manual_seed(0)
    ann = ViTModel(make_ann().config, add_pooling_layer=False).eval()
    qann = QuantViTModel.from_ann(ann, quantization_levels=16)
    return qann.calibrate([{"pixel_values": make_images(qann.config, 4)}])


def make(network: str, kind: str = "Spike", task: str | None = None, time_steps: int = 64, spiking=None, **fields):
    """A model of its own, so that a test may change it."""
    qann = copy.deepcopy(made(network, task or HEADS[network], tuple(sorted(fields.items()))))
    return qann if kind == "Quant" else spiking_twin(qann, time_steps=time_steps, **(spiking or {}))


def forget() -> None:
    """What is kept of structures, so that the next card has to look at its own."""
    outline_of.cache_clear()
    parameters_of.cache_clear()


def make_results(model, simulated: int = 64, steps: dict | None = None, **fields) -> dict:
    """Results as an evaluation writes them, all figures different from each other; ten samples."""
    steps = {"20": 6, "40": 3, "60": 1} if steps is None else steps
    settled = sum(steps.values())
    return {
        "network_digest": network_digest(model),
        "data": "words",
        "split": "test",
        "accuracy on the whole split": {"samples": 40, "ANN": 0.875, "QANN": 0.775},
        "simulated": {
            "samples": 10,
            "T": simulated,
            "rows": [
                {"network": "ANN", "T": "-", "accuracy": 0.9, "agrees with QANN": 0.91},
                {"network": "QANN", "T": "-", "accuracy": 0.8, "agrees with QANN": 1.0},
                {"network": "SNN", "T": 8, "accuracy": 0.3, "agrees with QANN": 0.41},
                {"network": "SNN", "T": 32, "accuracy": 0.7, "agrees with QANN": 0.72},
                {"network": "SNN", "T": "equilibrium", "accuracy": 0.801, "agrees with QANN": 0.99},
            ],
            "at equilibrium": settled,
            "equilibrium steps": steps,
            "accuracy per step": [0.01 * step for step in range(1, simulated + 1)],
            "T_eq": {"mean": 30.5, "95th percentile": 57, "max": 60},
            "spikes per neuron": 4.321,
            "certificate": "exact: 10 of 10 samples, so it is said",
            "exact": True,
        },
        **fields,
    }


def metadata(card: ModelCard | str) -> dict:
    """The front matter, with an error for whatever ModelCardData does not take."""
    found = front_matter(str(card))
    ModelCardData(**found, ignore_metadata_errors=False)
    return found


def body(card: ModelCard | str) -> str:
    return str(card).split("\n---\n", 1)[1]


def facts(card: ModelCard | str) -> dict[str, str]:
    """The table of facts."""
    table = body(card).split("|---|---|\n")[1].split("\n\n")[0]
    return dict(re.fullmatch(r"\| (.+?) \| (.+) \|", line).groups() for line in table.splitlines())


def rows(card: ModelCard | str) -> list[tuple[str, ...]]:
    """The rows of all tables of results."""
    return re.findall(r"^\| (ANN|QANN|SNN) \| (\S+) \| (.+?) \| (.+?) \|$", body(card), re.MULTILINE)


def spaceless(text: str) -> str:
    return " ".join(text.split())


# Every class


@each_kind
@every_model
def test_what_is_not_known_is_not_said(network, task, kind):
    model = make(network, kind, task)
    card = model_card(model, "a-name")
    data = metadata(card)
    assert set(data) == {"library_name", "pipeline_tag", "tags"}
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", TASKS[network][task])
    assert facts(card)["Made from"] == "unknown"
    text = spaceless(body(card))
    assert "an ordinary network that is not on record" in text
    assert "No evaluation on a test set is on record: its accuracy is not known" in text
    assert rows(card) == []
    assert "None" not in text
    assert "http" not in text
    assert "## Training" not in text
    assert str(card).count(NOTICE) == 1


@each_kind
@every_model
def test_what_the_model_is(network, task, kind):
    model = make(network, kind, task)
    card = model_card(model, "a-name", repo_id="org/a-name")
    told = facts(card)
    assert told["Class"] == f"`{type(model).__name__}`"
    assert told["Levels of activations"] == "16: -8 to 7, and 0 to 15 behind ReLU and softmax"
    assert told["Thresholds"] == "per_tensor"
    assert told["Weights"] == "float32"
    assert told["Activation nodes"] == str(len(model.nodes))
    size = sum(parameter.numel() for parameter in model.parameters())
    assert f"{NAMES[network]} ({model.config.depth} layers, 32 channels, {size / 1000:.1f}k parameters)" in body(card)
    assert "# a-name\n" in body(card)
    tags = metadata(card)["tags"]
    assert ("snn" in tags, "quantized" in tags) == (kind == "Spike", kind == "Quant")
    assert {"spikezip-tf", "spikezip_hf"} <= set(tags)


@each_kind
@every_model
def test_products_and_operators_are_those_of_the_model(network, task, kind):
    model = make(network, kind, task)
    report = model.product_inputs()
    told = facts(model_card(model, "a-name"))
    assert told["Products with analog input"] == (", ".join(f"`{name}`" for name in report.analog) or "none")
    operators = list(report.operators.values())
    counted = {f"{operators.count(name)} {name}" for name in operators}
    where = "on accumulated potentials" if kind == "Spike" else "in floating point"
    assert set(told[f"Operators {where}"].split(", ")) == counted


@each_kind
@every_model
def test_examples_are_valid_and_of_this_model(network, task, kind):
    model = make(network, kind, task)
    text = body(model_card(model, "a-name", repo_id="org/a-name"))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    assert text.count("```") % 2 == 0
    for block in blocks:
        compile(block, "card", "exec")
        assert '"org/a-name"' in block
    assert f'pipeline("{TASKS[network][task]}"' in blocks[0]
    head = f"AutoModel{task.removeprefix('Model')}"
    assert f'model = {head}.from_pretrained("org/a-name")' in blocks[1]
    assert ("AutoTokenizer" in blocks[1], "AutoImageProcessor" in blocks[1]) == (
        network not in IMAGES,
        network in IMAGES,
    )
    readout = "last_hidden_state" if task == "Model" else "logits"
    assert (f"out.{readout} " in blocks[1], "time_steps=64" in blocks[1]) == (kind == "Spike", kind == "Spike")


def test_the_example_of_a_network_for_event_cameras_is_a_recording():
    qann = make_event_qann()
    text = body(model_card(qann, "a-name"))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "image.png" not in text
    assert "pipeline" not in blocks[0]  # transformers' takes pictures alone
    scope = {}
    exec(re.search("recording = .*", blocks[1])[0], scope)
    assert PROCESSOR(scope["recording"], return_tensors="pt")["pixel_values"].sum() == 2 * PROCESSOR.rescale_factor


@pytest.mark.parametrize("results", [False, True], ids=["alone", "evaluated"])
@every_classifier
def test_a_quant_card_says_nothing_of_spikes(network, task, results):
    model = make(network, "Quant")
    card = model_card(model, "a-name", make_results(model) if results else None)
    assert not {"Time-steps T", "Spikes in a step k", "Firing schedule"} & set(facts(card))
    for word in ("SNN", "T =", "T_eq", "Certificate", "Spikes per neuron", "Energy", "simulation", "time_steps"):
        assert word not in body(card).split("## Citation")[0]
    tags = metadata(card)["tags"]
    assert not any(tag in tags for tag in ("snn", "spiking-neural-network", "neuromorphic"))


# What is known


@each_kind
@every_classifier
def test_the_network_it_was_made_from(network, task, kind):
    model = make(network, kind)
    model.config.source_model = "org/ordinary"
    card = model_card(model, "a-name")
    data = metadata(card)
    assert (data["base_model"], data["base_model_relation"]) == ("org/ordinary", "quantized")
    assert facts(card)["Made from"] == "`org/ordinary`"
    assert "[org/ordinary](https://huggingface.co/org/ordinary)" in body(card)
    assert "not on record" not in body(card).split("## Results")[0]


@each_kind
def test_weights_of_8_bits(kind):
    card = model_card(make("bert", kind, weight_bits=8), "a-name")
    assert facts(card)["Weights"] == "8 bits, one scale for each output channel (stored as float32)"
    assert "are multiplied as integers" in body(card)
    assert "are multiplied as integers" not in body(model_card(make("bert", kind), "a-name"))


def test_half_precision():
    assert facts(model_card(make("bert", "Quant").to(torch.bfloat16), "a-name"))["Weights"] == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "schedule", "spikes"),
    [
        ({}, "synchronous", 1),
        ({"firing_schedule": "layerwise"}, "layerwise, window 8", 1),
        ({"firing_schedule": "layerwise", "firing_window": 5}, "layerwise, window 5", 1),
        (
            {"firing_schedule": "nodewise", "firing_steps": {"a": 1, "b": 9}},
            "nodewise, made for this network: steps of its nodes are in the config, up to 9",
            1,
        ),
        ({"max_spikes_per_step": 3}, "synchronous", 3),
    ],
    ids=["usual", "layerwise", "window", "nodewise", "k"],
)
def test_how_it_fires(fields, schedule, spikes):
    told = facts(model_card(make("vit", time_steps=77, spiking=fields), "a-name"))
    assert told["Firing schedule"] == schedule
    assert told["Spikes in a step k"] == f"at most {spikes}"
    assert told["Time-steps T"] == "at most 77"


@each_kind
@pytest.mark.parametrize("network", ["bert", "roberta"])
def test_reference_placement_lists_its_analog_products(network, kind):
    model = make(network, kind, node_placement="reference")
    analog = model.product_inputs().analog
    assert analog  # or the test would be empty
    listed = facts(model_card(model, "a-name"))["Products with analog input"]
    assert listed.split(", ") == [f"`{name}`" for name in analog]


def test_tanh_in_the_head_is_an_operator():
    told = facts(model_card(make("bert", head_act="tanh"), "a-name"))
    assert "1 Tanh" in told["Operators on accumulated potentials"].split(", ")


def test_given_metadata_counts_more_than_what_is_derived():
    model = make("bert")
    model.config.source_model = "org/ordinary"
    given = {"license": "mit", "language": ["en"], "datasets": ["org/data"], "base_model": "org/other"}
    data = metadata(model_card(model, "a-name", **given, tags=["mine"]))
    assert {key: data[key] for key in given} == given
    assert {"mine", "snn"} <= set(data["tags"])


def test_a_text_about_training():
    assert "## Training\n\nFor an hour.\n" in body(model_card(make("vit"), "a-name", training="For an hour."))


# Results


@every_classifier
def test_results_of_a_spiking_model(network, task):
    model = make(network)
    results = make_results(model)
    card = model_card(model, "a-name", results)
    assert rows(card) == [
        ("ANN", "-", "90.00 %", "91.00 %"),
        ("QANN", "-", "80.00 %", "100.00 %"),
        ("SNN", "8", "30.00 %", "41.00 %"),
        ("SNN", "32", "70.00 %", "72.00 %"),
        ("SNN", "equilibrium", "80.10 %", "99.00 %"),
    ]
    text = body(card)
    assert "**words**, test split, 10 of its 40 samples, evenly spread:" in text
    assert "- On all 40 samples: ANN 87.50 %, QANN 77.50 %.\n" in text
    line = "- T = 64 reaches equilibrium on 10 of 10 samples; T_eq: mean 30.5, 95th percentile 57, max 60.\n"
    assert line in text
    assert "- Spikes per neuron until equilibrium, or T = 64: 4.32.\n" in text
    assert f"- Certificate: {results['simulated']['certificate']}.\n" in text
    assert "No evaluation" not in text


@every_classifier
def test_model_index_of_a_spiking_model(network, task):
    model = make(network)
    data = metadata(model_card(model, "a-name", make_results(model, dataset="org/words", subset="few")))
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "a-name"
    assert result["task"] == {"type": TASKS[network][task]}
    assert result["dataset"] == {"name": "words", "type": "org/words", "config": "few", "split": "test"}
    values = [(metric["value"], metric["args"]["time_steps"], metric["args"]["stop"]) for metric in result["metrics"]]
    assert values == [(0.3, 8, "never"), (0.7, 32, "never"), (0.801, 64, "equilibrium")]
    assert all(metric["args"]["samples"] == 10 for metric in result["metrics"])
    assert data["metrics"] == ["accuracy"]
    assert "datasets" not in data  # which are those it was trained on


@every_classifier
def test_results_of_a_quant_model(network, task):
    model = make(network, "Quant")
    card = model_card(model, "a-name", make_results(model))
    assert [row[:2] for row in rows(card)] == [("ANN", "-"), ("QANN", "-")]
    (entry,) = metadata(card)["model-index"]
    (metric,) = entry["results"][0]["metrics"]
    assert (metric["value"], metric["type"]) == (0.775, "accuracy")  # on the whole split


def test_local_data_is_no_data_set_of_the_hub():
    model = make("bert")
    assert "datasets" not in metadata(model_card(model, "a-name", make_results(model)))


@pytest.mark.parametrize(("time_steps", "settled"), [(19, 0), (20, 6), (39, 6), (40, 9), (60, 10)])
def test_share_of_samples_that_the_models_own_time_steps_settle(time_steps, settled):
    model = make("vit", time_steps=time_steps)
    text = body(model_card(model, "a-name", make_results(model)))
    assert f"T = {time_steps} reaches equilibrium on {settled} of 10 samples" in text


def test_nothing_is_claimed_of_time_steps_beyond_those_simulated():
    """Four samples were still moving when the simulation ended at 64: whether 128 steps settle them, nobody knows."""
    model = make("vit", time_steps=128)
    card = model_card(model, "a-name", make_results(model, steps={"20": 6}))
    assert "T = 128 reaches equilibrium on 6 of 10" not in body(card)


def test_time_steps_beyond_those_simulated_settle_what_had_settled():
    model = make("vit", time_steps=128)
    assert "T = 128 reaches equilibrium on 10 of 10" in body(model_card(model, "a-name", make_results(model)))


def test_no_sample_at_equilibrium():
    model = make("vit")
    results = make_results(model, steps={})
    results["simulated"]["T_eq"] = None
    text = body(model_card(model, "a-name", results))
    assert "T = 64 reaches equilibrium on 0 of 10 samples.\n" in text
    assert "None" not in text


def test_two_data_sets():
    model = make("bert")
    second = make_results(model, data="others", split="validation")
    card = model_card(model, "a-name", [make_results(model), second])
    assert len(rows(card)) == 10
    assert "**words**, test split" in body(card)
    assert "**others**, validation split" in body(card)
    (entry,) = metadata(card)["model-index"]
    assert [result["dataset"]["name"] for result in entry["results"]] == ["words", "others"]


# Results of which network


@each_kind
def test_given_results_of_another_network_are_refused(kind, tmp_path):
    model, other = make("bert", kind), make("bert", kind, seed=3)
    with pytest.raises(ValueError, match="results are of another network than this one"):
        model_card(model, "a-name", make_results(other))
    with pytest.raises(ValueError, match="results are of another network than this one"):
        write_card(model, tmp_path, results=make_results(other))
    assert list(tmp_path.iterdir()) == []


@each_kind
def test_results_of_another_network_in_the_folder_are_ignored(kind, tmp_path):
    model, other = make("bert", kind), make("bert", kind, seed=3)
    (tmp_path / "results.json").write_text(json.dumps(make_results(other)))
    write_card(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert rows(card) == []
    assert "No evaluation on a test set is on record" in card
    assert "model-index" not in metadata(card)
    (tmp_path / "results.json").write_text(json.dumps(make_results(model)))
    write_card(model, tmp_path)
    assert len(rows((tmp_path / "README.md").read_text())) == (5 if kind == "Spike" else 2)


@pytest.mark.parametrize("key", ["rows", "samples"])
def test_results_without_a_figure_are_refused(key, tmp_path):
    model = make("vit")
    results = make_results(model)
    del results["simulated"][key]
    with pytest.raises(ValueError, match=key):
        write_card(model, tmp_path, results=results)
    assert list(tmp_path.iterdir()) == []


# Pictures


def test_a_picture_is_drawn_and_shown(tmp_path):
    model = make("vit")
    write_card(model, tmp_path, results=make_results(model))
    assert "![Accuracy against time-steps on words](accuracy_over_time.png)" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "accuracy_over_time.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "accuracy_over_time.png", "results.json"}


def test_without_matplotlib_the_table_has_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = make("vit")
    write_card(model, tmp_path, results=make_results(model))
    card = (tmp_path / "README.md").read_text()
    assert ".png)" not in card
    assert len(rows(card)) == 5
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "results.json"}


def test_no_picture_of_a_quant_model(tmp_path):
    model = make("vit", "Quant")
    write_card(model, tmp_path, results=make_results(model))
    assert ".png)" not in (tmp_path / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "results.json"}


# Written anew


def test_metadata_of_a_generated_card_is_kept(tmp_path):
    model = make("bert")
    given = {"license": "mit", "language": ["en"], "datasets": ["org/data"], "base_model": "org/ordinary"}
    write_card(model, tmp_path, **given, tags=["mine"])
    model.config.time_steps = 99
    write_card(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    data = metadata(card)
    assert {key: data[key] for key in given} == given
    assert "mine" in data["tags"]
    assert len(data["tags"]) == len(set(data["tags"]))
    assert facts(card)["Time-steps T"] == "at most 99"
    write_card(model, tmp_path, license="apache-2.0", tags=["more"])
    data = metadata((tmp_path / "README.md").read_text())
    assert data["license"] == "apache-2.0"
    assert {"mine", "more"} <= set(data["tags"])


def test_the_words_of_somebody_are_kept(tmp_path):
    (tmp_path / "README.md").write_text("# My words\n")
    assert write_card(make("vit"), tmp_path) is False
    assert (tmp_path / "README.md").read_text() == "# My words\n"


@pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2"),
    reason="that huggingface_hub asks the real Hub, whatever HF_ENDPOINT says",
)
def test_the_hub_takes_the_metadata(hub):
    model = make("bert")
    model_card(model, "a-name", make_results(model), license="mit").validate()
    assert ("POST", "/api/validate-yaml", 200) in hub.requests


# Nothing of this machine


def loaded_ann(network: str, folder):
    ann = {"vit": make_ann, "swin": make_swin_ann}.get(network, lambda: make_text_ann(network))()
    ann.save_pretrained(folder)
    return type(ann).from_pretrained(folder)


@pytest.mark.parametrize("where", ["absolute", "relative"])
@pytest.mark.parametrize("network", TASKS)
def test_no_path_of_this_machine_is_told(network, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out" / "ann" if where == "absolute" else "out/ann"  # which could be an id on the Hub
    ann = loaded_ann(network, folder)
    assert ann.config._name_or_path == str(folder)
    if network in IMAGES:
        qann = quantized_class(ann).from_ann(ann, quantization_levels=16)
        qann.calibrate([{"pixel_values": make_images(qann.config, 2)}])
    else:
        qann = text_class("Quant", network).from_ann(ann, quantization_levels=16)
        qann.calibrate([qann.dummy_inputs])
    assert qann.config.source_model is None
    qann.save_pretrained("qann")
    spiking_twin(type(qann).from_pretrained(tmp_path / "qann")).save_pretrained(tmp_path / "snn")
    for name in ("qann", "snn"):
        for file in ("README.md", "config.json"):
            text = (tmp_path / name / file).read_text()
            assert str(tmp_path) not in text
            assert "out/ann" not in text
        assert json.loads((tmp_path / name / "config.json").read_text())["source_model"] is None
        assert "base_model" not in metadata((tmp_path / name / "README.md").read_text())


def test_an_id_on_the_hub_is_told(monkeypatch, tmp_path):
    """If it was downloaded: outputs/ann may be an id as well as somebody's folder."""
    ann = make_ann()
    ann.config._name_or_path = "org/ordinary"
    assert QuantViTForImageClassification.from_ann(ann).config.source_model is None
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--ordinary" / "snapshots").mkdir(parents=True)
    assert QuantViTForImageClassification.from_ann(ann).config.source_model == "org/ordinary"


# The network is not run


@each_kind
@every_model
def test_the_model_itself_is_not_run(network, task, kind, monkeypatch):
    model = make(network, kind, task)

    def run(*args, **kwargs):
        raise AssertionError("the model was run")

    for name in ("forward", "network", "prepare", "product_inputs"):
        monkeypatch.setattr(model, name, run)
    model.train()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    forget()
    model_card(model, "a-name")
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert any(modes) == (kind == "Quant")


@each_kind
def test_a_card_of_a_model_without_its_weights(kind):
    """As one process of several has it, which holds a shard."""
    model = make("bert", kind)
    expected = str(model_card(model, "a-name"))
    forget()
    assert str(model_card(model.to("meta"), "a-name")) == expected


def test_a_card_of_a_large_network_is_cheap():
    """The copy that is looked at in its place has the depth of the network, and not its width."""
    config = QuantViTForImageClassification.config_class(
        hidden_size=16384, intermediate_size=65536, num_hidden_layers=2, num_attention_heads=16, image_size=4096
    )
    with torch.device("meta"):
        model = QuantViTForImageClassification(config)
    assert "16384 channels" in body(model_card(model, "a-name"))
    assert model.config.hidden_size == 16384


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_card_in_half_precision_tells_the_same_products(dtype):
    model = make("bert")
    expected = facts(model_card(model, "a-name"))
    forget()
    told = facts(model_card(model.to(dtype), "a-name"))
    assert told == {**expected, "Weights": str(dtype).removeprefix("torch.")}
    assert model.dtype == dtype


def test_what_is_kept_of_one_structure_is_told_of_no_other():
    config, bare = make("bert", "Quant").config, text_class("Quant", "bert", "Model")
    tokens = text_class("Quant", "bert", "ForTokenClassification")
    models = [bare(config), bare(config, add_pooling_layer=True), tokens(config), make("bert", "Quant"), make("bert")]
    for fields in ({"head_act": "tanh"}, {"node_placement": "reference"}, {"num_hidden_layers": 3}):
        other = copy.deepcopy(config)
        other.update(fields)
        models.append(text_class("Quant", "bert")(other))
    apart = []
    for model in models:
        forget()
        apart.append(str(model_card(model, "a-name")))
    assert len(set(apart)) == len(apart)
    forget()
    for _ in range(2):
        assert [str(model_card(model, "a-name")) for model in models] == apart
    assert outline_of.cache_info().hits == parameters_of.cache_info().hits == len(models)
    models[-1].config.num_hidden_layers = 1  # what a config says now counts
    assert "1 layers" in body(model_card(models[-1], "a-name"))
    assert outline_of.cache_info().misses == len(models) + 1


# The digest of a network


def changed(model, name: str):
    state = model.state_dict()
    key = next(key for key in state if key.endswith(name))
    state[key].view(-1)[0] += 0.5
    return model


OTHERS = {
    "a weight": lambda: changed(make("vit"), "layernorm_before.weight"),
    "a bias": lambda: changed(make("vit"), "classifier.bias"),
    "a scale": lambda: changed(make("vit"), ".scale"),
    "dtype": lambda: make("vit").double(),
    "class": lambda: make("vit", "Quant"),
    "task": lambda: spiking_twin(make("vit", "Quant", "Model")),
    "k": lambda: make("vit", spiking={"max_spikes_per_step": 2}),
    "schedule": lambda: make("vit", spiking={"firing_schedule": "layerwise"}),
    "window": lambda: make("vit", spiking={"firing_schedule": "layerwise", "firing_window": 3}),
}


def test_digest_of_another_network_is_another():
    digests = {name: network_digest(make_other()) for name, make_other in OTHERS.items()}
    digests["itself"] = network_digest(make("vit"))
    assert len(set(digests.values())) == len(digests), digests


FIELDS = {
    "quantization_levels": 32,
    "num_attention_heads": 2,
    "layer_norm_eps": 0.1,
    "weight_bits": 8,
    "node_placement": "reference",
    "head_act": "tanh",
}


@pytest.mark.parametrize("field", FIELDS)
def test_digest_tells_what_no_weight_tells(field):
    """Of two networks with the same weights, and with other answers."""
    model = make("bert")
    before = network_digest(model)
    setattr(model.config, field, FIELDS[field])
    assert network_digest(model) != before


@each_kind
@pytest.mark.parametrize("network", TASKS)
def test_digest_does_not_tell_where_and_for_how_long(network, kind, tmp_path):
    model = make(network, kind)
    before = network_digest(model)
    assert re.fullmatch("[0-9a-f]{64}", before)
    model.config.source_model = "org/ordinary"
    model.config.spikezip_version = "0.0.1"
    model.config.drop_path_rate = 0.3
    model.config._name_or_path = str(tmp_path)
    if kind == "Spike":
        model.config.time_steps = 7
    assert network_digest(model) == before
    model.save_pretrained(tmp_path)
    assert network_digest(type(model).from_pretrained(tmp_path)) == before
    assert network_digest(copy.deepcopy(model)) == before


def test_digest_of_a_base_model_is_not_that_of_its_classifier(tmp_path):
    model = make("vit")
    model.save_pretrained(tmp_path)
    assert network_digest(AutoModel.from_pretrained(tmp_path)) != network_digest(model)


def test_yaml_of_odd_names_is_quoted():
    card = model_card(make("vit"), "a-name", license="other", tags=["yes: no", "#1"])
    assert {"yes: no", "#1"} <= set(yaml.safe_load(str(card).split("---\n")[1])["tags"])

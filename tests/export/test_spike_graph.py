"""What is in a spike graph, what is refused while it is made, and what is refused when it is read."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save
from torch import nn

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.export import spike_graph as loader
from spikezip_hf.export.network_graph import merged, save_spike_graph, to_spike_graph
from spikezip_hf.export.spike_graph import GRAPH_FILE, KINDS, TENSORS_FILE, SpikeGraphError, load_spike_graph
from spikezip_hf.export.tracing import Recorder, Traced, TracingEngine, UntraceableError
from spikezip_hf.models.operators import Conv2d, Linear
from tests.conftest import make_ann, make_batch, make_qann, make_text_qann, spiking_twin

SIZES = {"batch": (2, 3), "length": (6, 7)}


@pytest.fixture(scope="module")
def snn():
    return spiking_twin(make_qann(granularity="mixed"), time_steps=32)


@pytest.fixture
def saved(snn, tmp_path):
    save_spike_graph(snn, tmp_path)
    return tmp_path


def test_round_trip(snn, saved):
    graph, loaded = to_spike_graph(snn), load_spike_graph(saved)
    assert sorted(path.name for path in saved.iterdir()) == [GRAPH_FILE, TENSORS_FILE]
    for name, value in vars(graph).items():
        if name != "tensors":
            assert getattr(loaded, name) == value
    assert set(graph.tensors) == set(loaded.tensors)
    for name, x in graph.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], x)
        assert loaded.tensors[name].dtype == x.dtype


def test_every_parameter_is_in_it_once(snn):
    graph = to_spike_graph(snn)
    prefix = f"{snn.base_model_prefix}."
    parameters = {name.removeprefix(prefix): x for name, x in snn.named_parameters()}
    scales = {name: x for name, x in parameters.items() if name.endswith(".scale")}
    for name, x in parameters.items():
        kept = name if name not in scales else name.removesuffix("scale") + "threshold"
        np.testing.assert_array_equal(graph.tensors[kept], x.detach().numpy())
    assert len(graph.tensors) == len(parameters)


def test_neurons(snn):
    graph = to_spike_graph(snn)
    by_name = {item.name: item for item in graph.neurons}
    assert list(by_name) == [node.name for node in snn.nodes]
    hidden = by_name["layers.1.mlp.hidden_node"]
    assert (hidden.min_level, hidden.max_level, hidden.shape, hidden.count) == (0, 15, [5, 48], 240)
    query = by_name["layers.0.attention.q_node"]
    assert (query.min_level, query.max_level) == (-8, 7)
    sizes = {name: graph.tensors[item.threshold].shape for name, item in by_name.items()}
    assert sizes["layers.1.mlp.hidden_node"] == (1,)
    assert sizes["layers.1.mlp.output_node"] == (32,)
    assert sum(item.count for item in graph.neurons) == int(snn.trajectory(**snn.dummy_inputs).neuron_counts.sum())


def test_texts_of_any_length():
    graph = to_spike_graph(spiking_twin(make_text_qann("bert")))
    by_name = {operation.name: operation for operation in graph.operations}
    probs = by_name["encoder.layer.0.attention.self.probs_node"]
    assert probs.shape == ["batch", 4, "length", "length"]
    assert probs.inputs[1] == "attention_mask"
    assert {item.count for item in graph.neurons} == {None, 32}  # the head's node has one position
    assert [operation.kind for operation in graph.operations].count("embedding") == 3


def test_texts_that_are_too_short():
    snn = spiking_twin(make_text_qann("bert"))
    snn.config.max_position_embeddings = 3
    with pytest.raises(UntraceableError, match="at most 3 tokens"):
        to_spike_graph(snn)


def test_weights_of_eight_bits():
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=16, weight_bits=8)
    qann.calibrate([make_batch(qann)])
    graph = to_spike_graph(spiking_twin(qann))
    maps = [operation for operation in graph.operations if operation.kind in ("linear", "conv2d")]
    assert len(maps) == 14
    modules = {module.name: module for module in qann.modules() if isinstance(module, Linear | Conv2d)}
    for operation in maps:
        weight, scale = (graph.tensors[operation.parameters[name]] for name in ("weight", "weight_scale"))
        assert weight.dtype == np.int8
        module = modules[operation.name]
        quantized = module.weight_quantizer(module.weight).detach().numpy()
        np.testing.assert_array_equal(weight * scale.reshape(-1, *(1,) * (weight.ndim - 1)), quantized)


def test_nothing_is_left_of_a_save_that_fails(snn, tmp_path, monkeypatch):
    monkeypatch.setattr("spikezip_hf.export.network_graph.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_spike_graph(snn, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


def test_other_models_are_refused():
    qann = make_qann()
    with pytest.raises(TypeError, match=r"got QuantViTForImageClassification: convert .* from_quantized"):
        to_spike_graph(qann)


# What a network may do between two primitives.


def traced(function, *shapes, start="static", batches=(2, 3)):
    """Operations of `function(engine, *inputs)`, whose inputs are currents by way of `engine.static`."""
    passes = []
    for batch in batches:
        recorder = Recorder({})
        inputs = []
        for number, shape in enumerate(shapes):
            x = torch.ones(batch, *shape).as_subclass(Traced)
            x.operation, x.phase, x.recorder = f"input{number}", "static", recorder
            inputs.append(x)
        engine = TracingEngine(recorder)
        function(engine, *(engine.static(x) if start == "static" else x for x in inputs))
        passes.append(recorder.trace)
    return merged(*passes, SIZES)


def test_the_document_has_every_kind():
    lines = Path(loader.__file__).with_name("SPIKE_GRAPH.md").read_text(encoding="utf-8").splitlines()
    headings = {word for line in lines if line.startswith("## ") for word in re.findall(r"\w+", line)}
    rows = {word for line in lines if line.startswith("| `") for word in re.findall("`(.+?)`", line.split("|")[1])}
    assert set(KINDS) <= headings | rows


def test_windows_of_an_image():
    """Shifted windows, and their merging, as a Swin Transformer has them."""

    def windows(engine, x):  # (rows, 3, 4, 8)
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
        x = (
            x.roll((-1, -1), (1, 2))
            .view(x.shape[0], 2, 2, 2, 2, 8)
            .permute(0, 1, 3, 2, 4, 5)
            .flatten(3, 4)
            .flatten(1, 2)
        )
        x = x.unflatten(1, (2, 2)).flatten(1, 3).reshape(-1, 4, 4, 8)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, ..., 1::2, :]], dim=-1)
        return x.flatten(1, 2).mean(1)

    operations = traced(windows, (3, 4, 8))
    assert [operation.kind for operation in operations].count("reshape") == 7
    assert operations[1].attributes == {"pads": [[0, 0], [0, 1], [0, 0], [0, 0]]}
    assert operations[2].attributes == {"shifts": [-1, -1], "axes": [1, 2]}
    index = next(
        operation for operation in operations if operation.attributes.get("index", [0])[-1] == [None, None, None]
    )
    assert index.attributes["index"] == [[None] * 3, [1, None, 2], [1, None, 2], [None] * 3]
    assert operations[-1].shape == ["batch", 16]
    assert {operation.kind for operation in operations} <= set(KINDS)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda engine, x: x.relu(), r"torch's relu\(\)"),
        (lambda engine, x: x.sort(), r"torch's sort\(\)"),
        (lambda engine, x: x.add_(1.0), r"torch's add_\(\)"),
        (lambda engine, x: x.T, r"torch's T\(\)"),
        (lambda engine, x: x * x, "mul.. by a tensor"),
        (lambda engine, x: x + torch.ones(4), "through engine.static"),
        (lambda engine, x: x + 1.0, "through engine.static"),
        (lambda engine, x: nn.functional.layer_norm(x, (4,)), "use engine.apply"),
        (lambda engine, x: nn.functional.dropout(x, 0.1, training=True), "Dropout in training"),
        (lambda engine, x: x[torch.tensor([0])], "Indexing by Tensor"),
        (lambda engine, x: nn.functional.pad(x, (1, -1)), "pad.. by other than zeros"),
        (lambda engine, x: x.view(torch.int32), "change of a tensor's type by view"),
        (lambda engine, x: torch.add(x, x, alpha=2), "add.. with alpha"),
        (lambda engine, x: torch.add(input=x, other=x), "add.. as it is called here"),
        (lambda engine, x: x.to(torch.float64), "change of a tensor's type"),
        (lambda engine, x: engine.apply(nn.GELU(), x), "operator GELU"),
        (lambda engine, x: engine.linear(nn.Linear(4, 4), x), "Linear as an affine map"),
        (lambda engine, x: engine.encode(Conv2d(4, 4, 3, padding="same"), x), "padding='same'"),
        (lambda engine, x: engine.static(x), "a current already"),
        (lambda engine, x: x.flatten(0, 1), "A size of reshape is 8 and 12"),
        (lambda engine, x: x.roll(x.shape[0], 1), "differs in two passes"),
        (lambda engine, x: x + x if x.shape[0] == 2 else x, "other operations"),
        (lambda engine, x: engine.static(torch.arange(4.0) * len(x)), "constant.value differs in two passes"),
    ],
)
def test_refused_by_name(function, complaint):
    with pytest.raises(UntraceableError, match=complaint):
        traced(function, (4,))


def test_answers_are_no_constants():
    for used in (lambda engine, x: engine.static(x == 1), lambda engine, x: engine.static((x == 1).float() * 2)):
        with pytest.raises(UntraceableError, match="A comparison of inputs"):
            traced(used, (4,), start="input")


def test_identities_leave_no_operation():
    same = traced(lambda engine, x: nn.functional.dropout(x.contiguous().to(x.dtype), 0.5, training=False) + x, (4,))
    assert [operation.kind for operation in same] == ["static", "add"]


# What a reader refuses.


def rewrite(folder, change) -> None:
    content = json.loads((folder / GRAPH_FILE).read_text())
    change(content)
    (folder / GRAPH_FILE).write_text(json.dumps(content))


def retensor(folder, change) -> None:
    """Change the tensors, and what the other file says of them."""
    tensors = load_file(folder / TENSORS_FILE)
    change(tensors)
    data = save(tensors)
    (folder / TENSORS_FILE).write_bytes(data)
    listed = {name: {"type": str(x.dtype), "shape": list(x.shape)} for name, x in tensors.items()}
    rewrite(folder, lambda content: content.update(tensors=listed, tensors_sha256=hashlib.sha256(data).hexdigest()))


def first(content, kind):
    return next(operation for operation in content["operations"] if operation["kind"] == kind)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda c: c.update(format="nir"), "format is not"),
        (lambda c: c.update(version=2), "version of .* is 2, and this reader knows 1"),
        (lambda c: c.pop("time_steps"), "time_steps is missing"),
        (lambda c: c.update(time_steps="64"), "time_steps is missing, or no int"),
        (lambda c: c.update(max_spikes_per_step=0), "max_spikes_per_step must be at least 1"),
        (lambda c: c["inputs"][0].update(type="complex"), "type of 'pixel_values' is 'complex'"),
        (lambda c: c["inputs"][0].update(default={"rule": "dice"}), "default of 'pixel_values'"),
        (lambda c: first(c, "linear").update(kind="mystery"), "kind 'mystery' is unknown"),
        (lambda c: first(c, "linear").pop("inputs"), r"operations\[\d+\]: Operation missing 1 required"),
        (lambda c: first(c, "linear").update(colour="red"), "unexpected keyword argument 'colour'"),
        (lambda c: first(c, "linear").update(inputs="x"), r"operations\[\d+\]: inputs is 'x'"),
        (lambda c: first(c, "linear").update(inputs=[]), "linear has 0 inputs"),
        (lambda c: first(c, "linear").update(inputs=["nowhere"]), "'nowhere', which no earlier operation gives"),
        (
            lambda c: first(c, "linear").update(inputs=["embeddings.cls_token"]),
            "of phase 'static', which it cannot take",
        ),
        (lambda c: first(c, "linear").update(phase="static"), "phase is 'static'"),
        (lambda c: first(c, "linear").update(shape=["batch", -1]), "shape has -1"),
        (lambda c: first(c, "linear")["parameters"].pop("weight"), "parameters has"),
        (lambda c: first(c, "linear")["parameters"].update(bias="none"), "bias is tensor 'none'"),
        (lambda c: first(c, "linear")["parameters"].update(gain="x"), "parameters has"),
        (lambda c: first(c, "permute")["attributes"].clear(), "attributes has no 'axes'"),
        (lambda c: c["operations"][1].update(name=c["operations"][0]["name"]), "name is that of an earlier"),
        (lambda c: c["operations"].reverse(), "neurons are"),
        (lambda c: c["neurons"].pop(), "neurons are"),
        (lambda c: c["neurons"][0].update(threshold="none"), "threshold is tensor 'none'"),
        (lambda c: c["neurons"][0].update(threshold="classifier.bias"), "shape of threshold"),
        (lambda c: c["neurons"][0].update(max_level=0), "max_level 0 hold no levels"),
        (lambda c: c["neurons"][0].update(shape=[1]), r"shape is \[1\]"),
        (lambda c: c["outputs"].update(logits="nowhere"), "outputs: 'logits' is 'nowhere'"),
        (lambda c: c["tensors"].update(more={"type": "int8", "shape": [1]}), "tensors: 'more' is not in"),
        (lambda c: c["tensors"]["classifier.bias"].update(type="float64"), "tensors: 'classifier.bias' is"),
        (lambda c: c.update(tensors_sha256="0"), "tensors_sha256 is not that"),
    ],
)
def test_bad_json(saved, change, complaint):
    rewrite(saved, change)
    with pytest.raises(SpikeGraphError, match=complaint):
        load_spike_graph(saved)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda t: t.update({"classifier.bias": np.zeros(4, np.float32)}),
            r"shape of bias is \[4\], and should be \[5\]",
        ),
        (lambda t: t.update({"layers.0.mlp.fc1.weight": np.zeros((48, 31), np.float32)}), "shape of weight"),
        (lambda t: t.pop("layers.0.mlp.fc1.weight"), "'layers.0.mlp.fc1.weight', which is not there"),
        (lambda t: t["layers.0.mlp.hidden_node.threshold"].fill(0), "threshold is not positive"),
        (lambda t: t["layers.0.mlp.hidden_node.threshold"].fill(np.nan), "threshold is not positive"),
    ],
)
def test_bad_tensors(saved, change, complaint):
    retensor(saved, change)
    with pytest.raises(SpikeGraphError, match=complaint):
        load_spike_graph(saved)


def test_files_missing_or_damaged(saved):
    (saved / GRAPH_FILE).rename(saved / "aside")
    with pytest.raises(FileNotFoundError, match=r"spike_graph\.json is missing"):
        load_spike_graph(saved)
    (saved / GRAPH_FILE).write_text("{")
    with pytest.raises(SpikeGraphError, match="is not JSON"):
        load_spike_graph(saved)
    (saved / "aside").replace(saved / GRAPH_FILE)
    data = bytearray((saved / TENSORS_FILE).read_bytes())
    data[-1] ^= 1
    (saved / TENSORS_FILE).write_bytes(data)
    with pytest.raises(SpikeGraphError, match="tensors_sha256"):
        load_spike_graph(saved)

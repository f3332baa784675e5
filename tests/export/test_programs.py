"""Programs of `torch.export`: of any batch and length, saved and loaded."""

import json

import pytest
import torch

from spikezip_hf.export import ExportError, StreamingStep, checking, export_program, export_torch, programs
from spikezip_hf.hub.results import network_digest
from tests.export.common import clear_samples, make_quantized, make_step


@torch.no_grad()
@pytest.mark.parametrize(
    "network",
    ["mean, norm behind", "bert", *(pytest.param(network, marks=pytest.mark.slow) for network in ("swin", "events"))],
)
def test_a_program_takes_any_batch_and_length(network):
    qann = make_quantized(network)
    program = export_program(qann)
    module = programs.exportable(qann, "quantized")
    for batch, length in ((1, 1), (2, 7), (5, 11)):
        inputs = module.signature.sample(batch, length)
        assert torch.equal(program.module()(inputs), module(inputs))


@torch.no_grad()
def test_a_program_of_a_step_is_saved_loaded_and_run(tmp_path):
    snn = make_step("roberta", firing_schedule="layerwise", firing_window=2)
    told = export_torch(snn, tmp_path / "step.pt2", "step")
    extra = {"spikezip.json": ""}
    program = torch.export.load(tmp_path / "step.pt2", extra_files=extra).module()
    step = StreamingStep(snn)
    inputs = step.signature.sample(3, 9)
    state, own = step.initial_state(3, 9), step.initial_state(3, 9)
    for _ in range(30):
        before = state
        logits, settled, state = program(inputs, state)
        expected, _, own = step(inputs, own)
        assert torch.equal(logits, expected)
        assert all(torch.equal(state[name], own[name]) for name in own)
    assert bool(settled.all())
    assert all(torch.equal(state[name], before[name]) for name in state if name != "step")
    qann = snn.to_quantized()
    clear = clear_samples(qann, inputs)
    assert clear.any()
    # Linear maps in floating point are rounded by another kernel than the model's.
    torch.testing.assert_close(logits[clear], qann(**inputs).logits[clear], rtol=1e-5, atol=1e-5)

    facts = json.loads(extra["spikezip.json"])
    assert told == {"written": str(tmp_path / "step.pt2"), **{**facts, "labels": snn.config.id2label}}
    assert facts["network_digest"] == network_digest(snn)
    assert list(facts["nodes"]) == snn.node_names
    assert b".py" not in (tmp_path / "step.pt2").read_bytes()  # nothing of where code was found
    assert [path.name for path in tmp_path.iterdir()] == ["step.pt2"]


def test_a_program_that_does_something_else_is_refused(tmp_path, monkeypatch):
    other = programs.trace(programs.exportable(make_quantized("vit", initializer_range=0.3), "quantized"))
    monkeypatch.setattr(programs, "trace", lambda module: other)
    with pytest.raises(ExportError, match="does not give what the network does"):
        export_torch(make_quantized("vit"), tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"kind": "spike"}, "kind must be one of"), ({"inputs": "frames"}, 'inputs="frames" is for kind="step"')],
)
def test_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        export_program(make_quantized("vit"), **arguments)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has to end in \.pt2"):
        export_torch(make_quantized("vit"), tmp_path / "model.onnx")


# The check, node by node, that other runtimes are held to


def runner(module, change=lambda node, levels: levels):
    """The module as another runtime, with a change to the levels of a node."""

    def run(inputs):
        logits, levels = module(inputs)
        return logits, {node: change(node, x) for node, x in levels.items()}

    return run


@pytest.mark.parametrize("network", ["vit", "swin", "bert"])
def test_the_check_finds_the_same_network_right(network):
    qann = make_quantized(network)
    module = programs.QuantizedModule(qann, output_levels=True)
    found = checking.check_quantized(qann, module, runner(module))
    assert found.levels > 1000
    assert found.ties <= 2


def test_the_check_names_the_node_that_is_wrong():
    qann = make_quantized("vit")
    name = "layers.0.mlp.hidden_node"
    module = programs.QuantizedModule(qann, output_levels=True)
    run = runner(module, lambda node, x: (x + 1).clamp(max=15) if node == name else x)
    with pytest.raises(ExportError, match=r"mlp\.(hidden|output)_node"):
        checking.check_quantized(qann, module, run)


def test_the_check_sees_another_epsilon():
    qann = make_quantized("vit")
    module = programs.QuantizedModule(qann, output_levels=True)
    module.model.vit.layers[0].layernorm_after.eps = 0.1
    with pytest.raises(ExportError, match="layernorm_after_node"):
        checking.check_quantized(qann, module, runner(module))


def test_the_check_sees_other_logits():
    qann = make_quantized("vit")
    module = programs.QuantizedModule(qann, output_levels=True)
    with torch.no_grad():
        module.model.classifier.bias = torch.nn.Parameter(module.model.classifier.bias + 0.01)
    with pytest.raises(ExportError, match="logits differ"):
        checking.check_quantized(qann, module, runner(module))


def test_the_check_of_a_step_sees_another_state():
    snn = make_step("vit", firing_schedule="layerwise", firing_window=2)
    step = StreamingStep(snn)

    def run(inputs, state):
        logits, settled, after = step(inputs, state)
        return logits, settled, {**after, "step": after["step"] * 2}

    assert checking.check_step(snn, step, step).levels > 1000
    with pytest.raises(ExportError, match="another step"):
        checking.check_step(snn, step, run)
    with pytest.raises(ExportError, match="settled"):
        checking.check_step(snn, step, lambda *given: (step(*given)[0], ~step(*given)[1], step(*given)[2]))

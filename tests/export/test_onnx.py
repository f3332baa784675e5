"""ONNX files in onnxruntime: names, any batch and length, T steps to the quantized network's levels."""

import json
import sys

import pytest
import torch

from spikezip_hf.export import ExportError, export_onnx, onnx_files, programs
from spikezip_hf.export.signature import Signature
from spikezip_hf.hub.results import network_digest
from spikezip_hf.models.engines import RecordingEngine
from tests.conftest import spiking_twin
from tests.export.common import clear_samples, make_quantized

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'spikezip-hf[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'spikezip-hf[export]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'spikezip-hf[export]'")

# A file takes some seconds to make: all that is different is in one of three; Swin's is slow.
DEIT = "distilled, positions of patches"
QUANTIZED = [DEIT, pytest.param("swin", marks=pytest.mark.slow)]
WEIGHT_BITS = {"swin": 8, DEIT: 8}
NEURONS = {"roberta": {"firing_schedule": "layerwise", "firing_window": 2, "max_spikes_per_step": 2}}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{(network, kind): (model, file, what export_onnx returned)}, each made when it is first asked for."""
    made = {}

    def get(network: str, kind: str):
        if (network, kind) not in made:
            model = make_quantized(network, WEIGHT_BITS.get(network))
            if kind == "step":
                model = spiking_twin(model, **NEURONS.get(network, {}))
            folder = tmp_path_factory.mktemp("onnx")
            told = export_onnx(model, folder if kind == "quantized" else folder / "net.onnx", kind)
            assert len(list(folder.iterdir())) == 1
            made[network, kind] = model, folder / ("model.onnx" if kind == "quantized" else "net.onnx"), told
        return made[network, kind]

    return get


def sample(model, batch: int, length: int):
    return Signature(model, type(model)).sample(batch, length)


@torch.no_grad()
@pytest.mark.parametrize("network", QUANTIZED)
def test_the_quantized_network(written, network):
    qann, file, told = written(network, "quantized")
    run = onnx_files.Session(onnxruntime, file)
    for batch, length in ((1, 1), (5, 11)):
        inputs = sample(qann, batch, length)
        logits = run(inputs, {})[0]
        clear = clear_samples(qann, inputs)
        assert clear.any()
        # Runtimes round products in floating point each in their own way; levels are equal away from ties.
        torch.testing.assert_close(logits[clear], qann(**inputs).logits[clear], rtol=1e-4, atol=1e-4)
    assert told["checked"]["levels"] > 1000
    assert run.outputs == ["logits"]


@torch.no_grad()
def test_steps_come_to_rest_at_the_quantized_network(written):
    snn, file, _ = written("roberta", "step")
    run = onnx_files.Session(onnxruntime, file)
    inputs = sample(snn, 5, 9)
    state = zeros(run.session, 5, 9)
    settled = torch.zeros(5, dtype=torch.bool)
    for _ in range(30):
        before = state
        logits, settled, state = run(inputs, state)
    assert bool(settled.all())
    assert all(torch.equal(state[name], before[name]) for name in state if name != "step")

    qann, recorder = snn.to_quantized(), RecordingEngine()
    expected = qann(**inputs, engine=recorder).logits
    clear = clear_samples(qann, inputs)
    assert clear.any()
    assert all(torch.equal(state[name][clear], levels[clear]) for name, levels in recorder.levels.items())
    # As above.
    torch.testing.assert_close(logits[clear], expected[clear], rtol=1e-4, atol=1e-4)


def zeros(session, batch: int, length: int) -> dict[str, torch.Tensor]:
    """A state at rest, by what the file says of its inputs and nothing else."""
    types = {"tensor(int8)": torch.int8, "tensor(int64)": torch.int64}
    sizes = {"batch": batch, "length": length}
    return {
        x.name.removeprefix("state."): torch.zeros([sizes.get(size, size) for size in x.shape], dtype=types[x.type])
        for x in session.get_inputs()
        if x.name.startswith("state.")
    }


def test_the_file_says_what_it_is(written):
    snn, file, told = written("roberta", "step")
    model = onnx.load(file)
    facts = {entry.key.removeprefix("spikezip."): entry.value for entry in model.metadata_props}
    assert facts["network_digest"] == network_digest(snn)
    assert list(json.loads(facts["nodes"])) == snn.node_names
    assert facts["firing_schedule"] == "layerwise"
    assert int(facts["time_steps"]) == snn.config.time_steps
    assert told["network"] == facts["network"] == "SpikeRobertaForSequenceClassification"
    names = [x.name for x in model.graph.input]
    assert names[:3] == ["input_ids", "attention_mask", "token_type_ids"]
    assert set(names[3:]) == {"state.step", *(f"state.{name}" for name in snn.node_names)}
    assert [x.name for x in model.graph.output][:2] == ["logits", "settled"]
    assert b".py" not in file.read_bytes()  # nothing of where code was found


@pytest.mark.parametrize("network", QUANTIZED)
def test_levels_are_made_by_floor(written, network):
    qann, file, _ = written(network, "quantized")
    model = onnx.load(file)
    kinds = [node.op_type for node in model.graph.node]
    assert "Round" not in kinds
    assert kinds.count("Floor") == len(qann.nodes)
    made = {name for node in model.graph.node for name in node.output}
    assert {f"levels.{name}" for name in qann.node_names} <= made


def test_a_file_that_does_something_else_is_refused(tmp_path, monkeypatch):
    qann = make_quantized("vit")
    other = make_quantized("vit")
    other.vit.layers[0].layernorm_after.eps = 0.1
    (tmp_path / "model.onnx").write_text("what was there before")
    program = onnx_files.onnx_program(programs.QuantizedModule(other, output_levels=True), qann.node_names)
    monkeypatch.setattr(onnx_files, "onnx_program", lambda module, nodes: program)
    with pytest.raises(ExportError, match="layernorm_after_node"):
        export_onnx(qann, tmp_path)
    assert (tmp_path / "model.onnx").read_text() == "what was there before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is missing.*spikezip-hf\[export\]"):
        export_onnx(make_quantized("vit"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())

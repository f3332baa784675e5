"""The interpreter of spike graphs, which shares no code with the simulation, gives the simulation's spikes.

In float64, neuron by neuron and step by step, in both forms of each. The two sum in different orders, and so their
values differ in the last bits: TOLERANCE is some hundred roundings of numbers of size 1 to 10. A level could only
differ where an input lies within such a rounding of a tie, which in these networks of random weights none does.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import spikezip_hf
from spikezip_hf.export import interpreter as interpreter_module
from spikezip_hf.export.interpreter import CumulativeInterpreter, EventInterpreter, convolve, run
from spikezip_hf.export.network_graph import save_spike_graph, to_spike_graph
from spikezip_hf.export.spike_graph import load_spike_graph
from spikezip_hf.models.engines import CumulativeEngine, EventEngine
from tests.conftest import (
    make_ann,
    make_batch,
    make_images,
    make_qann,
    make_swin_qann,
    make_text_ann,
    make_text_qann,
    make_texts,
    spiking_twin,
)
from tests.export.common import SWIN, VITS
from tests.models.test_event_vit import frames_of, make_event_qann
from tests.models.test_vit_variants import make_variant

TOLERANCE = 1e-12
FORMS = ("event", "cumulative")


def few(snn) -> dict:
    """Three samples."""
    return {name: x[:3] for name, x in make_batch(snn).items()}


def arrays(batch: dict) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in batch.items()}


def simulated(snn, batch: dict, form: str, **arguments):
    """The simulation's trajectory of all T steps, and {node: (T, B, ...) levels after each step}."""
    history: dict[str, list] = {}

    class Recording(EventEngine if form == "event" else CumulativeEngine):
        def conclude(self, steps_counted=None):
            super().conclude(steps_counted)
            for name, tracer in self.tracers.items():
                history.setdefault(name, []).append(tracer.long().clone())

    arguments = {"stop": "never", "chunk_steps": 1, "output_time_steps": True, **arguments}
    trajectory = snn.trajectory(**batch, execution=form, engine_class=Recording, **arguments)
    return trajectory, {name: torch.stack(steps).numpy() for name, steps in history.items()}


def interpreted(graph, batch: dict, form: str, steps: int) -> dict[str, np.ndarray]:
    """{neurons: (T, B, ...) levels after each step}, stepped by hand."""
    state = {"event": EventInterpreter, "cumulative": CumulativeInterpreter}[form](graph, arrays(batch))
    history: dict[str, list] = {item.name: [] for item in graph.neurons}
    for _ in range(steps):
        for name, spikes in state.step().items():
            assert np.abs(spikes).max() <= graph.max_spikes_per_step
            history[name].append(state.levels[name].copy())
    return {name: np.stack(levels) for name, levels in history.items()}


def assert_same_spikes(snn, batch: dict, forms=FORMS, **arguments):
    """Every neuron at every step; for the first form, which is returned, spikes, outputs and equilibrium steps too."""
    graph = to_spike_graph(snn)
    steps = arguments.get("time_steps", snn.config.time_steps)
    for form in forms:
        expected, history = simulated(snn, batch, form, **arguments)
        mine = interpreted(graph, batch, form, steps)
        assert list(mine) == list(history) == [node.name for node in snn.nodes]
        for name, levels in mine.items():
            np.testing.assert_array_equal(levels, history[name], err_msg=f"{name}, {form}")
        if form != forms[0]:
            continue
        done = run(graph, arrays(batch), steps, form)
        counts = np.stack([spikes.sum(0) for spikes in done.spikes.values()], 1)
        np.testing.assert_array_equal(counts, expected.spike_counts.numpy())
        np.testing.assert_array_equal(done.equilibrium_step, expected.equilibrium_step.numpy())
        per_step = np.moveaxis(done.outputs[snn.readout], 0, 1)
        np.testing.assert_allclose(per_step, expected.per_step.numpy(), rtol=0, atol=TOLERANCE)
        assert counts.sum() > 100
    return done


def vit(granularity="per_tensor", weight_bits=None, **fields):
    if weight_bits is None:
        return spiking_twin(make_qann(dtype=torch.float64, granularity=granularity), **fields)
    return spiking_twin(eight_bits(make_ann(dtype=torch.float64), granularity), **fields)


def eight_bits(ann, granularity="per_tensor"):
    """Its quantized twin with integer weights, calibrated."""
    quant_class = getattr(spikezip_hf, f"Quant{type(ann).__name__}")
    qann = quant_class.from_ann(ann, quantization_levels=16, weight_bits=8, scale_granularity=granularity)
    return qann.calibrate([make_batch(qann, seed=3)])


@pytest.mark.parametrize("granularity", ["per_tensor", "mixed"])
@pytest.mark.parametrize("weight_bits", [None, 8])
def test_vit(granularity, weight_bits):
    snn = vit(granularity, weight_bits, time_steps=32)
    done = assert_same_spikes(snn, few(snn))
    assert (done.equilibrium_step > 0).all()


@pytest.mark.parametrize("name", VITS)
def test_other_vits(name):
    snn = spiking_twin(make_variant(name, torch.float64, num_hidden_layers=1), time_steps=24)
    assert_same_spikes(snn, few(snn))


@pytest.mark.parametrize("weight_bits", [None, 8])
def test_swin(weight_bits):
    qann = make_swin_qann(dtype=torch.float64, ann_fields=SWIN, weight_bits=weight_bits)
    snn = spiking_twin(qann, time_steps=32)
    done = assert_same_spikes(snn, few(snn))
    assert (done.equilibrium_step > 0).all()


@pytest.mark.parametrize("fields", [{}, {"scale_granularity": "mixed", "weight_bits": 8}], ids=str)
def test_event_cameras(fields):
    """Frames, through a reduction and patches that leave a margin of the image out."""
    snn = spiking_twin(make_event_qann(torch.float64, **fields), time_steps=40)
    frames = frames_of(2, torch.float64)
    done = assert_same_spikes(snn, {"pixel_values": frames})
    assert (done.equilibrium_step > 0).all()


def test_equilibrium_is_the_quantized_network():
    snn = vit(time_steps=32)
    batch = make_batch(snn)
    with torch.no_grad():
        logits = snn.to_quantized()(**batch).logits
    done = run(to_spike_graph(snn), arrays(batch))
    np.testing.assert_allclose(done.outputs["logits"][-1], logits.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "fields",
    [
        {"firing_schedule": "layerwise", "firing_window": 5, "time_steps": 40},
        {"max_spikes_per_step": 3, "time_steps": 20},
        {"time_steps": 7},  # not at equilibrium
    ],
    ids=["layerwise", "graded", "short"],
)
def test_gates(fields):
    snn = vit(**fields)
    done = assert_same_spikes(snn, few(snn))
    assert (done.equilibrium_step > 0).all() == (fields["time_steps"] > 7)


@pytest.mark.parametrize("schedule", ["coarse_to_fine", "nodewise"])
def test_calibrated_schedules(schedule):
    snn = vit()
    batch = few(snn)
    snn.calibrate_schedule([batch], schedule)
    assert_same_spikes(snn, batch, time_steps=40)


def test_input_per_step():
    snn = vit(time_steps=32)
    batch = {"pixel_values": make_images(snn.config, 3, torch.float64, steps=4) / 2}
    assert_same_spikes(snn, batch)


@pytest.mark.parametrize(
    ("architecture", "side", "fields"),
    [
        ("bert", "right", {}),
        ("bert", "left", {"node_placement": "reference", "head_act": "tanh"}),
        ("roberta", "left", {}),
        ("roberta", "right", {"granularity": "mixed", "head_act": "tanh"}),
    ],
    ids=["bert", "bert-reference-tanh", "roberta", "roberta-mixed-tanh"],
)
def test_padded_texts(architecture, side, fields):
    snn = spiking_twin(make_text_qann(architecture, dtype=torch.float64, **fields), time_steps=32)
    assert_same_spikes(snn, make_texts(snn.config, [12, 7, 3], side=side, extra=2))


@pytest.mark.parametrize("task", ["Model", "ForTokenClassification"])
def test_other_heads(task):
    snn = spiking_twin(make_text_qann("roberta", task, dtype=torch.float64), time_steps=24)
    assert_same_spikes(snn, make_texts(snn.config, [9, 5]), forms=["cumulative"])


def test_text_with_weights_of_eight_bits():
    snn = spiking_twin(eight_bits(make_text_ann("bert", dtype=torch.float64)), time_steps=32)
    assert_same_spikes(snn, make_texts(snn.config, [12, 7, 3]))


def test_inputs_left_out():
    """Positions and types have their defaults, and without a mask every position holds a token."""
    snn = spiking_twin(make_text_qann("roberta", dtype=torch.float64), time_steps=24)
    graph = to_spike_graph(snn)
    batch = make_texts(snn.config, [8, 8])
    batch["token_type_ids"].zero_()
    whole = run(graph, arrays(batch))
    for given in ({"input_ids"}, {"input_ids", "attention_mask"}):
        done = run(graph, {name: x.numpy() for name, x in batch.items() if name in given})
        np.testing.assert_array_equal(done.outputs["logits"], whole.outputs["logits"])
    positions = np.tile(np.arange(8) + snn.first_position, (2, 1))
    done = run(graph, {**arrays(batch), "position_ids": positions})
    np.testing.assert_array_equal(done.outputs["logits"], whole.outputs["logits"])
    assert not np.array_equal(
        run(graph, {**arrays(batch), "position_ids": positions[:, ::-1]}).outputs["logits"], whole.outputs["logits"]
    )


def test_products_of_eight_bits_are_integers():
    """What the format document says of them: sums of integers, times one number a channel."""
    snn = vit(weight_bits=8, time_steps=32)
    graph = to_spike_graph(snn)
    state = CumulativeInterpreter(graph, arrays(make_batch(snn)))
    for _ in range(20):
        state.step()
    thresholds = {item.name: graph.tensors[item.threshold] for item in graph.neurons}
    fed = [o for o in graph.operations if o.kind == "linear" and o.inputs[0] in thresholds]
    assert len(fed) > 8
    for operation in fed:
        weight, scale, bias = (
            graph.tensors[operation.parameters[name]] for name in ("weight", "weight_scale", "bias")
        )
        assert weight.dtype == np.int8
        sums = state.levels[operation.inputs[0]] @ weight.T.astype(np.int64)
        assert sums.dtype == np.int64
        values = sums * (thresholds[operation.inputs[0]] * scale) + bias
        np.testing.assert_allclose(state.values[operation.name], values, rtol=0, atol=TOLERANCE)


def test_a_network_of_float32_is_run_in_float64():
    """Its numbers are kept as they are, and the run is that of the same network in float64."""
    snn = spiking_twin(make_qann(), time_steps=32)
    graph = to_spike_graph(snn)
    assert graph.tensors["layers.0.mlp.fc1.weight"].dtype == np.float32
    batch = make_batch(snn)
    done = run(graph, arrays(batch))
    expected, _ = simulated(snn.double(), batch, "event")
    np.testing.assert_allclose(done.outputs["logits"][-1], expected.readout.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups):
    conv = torch.nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), groups=groups, bias=False, dtype=torch.float64)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    said = {name: list(getattr(conv, name)) for name in ("stride", "padding", "dilation")}
    mine = convolve(x.numpy(), conv.weight.detach().numpy(), groups=groups, **said)
    np.testing.assert_allclose(mine, conv(x).detach().numpy(), rtol=0, atol=TOLERANCE)


def test_bad_inputs():
    graph = to_spike_graph(vit())
    images = np.zeros((2, 3, 8, 8))
    for inputs, complaint in (
        ({}, "pixel_values is missing"),
        ({"pixel_values": images[:, :2]}, r"pixel_values must be \['batch', 3, 8, 8\], got \[2, 2, 8, 8\]"),
        ({"pixel_values": images[0, 0]}, "pixel_values must be"),
        ({"pixel_values": images, "labels": np.zeros(2)}, "labels is no input"),
    ):
        with pytest.raises(ValueError, match=complaint):
            run(graph, inputs)
    with pytest.raises(ValueError, match="form must be one of"):
        run(graph, {"pixel_values": images}, form="closed")
    with pytest.raises(ValueError, match="time_steps must be at least 1"):
        run(graph, {"pixel_values": images}, time_steps=0)


def test_bad_texts():
    graph = to_spike_graph(spiking_twin(make_text_qann("bert")))
    ids = np.full((2, 5), 3)
    with pytest.raises(ValueError, match="attention_mask must be"):
        run(graph, {"input_ids": ids, "attention_mask": np.ones((2, 4))})
    with pytest.raises(ValueError, match="outside of 0 to 59"):
        run(graph, {"input_ids": ids * 40})


def test_it_stands_alone(tmp_path):
    """Loader and interpreter, copied out of the package, run where torch and this package cannot be imported."""
    snn = vit(time_steps=32)
    batch = make_batch(snn)
    save_spike_graph(snn, tmp_path / "graph")
    np.savez(tmp_path / "inputs.npz", **arrays(batch))
    alone = tmp_path / "simulator"
    alone.mkdir()
    (alone / "__init__.py").touch()
    for name in ("spike_graph.py", "interpreter.py"):
        (alone / name).write_text(Path(interpreter_module.__file__).with_name(name).read_text())
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'spikezip_hf'): sys.modules[name] = None\n"
        "from simulator.interpreter import main\n"
        "main(['graph', 'inputs.npz', 'results.npz'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"OMP_NUM_THREADS": "1"})
    expected = run(load_spike_graph(tmp_path / "graph"), arrays(batch))
    with np.load(tmp_path / "results.npz") as results:
        np.testing.assert_array_equal(results["outputs/logits"], expected.outputs["logits"])
        np.testing.assert_array_equal(results["equilibrium_step"], expected.equilibrium_step)
        for name, levels in expected.levels.items():
            np.testing.assert_array_equal(results[f"levels/{name}"], levels)

"""The quantized network and a step of the spiking one as functions of tensors: they are the models."""

import pytest
import torch

from spikezip_hf.export import QuantizedModule, StreamingStep
from tests.conftest import make_images, make_qann, make_text_qann, spiking_twin
from tests.export.common import VITS, clear_samples, make_quantized, make_step

T = 24
LAYERWISE = {"firing_schedule": "layerwise", "firing_window": 3}
GRADED = {"max_spikes_per_step": 3}
STEPS = [
    *(("vit", neurons) for neurons in ({}, LAYERWISE, GRADED)),
    *((network, {}) for network in VITS),
    ("swin", GRADED),
    ("events", {}),
    ("bert", LAYERWISE),
    ("roberta", GRADED),
]


def simulated(snn, inputs: dict, steps: int):
    """Logits of each step, and levels after the last, of the model's own simulation step by step."""
    run = snn.trajectory(**inputs, time_steps=steps, chunk_steps=1, stop="never", output_time_steps=True)
    return run.per_step, run.levels, run.equilibrium_step


@torch.no_grad()
def stepped(step: StreamingStep, frames: list[dict]):
    """The same by the module; and whether samples were settled, (B, T)."""
    state = step.initial_state(len(next(iter(frames[0].values()))), step.signature.length_of(frames[0]))
    logits, settled = [], []
    for frame in frames:
        answer, at_rest, state = step(frame, state)
        logits.append(answer)
        settled.append(at_rest)
    return torch.stack(logits, 1), torch.stack(settled, 1), state


@torch.no_grad()
@pytest.mark.parametrize(("network", "neurons"), STEPS)
def test_steps_are_the_simulation(network, neurons):
    snn = make_step(network, **neurons)
    step = StreamingStep(snn, portable=False)
    inputs = step.signature.sample(3)
    logits, levels, equilibrium = simulated(snn, inputs, T)
    answer, settled, state = stepped(step, [inputs] * T)
    assert torch.equal(answer, logits)
    assert all(torch.equal(state[name], levels[name]) for name in levels)
    assert torch.equal(settled[:, -1], equilibrium >= 0)
    assert bool(settled[:, -1].all())


@torch.no_grad()
def test_steps_of_a_schedule_from_coarse_to_fine_are_the_simulation():
    snn = make_step("vit")
    snn.calibrate_schedule()
    step = StreamingStep(snn, portable=False)
    inputs = step.signature.sample(2)
    logits, levels, _ = simulated(snn, inputs, 40)
    answer, settled, state = stepped(step, [inputs] * 40)
    assert torch.equal(answer, logits)
    assert all(torch.equal(state[name], levels[name]) for name in levels)
    assert bool(settled[:, -1].all())
    assert not bool(settled[:, 0].any())
    assert int(state["step"]) == 40


@torch.no_grad()
def test_frames_are_added_up_as_in_the_simulation():
    snn = spiking_twin(make_qann())
    step = StreamingStep(snn, inputs="frames", portable=False)
    frames = make_images(snn.config, 2, steps=5)
    logits, levels, _ = simulated(snn, {"pixel_values": frames}, T)
    shown = [*frames.unbind(1), *[torch.zeros_like(frames[:, 0])] * (T - 5)]
    answer, _, state = stepped(step, [{"pixel_values": frame} for frame in shown])
    assert torch.equal(answer, logits)
    assert all(torch.equal(state[name], levels[name]) for name in levels)


@torch.no_grad()
@pytest.mark.parametrize("network", ["vit", "swin", "events", *VITS])
def test_portable_steps_with_weights_of_bytes_are_the_simulation(network):
    """All is of integers but for the convolution and LayerNorm, and a softmax with a bias: the same operators here."""
    snn = make_step(network, weight_bits=8)
    step = StreamingStep(snn)
    inputs = step.signature.sample(3)
    logits, levels, _ = simulated(snn, inputs, T)
    answer, _, state = stepped(step, [inputs] * T)
    assert torch.equal(answer, logits)
    assert all(torch.equal(state[name], levels[name]) for name in levels)


@torch.no_grad()
@pytest.mark.parametrize("network", ["vit", "swin", "events", *VITS])
def test_the_quantized_module_is_the_network(network):
    qann = make_quantized(network, weight_bits=8)
    module = QuantizedModule(qann, output_levels=True)
    inputs = module.signature.sample(3)
    logits, levels = module(inputs)
    assert torch.equal(logits, qann(**inputs).logits)
    assert list(levels) == qann.node_names


@torch.no_grad()
@pytest.mark.parametrize("network", ["bert", "roberta"])
def test_the_quantized_module_of_texts_is_the_network(network):
    qann = make_quantized(network)
    module = QuantizedModule(qann)
    inputs = module.signature.sample(4)
    clear = clear_samples(qann, inputs)
    assert clear.sum() > 1
    # Linear maps in floating point are rounded by another kernel: levels are equal away from ties, logits all but.
    torch.testing.assert_close(module(inputs)[clear], qann(**inputs).logits[clear], rtol=1e-5, atol=1e-5)
    assert not inputs["attention_mask"].all()


@torch.no_grad()
def test_a_network_without_a_head_gives_its_last_hidden_state():
    qann = make_text_qann("bert", task="Model", num_hidden_layers=1).eval()
    module = QuantizedModule(qann)
    inputs = module.signature.sample(4, 5)
    clear = clear_samples(qann, inputs)
    assert clear.sum() > 1
    assert torch.equal(module(inputs)[clear], qann(**inputs).last_hidden_state[clear])  # levels, away from ties
    assert module.signature.output == "last_hidden_state"


def test_the_model_is_left_as_it_was():
    qann = make_quantized("vit", weight_bits=8).train()
    before = {name: x.clone() for name, x in qann.state_dict().items()}
    module = QuantizedModule(qann)
    assert qann.training
    assert all(parameter.requires_grad for parameter in qann.parameters())
    assert all(torch.equal(x, before[name]) for name, x in qann.state_dict().items())
    own = {name: x.data_ptr() for name, x in qann.named_parameters()}
    shared = [
        x.data_ptr() == own[name.removeprefix("model.")]
        for name, x in module.named_parameters()
        if name.endswith("norm.weight")
    ]
    assert shared
    assert all(shared)


def test_weights_of_bytes_are_kept_as_bytes():
    module = QuantizedModule(make_quantized("vit", weight_bits=8))
    kept = {name: x.dtype for name, x in module.state_dict().items()}
    assert kept["model.vit.layers.0.mlp.fc1.weight_levels"] == torch.int8
    assert "model.vit.layers.0.mlp.fc1.weight" not in kept


def test_the_state_says_its_shapes():
    step = StreamingStep(make_step("bert", firing_schedule="layerwise"))
    assert step.state_shapes["encoder.layer.0.attention.self.probs_node"] == ("batch", 4, "length", "length")
    assert step.state_shapes["pooler.hidden_node"] == ("batch", 32)
    assert step.state_shapes["step"] == ()
    state = step.initial_state(3, 5)
    assert state["encoder.layer.0.attention.self.probs_node"].shape == (3, 4, 5, 5)
    assert state["pooler.hidden_node"].dtype == torch.int8


CASES = {
    "another kind": (lambda: QuantizedModule(make_step("vit")), TypeError, "to_quantized"),
    "a quantized network for a step": (lambda: StreamingStep(make_quantized("vit")), TypeError, "from_quantized"),
    "half precision": (lambda: QuantizedModule(make_quantized("vit").half()), ValueError, "model.float()"),
    "no scales": (lambda: QuantizedModule(uncalibrated()), ValueError, "calibrate"),
    "frames of texts": (lambda: StreamingStep(make_step("bert"), inputs="frames"), ValueError, "static"),
    "other inputs": (lambda: StreamingStep(make_step("vit"), inputs="video"), ValueError, "inputs must be one of"),
    "no length": (lambda: StreamingStep(make_step("bert")).initial_state(2), ValueError, "length"),
    "another state": (lambda: StreamingStep(make_step("vit"))({}, {}), ValueError, "initial_state"),
}


def uncalibrated():
    qann = make_quantized("vit")
    qann.nodes[0].initialized.fill_(False)
    return qann


@pytest.mark.parametrize("case", CASES)
def test_refused(case):
    call, error, words = CASES[case]
    with pytest.raises(error, match=words):
        call()

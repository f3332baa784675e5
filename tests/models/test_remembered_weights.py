"""What is made of a weight for inference follows every change of it, and modules are called, so that hooks run."""

import copy

import pytest
import torch

from accelerate import cpu_offload
from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.models.operators import Linear
from spikezip_hf.models.remembering import parameters_remembered
from spikezip_hf.models.rows import Rows
from tests.conftest import make_ann, make_batch, make_images, spiking_twin
from tests.models.naive import level_matrix

CACHES = pytest.mark.parametrize("kind", ["levels", "values"])


def make_linear(seed=0):
    torch.manual_seed(seed)
    linear = Linear(24, 40, weight_bits=8).eval()
    linear.weight_quantizer.fit(linear.weight)
    return linear


def make_qann(weight_bits):
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=16, weight_bits=weight_bits)
    return qann.calibrate([{"pixel_values": make_images(qann.config, 32)}])


def make_x(kind, dtype=torch.float32):
    """Levels, which meet integer weights; or values, which meet the values of these weights."""
    levels = torch.arange(3 * 24).reshape(3, 24) % 15 - 7
    if kind == "values":
        return Rows(levels.to(dtype) * 0.1)
    return Rows(
        integers=levels.to(torch.int8),
        scale=torch.tensor([0.1], dtype=torch.promote_types(dtype, torch.float32)),
        peak=8,
        dtype=dtype,
    )


@torch.no_grad()
def answer(linear, kind):
    return linear(make_x(kind, linear.weight.dtype)).values


@torch.no_grad()
def expected(linear, kind):
    """In float64, from the weight as it is now."""
    quantizer = linear.weight_quantizer
    weight = level_matrix(linear.weight, quantizer.scale).double().T * quantizer.threshold(torch.float64)[:, None]
    return make_x(kind, torch.float64).values @ weight.T + linear.bias.double()


def is_fresh(linear, kind):
    # Products of 24 small numbers in float32, or in half precision.
    tolerance = 1e-5 if linear.weight.dtype in (torch.float32, torch.float64) else 0.05
    return torch.allclose(answer(linear, kind).double(), expected(linear, kind), atol=tolerance)


@CACHES
class TestAChangeIsSeen:
    @pytest.fixture
    def linear(self, kind):
        linear = make_linear()
        assert is_fresh(linear, kind)
        self.before = answer(linear, kind)
        return linear

    def check(self, linear, kind):
        assert is_fresh(linear, kind)
        assert not torch.equal(answer(linear, kind), self.before)

    def test_of_an_optimizer(self, linear, kind):
        optimizer = torch.optim.SGD(linear.parameters(), lr=1e-3)
        (linear(torch.randn(4, 24)) - 1.0).square().sum().backward()
        optimizer.step()
        self.check(linear, kind)

    @pytest.mark.parametrize("assign", [False, True])
    def test_of_a_loaded_checkpoint(self, linear, kind, assign):
        linear.load_state_dict(make_linear(1).state_dict(), assign=assign)
        self.check(linear, kind)

    def test_of_the_weight_in_place(self, linear, kind):
        with torch.no_grad():
            linear.weight[3] += 0.5
        self.check(linear, kind)

    def test_of_a_scale_in_place(self, linear, kind):
        with torch.no_grad():
            linear.weight_quantizer.scale.mul_(3.0)
        self.check(linear, kind)

    def test_of_the_weight_that_is_another_tensor(self, linear, kind):
        linear.weight.data = linear.weight.data * 0.5
        self.check(linear, kind)

    def test_of_the_weight_that_is_another_parameter(self, linear, kind):
        linear.weight = torch.nn.Parameter(linear.weight.detach() * 0.5)
        self.check(linear, kind)

    def test_of_data_that_comes_to_lie_where_the_old_one_was(self, linear, kind):
        """Memory is used again: the address alone does not say that a tensor is the same."""
        for _ in range(50):
            for _ in range(2):  # the second time, the first memory is free again
                linear.weight.data = linear.weight.data * 0.95
            assert is_fresh(linear, kind)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_of_type(self, linear, kind, dtype):
        linear.to(dtype)
        assert linear.weight.dtype is dtype
        assert is_fresh(linear, kind)
        assert answer(linear, kind).dtype is dtype

    def test_of_type_there_and_back(self, linear, kind):
        for _ in range(20):
            with torch.no_grad():
                linear.weight.mul_(1.07)
            assert is_fresh(linear, kind)
            linear.bfloat16().float()  # rounds the weight
            assert is_fresh(linear, kind)

    def test_in_a_copy(self, linear, kind):
        twin = copy.deepcopy(linear)
        assert torch.equal(answer(twin, kind), self.before)
        with torch.no_grad():
            twin.weight.mul_(0.5)
        self.check(twin, kind)
        assert torch.equal(answer(linear, kind), self.before)

    def test_after_training_mode(self, linear, kind):
        linear.train()
        with torch.no_grad():
            linear.weight.mul_(0.5)
        self.check(linear.eval(), kind)


@CACHES
def test_weights_made_under_inference_mode_are_seen_to_change(kind):
    with torch.inference_mode():
        linear = make_linear()
        assert is_fresh(linear, kind)
        linear.weight.mul_(0.5)
        assert is_fresh(linear, kind)
    assert is_fresh(linear, kind)


@CACHES
def test_what_inference_mode_made_serves_outside_of_it(kind):
    linear = make_linear()
    with torch.inference_mode():
        inside = answer(linear, kind)
    assert torch.equal(answer(linear, kind), inside)
    linear(make_x(kind)).sum().backward()  # with a gradient
    assert linear.weight.grad is not None


@CACHES
def test_in_one_run_nothing_is_made_twice(kind, monkeypatch):
    linear = make_linear()
    with parameters_remembered():
        first = answer(linear, kind)
        monkeypatch.setattr(linear.weight_quantizer, "forward", None)
        assert torch.equal(answer(linear, kind), first)
    monkeypatch.undo()
    with torch.no_grad():
        linear.weight.mul_(0.5)
    with parameters_remembered():
        assert is_fresh(linear, kind)


@pytest.mark.parametrize("change", ["fused optimizer", "data in place"])
def test_changes_that_torch_does_not_count_are_seen_by_the_next_pass_of_both_twins(change):
    qann = make_qann(weight_bits=8).eval()
    batch = make_batch(qann)
    optimizer = torch.optim.AdamW(qann.parameters(), lr=1e-4, fused=True)
    before = qann(**batch).logits
    if change == "fused optimizer":
        before.square().sum().backward()
        optimizer.step()
    else:
        for name, parameter in qann.named_parameters():
            if name.endswith("weight"):
                parameter.data.mul_(0.7)
    with torch.no_grad():
        after = qann(**batch).logits
        assert not torch.equal(after, before)
        assert torch.equal(after, copy.deepcopy(qann)(**batch).logits)
        assert torch.equal(after, spiking_twin(qann, time_steps=64)(**batch).logits)


@pytest.mark.parametrize("weight_bits", [None, 8])
@torch.no_grad()
def test_twins_whose_weights_are_brought_in_layer_by_layer(weight_bits):
    """accelerate's CPU offload: a hook on each module has its weights only while it is called."""
    qann = make_qann(weight_bits=weight_bits).eval()
    snn, batch = spiking_twin(qann, time_steps=64), make_batch(qann)
    expected = qann(**batch).logits
    for model in (qann, snn):
        offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
        assert torch.equal(offloaded(**batch).logits, expected)


@torch.no_grad()
def test_hooks_on_nodes_run_in_both_twins():
    qann = make_qann(8).eval()
    snn, batch = spiking_twin(qann, time_steps=64), make_batch(qann)
    for model in (qann, snn):
        seen = set()
        for node in model.nodes:
            node.register_forward_hook(lambda module, args, output, seen=seen: seen.add(module.name))
        model(**batch)
        assert seen == set(model.node_names)

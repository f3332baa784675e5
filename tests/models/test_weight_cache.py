"""What is made of a weight for inference follows every change of it."""

import copy

import pytest
import torch

from spikezip_hf.models.operators import Linear
from spikezip_hf.models.rows import Rows

CACHES = pytest.mark.parametrize("kind", ["levels", "values"])


def make_linear(seed=0):
    torch.manual_seed(seed)
    linear = Linear(24, 40, weight_bits=8).eval()
    linear.weight_quantizer.fit(linear.weight)
    return linear


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
    weight = quantizer.quantize(linear.weight).double() * quantizer.threshold(torch.float64)[:, None]
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
def test_nothing_is_made_twice(kind, monkeypatch):
    linear = make_linear()
    first = answer(linear, kind)
    monkeypatch.setattr(linear.weight_quantizer, "quantize", None)
    monkeypatch.setattr(linear.weight_quantizer, "forward", None)
    assert torch.equal(answer(linear, kind), first)


def test_what_is_remembered_is_not_saved_and_ends_with_its_module():
    import gc
    import weakref

    from spikezip_hf.models import operators

    linear = make_linear()
    keys = list(linear.state_dict())
    answer(linear, "levels")
    assert list(linear.state_dict()) == keys
    made = weakref.ref(next(iter(operators._made[linear].values()))[1])
    del linear
    gc.collect()
    assert made() is None

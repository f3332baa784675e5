"""The LSQ quantizer: levels, bounds, gradients against a written-out reference, the scale's safety."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from spikezip_hf.models.quantization import (
    MIN_SCALE,
    LSQFunction,
    LSQQuantizer,
    WeightQuantizer,
    level_bounds,
    threshold,
)
from spikezip_hf.models.remembering import parameters_remembered


def make(levels=16, signed=True, features=3, per_channel=False, scale=0.25):
    node = LSQQuantizer(levels, signed, features, per_channel)
    node.set_scale(torch.full_like(node.scale, scale))
    return node


@pytest.mark.parametrize(
    ("levels", "signed", "bounds"),
    [(4, True, (-2, 1)), (4, False, (0, 3)), (32, True, (-16, 15)), (256, True, (-128, 127)), (256, False, (0, 255))],
)
def test_bounds(levels, signed, bounds):
    assert level_bounds(levels, signed) == bounds


@pytest.mark.parametrize("levels", [0, 2, 3, 31, 258, 16.0, "16"])
def test_levels_out_of_range_are_refused_by_name(levels):
    with pytest.raises(ValueError, match="quantization_levels must be an even integer from 4 to 256"):
        LSQQuantizer(levels, True, 1)


@settings(max_examples=200, deadline=None)
@given(st.floats(-100, 100, width=32), st.floats(2**-7, 10, width=32), st.sampled_from([4, 16, 256]), st.booleans())
def test_values_are_eq2(x, scale, levels, signed):
    node = make(levels, signed, 1, scale=scale)
    s = node.scale.item()  # the float32 that is stored
    low, high = level_bounds(levels, signed)
    # Eq. 2 on the float32 quotient, which is what the hardware of a neuron compares.
    quotient = (torch.tensor(x) / torch.tensor(s)).item()
    level = min(max(math.floor(torch.tensor(quotient + 0.5, dtype=torch.float32).item()), low), high)
    assert node.quantize(torch.tensor([x])).item() == level
    assert node(torch.tensor([x])).item() == pytest.approx(level * s, rel=1e-6)


def test_ties_go_up_as_the_neuron_fires():
    node = make(16, scale=0.5)
    ties = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    assert node.quantize(ties).tolist() == [-1, 0, 1, 2]
    assert node(ties).tolist() == [-0.5, 0.0, 0.5, 1.0]


def test_values_are_exactly_scale_times_level():
    node = make(256, scale=0.1)
    x = torch.randn(10_000) * 5
    assert torch.equal(node(x), node.quantize(x) * node.scale)
    assert torch.equal(node(x), node.dequantize(node.quantize(x), x.dtype))


def reference_gradients(x, scale, grad, low, high, features, per_channel):
    """Esser et al. 2019, Eq. 3 and Eq. 5, element by element."""
    grad_x, grad_scale = torch.zeros_like(x), torch.zeros_like(scale)
    for index in range(x.numel()):
        channel = index % x.shape[-1] if per_channel else 0
        s = scale[channel].item()
        v, g = x.view(-1)[index].item() / s, grad.view(-1)[index].item()
        if v <= low:
            slope, through = low, 0.0
        elif v >= high:
            slope, through = high, 0.0
        else:
            slope, through = -v + math.floor(v + 0.5), 1.0
        grad_x.view(-1)[index] = g * through
        grad_scale[channel] += g * slope
    sharing = 1 if per_channel else features
    return grad_x, grad_scale / math.sqrt(sharing * high)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("levels", [4, 16, 256])
def test_gradients_are_lsq(levels, signed, per_channel):
    node = make(levels, signed, 5, per_channel).double()
    with torch.no_grad():
        node.scale.mul_(torch.linspace(0.5, 2.0, node.scale.numel(), dtype=torch.float64))
    x = torch.randn(4, 3, 5, dtype=torch.float64) * levels / 8  # some inside, some clipped at either end
    x.requires_grad_()
    grad = torch.randn_like(x)
    node(x).backward(grad)
    expected_x, expected_scale = reference_gradients(
        x.detach(), node.scale.detach(), grad, node.min_level, node.max_level, 5, per_channel
    )
    assert torch.equal(x.grad, expected_x)
    assert torch.allclose(node.scale.grad, expected_scale, rtol=1e-12, atol=1e-12)  # the order of a sum
    assert (expected_x == 0).any()
    assert (expected_x != 0).any()


@pytest.mark.parametrize("signed", [False, True])
def test_gradients_at_the_bounds_are_those_of_clipped_values(signed):
    node = make(16, signed, 1, scale=0.5)
    for bound in (node.min_level, node.max_level):
        node.scale.grad = None
        x = torch.tensor([bound * 0.5], requires_grad=True)
        node(x).sum().backward()
        assert x.grad.item() == 0
        assert node.scale.grad.item() == pytest.approx(bound * node.gradient_scale)


def test_scale_gradient_does_not_depend_on_how_a_batch_is_split():
    x = torch.randn(8, 4, 3, dtype=torch.float64)
    whole, parts = make().double(), make().double()
    whole(x).square().sum().backward()
    for part in x.split(2):
        parts(part).square().sum().backward()
    assert torch.allclose(whole.scale.grad, parts.scale.grad, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_quantized_in_float32_and_the_scale_stays(dtype):
    node = make(32, scale=0.1)
    scale = node.scale.detach().clone()
    node.to(dtype)
    assert node.scale.dtype == torch.float32
    assert torch.equal(node.scale, scale)
    x = (torch.randn(1000) * 2).to(dtype)
    assert torch.equal(node.quantize(x), torch.floor(x.float() / scale + 0.5).clamp(-16, 15))
    assert node(x).dtype == dtype
    assert node.double().scale.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_multiplied_in_float32(dtype):
    node = make(256, scale=0.1)
    levels = torch.arange(-128, 128)
    assert torch.equal(node.dequantize(levels, dtype), (levels.float() * node.scale.detach()).to(dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_unusable_scales_are_refused_by_name(bad):
    node = make()
    node.name = "layers.3.node"
    with pytest.raises(ValueError, match=r"layers\.3\.node\.scale is"):
        node.set_scale(torch.tensor([bad]))
    assert not bool(node.initialized)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_one_bad_channel_is_a_problem(bad):
    node = make(per_channel=True)
    assert node.problem() is None
    with torch.no_grad():
        node.scale[1] = bad
    assert node.problem() is not None


def test_a_collapsed_scale_still_quantizes_to_finite_values_and_has_a_gradient():
    node = make()
    with torch.no_grad():
        node.scale.fill_(-0.1)
    out = node(torch.tensor([1.0, -1.0], requires_grad=True))
    assert bool(out.isfinite().all())
    assert out.abs().max() <= 16 * MIN_SCALE
    out.sum().backward()
    assert bool(node.scale.grad.isfinite().all())
    assert "below" in node.problem()


def test_initialized_is_saved():
    node, fresh = make(), LSQQuantizer(16, True, 3)
    assert fresh.problem() == "was never set by calibrate() or a checkpoint"
    fresh.load_state_dict(node.state_dict())
    assert fresh.problem() is None


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("levels", "fewer"), [(32, 8), (256, 4), (8, 64)])
class TestSetLevels:
    def make(self, levels, signed, per_channel):
        node = make(levels, signed, 5, per_channel)
        with torch.no_grad():
            node.scale.mul_(torch.linspace(0.5, 2.0, node.scale.numel()))
        return node

    def test_the_scale_follows_lsq_s_rule(self, levels, fewer, signed, per_channel):
        """2 E|x| / sqrt(S_max), for the E|x| that the old scale stood for."""
        node = self.make(levels, signed, per_channel)
        parameter, expected = node.scale, node.scale.detach() * node.max_level**0.5
        node.set_levels(fewer)
        assert (node.levels, (node.min_level, node.max_level)) == (fewer, level_bounds(fewer, signed))
        assert node.scale is parameter  # an optimizer has hold of it
        # A product and a quotient of float32, each rounded.
        assert torch.allclose(node.scale * node.max_level**0.5, expected, rtol=4e-7, atol=0)
        assert node.problem() is None

    def test_the_scale_stays_where_it_is_to(self, levels, fewer, signed, per_channel):
        node = self.make(levels, signed, per_channel)
        scale = node.scale.detach().clone()
        node.set_levels(fewer, rescale=False)
        assert (node.levels, (node.min_level, node.max_level)) == (fewer, level_bounds(fewer, signed))
        assert torch.equal(node.scale, scale)
        fresh = LSQQuantizer(fewer, signed, 5, per_channel)
        fresh.set_scale(scale)
        x = torch.randn(50, 5) * 4
        assert torch.equal(node(x), fresh(x))
        assert torch.equal(node.quantize(x), fresh.quantize(x))

    def test_the_gradient_is_that_of_a_node_made_so(self, levels, fewer, signed, per_channel):
        changed = self.make(levels, signed, per_channel).double()
        changed.set_levels(fewer)
        x = torch.randn(4, 3, 5, dtype=torch.float64) * 4
        x.requires_grad_()
        grad = torch.randn_like(x)
        changed(x).backward(grad)
        expected_x, expected_scale = reference_gradients(
            x.detach(), changed.scale.detach(), grad, *level_bounds(fewer, signed), 5, per_channel
        )
        assert torch.equal(x.grad, expected_x)
        assert torch.allclose(changed.scale.grad, expected_scale, rtol=1e-12, atol=1e-12)  # the order of a sum

    @pytest.mark.parametrize("rescale", [False, True])
    @pytest.mark.parametrize("bad", [2, 7, 258, 16.0])
    def test_bad_levels_change_nothing(self, levels, fewer, signed, per_channel, bad, rescale):
        node = self.make(levels, signed, per_channel)
        before, scale = dict(vars(node)), node.scale.detach().clone()
        with pytest.raises(ValueError, match="quantization_levels must be an even integer from 4 to 256"):
            node.set_levels(bad, rescale)
        assert vars(node) == before
        assert torch.equal(node.scale, scale)


@pytest.mark.parametrize("signed", [False, True])
def test_levels_that_need_it_get_a_wider_integer(signed):
    node = make(128, signed)
    assert node.level_dtype == torch.int8
    for levels, dtype in ((130, torch.int16), (256, torch.int16), (128, torch.int8), (4, torch.int8)):
        node.set_levels(levels)
        assert node.level_dtype == dtype
        # What a neuron spikes from one bound to the other has to fit too.
        assert node.max_level - node.min_level <= torch.iinfo(dtype).max


def test_an_uncalibrated_node_is_still_one_after_its_levels_changed():
    node = LSQQuantizer(16, True, 3)
    node.set_levels(8)
    assert not bool(node.initialized)


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 1, 1), (4, 3, 1), (4, 3, 5), (3, 1)])
def test_gradient_of_a_scale_of_any_shape_is_the_sum_over_what_shares_it(shape):
    """Eq. 3 element by element, then summed into the scale that each element broadcasts from."""
    scale = (torch.rand(shape, dtype=torch.float64) + 0.1).requires_grad_()
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    grad = torch.randn_like(x)
    LSQFunction.apply(x, scale, -3, 2, 0.5).backward(grad)

    which = torch.arange(scale.numel()).reshape(shape).expand(4, 3, 5).flatten().tolist()
    expected = [0.0] * scale.numel()
    for index, value, g in zip(which, x.flatten().tolist(), grad.flatten().tolist(), strict=True):
        position = value / scale.detach().flatten()[index].item()
        inside = -3 < position < 2
        slope = math.floor(position + 0.5) - position if inside else min(max(position, -3), 2)
        expected[index] += 0.5 * g * slope
    assert scale.grad.shape == shape
    assert scale.grad.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)  # the order of a sum


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_gradients_are_of_the_type_of_what_they_are_of(dtype):
    scale = torch.full((3,), 0.25, requires_grad=True)
    x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    LSQFunction.apply(x, scale, -8, 7, 0.5).sum().backward()
    assert x.grad.dtype == dtype
    assert scale.grad.dtype == torch.float32


@pytest.mark.parametrize("frozen", ["x", "scale"])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same_as_ever(frozen):
    tensors = {"x": torch.randn(4, 3), "scale": torch.tensor([0.25])}
    learning = "scale" if frozen == "x" else "x"
    gradients = []
    for frozen_too in (False, True):
        x, scale = (
            tensor.clone().requires_grad_(name == learning or not frozen_too) for name, tensor in tensors.items()
        )
        LSQFunction.apply(x, scale, -8, 7, 0.5).square().sum().backward()
        gradients.append({"x": x.grad, "scale": scale.grad})
    assert gradients[1][frozen] is None
    assert torch.equal(gradients[1][learning], gradients[0][learning])


def test_a_printed_network_says_what_its_quantizers_are():
    assert repr(LSQQuantizer(16, True, 3)) == "LSQQuantizer(levels=16, signed, scales=1, stage=0)"
    per_channel = LSQQuantizer(8, signed=False, num_features=3, per_channel=True, stage=2)
    assert repr(per_channel) == "LSQQuantizer(levels=8, unsigned, scales=3, stage=2)"
    assert repr(WeightQuantizer(8, torch.Size([4, 3, 2, 2]))) == "WeightQuantizer(bits=8, scales=4)"


def test_a_scale_never_set_is_a_range_of_8_for_activations_and_of_1_for_weights():
    assert LSQQuantizer(16, True, 3, per_channel=True).scale.tolist() == [0.5] * 3
    assert WeightQuantizer(8, torch.Size([2, 5])).scale.tolist() == pytest.approx([1 / 127] * 2)


@pytest.mark.parametrize(
    ("bad", "said"), [(math.nan, "is not finite"), (math.inf, "is not finite"), (2.0**-28, "is below 7.45058e-09")]
)
def test_what_is_wrong_with_a_scale_is_said(bad, said):
    node = make()
    with pytest.raises(ValueError, match=rf"^quantizer\.scale {said}: its calibration data is unusable\.$"):
        node.set_scale(torch.tensor([bad]))
    node.set_scale(torch.tensor([MIN_SCALE]))  # the smallest there is
    assert node.problem() is None


def test_the_scale_of_a_default_type_of_half_is_float32():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        assert LSQQuantizer(16, True, 3).scale.dtype == torch.float32
    finally:
        torch.set_default_dtype(default)


def test_a_node_hands_itself_and_its_current_to_whatever_an_engine_does():
    node, weights, x = make(), WeightQuantizer(8, torch.Size([2, 3])), torch.randn(2, 3)
    for quantizer in (node, weights):
        assert quantizer(x, lambda *given: given) == (quantizer, x)


def test_float64_values_of_a_scale_in_float32_are_not_rounded():
    node, levels = make(256, scale=0.1), torch.arange(-128, 128)
    values = levels.double() * node.scale.detach().double()
    assert torch.equal(node.dequantize(levels, torch.float64), values)
    assert torch.equal(node(values), values)
    assert node.threshold(torch.float64).dtype == torch.float64


@pytest.mark.parametrize("of_scale", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("of_input", "expected"),
    [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_a_threshold_has_the_type_of_the_input_or_float32(of_scale, of_input, expected):
    found = threshold(torch.tensor([0.5, 0.0], dtype=of_scale), of_input)
    assert found.dtype == expected
    assert found.tolist() == [0.5, torch.tensor(MIN_SCALE, dtype=of_scale).item()]


def test_a_simulation_remembers_a_threshold_of_each_node_in_each_type():
    node, other = make(scale=0.25), make(scale=0.5)
    with parameters_remembered():
        for dtype in (torch.float32, torch.float64):
            for one, scale in ((node, 0.25), (other, 0.5)):
                assert one.threshold(dtype).dtype == dtype
                assert one.threshold(dtype).item() == scale
                assert one.threshold(dtype) is one.threshold(dtype)


def test_a_scale_moves_to_another_device_and_stays_in_float32():
    scale = make().to("meta", torch.float16).scale
    assert (scale.device.type, scale.dtype) == ("meta", torch.float32)

"""Products in fixed point, and by events: what a weight becomes, and sums, exact in whatever way they are made."""

import copy
import math
import pickle
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from spikezip_hf.models import kernels
from spikezip_hf.models.kernels import FIXED_BITS, fixed_operand, fixed_point
from spikezip_hf.models.neurons import fire, fire_reference
from spikezip_hf.models.operators import Linear
from spikezip_hf.models.rows import Rows, Timeline
from tests.kernels.test_native import (
    assert_same_firing,
    built,
    make_node,
    needs_products,
    of_tokens,
    some_tokens,
    threads,
    way,
)

__all__ = ["threads", "way"]  # fixtures


def random_weight(n, k, generator, spread=3.0):
    """Rows of very different sizes, and numbers of different sizes in a row."""
    sizes = 10.0 ** ((torch.rand(n, 1, generator=generator) - 0.5) * 2 * spread)
    return torch.randn(n, k, generator=generator) * sizes * 2.0 ** -torch.randint(0, 30, (n, k), generator=generator)


class TestAWeight:
    @pytest.mark.parametrize("with_factors", [False, True])
    def test_is_a_multiple_of_a_quantum_next_to_it(self, with_factors):
        generator = torch.Generator().manual_seed(0)
        weight = random_weight(40, 50, generator)
        factors = torch.rand(50, generator=generator) + 1e-3 if with_factors else None
        found, exact = fixed_point(weight, factors), weight.double() * (1.0 if factors is None else factors.double())
        largest = exact.abs().amax(1, keepdim=True)
        quantum = 2.0 ** (largest.log2().floor() + 1 - FIXED_BITS)
        assert torch.equal(found / quantum, (found / quantum).round())
        assert ((found - exact).abs() <= quantum / 2).all()
        assert (quantum / 2 <= largest * 2.0**-26).all()

    def test_that_is_not_small_in_its_row_is_itself(self):
        weight = random_weight(40, 50, torch.Generator().manual_seed(1))
        weight = torch.where(weight.abs() >= weight.abs().amax(1, keepdim=True) / 4, weight, 0.0)
        assert torch.equal(fixed_point(weight, None), weight.double())

    def test_of_extremes(self):
        weight = torch.tensor([[0.0, -0.0], [3.4e38, -1e30], [1e-45, -1e-40], [1.0, -1.0], [0.99999994, -0.5]])
        found = fixed_point(weight, None)
        assert torch.equal(found[[0, 3, 4]], weight[[0, 3, 4]].double())
        assert abs(found[1, 0] / 3.4e38 - 1) < 2.0**-24
        assert not found[2].any()  # below any quantum

    @pytest.mark.parametrize("number", [math.nan, -math.nan, math.inf, -math.inf])
    def test_that_is_not_finite_makes_its_row_nan(self, number):
        weight = torch.ones(3, 4)
        weight[1, 2] = number
        assert fixed_point(weight, None).isnan().any(1).tolist() == [False, True, False]

    @pytest.mark.parametrize("k", [64, 384, 3072])
    def test_gives_products_that_are_nearer_to_the_exact_ones_than_float32(self, k):
        generator = torch.Generator().manual_seed(k)
        weight = torch.randn(200, k, generator=generator)
        levels = torch.randint(-16, 16, (100, k), generator=generator, dtype=torch.int8)
        exact = levels.double() @ weight.double().t()
        fixed = (levels.double() @ fixed_point(weight, None).t() - exact).square().mean()
        floating = ((levels.float() @ weight.t()).double() - exact).square().mean()
        assert fixed < floating


class TestWhereThereIsSuchAProduct:
    levels, weight = torch.ones(2, 8, dtype=torch.int8), torch.rand(4, 8)

    def operand(self, levels=levels, weight=weight, factors=None):
        with mock.patch.object(kernels, "in_fixed_point", return_value=True):
            return fixed_operand(levels, weight, factors)

    def test_on_float32(self):
        assert self.operand() is not None
        assert self.operand(factors=torch.ones(8)) is not None
        assert self.operand(weight=self.weight.double()) is None
        assert self.operand(weight=self.weight.bfloat16()) is None
        assert self.operand(factors=torch.ones(8, dtype=torch.float64)) is None

    def test_on_a_cpu(self):
        assert self.operand(weight=self.weight.to("meta")) is None

    def test_where_sums_fit(self):
        assert self.operand(weight=torch.ones(1, 2**16)) is not None
        assert self.operand(weight=torch.ones(1, 2**16 + 1)) is None

    def test_not_where_a_lower_precision_is_asked_for(self):
        with torch.autocast("cpu", torch.bfloat16):
            assert self.operand() is None

    def test_on_levels_of_a_byte(self):
        assert self.operand(levels=self.levels.to(torch.int16)) is None

    def test_on_a_weight_that_lies_in_rows(self):
        assert self.operand(weight=self.weight.t().contiguous().t()) is None

    def test_not_where_kernels_do_no_products(self):
        with mock.patch.object(kernels, "native", None):
            assert fixed_operand(self.levels, self.weight, None) is None


@st.composite
def levels_in_time(draw, k, generator, samples):
    """(rows, places, k) levels of so many samples on a timeline, of which many, few, or none change from step to step,
    by one level or more; or of which many, few, or none do not go on as they moved in the step before."""
    steps, places = draw(st.integers(1, 7)), draw(st.sampled_from([1, 7, 31, 32, 33, 70]))
    changed = torch.rand(steps, samples, generator=generator) < 0.7
    changed[0] = True
    timeline = Timeline(changed)
    low, high = draw(st.sampled_from([(-128, 127), (-8, 7), (0, 15)]))
    jump = draw(st.sampled_from([1, 3, 300]))
    now = torch.randint(low, high + 1, (samples, places, k), generator=generator)
    if draw(st.booleans()):
        now = torch.zeros_like(now).clamp(low, high)  # the first is made of events, too
    rows, move = [], torch.zeros_like(now)
    for step in range(steps):
        share = draw(st.sampled_from([0.0, 0.02, 0.2, 0.35, 0.5, 1.0]))
        others = torch.rand(now.shape, generator=generator) < share
        goes_on = move if draw(st.booleans()) else torch.zeros_like(now)
        move = torch.where(others, torch.randint(-jump, jump + 1, now.shape, generator=generator), goes_on)
        now = (now + move).clamp(low, high)
        rows += [now[sample] for sample in range(samples) if changed[step, sample]]
    return torch.stack(rows).to(torch.int8), timeline


def operand_of(draw, n, k, generator):
    """A weight of bytes or in fixed point as the kernels take it, and its exact numbers in float64."""
    kind = draw(st.sampled_from(["bytes", "numbers", "numbers with factors"]))
    if kind == "bytes":
        weight = torch.randint(-127, 128, (n, k), generator=generator)
        weight[:, 0] = draw(st.sampled_from([-127, 127]))
        return built.weight_panels(weight.float() * 0.5, torch.full((n,), 0.5), 127), weight.double()
    weight = random_weight(n, k, generator)
    factors = torch.rand(k, generator=generator) + 0.01 if kind == "numbers with factors" else None
    return built.fixed_point(weight, factors), fixed_point(weight, factors)


@needs_products
@pytest.mark.usefixtures("way")
class TestTheKernels:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_multiply_as_the_reference(self, data):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10000)))
        k = data.draw(st.sampled_from([1, 3, 15, 16, 17, 63, 64, 65, 130, 400]))
        n = data.draw(st.sampled_from([1, 16, 63, 64, 65, 200]))
        operand, exact = operand_of(data.draw, n, k, generator)
        shape = data.draw(st.sampled_from([(1,), (4, 7), (2, 33), (70,)]))
        levels = torch.randint(-128, 128, (*shape, k), generator=generator, dtype=torch.int8)
        product, sums = operand.times(levels), levels.double() @ exact.t()
        assert torch.equal(product.sums().double(), sums)
        scale = torch.rand(data.draw(st.sampled_from([1, n])), generator=generator)
        bias = data.draw(st.sampled_from([None, torch.randn(n, generator=generator)]))
        expected = kernels.values_of(sums, scale, bias, torch.float32)
        assert torch.equal(product.values(scale, bias), expected)  # but for the sign of zeros

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_fire_as_the_reference_whatever_changes_from_step_to_step(self, data):
        draw = data.draw
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10000)))
        k, n = draw(st.sampled_from([1, 31, 32, 33, 100, 385, 800])), draw(st.sampled_from([1, 33, 64, 65, 150]))
        samples = draw(st.integers(1, 3))
        levels, timeline = draw(levels_in_time(k, generator, samples))
        operand, exact = operand_of(draw, n, k, generator)
        sums = levels.double() @ exact.t()
        scale = 8 / (sums.abs().amax((0, 1)).float() + 1e-30)
        bias = draw(st.sampled_from([None, torch.randn(n, generator=generator)]))
        fields = {"scale": scale, "bias": bias, "dtype": torch.float32, "timeline": timeline}
        node = make_node(draw(st.sampled_from([4, 16, 128])), True, n, draw(st.booleans()), generator)
        tracer = torch.randint(node.min_level, node.max_level + 1, (samples, *sums.shape[1:]), generator=generator)
        tokens = some_tokens(samples, sums.shape[1], generator) if draw(st.booleans()) else None
        arguments = (
            of_tokens(tracer, tokens).to(torch.int8),
            tokens,
            draw(st.sampled_from([1, 3])),
            draw(st.integers(0, 2)),
        )
        with mock.patch.object(built, "linear", mock.Mock(side_effect=AssertionError("sums were written to memory"))):
            firing = fire(node, Rows(integers=operand.times(levels), **fields), *copy.deepcopy(arguments))
        expected = fire_reference(node, Rows(integers=sums, **fields), *arguments)
        assert_same_firing(firing, expected)

    def test_of_more_than_a_part_and_threads(self, threads):
        """197 places, 900 features: blocks, panels and parts that are not full."""
        generator = torch.Generator().manual_seed(0)
        levels = torch.randint(-8, 8, (9, 197, 900), generator=generator, dtype=torch.int8)
        for row in range(1, 9):
            stay = torch.rand(197, 900, generator=generator) < (0.9 if row % 3 else 0.1)
            levels[row] = torch.where(stay, levels[row - 1], levels[row])
        weight = torch.randn(300, 900, generator=generator)
        sums = levels.double() @ fixed_point(weight, None).t()
        node = make_node(16, True, 300, False, generator)
        fields = {"scale": torch.full((1,), 0.02), "dtype": torch.float32}
        timeline = Timeline(torch.ones(9, 1, dtype=torch.bool))
        tracer = torch.zeros(1, 197, 300, dtype=torch.int8)
        product = built.fixed_point(weight, None).times(levels)
        firing = fire(node, Rows(integers=product, timeline=timeline, **fields), tracer.clone())
        expected = fire_reference(node, Rows(integers=sums, timeline=timeline, **fields), tracer.clone())
        assert_same_firing(firing, expected)

    @pytest.mark.parametrize("kind", ["bytes", "numbers", "lower halves"])
    def test_sums_as_large_as_they_can_be(self, kind):
        """The largest numbers and levels there are, and events of one direction, thousands in a row."""
        largest = {
            "bytes": 127.0,
            "numbers": torch.tensor(2.0).nextafter(torch.tensor(0.0)),  # 2**26 - 4 quanta
            "lower halves": 1 + 2**-10,  # 2**25 + 2**15: -2**15 in the lower 16 bits
        }[kind]
        weight = torch.full((3, 5000), 1.0) * largest
        weight[1], weight[2, ::2] = -largest, largest / 2
        if kind == "bytes":
            weight = weight.floor()
        operand = (
            built.weight_panels(weight, torch.ones(3), 127) if kind == "bytes" else built.fixed_point(weight, None)
        )
        levels = torch.full((4, 40, 5000), 127, dtype=torch.int8)
        levels[0], levels[2:, :, :290], levels[3, :, 290:500] = -128, 126, 125  # a few fall: by tiles, too, by events
        sums = levels.double() @ weight.double().t()
        product = operand.times(levels)
        assert torch.equal(product.sums().double(), sums)
        node = make_node(128, True, 3, False, torch.Generator().manual_seed(0))
        fields = {"scale": 4000 / sums.abs().amax((0, 1)).float(), "dtype": torch.float32}
        fields["timeline"] = Timeline(torch.ones(4, 1, dtype=torch.bool))
        fields["bias"] = -(sums[1, 0].float() * fields["scale"])  # so that the node tells sums of steps apart
        rest = torch.zeros(1, 40, 3, dtype=torch.int8)
        firing = fire(node, Rows(integers=product, **fields), rest.clone(), None, 127)
        assert firing.timeline.num_rows == 4
        assert_same_firing(firing, fire_reference(node, Rows(integers=sums, **fields), rest.clone(), None, 127))

    @pytest.mark.parametrize("kind", ["bytes", "numbers"])
    def test_more_events_of_one_place_than_16_bits_count(self, kind):
        """As of a node of many levels with graded spikes: few in the whole row, all in one place."""
        levels = torch.full((2, 2300, 500), -90, dtype=torch.int8)
        levels[1, 7, :380] = 90  # 68400 of them
        generator = torch.Generator().manual_seed(0)
        operand, exact = operand_of(mock.Mock(side_effect=[kind, 127, 127]), 3, 500, generator)
        sums = levels.double() @ exact.t()
        node = make_node(128, True, 3, False, generator)
        fields = {"scale": 60 / sums.abs().amax((0, 1)).float(), "dtype": torch.float32}
        fields["timeline"] = Timeline(torch.ones(2, 1, dtype=torch.bool))
        rest = torch.zeros(1, 2300, 3, dtype=torch.int8)
        firing = fire(node, Rows(integers=operand.times(levels), **fields), rest.clone(), None, 127)
        assert_same_firing(firing, fire_reference(node, Rows(integers=sums, **fields), rest.clone(), None, 127))

    @pytest.mark.parametrize("number", [math.nan, -math.nan, math.inf, -math.inf])
    def test_a_weight_that_is_not_finite_is_reported(self, number):
        weight = torch.ones(70, 9)
        weight[66, 3] = number
        product = built.fixed_point(weight, None).times(torch.ones(1, 5, 9, dtype=torch.int8))
        assert product.values(torch.ones(1), None).isnan().any(0).any(0).nonzero().flatten().tolist() == [66]
        node = make_node(16, True, 70, False, torch.Generator().manual_seed(0))
        rows = Rows(integers=product, scale=torch.ones(1), dtype=torch.float32, timeline=Timeline.constant(2, 1))
        assert fire(node, rows, torch.zeros(1, 5, 70, dtype=torch.int8)).undefined

    def test_a_weight_that_changes_before_its_product_is_done_is_an_error(self):
        weight = torch.rand(5, 9)
        product = built.fixed_point(weight, None).times(torch.ones(2, 9, dtype=torch.int8))
        product.sums()
        weight[0, 0] = 3.0
        with pytest.raises(RuntimeError, match="A weight was changed"):
            product.sums()
        gone = torch.rand(5, 9)
        product = built.fixed_point(gone, None).times(torch.ones(2, 9, dtype=torch.int8))
        gone.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="its memory given back"):
            product.values(torch.ones(1), None)

    def test_of_nothing(self):
        product = built.fixed_point(torch.rand(5, 9), None).times(torch.ones(0, 9, dtype=torch.int8))
        assert product.sums().shape == product.values(torch.ones(1), None).shape == (0, 5)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_products_are_copied_as_what_they_stand_for(self, copied):
        levels = torch.randint(-8, 8, (2, 3, 9), dtype=torch.int8)
        rows = Rows(
            integers=built.fixed_point(torch.rand(5, 9), None).times(levels), scale=torch.ones(5), dtype=torch.float32
        )
        assert torch.equal(copied(rows).values, rows.values)


@pytest.mark.parametrize("weight_bits", [None, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_linear_map_of_levels_is_exact(per_channel, weight_bits):
    """By whatever is there on this machine; with the reference where nothing is."""
    generator = torch.Generator().manual_seed(0)
    linear = Linear(70, 33, weight_bits=weight_bits).eval()
    if weight_bits:
        linear.weight_quantizer.fit(linear.weight)
    levels = torch.randint(-8, 8, (4, 9, 70), generator=generator).to(torch.int8)
    scale = torch.rand(70 if per_channel else 1, generator=generator) + 0.1
    x = Rows(integers=levels, scale=scale, peak=8, dtype=torch.float32)
    with mock.patch.object(kernels, "in_fixed_point", return_value=True), torch.no_grad():
        found = linear(x).values
        parts = [linear(Rows(integers=levels[i : i + 1], scale=scale, peak=8, dtype=torch.float32)) for i in range(4)]
    assert torch.equal(found, torch.cat([part.values for part in parts]))  # however many rows there are
    weight = linear.weight if not weight_bits else linear.weight_quantizer(linear.weight)
    exact = (levels.double() * scale.double()) @ weight.detach().double().t() + linear.bias.detach().double()
    # Three roundings to float32: of a sum, its multiple, and with the bias.
    largest = exact.abs() + linear.bias.detach().abs()
    assert ((found - exact).abs() <= 3 * 2.0**-24 * largest + 8 * 70 * 2.0**-26 * scale.max()).all()


def test_gradients_in_inference_are_those_of_the_product_in_floating_point():
    linear = Linear(7, 5).eval()
    levels = torch.randint(-8, 8, (3, 7), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    x = Rows(integers=levels, scale=torch.tensor([0.3]), peak=8, dtype=torch.float32)
    with mock.patch.object(kernels, "in_fixed_point", return_value=True):
        found = linear(x)
        with torch.no_grad():
            assert torch.equal(found.values, linear(x).values)
    (gradient,) = torch.autograd.grad(found.values.sum(), linear.weight)
    assert torch.allclose(gradient, (levels.float() * 0.3).sum(0).expand(5, -1))  # of sums in another order

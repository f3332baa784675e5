"""The kernels in C against their references in torch, to the bit."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from spikezip_hf.kernels import native
from spikezip_hf.models import kernels
from spikezip_hf.models.neurons import fire, fire_reference
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.rows import Rows, Timeline
from tests.models.naive import by_references
from tests.models.test_fast_engine import make_inputs, make_snn

built = native.library()
needs_kernels = pytest.mark.skipif(built is None, reason="no C compiler, or kernels turned off")
needs_products = pytest.mark.skipif(
    built is None or not built.has_products, reason="this processor has no AVX2: torch multiplies"
)
LAYOUTS = ["as it is", "transposed", "strided"]
INT32 = [-(2**31), -(2**31) + 1, -(2**24) - 1, -1, 0, 1, 2**24 + 1, 2**31 - 1]
FLOATS = [0.0, -0.0, float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.25, -0.25, 0.75, -0.75, 2.25]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def laid_out(x, layout):
    """The same numbers in other places of memory."""
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return x.repeat_interleave(3, -1)[..., ::3]
    return x


def sprinkled(x, special, generator):
    """`x` with some of its elements replaced by `special` numbers."""
    where = torch.rand(x.shape, generator=generator) < 0.2
    chosen = torch.tensor(special, dtype=x.dtype)[torch.randint(len(special), x.shape, generator=generator)]
    return torch.where(where, chosen, x)


def some_tokens(samples, positions, generator):
    """(samples, positions) bool: padding at either end, and some in between."""
    ends, at = torch.randint(positions + 1, (2, samples, 1), generator=generator), torch.arange(positions)
    inside = torch.rand(samples, positions, generator=generator) < 0.8
    return (at >= ends.amin(0)) & (at < ends.amax(0)) & inside


def of_tokens(tracer, tokens):
    """A tracer (samples, ..., positions, features) as it can be: 0 at padding, where nothing ever fires."""
    if tokens is None:
        return tracer
    return tracer * tokens.view(len(tokens), *(1,) * (tracer.dim() - 3), -1, 1)


def bits(x):
    return x.view(torch.int32) if x.dtype == torch.float32 else x


@pytest.fixture(params=["tiles", "vectors"])
def way(request):
    """What products of bytes are done by."""
    before = built.products_by
    built.use_tiles(request.param == "tiles")
    if built.products_by != request.param:
        pytest.skip("this processor has no tiles (AMX)")
    yield request.param
    built.use_tiles(before == "tiles")


@needs_products
@pytest.mark.usefixtures("way")
class TestProducts:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 20), st.integers(1, 70), st.integers(1, 140)),
        st.sampled_from(LAYOUTS),
        st.sampled_from(LAYOUTS),
        st.integers(0, 1000),
    )
    def test_are_those_of_whole_numbers(self, sizes, left, right, seed):
        outer, inner, m, k, n = sizes
        generator = torch.Generator().manual_seed(seed)
        a = torch.randint(-128, 128, (outer, inner, m, k), generator=generator, dtype=torch.int8)
        b = torch.randint(-128, 128, (outer, inner, k, n), generator=generator, dtype=torch.int8)
        a, b = of_tokens(a, some_tokens(outer, m, generator)), of_tokens(b, some_tokens(outer, k, generator))
        product = built.products(laid_out(a, left), laid_out(b, right))
        assert product.dtype == torch.int32
        assert torch.equal(product.double(), a.double() @ b.double())

    @pytest.mark.parametrize("a", [-128, 127])
    @pytest.mark.parametrize("b", [-128, 127])
    @pytest.mark.parametrize("k", [1, 3, 4, 64, 1000])
    def test_do_not_saturate(self, a, b, k):
        left = torch.full((1, 1, 7, k), a, dtype=torch.int8)
        right = torch.full((1, 1, k, 65), b, dtype=torch.int8)
        assert built.products(left, right).unique().tolist() == [a * b * k]

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 300), st.sampled_from([-128, -127, 127]), st.data())
    def test_of_levels_as_far_apart_as_can_be(self, start, count, k, most, data):
        """AVX2 adds up as many products in 16 bits as the range of a row's levels leaves room for: rows of many
        ranges, each level at a bound of its row, and a right side that leaves no more room than there must be."""
        lows = torch.arange(start, start + count) % 256 - 128
        highs = torch.tensor([data.draw(st.integers(int(low), 127)) for low in lows])
        at_low = torch.rand(count, k, generator=torch.Generator().manual_seed(start)) < 0.1
        a = torch.where(at_low, lows[:, None], highs[:, None]).to(torch.int8)[None, None]
        b = torch.full((1, 1, k, 65), most, dtype=torch.int8)
        b[..., ::3], b[..., 1::3, 1] = -most - (most == -128), 0
        assert torch.equal(built.products(a, b).double(), a.double() @ b.double())

    def test_of_heads_inside_positions(self, threads):
        """As attention has them: both operands and the result are views."""
        q, k = (torch.randint(-128, 128, (3, 9, 4, 8), dtype=torch.int8).transpose(1, 2) for _ in range(2))
        scores = built.products(q, k.transpose(-1, -2))
        assert torch.equal(scores.double(), q.double() @ k.transpose(-1, -2).double())
        probs = torch.randint(0, 128, (3, 4, 9, 9), dtype=torch.int8)
        assert torch.equal(built.products(probs, k).double(), probs.double() @ k.double())

    def test_none_of_no_rows(self):
        empty = built.products(torch.ones(0, 2, 3, 4, dtype=torch.int8), torch.ones(0, 2, 4, 5, dtype=torch.int8))
        assert empty.shape == (0, 2, 3, 5)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 1000))
    def test_are_what_the_network_asks_for(self, n, k, seed):
        """Through `integer_matmul`, with and without the kernels."""
        generator = torch.Generator().manual_seed(seed)
        a = torch.randint(-128, 128, (2, 3, n, k), generator=generator, dtype=torch.int8)
        b = torch.randint(-128, 128, (2, 3, k, n), generator=generator, dtype=torch.int8)
        with mock.patch.object(kernels, "native", None):
            reference = kernels.integer_matmul(a, b, k * 2**14)
        assert torch.equal(kernels.integer_matmul(a, b, k * 2**14).sums().double(), reference.double())


@st.composite
def linear_products(draw, rows=None):
    """A product of levels and a weight that is still to be done, and its sums."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10000)))
    k, n = draw(st.sampled_from([1, 3, 4, 63, 64, 65, 130])), draw(st.sampled_from([1, 16, 63, 64, 65, 200]))
    places = draw(st.sampled_from([(), (1,), (7,), (16,), (31,), (32,), (33,), (70,)]))
    rows = draw(st.integers(1, 4)) if rows is None else rows
    levels = torch.randint(-128, 128, (rows, *places, k), generator=generator, dtype=torch.int8)
    weight = torch.randint(-127, 128, (n, k), generator=generator)
    weight[:, 0] = 127 * draw(st.sampled_from([-1, 1]))
    panels = built.weight_panels(weight.float() * 0.5, torch.full((n,), 0.5), 127)
    return panels.times(levels), (levels.double() @ weight.double().t()).to(torch.int32)


@needs_products
@pytest.mark.usefixtures("way")
class TestProductsWithAWeight:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(linear_products(), st.booleans(), st.booleans(), st.integers(0, 1000))
    def test_are_those_of_whole_numbers(self, products, one_scale, with_bias, seed):
        product, sums = products
        assert product.shape == sums.shape
        assert torch.equal(product.sums(), sums)
        generator, features = torch.Generator().manual_seed(seed), sums.shape[-1]
        scale = torch.rand(1 if one_scale else features, generator=generator)
        bias = torch.randn(features, generator=generator) if with_bias else None
        with mock.patch.object(kernels, "native", None):
            expected = kernels.values_of(sums, scale, bias, torch.float32)
        assert torch.equal(bits(product.values(scale, bias)), bits(expected))
        rows = Rows(integers=product, scale=scale, bias=bias, dtype=torch.float32)
        assert rows.shape == sums.shape
        assert torch.equal(rows.values, expected)
        assert rows.product is not None  # nobody has asked for integers
        assert torch.equal(rows.integers, sums)

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_with_neurons_are_the_neurons_of_the_sums(self, data):
        draw = data.draw
        steps, samples = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10000)))
        changed = torch.rand(steps, samples, generator=generator) < 0.6
        changed[0] = True
        timeline = Timeline(changed)
        product, sums = draw(linear_products(rows=timeline.num_rows))
        features = sums.shape[-1]
        node = make_node(
            draw(st.sampled_from([4, 16, 128])), draw(st.booleans()), features, draw(st.booleans()), generator
        )
        fields = {
            "scale": torch.rand(draw(st.sampled_from([1, features])), generator=generator) * 1e-3,
            "bias": draw(st.sampled_from([None, torch.randn(features, generator=generator)])),
            "dtype": torch.float32,
            "timeline": timeline,
        }
        tokens = None
        if sums.dim() > 2 and draw(st.booleans()):
            tokens = some_tokens(samples, sums.shape[-2], generator)
        size = (samples, *sums.shape[1:])
        tracer = torch.randint(node.min_level, node.max_level + 1, size, generator=generator).to(torch.int8)
        tracer = of_tokens(tracer, tokens)
        closed, coarse = draw(st.integers(0, steps)), draw(st.integers(0, steps))
        arguments = tokens, draw(st.sampled_from([1, 3])), closed, coarse
        summed = mock.Mock(side_effect=AssertionError("the sums were written to memory"))
        with mock.patch.object(built, "linear", summed):
            firing = fire(node, Rows(integers=product, **fields), tracer.clone(), *arguments)
        with mock.patch.object(kernels, "native", None):
            expected = fire_reference(node, Rows(integers=sums, **fields), tracer.clone(), *arguments)
        assert_same_firing(firing, expected)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_are_copied_as_what_they_stand_for(self, copied):
        levels = torch.randint(-8, 8, (2, 3, 9), dtype=torch.int8)
        product = built.weight_panels(torch.ones(5, 9), torch.ones(5), 127).times(levels)
        rows = Rows(integers=product, scale=torch.ones(5), dtype=torch.float32)
        assert torch.equal(copied(rows).values, rows.values)
        heads = built.deferred(levels[None], levels.mT[None].contiguous())
        rows = Rows(integers=heads, scale=torch.ones(1), dtype=torch.float32)
        assert torch.equal(copied(rows).values, rows.values)

    def test_of_more_rows_than_a_block_and_two_threads(self, threads):
        levels = torch.randint(-8, 8, (9, 197, 384), dtype=torch.int8)
        weight = torch.randint(-127, 128, (1000, 384))
        panels = built.weight_panels(weight.float(), torch.ones(1000), 127)
        assert torch.equal(panels.times(levels).sums().double(), levels.double() @ weight.double().t())


@needs_products
@pytest.mark.usefixtures("way")
class TestSoftmaxOfScores:
    """With the neurons behind it, against `integer_softmax` and the reference's neurons."""

    @staticmethod
    def make(shape, generator, step=0.01, hide=True, layout="as it is"):
        rows, heads, queries, count, k = shape
        q = torch.randint(-16, 16, (rows, queries, heads, k), generator=generator, dtype=torch.int8).transpose(1, 2)
        key = torch.randint(-16, 16, (rows, heads, k, count), generator=generator, dtype=torch.int8)
        keys = some_tokens(rows, count, generator)[:, None, None] if hide else None
        table = kernels.exponentials(torch.tensor([step]))
        return kernels.integer_softmax(built.deferred(q, laid_out(key, layout)), table, keys)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.tuples(st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 140), st.integers(1, 70)),
        st.sampled_from([1e-3, 0.01, 0.4]),
        st.booleans(),
        st.sampled_from(LAYOUTS),
        st.integers(0, 1000),
    )
    def test_fires_as_the_reference_does(self, time, sizes, step, hide, layout, seed):
        (steps, samples), (heads, queries, count, _) = time, sizes
        generator = torch.Generator().manual_seed(seed)
        pending = self.make((steps * samples, *sizes), generator, step, hide, layout)
        node = make_node(16, False, heads, False, generator)
        timeline = Timeline(torch.ones(steps, samples, dtype=torch.bool))
        tracer = torch.randint(0, 16, (samples, heads, queries, count), generator=generator, dtype=torch.int8)
        tokens = some_tokens(samples, queries, generator) if hide else None
        tracer = of_tokens(tracer, tokens)
        current = Rows(pending, timeline=timeline)
        assert current.pending is pending
        expected = fire_reference(node, Rows(pending.values(), timeline=timeline), tracer.clone(), tokens, 3)
        assert_same_firing(fire(node, current, tracer.clone(), tokens, 3), expected)
        assert current.pending is pending  # never made by itself

    def test_of_heads_that_are_too_few_for_the_threads(self, threads):
        pending = self.make((3, 1, 150, 150, 16), torch.Generator().manual_seed(0))
        node = make_node(16, False, 1, False, torch.Generator().manual_seed(0))
        timeline = Timeline(torch.ones(3, 1, dtype=torch.bool))
        rest = torch.zeros(1, 1, 150, 150, dtype=torch.int8)
        expected = fire_reference(node, Rows(pending.values(), timeline=timeline), rest.clone())
        assert_same_firing(fire(node, Rows(pending, timeline=timeline), rest.clone()), expected)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_is_copied_as_what_it_stands_for(self, copied):
        pending = self.make((2, 2, 5, 6, 4), torch.Generator().manual_seed(0))
        found = copied(Rows(pending))
        assert found.pending is None
        assert torch.equal(found.values, pending.values())


@needs_products
@pytest.mark.usefixtures("way")
class TestContexts:
    """With the neurons behind them, against the reference's neurons of the sums."""

    @staticmethod
    def make(shape, generator, layout="as it is", inside=False, tokens=None, **fields):
        """Rows, heads still apart, and the sums with heads side by side."""
        rows, heads, places, k, width = shape
        left = torch.randint(-128, 128, (rows, heads, places, k), generator=generator, dtype=torch.int8)
        right = torch.randint(-128, 128, (rows, heads, k, width), generator=generator, dtype=torch.int8)
        if tokens is not None:
            right = of_tokens(right, tokens)
        sums = (left.double() @ right.double()).transpose(1, 2).flatten(2).to(torch.int32)
        if inside:
            right = right.transpose(1, 2).contiguous().transpose(1, 2)
        product = built.deferred(laid_out(left, layout), right)
        return Rows(integers=product, scale=torch.tensor([1e-3]), dtype=torch.float32, **fields), sums

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.tuples(st.integers(1, 4), st.integers(1, 2)),
        st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 140), st.integers(1, 64)),
        st.sampled_from(LAYOUTS),
        st.booleans(),
        st.booleans(),
        st.integers(0, 1000),
    )
    def test_fire_as_the_reference_does(self, time, sizes, layout, inside, padded, seed):
        (steps, samples), (heads, places, k, width) = time, sizes
        generator = torch.Generator().manual_seed(seed)
        changed = torch.rand(steps, samples, generator=generator) < 0.6
        changed[0] = True
        timeline = Timeline(changed)
        keys = some_tokens(timeline.num_rows, k, generator) if padded else None
        rows, sums = self.make((timeline.num_rows, *sizes), generator, layout, inside, keys, timeline=timeline)
        node = make_node(16, True, heads * width, seed % 2 == 0, generator)
        tokens = some_tokens(samples, places, generator) if padded else None
        tracer = torch.randint(-8, 8, (samples, places, heads * width), generator=generator, dtype=torch.int8)
        tracer = of_tokens(tracer, tokens)
        arguments = tokens, 3, int(seed % 3 == 0), int(seed % 5 == 0)
        merged = rows.heads_merged()
        assert merged.shape == sums.shape
        done = mock.Mock(side_effect=AssertionError("the sums were written to memory"))
        with mock.patch.object(built, "products", done):
            firing = fire(node, merged, tracer.clone(), *arguments)
        with mock.patch.object(kernels, "native", None):
            whole = Rows(integers=sums, scale=rows.scale, dtype=rows.dtype, timeline=timeline)
            expected = fire_reference(node, whole, tracer.clone(), *arguments)
        assert_same_firing(firing, expected)

    def test_of_more_places_than_a_block_and_two_threads(self, threads):
        generator, timeline = torch.Generator().manual_seed(0), Timeline(torch.ones(3, 1, dtype=torch.bool))
        rows, sums = self.make((3, 1, 197, 197, 64), generator, timeline=timeline)
        node, rest = make_node(16, True, 64, False, generator), torch.zeros(1, 197, 64, dtype=torch.int8)
        whole = Rows(integers=sums, scale=rows.scale, dtype=rows.dtype, timeline=timeline)
        expected = fire_reference(node, whole, rest.clone())
        assert_same_firing(fire(node, rows.heads_merged(), rest.clone()), expected)

    @pytest.mark.parametrize("as_it_is", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_whoever_asks_gets_sums_and_values(self, as_it_is):
        rows, sums = self.make((2, 3, 5, 6, 4), torch.Generator().manual_seed(0))
        merged = as_it_is(rows.heads_merged())
        assert merged.values.dtype == torch.float32
        assert torch.equal(merged.values, sums * rows.scale)
        assert torch.equal(merged.integers, sums)
        merged = rows.heads_merged()
        merged.bias = torch.ones(12)  # no kernel has products of two with a bias
        assert torch.equal(merged.values, sums * rows.scale + 1)

    @pytest.mark.parametrize("kind", ["windows", "a wide head", "columns in place", "values", "integers"])
    def test_others_are_done_before(self, kind):
        shape = (2, 3, 5, 6, 65 if kind == "a wide head" else 4)
        rows, sums = self.make(shape, torch.Generator().manual_seed(0))
        product = rows.product
        if kind == "windows":
            product = built.deferred(product.left[:, None], product.right[:, None])
            sums = sums[:, None]
        elif kind == "columns in place":
            product = built.deferred(product.left, laid_out(product.right, "transposed"))
        rows = Rows(integers=product, scale=rows.scale, dtype=rows.dtype)
        if kind == "values":
            rows = rows.with_gradient_of(torch.zeros(2, 3, 5, 4))
        elif kind == "integers":
            rows = rows.like(rows.integers)
        merged = rows.heads_merged()
        assert merged.product is None
        assert torch.equal(merged.integers, sums)
        assert torch.equal(merged.values, sums * rows.scale)


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_torch_does_not_multiply_bytes_where_it_would_do_so_one_by_one(capability):
    with mock.patch.object(torch.backends.cpu, "get_cpu_capability", return_value=capability):
        assert not kernels.multiplies_bytes.__wrapped__()


@pytest.mark.slow
def test_integer_products_with_weights_do_not_saturate_on_a_processor_without_vnni():
    """It multiplies bytes in pairs, whose sums of 16 bits saturate; oneDNN can be told to do as one without."""
    code = (
        "import torch\n"
        "from spikezip_hf.models.kernels import integer_linear, weight_form\n"
        "import os; os.environ['SPIKEZIP_KERNELS'] = 'reference'\n"
        "x = torch.full((9, 64), 127, dtype=torch.int8); x[::2] = -128\n"
        "w = torch.full((64, 33), 127, dtype=torch.int8); w[:, ::2] = -127\n"
        "product = integer_linear(x, w.to(weight_form(x, w, 64 * 128 * 127)))\n"
        "assert torch.equal(product.double(), x.double() @ w.double())\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_kernels
class TestValues:
    @settings(max_examples=80, deadline=None)
    @given(
        st.integers(1, 9),
        st.sampled_from([1, 2, 7, 16, 33, 257]),
        st.sampled_from([torch.int8, torch.int32]),
        st.booleans(),
        st.booleans(),
        st.integers(0, 1000),
    )
    def test_are_those_of_the_reference(self, rows, features, dtype, per_channel, with_bias, seed):
        generator = torch.Generator().manual_seed(seed)
        low, high = (-128, 128) if dtype == torch.int8 else (-(2**20), 2**20)
        integers = torch.randint(low, high, (rows, 2, features), generator=generator, dtype=dtype)
        integers = sprinkled(integers, [-128, 127, 0] if dtype == torch.int8 else INT32, generator)
        scale = sprinkled(torch.rand(features if per_channel else 1, generator=generator), [1e-30, 3e38], generator)
        bias = None
        if with_bias and dtype == torch.int32:  # levels have none
            bias = sprinkled(torch.randn(features, generator=generator), [0.0, -0.0], generator)
        assert built.takes_values(integers, scale, bias, torch.float32)
        with mock.patch.object(kernels, "native", None):
            expected = kernels.values_of(integers, scale, bias, torch.float32)
        values = kernels.values_of(integers, scale, bias, torch.float32)
        assert torch.equal(bits(values), bits(expected))  # of zeros, the sign as well

    @pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 5)])
    def test_of_any_shape(self, shape):
        integers, scale = torch.randint(-128, 128, shape, dtype=torch.int8), torch.rand(1)
        assert torch.equal(kernels.values_of(integers, scale, scale, torch.float32), integers * scale + scale)

    @torch.no_grad()
    def test_of_one_row_and_of_a_number(self):
        """There are no rows to choose: what adds them is torch."""
        scale = torch.rand(1)
        rows = Rows(integers=torch.full((2, 3), 7, dtype=torch.int8), scale=scale, peak=8, dtype=torch.float32)
        assert torch.equal(rows[0].values, 7 * scale.expand(3))
        assert torch.equal((rows[0] + rows[1]).values, 14 * scale.expand(3))
        assert (torch.sum(rows) + torch.sum(rows)).values.shape == ()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_of_any_layout(self, layout):
        integers = torch.randint(-128, 128, (4, 5, 6), dtype=torch.int8)
        scale = torch.rand(1)
        assert torch.equal(
            kernels.values_of(laid_out(integers, layout), scale, None, torch.float32), integers.float() * scale
        )

    def test_of_nothing(self):
        assert kernels.values_of(torch.ones(0, 3, dtype=torch.int8), torch.ones(1), None, torch.float32).shape == (
            0,
            3,
        )


@needs_kernels
class TestSums:
    """Of two terms, whichever rows of them are chosen."""

    @settings(max_examples=120, deadline=None)
    @given(
        st.lists(st.sampled_from(["values", torch.int8, torch.int32]), min_size=2, max_size=2),
        st.integers(1, 6),
        st.sampled_from([(1,), (33,), (2, 7), (3, 2, 64)]),
        st.lists(st.booleans(), min_size=6, max_size=6),
        st.integers(0, 1000),
    )
    def test_are_those_of_the_reference(self, kinds, rows, shape, choices, seed):
        generator = torch.Generator().manual_seed(seed)
        terms, expected = [], []
        for kind, (per_channel, with_bias, chosen) in zip(kinds, (choices[:3], choices[3:]), strict=True):
            features = shape[-1] if per_channel else 1
            scale = torch.rand(features, generator=generator)
            bias = torch.randn(features, generator=generator) if with_bias else None
            index, length = None, rows
            if chosen:
                length = int(torch.randint(1, 9, (), generator=generator))
                index = torch.randint(0, length, (rows,), generator=generator)
            if kind == "values":
                numbers, scale, bias = torch.randn(length, *shape, generator=generator), None, None
                values = sprinkled(numbers, [0.0, -0.0, float("inf")], generator)
                numbers = values
            else:
                numbers = torch.randint(-128, 128, (length, *shape), generator=generator).to(kind)
                with mock.patch.object(kernels, "native", None):
                    values = kernels.values_of(numbers, scale, bias, torch.float32)
            terms.append((numbers, scale, bias, index))
            expected.append(values if index is None else values.index_select(0, index))
        total = kernels.sum_of(terms)
        assert total is not None
        assert torch.equal(bits(total), bits(torch.add(*expected)))

    @pytest.mark.parametrize(
        "other",
        [
            (torch.ones(3, 4), None, None, None),  # another number of rows
            (torch.ones(2, 1), None, None, None),  # would have to be spread out
            (torch.ones(2, 4).double(), None, None, None),
            (torch.ones(4, 2).t(), None, None, None),
            (torch.ones(2, 4), None, None, torch.tensor([0, 2])),  # a row that is not there
            (torch.ones(2, 4), None, None, torch.tensor([0, -1])),
            (torch.ones(2, 4, dtype=torch.int16), torch.ones(1), None, None),
            (torch.ones(2, 4, dtype=torch.int8), torch.ones(2), None, None),
            (torch.ones(2, 4, dtype=torch.int8), torch.ones(1), torch.ones(4).double(), None),
        ],
    )
    def test_what_the_kernel_does_not_take(self, other):
        one = torch.ones(2, 4), None, None, None
        assert kernels.sum_of([one, one]) is not None
        assert kernels.sum_of([one, other]) is None
        assert kernels.sum_of([other, one]) is None

    @pytest.mark.parametrize("shape", [(), (4,)])
    def test_what_has_no_rows(self, shape):
        no_row = torch.ones(shape), None, None, None
        assert kernels.sum_of([no_row, no_row]) is None

    @pytest.mark.filterwarnings("ignore")  # tracing is on its way out
    def test_not_where_a_graph_is_made(self):
        one = torch.ones(2, 4), None, None, None
        found = []
        torch.jit.trace(
            lambda x: (found.append(kernels.sum_of([one, one])), x + 1)[1], torch.ones(1), check_trace=False
        )
        assert found == [None]

    def test_of_nothing(self):
        nothing = torch.ones(0, 3), None, None, None
        assert kernels.sum_of([nothing, nothing]).shape == (0, 3)


def make_node(levels, signed, features, per_channel, generator):
    node = LSQQuantizer(levels, signed, features, per_channel)
    node.set_scale(torch.rand(node.scale.shape, generator=generator) * 2 + 0.05)
    return node


def assert_fires_as_reference(node, current, tracer, *arguments):
    """Levels, counts, whether at rest, and whether NaN was there; returns them."""
    kernel_ran = mock.Mock(wraps=built.fire)
    with mock.patch.object(built, "fire", kernel_ran):
        firing = fire(node, current, tracer.clone(), *arguments)
    assert kernel_ran.called
    with mock.patch.object(kernels, "native", None):
        expected = fire_reference(node, current, tracer.clone(), *arguments)
    assert_same_firing(firing, expected)
    if not tracer.any():  # so do neurons that begin at 0, in memory that holds anything
        empty = torch.empty
        with mock.patch.object(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(77)):
            assert_same_firing(fire(node, current, None, *arguments), expected)
    return firing


def assert_same_firing(firing, expected):
    assert torch.equal(firing.levels, expected.levels)
    assert firing.levels.dtype == expected.levels.dtype
    assert torch.equal(firing.timeline.index, expected.timeline.index)
    assert torch.equal(firing.timeline.changed, expected.timeline.changed)
    assert firing.timeline.num_rows == expected.timeline.num_rows
    assert torch.equal(firing.tracer, expected.tracer)
    assert torch.equal(firing.counts, expected.counts)
    assert torch.equal(firing.at_target, expected.at_target)
    assert bool(firing.undefined) == bool(expected.undefined)


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 10000))
def test_levels_of_weights_are_those_of_the_reference(out_features, in_features, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator)
    scale = torch.rand(out_features, generator=generator) / 30 + 1e-3
    scale[0], weight[0, 0] = 0.5, 0.75  # a tie, which goes up
    found = kernels.weight_levels(weight, scale, 127, torch.int8)
    with mock.patch.object(kernels, "native", None):
        assert torch.equal(found, kernels.weight_levels(weight, scale, 127, torch.int8))
    assert found[0, 0] == 2
    assert found.is_contiguous()


@needs_kernels
@pytest.mark.parametrize("levels", [4, 16, 128])
@pytest.mark.parametrize("signed", [True, False])
def test_levels_next_to_a_tie_are_those_of_the_division(levels, signed):
    """The kernel multiplies by 1/s where that is safe to say: not within some ulps of where a level ends."""
    generator = torch.Generator().manual_seed(levels)
    node = make_node(levels, signed, 64, True, generator)
    ends = torch.arange(node.min_level - 2, node.max_level + 3)[:, None] - 0.5
    x = ends * node.threshold(torch.float32)
    near = [x]
    for _ in range(6):
        near = [near[0].nextafter(torch.tensor(-torch.inf)), *near, near[-1].nextafter(torch.tensor(torch.inf))]
    spread = [x * (1 + offset) for offset in (1e-6, -1e-6, 1e-5, -1e-5, 1e-4, -1e-4, 1e-3, -1e-3)]
    current = Rows(torch.stack(near + spread).flatten(0, 1)[None], timeline=Timeline.constant(1, 1))
    tracer = torch.zeros(current.shape, dtype=torch.int8)
    assert_fires_as_reference(node, current, tracer, None, levels - 1)


@needs_kernels
class TestNeurons:
    @pytest.mark.parametrize("flush", [False, True])
    def test_a_threshold_whose_inverse_is_denormal(self, flush):
        node = LSQQuantizer(16, True, 1)
        node.set_scale(torch.tensor([1e38]))
        current = Rows(torch.tensor([[3e38, 1.2e38, -1e38, -2.6e38]]), timeline=Timeline.constant(1, 1))
        torch.set_flush_denormal(flush)
        try:
            firing = assert_fires_as_reference(node, current, torch.zeros(1, 4, dtype=torch.int8), None, 15)
        finally:
            torch.set_flush_denormal(False)
        assert firing.levels.flatten().tolist() == [3, 1, -1, -3]

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_fire_as_the_reference_does(self, data):
        draw = data.draw
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10000)))
        levels, signed = draw(st.sampled_from([4, 16, 32, 128])), draw(st.booleans())
        features = draw(st.sampled_from([1, 2, 5, 16, 33, 130]))
        steps, samples = draw(st.integers(1, 9)), draw(st.integers(1, 3))
        shape = draw(st.sampled_from([(features,), (1, features), (7, features), (2, 5, features)]))
        node = make_node(levels, signed, features, draw(st.booleans()), generator)

        changed = torch.rand(steps, samples, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
        changed[0] = True
        timeline = Timeline(changed)
        size = (timeline.num_rows, *shape)
        if draw(st.booleans()):
            integers = torch.randint(-(2**12), 2**12, size, generator=generator, dtype=torch.int32)
            current = Rows(
                integers=sprinkled(integers, INT32, generator),
                scale=torch.rand(draw(st.sampled_from([1, features])), generator=generator) * 0.02,
                bias=draw(st.sampled_from([None, torch.randn(features, generator=generator)])),
                dtype=torch.float32,
                timeline=timeline,
            )
        else:
            x = torch.randn(size, generator=generator) * levels
            x = laid_out(
                sprinkled(x, FLOATS, generator), draw(st.sampled_from(LAYOUTS)) if len(shape) > 1 else "as it is"
            )
            current = Rows(x, timeline=timeline)

        tracer = torch.randint(node.min_level, node.max_level + 1, (samples, *shape), generator=generator)
        if draw(st.booleans()):
            tracer.zero_()
        tokens = None
        if len(shape) > 1 and draw(st.booleans()):
            tokens = some_tokens(samples, shape[-2], generator)
            tracer = of_tokens(tracer, tokens)
        max_spikes = draw(st.sampled_from([1, 2, 5, levels - 1]))
        closed, coarse = draw(st.integers(0, steps)), draw(st.integers(0, steps))
        assert_fires_as_reference(node, current, tracer.to(torch.int8), tokens, max_spikes, closed, coarse)

    @pytest.mark.parametrize("features", [1, 3000, 8192, 8193, 20000])
    def test_in_blocks_larger_and_smaller_than_a_row(self, features, threads):
        generator = torch.Generator().manual_seed(0)
        node = make_node(16, True, features, features == 3000, generator)
        current = Rows(torch.randn(6, 9, features) * 5, timeline=Timeline(torch.ones(3, 2, dtype=torch.bool)))
        tokens = torch.rand(2, 9) < 0.5
        assert_fires_as_reference(node, current, torch.zeros(2, 9, features, dtype=torch.int8), tokens, 3)

    def test_ties_break_upwards(self):
        node = LSQQuantizer(16, True, 1)
        node.set_scale(torch.tensor([0.5]))
        x = torch.tensor([[0.25, -0.25, 0.75, -0.75, 1.25, -1.25, 0.2499, -0.2501]])
        current = Rows(x, timeline=Timeline.constant(1, 1))
        firing = assert_fires_as_reference(node, current, torch.zeros(1, 8, dtype=torch.int8), None, 15)
        assert firing.levels.flatten().tolist() == [1, 0, 2, -1, 3, -2, 0, -1]

    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize("levels", [128, 126])
    def test_the_largest_jump_in_a_byte(self, levels, signed):
        node = LSQQuantizer(levels, signed, 1)
        node.set_scale(torch.ones(1))
        x = torch.tensor([float("inf"), -float("inf"), 1e9, -1e9]).reshape(4, 1).repeat(1, 300)
        current = Rows(x, timeline=Timeline(torch.ones(4, 1, dtype=torch.bool)))
        tracer = torch.zeros(1, 300, dtype=torch.int8)
        firing = assert_fires_as_reference(node, current, tracer, None, levels - 1)
        low, high = node.min_level, node.max_level
        assert firing.levels[:, 0].tolist() == [high, low, high, low]
        assert firing.counts[1].item() == 300 * (high - low)  # more than fits in 16 bits

    @pytest.mark.parametrize("step", [0, 3])
    def test_nan_is_reported(self, step):
        node = LSQQuantizer(16, True, 5)
        node.set_scale(torch.ones(1))
        x = torch.zeros(4, 3, 5)
        x[step, 1, 2] = float("nan")
        current = Rows(x, timeline=Timeline(torch.ones(4, 1, dtype=torch.bool)))
        for tokens, seen in ((None, True), ([True, True, True], True), ([True, False, True], False)):
            mask = None if tokens is None else torch.tensor([tokens])
            firing = fire(node, current, torch.zeros(1, 3, 5, dtype=torch.int8), mask)
            assert bool(firing.undefined) is seen
            assert bool(fire_reference(node, current, torch.zeros(1, 3, 5, dtype=torch.int8), mask).undefined) is seen

    @pytest.mark.parametrize("closed", [0, 2, 5, 9])
    def test_come_to_rest_early_or_not_at_all(self, closed):
        node = LSQQuantizer(16, True, 4)
        node.set_scale(torch.ones(1))
        current = Rows(torch.tensor([[3.0, -2.0, 0.0, 1.0], [7.0] * 4]), timeline=Timeline.constant(9, 2))
        firing = assert_fires_as_reference(node, current, torch.zeros(2, 4, dtype=torch.int8), None, 1, closed)
        assert firing.at_target.tolist() == [9 - closed >= 3, 9 - closed >= 7]

    def test_samples_with_timelines_of_their_own(self, threads):
        changed = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]]).bool()
        generator = torch.Generator().manual_seed(3)
        node = make_node(16, True, 6, True, generator)
        timeline = Timeline(changed)
        current = Rows(torch.randn(timeline.num_rows, 4, 6) * 9, timeline=timeline)
        assert_fires_as_reference(node, current, torch.zeros(3, 4, 6, dtype=torch.int8))


@needs_kernels
@pytest.mark.parametrize("weight_bits", [None, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "mixed"])
@pytest.mark.parametrize("architecture", ["vit", "bert"])
def test_networks_answer_the_same_without_the_kernels(architecture, granularity, weight_bits):
    snn = make_snn(architecture, granularity=granularity, weight_bits=weight_bits)
    qann, batch = snn.to_quantized(), make_inputs(snn)
    arguments = {"time_steps": 40, "output_time_steps": True, "output_hidden_states": True, "output_attentions": True}
    out = snn(**batch, **arguments)
    with torch.no_grad():
        quantized = qann(**batch).logits
    with by_references():
        reference = snn(**batch, **arguments)
        with torch.no_grad():
            assert torch.equal(qann(**batch).logits, quantized)
    assert list(out) == list(reference)
    for name in out:
        if isinstance(out[name], tuple):
            assert all(torch.equal(a, b) for a, b in zip(out[name], reference[name], strict=True))
        else:
            assert torch.equal(out[name], reference[name])


@needs_kernels
def test_first_use_by_several_threads():
    """While one multiplies, another makes the library again: no moment may be without a way to multiply."""
    levels = torch.randint(-128, 128, (64, 512), dtype=torch.int8)
    product = (
        built.weight_panels(torch.ones(256, 512), torch.ones(256), 127).times(levels) if built.has_products else None
    )
    stop = threading.Event()

    def again():
        while not stop.is_set():
            built.use_tiles(True)

    other = threading.Thread(target=again)
    other.start()
    try:
        if product is not None:
            expected = levels.int().sum(-1, keepdim=True).expand(64, 256)
            assert all(torch.equal(product.sums(), expected) for _ in range(300))
    finally:
        stop.set()
        other.join()


@needs_kernels
def test_networks_answer_the_same_with_two_threads(threads):
    snn = make_snn("bert", weight_bits=8)
    batch = make_inputs(snn)
    out = snn(**batch, time_steps=40, output_time_steps=True)
    with mock.patch.object(kernels, "native", None):
        reference = snn(**batch, time_steps=40, output_time_steps=True)
    assert torch.equal(out.logits_per_step, reference.logits_per_step)
    assert torch.equal(out.spike_counts, reference.spike_counts)


@needs_kernels
@pytest.mark.parametrize("threshold", [1e-45, 1e-40, 2.0**-128, 2.0**-126, 2.0**126, 3e38])
def test_thresholds_whose_inverse_is_no_ordinary_number(threshold):
    x = torch.tensor([0.0, -0.0, 1e-45, 1e-40, -3e-40, 1.0, -1.0, 3e38, -3e38, 2.0**126]).repeat(5)[None, None, :43]
    threshold = torch.tensor([threshold])
    index, tracer = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 43, dtype=torch.int8)
    levels, *_ = built.fire(x.contiguous(), None, None, threshold, (-8, 7), index, tracer, None, 15, 0)
    assert torch.equal(levels.float(), torch.floor(x / threshold + 0.5).clamp(-8, 7))

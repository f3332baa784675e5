"""The tracker and the membrane form against the paper's Eq. 1, step for step."""

import math
from fractions import Fraction
from itertools import accumulate
from unittest import mock

import pytest
import torch
from hypothesis import given, settings, strategies as st

from spikezip_hf.kernels import native
from spikezip_hf.models import kernels, neurons
from spikezip_hf.models.engines import CumulativeEngine, EventEngine
from spikezip_hf.models.neurons import fire, fire_reference, levels_of, pending_spikes, sums_of, track
from spikezip_hf.models.quantization import LSQQuantizer, level_bounds
from spikezip_hf.models.rows import Rows, Timeline
from tests.models.oracle import equilibrium_level, st_bif_plus

levels_and_sign = st.tuples(st.sampled_from([4, 6, 8, 16, 32, 128, 256]), st.booleans())
# Multiples of 1/64 up to 2^10, and thresholds that are powers of two: every sum, product and quotient is exact.
dyadic = st.integers(-(2**12), 2**12).map(lambda n: n / 64)
dyadic_threshold = st.sampled_from([0.25, 0.5, 1.0, 2.0])


def make_node(levels, signed, scale):
    node = LSQQuantizer(levels, signed, num_features=1).double()
    node.name = "node"
    node.set_scale(torch.tensor([scale], dtype=torch.float64))
    return node


def run_cumulative(node, inputs, chunk, max_spikes=1, first_step=1, fine_step=1):
    """Tracers after every step, from the engine's `fire` on accumulated inputs."""
    gates = {"node": first_step}, {"node": fine_step}
    engine = CumulativeEngine(1, torch.device("cpu"), len(inputs), max_spikes, *gates)
    sums = torch.tensor(inputs, dtype=torch.float64).cumsum(0)
    tracers = []
    for start in range(0, len(inputs), chunk):
        steps = sums[start : start + chunk].reshape(-1, 1, 1)
        engine.advance(len(steps))
        every_step = Timeline(torch.ones(len(steps), 1, dtype=torch.bool))
        fired = engine.fire(node, Rows(steps, timeline=every_step)).on(every_step)
        tracers += (fired.values / node.scale.item()).flatten().tolist()
        engine.conclude()
    return tracers, engine


def run_event(node, inputs, max_spikes=1, first_step=1, fine_step=1):
    """(spike, potential) of every step, from the event engine's `fire`."""
    engine = EventEngine(1, torch.device("cpu"), len(inputs), max_spikes, {"node": first_step}, {"node": fine_step})
    trace = []
    for current in inputs:
        engine.advance(1)
        spike = engine.fire(node, torch.tensor([[current]], dtype=torch.float64)).item() / node.scale.item()
        trace.append((spike, engine.membranes["node"].item()))
        engine.conclude()
    return trace, engine


@settings(max_examples=200, deadline=None)
@given(levels_and_sign, dyadic_threshold, st.lists(dyadic, min_size=1, max_size=60), st.integers(1, 17))
def test_both_forms_equal_eq1_exactly_on_dyadic_inputs(kind, threshold, inputs, chunk):
    levels, signed = kind
    s_min, s_max = level_bounds(levels, signed)
    node = make_node(levels, signed, threshold)
    oracle = list(
        st_bif_plus([Fraction(x) for x in inputs], Fraction(threshold), s_min, s_max)  # no rounding anywhere
    )

    tracers, engine = run_cumulative(node, inputs, chunk)
    assert tracers == [s for _, s, _ in oracle]
    assert engine.spike_counts.item() == sum(abs(theta) for theta, _, _ in oracle)

    trace, _ = run_event(node, inputs)
    assert [spike for spike, _ in trace] == [theta for theta, _, _ in oracle]
    assert [potential for _, potential in trace] == [float(v) for _, _, v in oracle]
    assert all(s_min <= s <= s_max for s in tracers)


@settings(max_examples=200, deadline=None)
@given(
    levels_and_sign,
    st.floats(0.01, 3.0),
    st.lists(st.floats(-5, 5), min_size=1, max_size=60),
)
def test_both_forms_equal_eq1_on_floats_away_from_ties(kind, threshold, inputs):
    levels, signed = kind
    s_min, s_max = level_bounds(levels, signed)
    node = make_node(levels, signed, threshold)
    # The oracle is exact, on the very threshold and inputs that the float forms get.
    exact = Fraction(node.scale.item())
    sums = list(accumulate(Fraction(x) for x in inputs))
    distance = min(abs((u / exact + Fraction(1, 2)) - round(u / exact + Fraction(1, 2))) for u in sums)
    if distance < 1e-9:  # a tie: the sum's rounding decides
        return
    oracle = list(st_bif_plus([Fraction(x) for x in inputs], exact, s_min, s_max))

    tracers, _ = run_cumulative(node, inputs, chunk=8)
    assert [round(s) for s in tracers] == [s for _, s, _ in oracle]
    trace, _ = run_event(node, inputs)
    assert [round(spike) for spike, _ in trace] == [theta for theta, _, _ in oracle]
    # Sums of up to 60 numbers below 300: double rounding stays under 1e-12.
    assert [v for _, v in trace] == pytest.approx([float(v) for _, _, v in oracle], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(levels_and_sign, dyadic_threshold, st.lists(dyadic, min_size=1, max_size=5), st.integers(1, 300))
def test_equilibrium_equals_eq_a16(kind, threshold, inputs, max_spikes):
    levels, signed = kind
    s_min, s_max = level_bounds(levels, signed)
    node = make_node(levels, signed, threshold)
    settled = [*inputs, *[0.0] * (2 * levels)]
    expected = equilibrium_level(sum(map(Fraction, inputs)), Fraction(threshold), s_min, s_max)

    tracers, engine = run_cumulative(node, settled, chunk=16, max_spikes=max_spikes)
    assert tracers[-1] == expected
    assert bool(engine.settled.all())
    trace, engine = run_event(node, settled, max_spikes=max_spikes)
    assert sum(spike for spike, _ in trace) == expected
    assert bool(engine.settled.all())


@pytest.mark.parametrize("max_spikes", [1, 2, 5])
@pytest.mark.parametrize(("first_step", "fine_step"), [(1, 1), (4, 1), (9, 1), (1, 7), (3, 6), (1, 100)])
def test_graded_spikes_first_firing_step_and_first_fine_one(max_spikes, first_step, fine_step):
    inputs = [3.0, 0.0, -7.5, 0.0, 12.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    node = make_node(16, signed=True, scale=1.0)
    sums = list(accumulate(inputs))

    expected, level = [], 0
    for step, u in enumerate(sums, start=1):
        target = min(max(math.floor(u + 0.5), -8), 7)
        if step >= first_step and (step >= fine_step or abs(target - level) > 1):
            level += min(max(target - level, -max_spikes), max_spikes)
        expected.append(level)

    for chunk in (1, 3, 16):
        tracers, engine = run_cumulative(node, inputs, chunk, max_spikes, first_step, fine_step)
        assert tracers == expected
        assert bool(engine.settled) == (level == target)
    trace, engine = run_event(node, inputs, max_spikes, first_step, fine_step)
    assert bool(engine.settled) == (level == target)
    assert list(accumulate(spike for spike, _ in trace)) == expected


def test_closed_gate_with_work_to_do_is_not_settled():
    node = make_node(16, signed=True, scale=1.0)
    for runner in (lambda i, f: run_cumulative(node, i, 4, 1, f), lambda i, f: run_event(node, i, 1, f)):
        _, engine = runner([3.0] + [0.0] * 7, 100)
        assert engine.spike_counts.item() == 0
        assert not bool(engine.settled.any())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("levels", [128, 130, 256])
def test_tracer_type_holds_the_largest_jump(levels, signed):
    node = make_node(levels, signed, scale=1.0)
    s_min, s_max = level_bounds(levels, signed)
    # From one end of the range to the other in one step, with as many spikes as it takes.
    target = torch.tensor([s_max, s_min, s_max]).to(node.level_dtype).reshape(3, 1, 1)
    moved = track(target, torch.zeros_like(target[0]), max_spikes=levels - 1)
    assert moved.flatten().tolist() == [s_max, s_min, s_max]


def test_pending_spikes_clip_at_the_bounds():
    membrane = torch.tensor([0.5, 1.0, -0.01, 100.0, -100.0])
    assert pending_spikes(membrane, torch.zeros(5), torch.tensor([1.0]), -2, 1).tolist() == [0, 1, -1, 1, -2]


def written_out(targets, start, max_spikes=1, closed_steps=0, coarse_steps=0):
    """Levels (T, ...) of neurons whose quantizers ask for `targets` (T, ...), one neuron and one step at a time."""
    columns = []
    for asked, level in zip(targets.flatten(1).T.tolist(), start.flatten().tolist(), strict=True):
        course = []
        for step, target in enumerate(asked):
            behind = target - level
            idle = step < closed_steps or (step < coarse_steps and abs(behind) < 2)
            level += 0 if idle else max(-max_spikes, min(max_spikes, behind))
            course.append(level)
        columns.append(course)
    return torch.tensor(columns).T.reshape(targets.shape)


GATES = [
    {},
    {"max_spikes": 3},
    {"closed_steps": 2},
    {"coarse_steps": 4},
    {"max_spikes": 2, "closed_steps": 1, "coarse_steps": 3},
    {"max_spikes": 7, "closed_steps": 7},
]


@pytest.mark.parametrize("gate", GATES)
def test_tracking_is_the_rule_written_out(gate):
    target, tracer = torch.randint(-4, 4, (7, 2, 5), dtype=torch.int8), torch.randint(-4, 4, (2, 5), dtype=torch.int8)
    levels = track(target, tracer, **gate)
    assert levels.dtype == torch.int8
    assert torch.equal(levels, written_out(target, tracer, **gate).to(torch.int8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("levels", "padded"), [(16, False), (16, True), (130, False)])
def test_neurons_without_a_tracer_begin_at_0(dtype, levels, padded):
    node = make_node(levels, True, 0.5).to(dtype)
    current = Rows(torch.randint(-60, 60, (3, 4, 5)).to(dtype) / 4, timeline=Timeline.constant(3, 3))
    tokens = torch.rand(3, 4) < 0.5 if padded else None
    zeros = torch.zeros(3, 4, 5, dtype=node.level_dtype)
    empty = torch.empty
    with mock.patch.object(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(77)):
        found = fire(node, current, None, tokens)
    expected = fire_reference(node, current, zeros, tokens)
    assert found.tracer.dtype == node.level_dtype
    for name in ("levels", "tracer", "counts", "at_target"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("run", [fire, fire_reference])
class TestFiring:
    """A node through a chunk, by a kernel where there is one and in plain torch: Eq. 1 with what it is let do."""

    STEPS, SAMPLES = 7, 2
    TOKENS = torch.tensor([[True, True, True, False], [False, True, False, False]])

    def chunk(self, dtype, shape, padded=False):
        """A node of 8 levels and scale 0.5, its accumulated current, ties among it, levels before, and tokens."""
        node = make_node(8, True, 0.5).to(dtype)
        changed = torch.rand(self.STEPS, self.SAMPLES) < 0.6
        changed[0] = True
        timeline = Timeline(changed)
        current = Rows(torch.randint(-12, 13, (timeline.num_rows, *shape)).to(dtype) / 4, timeline=timeline)
        tracer = torch.randint(-4, 4, (self.SAMPLES, *shape), dtype=torch.int8)
        return node, current, tracer, self.TOKENS if padded else None

    def silent(self, x):
        """`x` (..., B, [heads,] N, features) with zeros where there is no token."""
        tokens = self.TOKENS.reshape(self.SAMPLES, *(1,) * (x.dim() - 4), 4, 1)
        return torch.where(tokens, x, 0)

    @pytest.mark.parametrize("gate", GATES)
    @pytest.mark.parametrize(
        ("shape", "padded"), [((9,), False), ((4, 3), False), ((4, 3), True), ((2, 4, 5), False), ((2, 4, 5), True)]
    )
    def test_is_the_rule_written_out(self, run, dtype, shape, padded, gate):
        node, current, tracer, tokens = self.chunk(dtype, shape, padded)
        values = current.values[current.timeline.index]
        if padded:
            values, tracer = self.silent(values), self.silent(tracer[None])[0]
        targets = torch.floor(values / 0.5 + 0.5).clamp(-4, 3)
        expected = written_out(targets, tracer, **gate)
        spikes = expected.diff(dim=0, prepend=tracer[None]).flatten(2).abs().sum(-1)
        moves = spikes > 0
        moves[0] = True

        fired = run(node, current, tracer.clone(), tokens, **gate)
        assert torch.equal(fired.levels[fired.timeline.index], expected.to(torch.int8))
        assert fired.levels.dtype == fired.tracer.dtype == torch.int8
        assert torch.equal(fired.timeline.changed, moves)
        assert len(fired.levels) == fired.timeline.num_rows == int(moves.sum())
        assert torch.equal(fired.tracer, expected[-1].to(torch.int8))
        assert fired.counts.dtype == torch.int64
        assert torch.equal(fired.counts, spikes)
        assert torch.equal(fired.at_target, (expected[-1] == targets[-1]).flatten(1).all(1))
        assert not bool(fired.undefined)

    @pytest.mark.parametrize("where", [0, -1])
    def test_a_current_that_is_no_number_is_told(self, run, dtype, where):
        node, current, tracer, _ = self.chunk(dtype, (4, 3))
        current.values[where, 1, 2] = math.nan
        assert bool(run(node, current, tracer).undefined)

    def test_what_stands_at_padding_is_not_looked_at(self, run, dtype):
        node, current, tracer, tokens = self.chunk(dtype, (4, 3), padded=True)
        tracer = self.silent(tracer[None])[0]
        tokens_of_row = tokens[current.timeline.changed.nonzero()[:, 1]]
        values = torch.where(tokens_of_row[..., None], current.values, math.nan)
        expected = run(node, current, tracer.clone(), tokens)
        fired = run(node, Rows(values, timeline=current.timeline), tracer.clone(), tokens)
        assert not bool(fired.undefined)
        assert torch.equal(fired.levels, expected.levels)
        assert torch.equal(fired.counts, expected.counts)


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("kind", ["values", "sums", "sums in half precision"])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_no_kernel_takes_is_done_without(kind, levels, compiled, monkeypatch):
    """Levels that need 16 bits, and values in half precision, which are rounded before they are compared."""
    node, timeline = make_node(levels, True, 0.25).float(), Timeline.constant(1, 50)
    sums, scale = torch.randint(-9999, 9999, (50, 30), dtype=torch.int32), torch.rand(30) / 100
    dtype = torch.float16 if kind == "sums in half precision" else torch.float32
    current = Rows(integers=sums, scale=scale, dtype=dtype, timeline=timeline)
    if kind == "values":
        current = Rows(current.values, timeline=timeline)
    if not compiled:
        monkeypatch.setattr(kernels, "native", None)
    rest = torch.zeros(50, 30, dtype=node.level_dtype)
    expected = torch.floor((sums * scale).to(dtype).float() / 0.25 + 0.5).clamp(node.min_level, node.max_level)
    assert torch.equal(fire(node, current, rest, max_spikes=levels).levels, expected.to(node.level_dtype))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("levels", "more"), [(16, 128), (16, 256), (16, 1 << 40), (128, 128), (128, 255), (256, 32768)]
)
def test_as_many_spikes_as_it_takes(levels, more, compiled, monkeypatch):
    """Beyond what levels are apart, a neuron does not care how often it may fire, though k is of their type."""
    node = make_node(levels, True, 1.0).float()
    current = Rows(
        torch.randint(-levels, levels, (4, 70)).float(), timeline=Timeline(torch.ones(2, 2, dtype=torch.bool))
    )
    tracer = torch.randint(node.min_level, node.max_level + 1, (2, 70)).to(node.level_dtype)
    if not compiled:
        monkeypatch.setattr(kernels, "native", None)
    fired = fire(node, current, tracer.clone(), max_spikes=more)
    assert torch.equal(
        fired.levels[fired.timeline.index].flatten(0, 1), node.quantize(current.values).to(tracer.dtype)
    )
    assert bool(fired.at_target.all())


def test_on_a_gpu_all_rows_are_kept():
    """To look which have changed would wait for it. "meta" is no CPU either, and can be had anywhere."""
    node = make_node(16, True, 0.25).float().to("meta")
    with torch.device("meta"):
        current = Rows(torch.zeros(8, 3), timeline=Timeline.constant(4, 8))
        fired = fire_reference(node, current, torch.zeros(8, 3, dtype=torch.int8))
    assert fired.timeline.changed.device.type == "cpu"
    assert fired.timeline.changed.dtype == torch.bool
    assert fired.timeline.changed.tolist() == [[True] * 8] * 4
    assert (fired.levels.device.type, fired.levels.shape) == ("meta", (32, 3))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestLevelsOf:
    def test_a_current_are_the_quantizer_s(self, dtype, signed):
        node = make_node(16, signed, scale=0.25).to(dtype)
        current = torch.randn(5, 4, 3, dtype=dtype).transpose(1, 2) * 8
        expected = torch.floor(current / 0.25 + 0.5).clamp(node.min_level, node.max_level).to(torch.int8)
        assert set(expected.unique().tolist()) >= {node.min_level, node.max_level}
        assert torch.equal(levels_of(node, current), expected)
        assert torch.equal(levels_of(node, Rows(current)), expected)

    def test_what_is_no_number_is_an_error(self, dtype, signed):
        node = make_node(16, signed, scale=0.25).to(dtype)
        current = torch.zeros(5, 3, dtype=dtype)
        current[3, 1] = math.nan
        said = (
            r"^The input of node is not a number\. Look for NaN or infinity among the weights, or for an overflow if "
            r"the model is in float16\.$"
        )
        with pytest.raises(FloatingPointError, match=said):
            levels_of(node, current)

    def test_another_device_are_floating_and_may_be_nan(self, dtype, signed):
        """As on a GPU, where to look for NaN would have to wait for it."""
        node = make_node(16, signed, scale=0.25).to(dtype)
        levels = levels_of(node.to("meta"), torch.zeros(5, 3, dtype=dtype, device="meta"))
        assert (levels.device.type, levels.dtype, levels.shape) == ("meta", dtype, (5, 3))
        tokens = torch.ones(5, 2, dtype=torch.bool, device="meta")
        levels = levels_of(node, torch.zeros(5, 2, 3, dtype=dtype, device="meta"), tokens)
        assert (levels.device.type, levels.dtype, levels.shape) == ("meta", dtype, (5, 2, 3))


def in_a_chunk(node, current):
    engine = CumulativeEngine(len(current), torch.device("cpu"))
    engine.advance(3)
    return engine.fire(node, current)


@pytest.mark.skipif(native.library() is None, reason="no C compiler, or kernels turned off")
@pytest.mark.parametrize("run", [levels_of, in_a_chunk])
def test_neurons_in_float32_are_run_by_the_kernel(run, monkeypatch):
    def slow(*_):
        raise AssertionError

    monkeypatch.setattr(neurons, "fire_reference", slow)
    run(make_node(16, True, 0.25).float(), torch.randn(5, 3))


@pytest.mark.parametrize(("dtype", "whole"), [(torch.int32, True), (torch.int8, False), (torch.float32, False)])
def test_a_kernel_is_given_whole_sums_with_what_they_are_scaled_by_or_values(dtype, whole):
    integers, scale, bias = torch.randint(-9, 9, (3, 4)).to(dtype), torch.rand(4), torch.rand(4)
    rows = Rows(integers=integers, scale=scale, bias=bias, dtype=torch.float32)
    sums, by, more = sums_of(rows)
    assert (sums is integers, by is scale, more is bias) == (whole,) * 3
    if not whole:
        assert torch.equal(sums, integers * scale + bias)
        assert by is more is None
    values = torch.rand(3, 4)
    assert sums_of(Rows(values)) == (values, None, None)


def test_a_kernel_is_given_a_softmax_that_has_still_to_be_done():
    pending = mock.Mock(dtype=torch.float32, shape=torch.Size([2, 3]), device=torch.device("cpu"))
    current = Rows(pending)
    assert sums_of(current) == (pending, None, None)
    pending.values.assert_not_called()
    pending.values.return_value = torch.ones(2, 3)
    assert torch.equal(current.values, torch.ones(2, 3))
    assert sums_of(current) == (current.values, None, None)


def test_rows_that_are_not_there_are_no_business_of_a_kernel():
    node = LSQQuantizer(16, True, 4)
    current = Rows(torch.rand(1, 3, 4), timeline=Timeline(torch.tensor([[True], [False], [True]])))
    with pytest.raises(IndexError):
        fire(node, current, torch.zeros(1, 3, 4, dtype=torch.int8))


@pytest.mark.parametrize("with_neurons", [True, False])
def test_a_kernel_is_given_a_product_that_it_can_do_as_it_is_and_sums_of_any_other(with_neurons):
    class Product:
        shape, device = torch.Size([3, 4]), torch.device("cpu")

        def sums(self):
            return torch.arange(12, dtype=torch.int32).reshape(3, 4)

    product = Product()
    product.with_neurons = with_neurons
    scale, bias = torch.rand(4), torch.rand(4)
    given, by, more = sums_of(Rows(integers=product, scale=scale, bias=bias, dtype=torch.float32))
    assert by is scale
    assert more is bias
    assert given is product if with_neurons else torch.equal(given, product.sums())

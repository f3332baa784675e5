"""What the primitives of a spiking engine do to rows and state."""

import itertools

import pytest
import torch

from spikezip_hf.models.engines import (
    CumulativeEngine,
    EventEngine,
    QuantEngine,
    RecordingEngine,
    SpikingEngine,
    accumulate,
    hand_on,
    padding_bias,
)
from spikezip_hf.models.neurons import levels_of
from spikezip_hf.models.operators import MatMul, MeanPool, Softmax
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.rows import Rows, Timeline, unwrap


def test_static_currents_are_one_row_a_sample_that_stands_for_every_step():
    engine = CumulativeEngine(3, torch.device("cpu"))
    engine.advance(4)
    per_sample, shared = torch.arange(12.0).reshape(3, 4), torch.ones(1, 4)
    rows = engine.static(per_sample)
    assert torch.equal(rows.values, per_sample)
    assert rows.timeline.index.tolist() == [[0, 1, 2]] * 4
    assert torch.equal(engine.static(shared), shared)
    engine.advance(2, torch.tensor([0, 2]))
    assert torch.equal(engine.static(per_sample).values, per_sample[[0, 2]])


def test_tracers_do_not_keep_their_chunk_alive():
    node = LSQQuantizer(16, True, 1)
    node.set_scale(torch.ones(1))
    engine = CumulativeEngine(2, torch.device("cpu"))
    engine.advance(8)
    engine.fire(node, Rows(torch.randn(16, 3), timeline=Timeline(torch.ones(8, 2, dtype=torch.bool))))
    assert engine.tracers[node.name].untyped_storage().nbytes() == 2 * 3  # int8, one step


@pytest.mark.parametrize("per_channel", [False, True])
def test_operands_are_handed_on_contiguous(per_channel):
    """Another layout may choose another kernel, and the twins would part in the last bit."""
    node = LSQQuantizer(16, True, 5, per_channel)
    node.set_scale(torch.ones_like(node.scale))
    x = torch.randn(2, 5, 3).transpose(1, 2)
    assert node(x).is_contiguous()
    assert node.quantize(x).is_contiguous()
    frames = torch.randn(2, 4, 3, 8, 8)
    assert QuantEngine().encode(lambda frame: frame, frames, per_step=True).is_contiguous()


TOKENS = torch.tensor([[True, True, True], [False, True, False]])


class Affine(torch.nn.Module):
    """x + 1, or x without its bias, that counts its passes."""

    def __init__(self, name):
        super().__init__()
        self.name, self.passes = name, 0

    def forward(self, x, bias=True):
        self.passes += 1
        return x + 1 if bias else x.clone()


def make_node(name="node", levels=16):
    node = LSQQuantizer(levels, True, 1)
    node.name = name
    node.set_scale(torch.ones(1))
    return node


class TestPadding:
    @pytest.mark.parametrize(
        ("shape", "all_of_them", "own"),
        [((5,), [5, 5], [5, 5]), ((3, 5), [15, 15], [15, 5]), ((4, 3, 3), [36, 36], [36, 4])],
    )
    def test_neurons_of_padding_are_not_counted(self, shape, all_of_them, own):
        engine, current = QuantEngine(), torch.zeros(2, *shape)
        assert engine.neurons(current).tolist() == all_of_them
        engine.attend(TOKENS)
        assert engine.neurons(current).tolist() == own
        assert engine.neurons(current).dtype == torch.int64

    @pytest.mark.parametrize("shape", [(3, 5), (4, 3, 3)])
    def test_gets_no_current(self, shape):
        engine, current = QuantEngine(), torch.rand(2, *shape) + 1
        assert engine.silence_padding(current) is current
        engine.attend(TOKENS)
        silenced = engine.silence_padding(current)
        for sample, position in itertools.product(range(2), range(3)):
            there = sample, ..., position, slice(None)
            assert torch.equal(silenced[there], current[there] * TOKENS[sample, position])

    @pytest.mark.parametrize("shape", [(3, 5), (4, 3, 3)])
    @pytest.mark.parametrize("samples", [[0, 1], [1]])
    def test_never_fires(self, samples, shape):
        node, current = make_node(), torch.rand(2, *shape) + 1
        expected = torch.where(TOKENS.reshape(2, *(1,) * (len(shape) - 2), 3, 1), 1, 0).expand_as(current)
        chunk, event = CumulativeEngine(2, torch.device("cpu")), EventEngine(2, torch.device("cpu"))
        for engine in (chunk, event):
            engine.attend(TOKENS)
        chunk.advance(1, None if len(samples) == 2 else torch.tensor(samples))
        event.advance(1)
        assert torch.equal(chunk.fire(node, current[samples]).levels, expected[samples].to(torch.int8))
        assert torch.equal(event.fire(node, current), expected.float())
        assert torch.equal(chunk.firing["node"][0], event.firing["node"][0][:, samples])

    @pytest.mark.parametrize("shape", [(3, 5), (4, 3, 3)])
    @pytest.mark.parametrize("gradients", [False, True])
    def test_has_no_level_in_the_quantized_network(self, shape, gradients):
        """Nor does NaN at it, of which there is no level, matter."""
        node, engine = make_node().eval(), QuantEngine()
        mask = TOKENS.reshape(2, *(1,) * (len(shape) - 2), 3, 1)
        current = (torch.rand(2, *shape) * 0.8 + 0.6).masked_fill(~mask, torch.nan).requires_grad_(gradients)
        engine.attend(TOKENS)
        with torch.set_grad_enabled(gradients):
            rows = engine.fire(node, current)
        assert torch.equal(rows.integers, mask.expand_as(current).to(torch.int8))
        assert torch.equal(rows.values, rows.integers.float())
        if gradients:
            rows.values.sum().backward()
            assert torch.equal(current.grad, mask.expand_as(current).float())

    def test_a_head_has_none(self):
        engine, current = QuantEngine(), torch.rand(2, 3)
        engine.attend(TOKENS)
        assert engine.silence_padding(current) is current

    def test_the_first_token_stands_behind_it(self):
        engine, x = QuantEngine(), torch.rand(2, 3, 5)
        assert torch.equal(engine.first_token(x), x[:, 0])
        engine.attend(TOKENS)
        assert torch.equal(engine.first_token(x), torch.stack([x[0, 0], x[1, 1]]))

    @pytest.mark.parametrize("samples", [None, [1]])
    def test_the_first_token_of_every_row(self, samples):
        engine = CumulativeEngine(2, torch.device("cpu"))
        engine.attend(TOKENS)
        engine.advance(2, None if samples is None else torch.tensor(samples))
        which = samples or [0, 1]
        rows = Rows(torch.rand(2 * len(which), 3, 5), timeline=Timeline(torch.ones(2, len(which), dtype=torch.bool)))
        first = engine.first_token(rows)
        expected = [rows.values[row, sample % 2] for row, sample in enumerate(which * 2)]  # of sample 1 it is 1
        assert torch.equal(first.values, torch.stack(expected))
        assert first.timeline is rows.timeline

    def test_the_first_token_of_every_row_where_there_is_none(self):
        engine, rows = CumulativeEngine(2, torch.device("cpu")), Rows(torch.rand(4, 3, 5))
        assert torch.equal(engine.first_token(rows).values, rows.values[:, 0])


class TestState:
    """What a spiking engine remembers of its chunks, by hand."""

    def test_steps(self):
        engine = SpikingEngine(3, torch.device("cpu"), input_steps=6)
        assert (engine.step, engine.chunk, engine.num_samples) == (0, 0, 3)
        assert (engine.spike_counts, engine.firing, engine.tracers) == (0, {}, {})
        assert engine.last_activity.tolist() == [6, 6, 6]
        assert engine.last_activity.dtype == torch.int64
        assert engine.settled.tolist() == [False] * 3
        engine.firing = {"node": ()}
        engine.advance(4, torch.tensor([0, 2]))
        assert (engine.step, engine.chunk, engine.num_samples, engine.firing) == (0, 4, 2, {})
        assert not engine.input_finished
        assert engine.chosen(torch.arange(3)).tolist() == [0, 2]
        engine.advance(2)
        assert (engine.step, engine.chunk, engine.num_samples) == (4, 2, 3)
        assert engine.input_finished
        assert engine.chosen(torch.arange(3)).tolist() == [0, 1, 2]

    def test_steps_of_samples_that_go_their_own_way(self):
        engine = CumulativeEngine(3, torch.device("cpu"), input_steps=6)
        engine.advance(4, torch.tensor([0, 2]))
        engine.advance(5, torch.tensor([1]), 0)
        assert (engine.step, engine.chunk, engine.num_samples, engine.input_finished) == (0, 5, 1, False)
        engine.advance(1, None, 9)
        assert (engine.step, engine.chunk, engine.num_samples, engine.input_finished) == (9, 1, 3, True)
        event = EventEngine(3, torch.device("cpu"))
        event.advance(4, torch.tensor([0]), 7)  # one step of all
        assert (event.step, event.chunk, event.samples) == (7, 1, None)

    def test_an_input_that_is_static_has_arrived_at_once(self):
        engine = SpikingEngine(2, torch.device("cpu"))
        assert engine.last_activity.tolist() == [1, 1]
        engine.advance(1)
        assert engine.input_finished

    @pytest.mark.parametrize(
        ("first", "before"), [(1, [0, 0, 0]), (2, [1, 0, 0]), (5, [4, 0, 0]), (6, [4, 1, 0]), (99, [4, 2, 3])]
    )
    def test_gates(self, first, before):
        """Steps of the chunks 1 to 4, 5 to 6 and 7 to 9 that come before a step."""
        node, other = make_node(), make_node("other")
        firing = SpikingEngine(1, torch.device("cpu"), first_firing_step={"node": first})
        fine = SpikingEngine(1, torch.device("cpu"), first_fine_step={"node": first})
        for steps, expected in zip((4, 2, 3), before, strict=True):
            firing.advance(steps)
            fine.advance(steps)
            assert (firing.closed_steps(node), firing.coarse_steps(node)) == (expected, 0)
            assert (fine.closed_steps(node), fine.coarse_steps(node)) == (0, expected)
            assert firing.closed_steps(other) == fine.coarse_steps(other) == 0

    def test_most_spikes_a_step(self):
        assert SpikingEngine(1, torch.device("cpu")).graded(make_node()) == 1
        for given, asked in ((3, 3), (7, 7), (8, 7), (1000, 7)):
            engine = SpikingEngine(1, torch.device("cpu"), max_spikes_per_step=given)
            assert engine.graded(make_node(levels=8)) == asked

    def test_what_a_chunk_leaves(self):
        engine = SpikingEngine(3, torch.device("cpu"), input_steps=2)
        engine.advance(3)
        # (chunk, samples): the first sample fires at 1 and 3, the second at 3, the third never.
        engine.firing = {
            "a": (torch.tensor([[2, 0, 0], [0, 0, 0], [0, 5, 0]]), torch.tensor([True, False, True]), False),
            "b": (torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0]]), torch.tensor([False, False, True]), False),
        }
        engine.conclude()
        assert engine.spike_counts.tolist() == [[2, 1], [5, 0], [0, 0]]
        assert engine.last_activity.tolist() == [3, 3, 2]  # the third sample's input has changed until 2
        assert engine.settled.tolist() == [False, False, True]

        engine.advance(2, torch.tensor([1]))
        engine.firing = {
            "a": (torch.tensor([[1], [0]]), torch.tensor([True]), torch.tensor(False)),
            "b": (torch.tensor([[0], [0]]), torch.tensor([True]), False),
        }
        engine.conclude()
        assert engine.spike_counts.tolist() == [[2, 1], [6, 0], [0, 0]]
        assert engine.last_activity.tolist() == [3, 4, 2]
        assert engine.settled.tolist() == [False, True, True]

    def test_steps_that_do_not_count(self):
        engine = SpikingEngine(2, torch.device("cpu"))
        engine.advance(3)
        engine.firing = {"a": (torch.ones(3, 2, dtype=torch.int64), torch.tensor([True, True]), False)}
        engine.conclude(torch.tensor([2, 0]))
        assert engine.spike_counts.tolist() == [[2], [0]]
        assert engine.last_activity.tolist() == [2, 1]

    @pytest.mark.parametrize(("undefined", "named"), [((True, True, False), "a"), ((False, True, True), "b")])
    def test_the_first_node_that_is_no_number_is_named(self, undefined, named):
        engine = SpikingEngine(1, torch.device("cpu"))
        engine.advance(1)
        counts = torch.zeros(1, 1, dtype=torch.int64)
        engine.firing = {
            name: (counts, torch.tensor([True]), flag) for name, flag in zip("abc", undefined, strict=True)
        }
        with pytest.raises(FloatingPointError, match=f"^The input of {named} is not a number"):
            engine.conclude()


class TestCumulative:
    def test_a_static_input_goes_through_its_module_once(self):
        engine = CumulativeEngine(3, torch.device("cpu"))
        first, second, x = Affine("first"), Affine("second"), torch.rand(3, 4)
        engine.advance(4)
        for module in (first, second):
            rows = engine.encode(module, x)
            assert torch.equal(rows.values, x + 1)
            assert rows.timeline.index.tolist() == [[0, 1, 2]] * 4
        engine.advance(2, torch.tensor([2, 0]))
        assert torch.equal(engine.encode(first, x).values, x[[2, 0]] + 1)
        assert (first.passes, second.passes) == (1, 1)

    def test_input_per_step_is_rows_until_it_has_arrived(self):
        engine = CumulativeEngine(2, torch.device("cpu"), input_steps=4)
        frames = torch.randint(0, 9, (2, 4, 3)).float()
        sums = frames.cumsum(1)
        engine.advance(3)
        rows = engine.encode(Affine("embedding"), frames, per_step=True)
        assert torch.equal(rows.values[rows.timeline.index], sums[:, :3].transpose(0, 1) + 1)
        engine.advance(3, torch.tensor([1]))
        rows = engine.encode(Affine("embedding"), frames, per_step=True)
        assert rows.values.is_contiguous()
        assert torch.equal(rows.values, sums[1:, 3] + 1)
        assert rows.timeline.index.tolist() == [[0]] * 3
        engine.advance(2)
        rows = engine.encode(Affine("embedding"), frames, per_step=True)
        assert torch.equal(rows.values, sums[:, 3] + 1)
        assert rows.timeline.changed.tolist() == [[True, True], [False, False]]

    def test_a_tensor_of_another_number_of_rows_is_refused(self):
        engine = CumulativeEngine(2, torch.device("cpu"))
        engine.advance(4)
        said = (
            "^A plain tensor of 3 rows came where 2 samples are simulated: a hook must hand on what torch functions "
            "make of the Rows that it gets, which know their steps.$"
        )
        with pytest.raises(ValueError, match=said):
            engine.rows(torch.zeros(3, 4))

    def test_tracers_of_the_samples_that_are_left_stay_in_their_places(self):
        engine, node = CumulativeEngine(3, torch.device("cpu")), make_node()
        engine.advance(2)
        engine.fire(node, torch.tensor([[5.0], [-5.0], [1.0]]))
        assert engine.tracers["node"].tolist() == [[2], [-2], [1]]
        engine.advance(2, torch.tensor([1]))
        engine.fire(node, torch.tensor([[-5.0]]))
        assert engine.tracers["node"].tolist() == [[2], [-4], [1]]
        assert engine.firing["node"][0].tolist() == [[1], [1]]

    def test_nodes_rest_that_are_at_target_in_all_samples_of_the_chunk(self):
        engine = CumulativeEngine(3, torch.device("cpu"))
        engine.advance(2)
        assert engine.resting == set()
        engine.tracers = dict.fromkeys("ab", torch.zeros(3, 1))
        engine.at_target = torch.tensor([[False, True], [True, True], [True, False]])
        for samples, resting in ((None, set()), ([0, 1], {"b"}), ([1], {"a", "b"}), ([2, 1], {"a"})):
            engine.moved = {"a"}
            engine.advance(2, None if samples is None else torch.tensor(samples))
            assert (engine.resting, engine.moved) == (resting, set())

    def test_what_a_resting_node_hands_on_stays_as_it_is(self):
        """Also where some of the samples go on, whose tracers change in place."""
        engine, node = CumulativeEngine(2, torch.device("cpu")), make_node()

        def current(*values):
            sums = torch.tensor(values, dtype=torch.int32)[:, None]
            scale = torch.ones(1)
            return Rows(integers=sums, scale=scale, dtype=scale.dtype, timeline=engine.constant, sources=("before",))

        engine.advance(5)
        moving = engine.fire(node, current(2, -3))
        assert moving.timeline.num_rows > 2
        engine.conclude()
        engine.advance(3)
        resting = engine.fire(node, current(2, -3))
        counts, at_target, undefined = engine.firing["node"]
        assert (counts.tolist(), at_target.tolist(), undefined) == ([[0, 0]] * 3, [True, True], False)
        assert at_target.dtype == torch.bool
        assert engine.moved == set()
        assert (resting.integers.tolist(), resting.timeline) == ([[2], [-3]], engine.constant)
        engine.conclude()
        assert engine.settled.tolist() == [True, True]
        engine.advance(4, torch.tensor([1]))
        engine.moved.add("before")
        engine.fire(node, current(1))
        assert engine.firing["node"][0].tolist() == [[1]] * 4
        assert engine.moved == {"before", "node"}
        assert engine.tracers["node"].tolist() == [[2], [1]]
        assert resting.integers.tolist() == [[2], [-3]]
        engine.conclude()
        engine.advance(2, torch.tensor([1]))
        engine.moved.add("before")
        assert engine.fire(node, current(1)).timeline is not engine.constant  # asked, and did not fire
        assert engine.moved == {"before"}
        engine.fire(node, current(1).scaled(1.0))
        assert engine.sources == {"node": ()}

    def test_the_readout_of_every_step_or_of_the_last(self):
        engine = CumulativeEngine(2, torch.device("cpu"))
        engine.advance(3)
        timeline = Timeline(torch.tensor([[True, True], [True, False], [False, True]]))
        readout = Rows(torch.arange(4.0)[:, None], timeline=timeline)
        assert engine.accumulated(readout, None, True).squeeze(-1).tolist() == [[0, 1], [2, 1], [2, 3]]
        assert engine.accumulated(readout, None, False).squeeze(-1).tolist() == [[2, 3]]
        assert engine.accumulated(torch.tensor([[7.0], [8.0]]), None, True).squeeze(-1).tolist() == [[7, 8]] * 3


class TestProbabilities:
    """Of attention scores, in float64: (samples, heads, N, N)."""

    SCORES, BIAS = (torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))

    def expected(self, tokens, bias):
        scores = self.SCORES if bias is None else self.SCORES + bias
        probabilities = torch.zeros(2, 2, 3, 3).double()
        for sample in range(2):
            seen = slice(None) if tokens is None else tokens[sample]
            probabilities[sample][..., seen] = scores[sample][..., seen].softmax(-1)
        return probabilities

    @pytest.mark.parametrize("bias", [None, BIAS])
    @pytest.mark.parametrize("tokens", [None, TOKENS])
    def test_nothing_looks_at_padding(self, tokens, bias):
        quant, event, chunk = (
            QuantEngine(),
            EventEngine(2, torch.device("cpu")),
            CumulativeEngine(2, torch.device("cpu")),
        )
        for engine in (quant, event, chunk):
            engine.attend(tokens)
        expected = self.expected(tokens, bias)
        assert torch.allclose(quant.probabilities(Softmax(), self.SCORES, bias), expected, rtol=0, atol=1e-15)

        chunk.advance(1)
        given = Rows(self.SCORES, timeline=chunk.constant)
        assert torch.allclose(chunk.probabilities(Softmax(), given, bias).values, expected, rtol=0, atol=1e-15)

        softmax, total = Softmax(), torch.zeros(())
        for share in (0.25, 0.5, 0.25):  # of the scores, a step after the other
            event.advance(1)
            total = total + event.probabilities(softmax, self.SCORES * share, bias)
        assert torch.allclose(total, expected, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_what_hides_padding_is_the_lowest_number(self, dtype):
        lowest = torch.finfo(dtype).min
        bias = padding_bias(TOKENS, dtype)
        assert bias.dtype == dtype
        assert bias.shape == (2, 1, 1, 3)
        assert bias.flatten(1).tolist() == [[0, 0, 0], [lowest, 0, lowest]]


class TestEvent:
    def test_a_chunk_is_one_step_of_all_samples(self):
        engine = EventEngine(2, torch.device("cpu"))
        engine.advance(8, torch.tensor([1]))
        assert (engine.chunk, engine.samples) == (1, None)

    def test_what_is_static_is_one_change(self):
        engine, x = EventEngine(2, torch.device("cpu")), torch.rand(2, 3)
        for step in range(3):
            engine.advance(1)
            assert torch.equal(engine.static(x), x if step == 0 else torch.zeros(2, 3))
            assert torch.equal(engine.encode(Affine("a"), x), x + 1 if step == 0 else torch.zeros(2, 3))
            assert torch.equal(engine.linear(Affine("b"), x), x + 1 if step == 0 else x)

    def test_input_per_step_is_a_frame_a_step(self):
        engine, frames = EventEngine(2, torch.device("cpu"), input_steps=2), torch.rand(2, 2, 3)
        expected = [frames[:, 0] + 1, frames[:, 1], torch.zeros(2, 3)]
        for change in expected:
            engine.advance(1)
            assert torch.equal(engine.encode(Affine("a"), frames, per_step=True), change)

    def test_operators_and_products_of_different_names_do_not_share_their_past(self):
        engine = EventEngine(2, torch.device("cpu"))
        products, operators = (MatMul(), MatMul()), (Softmax(), Softmax(), Affine("sum"))
        for name, module in zip("abcd", (*products, *operators), strict=False):
            module.name = name
        engine.advance(1)
        x = torch.randint(-3, 3, (2, 3, 3)).double()
        for product in (*products, products[0]):
            again = product.name in engine.products
            assert torch.equal(engine.matmul(product, x, x), 3 * x @ x if again else x @ x)
        for operator in operators:
            assert torch.equal(engine.apply(operator, x), operator(x))
            assert torch.equal(engine.apply(operator, x), operator(2 * x) - operator(x))

    def test_what_the_head_has_accumulated(self):
        engine, one, two = EventEngine(2, torch.device("cpu")), torch.rand(2, 3), torch.rand(2, 3)
        assert torch.equal(engine.accumulated(one, None, True), one[None])
        assert torch.equal(engine.accumulated(two, one, False), (one + two)[None])

    def test_neurons_of_a_step(self):
        engine = EventEngine(3, torch.device("cpu"), max_spikes_per_step=2)
        node, other = make_node(), make_node("other")
        engine.advance(1)
        spikes = engine.fire(node, torch.tensor([[2.0, 1.0], [3.0, 0.0], [float("nan"), 0.0]]))
        counts, at_target, undefined = engine.firing["node"]
        assert spikes[:2].tolist() == [[2, 1], [2, 0]]
        assert counts[:, :2].tolist() == [[3, 2]]
        assert (counts.dtype, counts.shape) == (torch.int64, (1, 3))
        assert at_target[:2].tolist() == [True, False]
        assert bool(undefined)
        assert engine.tracers["node"].dtype == torch.int8
        assert engine.tracers["node"][:2].tolist() == [[2, 1], [2, 0]]
        assert engine.fire(other, torch.ones(3, 2)).tolist() == [[1, 1]] * 3
        assert not bool(engine.firing["other"][2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_levels_are_handed_on_with_what_they_mean(dtype):
    node, levels = make_node(levels=8), torch.randint(-4, 4, (3, 2), dtype=torch.int8)
    rows = hand_on(node, levels, dtype)
    assert rows.levels is levels
    assert (rows.dtype, rows.peak, rows.timeline, rows.sources) == (dtype, 4, None, ("node",))
    assert torch.equal(rows.values, levels.to(dtype))
    unsigned = LSQQuantizer(8, False, 1)
    timeline, values = Timeline.constant(2, 3), torch.rand(3, 2)
    rows = hand_on(unsigned, levels.abs(), dtype, values, timeline)
    assert (rows.peak, rows.timeline) == (7, timeline)
    assert rows.values is values


def test_a_recording_engine_keeps_the_level_of_every_node():
    engine, node, x = RecordingEngine(), make_node().eval(), torch.randn(3, 4) * 3
    assert torch.equal(unwrap(engine.fire(node, x)), node(x))
    assert list(engine.levels) == ["node"]
    assert torch.equal(engine.levels["node"], node.quantize(x).to(torch.int8))


def test_the_quantized_network_sees_the_sum_of_its_frames():
    engine, frames = QuantEngine(), torch.randint(0, 9, (2, 4, 3)).float()
    assert torch.equal(engine.encode(Affine("a"), frames), frames + 1)
    assert torch.equal(engine.encode(Affine("a"), frames, per_step=True), frames.sum(1) + 1)
    assert torch.equal(accumulate(frames), torch.stack([frames[:, : step + 1].sum(1) for step in range(4)], 1))


def test_places_are_changed_of_levels_and_of_values():
    engine, x = QuantEngine(), torch.rand(2, 3, 4)
    assert torch.equal(engine.rearrange(x, lambda values: values.flip(1)), x.flip(1))
    rows = hand_on(make_node(), torch.randint(-8, 8, (2, 3, 4), dtype=torch.int8), torch.float32)
    flipped = engine.rearrange(rows, lambda values: values.flip(1))
    assert torch.equal(flipped.levels, rows.levels.flip(1))
    assert flipped.sources == ("node", ("rearranged",))


def test_a_mean_over_positions():
    engine, x = QuantEngine(), torch.rand(2, 3, 4)
    assert torch.equal(engine.pool(MeanPool(first=1), x), x[:, 1:].mean(1))


class TestNodesOfTheQuantizedNetwork:
    def test_in_training_hand_on_values_with_a_gradient(self):
        node, x = make_node().train(), (torch.randn(3, 4) * 3).requires_grad_()
        values = QuantEngine().fire(node, x)
        assert isinstance(values, torch.Tensor)
        assert torch.equal(values, node(x))
        values.sum().backward()
        assert bool(x.grad.any())

    @pytest.mark.parametrize("gradients", [False, True])
    def test_in_inference_hand_on_levels_and_values_only_where_a_gradient_may_be_asked_for(self, gradients):
        node, x = make_node().eval(), (torch.randn(3, 4) * 3).requires_grad_()
        with torch.set_grad_enabled(gradients):
            rows = QuantEngine().fire(node, x)
        assert torch.equal(rows.levels, node.quantize(x.detach()).to(torch.int8))
        assert (rows._values is not None) == gradients
        assert rows.values.requires_grad == gradients


def test_another_default_device_does_not_matter():
    """Whatever an engine makes is where its tensors are."""
    node, x, frames, cpu = make_node().eval(), torch.rand(2, 3, 4), torch.rand(2, 5, 3, 4), torch.device("cpu")

    @torch.no_grad()
    def everything():
        engine = QuantEngine()
        yield from (levels_of(node, x), engine.neurons(x), unwrap(engine.fire(node, x)))
        engine.attend(TOKENS)
        yield from (engine.neurons(x), engine.first_token(x))
        for engine in (CumulativeEngine(2, cpu, 5), EventEngine(2, cpu, 5)):
            engine.attend(TOKENS)
            for steps in (3, 3):
                engine.advance(steps)
                fired = engine.fire(node, engine.encode(Affine("embedding"), frames, per_step=True))
                yield from (unwrap(fired), unwrap(engine.first_token(fired)), unwrap(engine.static(x)))
                engine.conclude()
            yield from (engine.spike_counts, engine.last_activity, engine.settled)

    expected = list(everything())
    with torch.device("meta"):
        found = list(everything())
    assert all(map(torch.equal, found, expected))

"""Timelines against their meaning written out, and Rows against the tensors that they stand for."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.modeling_outputs import BaseModelOutput

from spikezip_hf.kernels import native
from spikezip_hf.models import rows as rows_module
from spikezip_hf.models.operators import MatMul
from spikezip_hf.models.rows import Rows, Timeline, unwrap

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@st.composite
def changes(draw, count=1):
    """`count` lists (steps, samples) of whether something changed, all of one size."""
    steps, samples = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    one = st.lists(st.lists(st.booleans(), min_size=samples, max_size=samples), min_size=steps - 1, max_size=steps - 1)
    return [[[True] * samples, *draw(one)] for _ in range(count)]


def timeline_of(changed):
    return Timeline(torch.tensor(changed))


def rows_of_steps(changed):
    """{(step, sample): row that stands for it} by going through time, and the number of rows."""
    standing, current, count = {}, {}, 0
    for step, samples in enumerate(changed):
        for sample, has_changed in enumerate(samples):
            if has_changed:
                current[sample], count = count, count + 1
            standing[step, sample] = current[sample]
    return standing, count


def every_step(rows):
    """(steps, samples, ...) values that rows on a timeline stand for."""
    return rows.values[rows.timeline.index]


def random_rows(timeline, shape=(2, 3), integers=True, scale=0.3, peak=8, **fields):
    levels = torch.randint(-peak, peak, (timeline.num_rows, *shape), dtype=torch.int8)
    if not integers:
        return Rows(torch.randn(levels.shape), timeline=timeline)
    return Rows(
        integers=levels,
        scale=torch.tensor([scale]),
        peak=peak,
        dtype=torch.float32,
        timeline=timeline,
        **fields,
    )


class TestTimeline:
    @settings(max_examples=100, deadline=None)
    @given(changes())
    def test_a_step_is_the_row_of_the_last_change(self, changed):
        timeline = timeline_of(changed[0])
        standing, count = rows_of_steps(changed[0])
        assert timeline.num_rows == count
        assert {
            (step, sample): row for step, rows in enumerate(timeline.index.tolist()) for sample, row in enumerate(rows)
        } == standing

    @settings(max_examples=100, deadline=None)
    @given(changes(count=2))
    def test_a_union_has_the_rows_of_both(self, changed):
        first, second = map(timeline_of, changed)
        union = first.union(second)
        assert union.changed.tolist() == [
            [a or b for a, b in zip(one, other)] for one, other in zip(*changed, strict=True)
        ]
        for timeline in (first, second):
            if union.num_rows == timeline.num_rows:
                assert union in (first, second)  # none is made anew

    @settings(max_examples=100, deadline=None)
    @given(changes(count=2))
    def test_rows_selected_for_a_finer_timeline_stand_for_the_same(self, changed):
        timeline, other = map(timeline_of, changed)
        finer = timeline.union(other)
        x = torch.arange(timeline.num_rows)
        assert torch.equal(timeline.select(x, finer)[finer.index], x[timeline.index])

    @pytest.mark.parametrize("other", [(2, 3), (4, 2), (1, 3), (4, 1)])
    def test_of_other_steps_or_samples_is_refused(self, other):
        with pytest.raises(ValueError, match=r"Rows of \(4, 3\) steps and samples meet rows of "):
            Timeline.constant(4, 3).union(Timeline.constant(*other))

    @given(st.integers(1, 5), st.integers(1, 5))
    def test_a_constant_is_one_row_a_sample(self, steps, samples):
        timeline = Timeline.constant(steps, samples)
        assert timeline.num_rows == samples
        assert timeline.index.tolist() == [list(range(samples))] * steps


class TestAlignment:
    @settings(max_examples=60, deadline=None)
    @given(changes(count=2), st.booleans(), st.booleans(), st.booleans())
    def test_of_a_sum(self, changed, integers_left, integers_right, with_gradients):
        left = random_rows(timeline_of(changed[0]), integers=integers_left)
        right = random_rows(timeline_of(changed[1]), integers=integers_right, scale=0.7)
        with torch.set_grad_enabled(with_gradients):  # without, by a kernel if there is one
            both = left + right
        assert both.timeline.num_rows == left.timeline.union(right.timeline).num_rows == both.shape[0]
        assert torch.equal(every_step(both), every_step(left) + every_step(right))

    @settings(max_examples=60, deadline=None)
    @given(changes(count=2), st.booleans())
    def test_of_a_concatenation(self, changed, integers):
        left, right = (random_rows(timeline_of(one), integers=integers) for one in changed)
        both = torch.cat((left, right), dim=1)
        assert torch.equal(every_step(both), torch.cat((every_step(left), every_step(right)), dim=2))

    @settings(max_examples=60, deadline=None)
    @given(changes(count=2))
    def test_of_a_product_of_levels(self, changed):
        left = random_rows(timeline_of(changed[0]), (2, 3, 4))
        right = random_rows(timeline_of(changed[1]), (2, 4, 5), scale=0.7)
        with torch.no_grad():
            product = MatMul()(left, right)
        exact = left.integers[left.timeline.index].double() @ right.integers[right.timeline.index].double()
        assert torch.equal(product.integers.double()[product.timeline.index], exact)
        assert torch.equal(every_step(product), exact.float() * (left.scale * right.scale))

    @pytest.mark.parametrize(
        ("left", "right", "both"), [(("a",), ("b", "c"), ("a", "b", "c")), ((), ("b",), ()), (("a",), (), ())]
    )
    def test_of_a_product_knows_the_sources_of_both_sides(self, left, right, both):
        a, b = (random_rows(Timeline.constant(2, 1), sources=sources) for sources in (left, right))
        product = MatMul()(a, b.reshaped(lambda x: x.mT, how=("turned",)))
        assert product.sources == ((*both, ("turned",)) if both else ())
        assert (product * 0.125).sources == ((*product.sources, ("scaled", 0.125)) if both else ())

    @pytest.mark.parametrize(
        ("change", "how"),
        [
            (lambda x: x.transpose(-1, -2), (("transpose", -1, -2),)),
            (lambda x: x.flatten(1), (("flatten", 1, -1),)),
            (lambda x: x.unflatten(-1, (3, 1)), (("unflatten", -1, 3, 1),)),
            (lambda x: x.heads_merged(), (("transpose", -3, -2), ("flatten", -2, -1))),
            (lambda x: x * 2.0, (("scaled", 2.0),)),
            (lambda x: x.on(timeline_of([[True], [True]])), ()),
            (lambda x: x.retimed(Timeline.constant(3, 1)), ()),
        ],
    )
    def test_what_is_done_is_added_to_the_sources(self, change, how):
        assert change(random_rows(Timeline.constant(2, 1), (2, 2, 3), sources=("a",))).sources == ("a", *how)
        assert change(random_rows(Timeline.constant(2, 1), (2, 2, 3))).sources == ()

    @pytest.mark.parametrize(
        "change", [lambda x: x[:, 0], lambda x: x + 1.0, lambda x: x.reshaped(torch.neg), lambda x: x.like(x.integers)]
    )
    def test_or_they_are_lost(self, change):
        assert change(random_rows(Timeline.constant(2, 1), (2, 2, 3), sources=("a",))).sources == ()

    @settings(max_examples=30, deadline=None)
    @given(changes(count=2))
    def test_of_a_product_with_values_on_one_side(self, changed):
        left = random_rows(timeline_of(changed[0]), (2, 3, 4))
        right = random_rows(timeline_of(changed[1]), (2, 4, 5), integers=False)
        with torch.no_grad():
            product = MatMul()(left, right)
        # One product of many matrices and another of more: rounding in the last digits.
        assert torch.allclose(every_step(product), every_step(left) @ every_step(right), atol=1e-5)

    @torch.no_grad()
    def test_of_a_sum_of_samples(self):
        """As in the quantized network: there are no steps."""
        left, right = (
            Rows(integers=torch.randint(-8, 8, (2, 3), dtype=torch.int8), scale=torch.rand(1), dtype=torch.float32)
            for _ in range(2)
        )
        expected = left.integers * left.scale + right.integers * right.scale
        total = left + right
        assert total.timeline is None
        assert torch.equal(total.values, expected)
        timed = right.retimed(timeline_of([[True, True]]))
        assert torch.equal((left + timed).values, expected)
        assert (left + timed).timeline is (timed + left).timeline is timed.timeline

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_a_sum_in_other_types(self, dtype):
        """Values of the type that torch gives the sum of those."""
        timeline = timeline_of([[True, True], [False, True]])
        left, right = random_rows(timeline), Rows(torch.randn(3, 2, 3, dtype=dtype), timeline=timeline)
        total = left + right
        assert total.dtype == total.values.dtype == torch.promote_types(torch.float32, dtype)
        assert torch.equal(total.values, left.values + right.values)
        halves = Rows(integers=left.integers, scale=left.scale, peak=8, dtype=dtype, timeline=timeline)
        assert torch.equal((halves + left).values, halves.values + left.values)
        assert torch.equal((left + halves).values, halves.values + left.values)

    @torch.no_grad()
    def test_a_sum_does_not_ask_for_the_values_of_its_terms(self, monkeypatch):
        left, right = random_rows(timeline_of([[True], [True]])), random_rows(timeline_of([[True], [False]]))
        if native.library() is None:
            pytest.skip("there are no kernels here")
        expected = every_step(copy.copy(left)) + every_step(copy.copy(right))
        monkeypatch.setattr(rows_module, "values_of", mock.Mock(side_effect=AssertionError("a pass over memory")))
        assert torch.equal(every_step(left + right), expected)

    def test_a_tensor_without_steps_goes_with_every_row(self):
        rows = random_rows(timeline_of([[True, True], [False, True]]))
        shared = torch.randn(1, 2, 3)
        assert torch.equal((rows + shared).values, rows.values + shared)
        assert torch.equal((shared + rows).values, shared + rows.values)
        assert (rows + shared).timeline is rows.timeline


class TestShapes:
    CHANGES = {
        "unflatten": (lambda x: x.unflatten(-1, (2, 3))),
        "flatten": (lambda x: x.flatten(1)),
        "transpose": (lambda x: x.transpose(1, 2)),
        "several": (lambda x: x.unflatten(-1, (3, 2)).transpose(1, 2).flatten(2)),
    }

    @pytest.mark.parametrize("change", CHANGES)
    def test_levels_stay_levels(self, change):
        function = self.CHANGES[change]
        rows = random_rows(timeline_of([[True, True], [False, True]]), (4, 6))
        changed = function(rows)
        assert torch.equal(changed.levels, function(rows.integers))
        assert torch.equal(changed.values, function(rows.values))
        assert changed.timeline is rows.timeline
        assert torch.equal(function(rows).values, changed.values)  # also once values are there

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("fields", [{"scale": torch.rand(6)}, {"scale": torch.rand(1), "bias": torch.rand(6)}])
    def test_a_scale_or_bias_for_each_feature_makes_values_of_them(self, change, fields):
        function = self.CHANGES[change]
        integers = torch.randint(-100, 100, (3, 4, 6), dtype=torch.int32)
        rows = Rows(integers=integers, dtype=torch.float32, peak=100, **fields)
        assert rows.levels is None
        changed = function(rows)
        assert changed.integers is None
        assert torch.equal(changed.values, function(integers * fields["scale"] + fields.get("bias", 0.0)))

    POSITIONS = {
        "first": (lambda x: x[:, 0]),
        "some": (lambda x: x[:, 1:3]),
        "one of each row": (lambda x: x[torch.arange(3), torch.tensor([2, 0, 1])]),
    }

    @pytest.mark.parametrize("choice", POSITIONS)
    @pytest.mark.parametrize("scales", [1, 6])
    def test_chosen_positions_keep_their_levels(self, choice, scales):
        function = self.POSITIONS[choice]
        integers, scale = torch.randint(-100, 100, (3, 4, 6), dtype=torch.int8), torch.rand(scales)
        changed = function(Rows(integers=integers, dtype=torch.float32, peak=100, scale=scale))
        assert torch.equal(changed.integers, function(integers))
        assert torch.equal(changed.values, function(integers * scale))
        assert changed.peak == 100

    @pytest.mark.parametrize("scales", [1, 6])
    def test_chosen_features_have_the_right_scales(self, scales):
        integers, scale = torch.randint(-100, 100, (3, 4, 6), dtype=torch.int8), torch.rand(scales)
        rows = Rows(integers=integers, dtype=torch.float32, peak=100, scale=scale)
        for key in ((..., 0), (slice(None), 0, slice(1, 4)), (..., slice(2, 4)), (slice(None), None)):
            assert torch.equal(rows[key].values, (integers * scale)[key])

    def test_sums_of_products_are_no_levels(self):
        assert Rows(integers=torch.ones(2, 3), scale=torch.ones(1), dtype=torch.float32).levels is None

    def test_shape_device_and_dimensions_are_known_without_values(self):
        rows = random_rows(Timeline.constant(3, 2), (4, 6))
        assert (rows.shape, rows.dim(), rows.device.type, rows.size(1)) == ((2, 4, 6), 3, "cpu", 4)
        assert rows.dtype is torch.float32


class TestValues:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("with_bias", [True, False])
    def test_are_computed_in_the_type_of_the_scale(self, dtype, with_bias):
        wide = torch.promote_types(dtype, torch.float32)
        integers = torch.randint(-(2**20), 2**20, (7, 5), dtype=torch.int32)
        scale = torch.rand(5, dtype=wide) * 1e-4
        bias = torch.randn(5, dtype=wide) if with_bias else None
        rows = Rows(integers=integers, scale=scale, bias=bias, dtype=dtype)
        expected = integers.to(wide) * scale
        expected = (expected + bias if with_bias else expected).to(dtype)
        assert rows.values.dtype is dtype
        assert torch.equal(rows.values, expected)
        assert integers.dtype is torch.int32  # not scaled in place

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_leave_integers_of_a_floating_type_as_they_are(self, dtype):
        integers = torch.arange(6, dtype=dtype).reshape(2, 3)
        rows = Rows(
            integers=integers, scale=torch.full((1,), 0.5, dtype=dtype), bias=torch.ones(3, dtype=dtype), dtype=dtype
        )
        assert rows.values.tolist() == [[1.0, 1.5, 2.0], [2.5, 3.0, 3.5]]
        assert torch.equal(rows.integers, torch.arange(6, dtype=dtype).reshape(2, 3))

    @pytest.mark.parametrize("factor", [0.5, 8**-0.5])
    def test_scaling_a_product_goes_by_way_of_its_scale(self, factor):
        integers = torch.randint(-(2**15), 2**15, (4, 6), dtype=torch.int32)
        rows = Rows(integers=integers, scale=torch.tensor([0.037]), dtype=torch.float32)
        assert torch.equal((rows * factor).values, integers.float() * (torch.tensor([0.037]) * factor))

    def test_scaling_what_has_a_bias_scales_the_bias_too(self):
        rows = Rows(integers=torch.ones(2, 3), scale=torch.ones(1), bias=torch.ones(3), dtype=torch.float32)
        assert (rows * 0.5).values.tolist() == [[1.0] * 3] * 2


class TestLikeATensor:
    def test_dropout_in_inference_returns_the_very_same(self):
        rows = random_rows(Timeline.constant(2, 2))
        assert torch.nn.Dropout(0.5).eval()(rows) is rows

    def test_functions_act_on_values(self):
        rows = random_rows(Timeline.constant(2, 2))
        norm = torch.nn.LayerNorm(3)
        assert torch.equal(norm(rows).values, norm(rows.values))
        assert norm(rows).timeline is rows.timeline
        assert torch.equal(torch.softmax(rows, -1).values, torch.softmax(rows.values, -1))
        assert torch.equal(rows.masked_fill(torch.tensor(True), 1.0).values, torch.ones(2, 2, 3))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_another_type_is_of_values(self, dtype):
        rows = random_rows(Timeline.constant(2, 2))
        moved = rows.to(dtype)
        assert moved.integers is None
        assert moved.dtype is dtype
        assert torch.equal(moved.values, rows.values.to(dtype))
        assert moved.timeline is rows.timeline

    @pytest.mark.parametrize("looked_at", [True, False])
    def test_another_device_keeps_integers(self, looked_at):
        rows = random_rows(Timeline.constant(2, 2), bias=None)
        if looked_at:
            _ = rows.values
        moved = rows.to("meta")
        assert moved.device.type == moved.scale.device.type == "meta"
        assert moved.levels.dtype is torch.int8
        assert (moved.timeline, moved.dtype, moved.peak) == (rows.timeline, rows.dtype, rows.peak)
        assert rows.device.type == "cpu"

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies(self, duplicate):
        rows = random_rows(timeline_of([[True, True], [False, True]]))
        again = duplicate(rows)
        assert isinstance(again, Rows)
        assert torch.equal(again.levels, rows.levels)
        assert torch.equal(again.timeline.index, rows.timeline.index)

    def test_a_model_output_holds_them_as_one_field(self):
        rows = random_rows(Timeline.constant(2, 2))
        output = BaseModelOutput(last_hidden_state=rows, hidden_states=(rows, rows))
        assert output["last_hidden_state"] is rows
        assert list(output) == ["last_hidden_state", "hidden_states"]
        assert torch.equal(unwrap(output["hidden_states"])[1], rows.values)

    def test_what_no_tensor_has_they_do_not_have_either(self):
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = random_rows(Timeline.constant(2, 2)).no_such_thing

"""The engine that skips what does not change, against the naive one that skips nothing: spike for spike."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spikezip_hf import QuantSwinForImageClassification, QuantViTForImageClassification
from spikezip_hf.models import engines, kernels, simulation
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from spikezip_hf.models.operators import Linear
from tests.conftest import (
    ARCHITECTURES,
    made_once,
    make_ann,
    make_images,
    make_swin_ann,
    make_text_ann,
    make_texts,
    spiking_twin,
    text_class,
)
from tests.models.naive import by_references, run_naively

TINY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
LENGTHS = [7, 4, 7, 2]


@made_once
def make_snn(
    architecture="vit",
    task="ForSequenceClassification",
    dtype=torch.float32,
    seed=0,
    granularity="per_tensor",
    weight_bits=None,
    levels=16,
    node_placement=None,
    layers=2,
    schedule=None,
    **fields,
):
    """A spiking network; `schedule` is made for it, `fields` are those of a spiking config."""
    own = {"quantization_levels": levels, "scale_granularity": granularity, "weight_bits": weight_bits}
    if architecture == "vit":
        ann = make_ann(seed, dtype, num_hidden_layers=layers, **TINY)
        qann = QuantViTForImageClassification.from_ann(ann, **own)
    elif architecture == "swin":
        qann = QuantSwinForImageClassification.from_ann(make_swin_ann(seed, dtype, image_size=14), **own)
    else:
        ann = make_text_ann(architecture, task, seed, dtype, num_hidden_layers=layers, **TINY)
        own |= {"node_placement": node_placement or "full"}
        qann = text_class("Quant", architecture, task).from_ann(ann, **own)
    batches = [make_inputs(qann, seed + 1, 8)]
    snn = spiking_twin(qann.calibrate(batches), **fields)
    return snn if schedule is None else snn.calibrate_schedule(batches, schedule)


def make_inputs(model, seed=7, batch=4, steps=None, side="right"):
    if model.main_input_name == "pixel_values":
        return {"pixel_values": make_images(model.config, batch, model.dtype, seed, steps)}
    return make_texts(model.config, LENGTHS * (batch // 4), seed, side)


def simulated(snn, batch, time_steps, **arguments):
    arguments = {"output_time_steps": True, "stop": "never", **arguments}
    return snn.trajectory(**batch, time_steps=time_steps, **arguments)


def assert_same(run, naive, readout_tolerance=0.0):
    """Counts of every node, levels, the step of equilibrium, and the readout of every step."""
    assert torch.equal(run.spike_counts, naive.counts.sum(1))
    assert list(run.levels) == list(naive.levels)
    assert all(torch.equal(run.levels[name], levels[-1]) for name, levels in naive.levels.items())
    assert torch.equal(run.equilibrium_step, naive.equilibrium_step)
    if readout_tolerance:
        assert torch.allclose(run.per_step, naive.readout, rtol=0, atol=readout_tolerance)
    else:
        assert torch.equal(run.per_step, naive.readout)
    assert torch.equal(run.readout, run.per_step[:, -1])


# Where products are not exact, a linear map is one in floating point, which may round differently for another number
# of rows; no level follows it (the seeds have no current that close to a tie), and logits do in their last digits.
FIXED = kernels.in_fixed_point(torch.zeros(1))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 0.0 if FIXED else 1e-5}


def tolerance(architecture, dtype):
    """As above; Swin's head reads a mean over positions, whose sums of levels are no bytes: never in fixed point."""
    return 1e-5 if architecture == "swin" and dtype == torch.float32 else TOLERANCE[dtype]


slow = pytest.mark.slow
KINDS = [  # types of a network, and bits of its weights
    (torch.float32, None),
    (torch.float32, 8),
    pytest.param(torch.float64, None, marks=slow),
    pytest.param(torch.float64, 8, marks=slow),
]
NETWORKS = [(architecture, "ForImageClassification") for architecture in ("vit", "swin")] + [
    (architecture, task)
    for architecture in ARCHITECTURES
    for task in ("Model", "ForSequenceClassification", "ForTokenClassification")
]


@pytest.mark.parametrize(
    ("architecture", "steps", "fields"),
    [
        ("vit", None, {}),
        ("vit", 5, {}),
        ("vit", None, {"schedule": "coarse_to_fine", "max_spikes_per_step": 2}),
        ("swin", None, {}),
        ("bert", None, {"firing_schedule": "layerwise", "firing_window": 5}),
    ],
)
def test_the_naive_engine_one_step_at_a_time(architecture, steps, fields):
    """Below it takes 16 at once, which is the same, and sooner."""
    snn = make_snn(architecture, weight_bits=8, **fields)
    batch = make_inputs(snn, steps=steps)
    single, several = run_naively(snn, batch, 80, chunk_steps=1), run_naively(snn, batch, 80)
    assert bool((single.equilibrium_step > 5).all())
    assert torch.equal(several.equilibrium_step, single.equilibrium_step)
    assert torch.equal(several.counts, single.counts)
    # The embedding is a convolution in floating point, of one frame or of several at once.
    assert torch.allclose(several.readout, single.readout, rtol=0, atol=0 if steps is None else 1e-5)
    assert list(several.levels) == list(single.levels)
    assert all(torch.equal(levels, single.levels[name]) for name, levels in several.levels.items())


@pytest.mark.parametrize(("dtype", "weight_bits"), KINDS)
@pytest.mark.parametrize(("architecture", "task"), NETWORKS)
def test_every_network_fires_as_the_naive_engine_does(architecture, task, dtype, weight_bits):
    snn = make_snn(architecture, task, dtype, weight_bits=weight_bits)
    batch = make_inputs(snn)
    naive = run_naively(snn, batch, 80)
    assert bool((naive.equilibrium_step > 5).all())
    for time_steps in (1, 5, 80):
        # With integer weights and one scale a node nothing depends on the number of rows: equal to the bit.
        assert_same(
            simulated(snn, batch, time_steps),
            naive.until(time_steps),
            0.0 if weight_bits else tolerance(architecture, dtype),
        )


@pytest.mark.parametrize("weight_bits", [None, 8])
@pytest.mark.parametrize("levels", [4, 16, 32, 256])
@pytest.mark.parametrize("architecture", ["vit", "roberta"])
def test_every_number_of_levels(architecture, levels, weight_bits):
    snn = make_snn(architecture, levels=levels, weight_bits=weight_bits)
    batch = make_inputs(snn)
    assert_same(simulated(snn, batch, 30), run_naively(snn, batch, 30), 0.0 if weight_bits else 1e-5)


@pytest.mark.parametrize(("dtype", "weight_bits"), KINDS)
@pytest.mark.parametrize("granularity", ["per_channel", "mixed"])
@pytest.mark.parametrize("architecture", ["vit", "swin", "bert"])
def test_every_granularity(architecture, granularity, weight_bits, dtype):
    snn = make_snn(architecture, granularity=granularity, weight_bits=weight_bits, dtype=dtype)
    batch = make_inputs(snn)
    assert_same(simulated(snn, batch, 30), run_naively(snn, batch, 30), tolerance(architecture, dtype))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float64, marks=slow), torch.float32])
@pytest.mark.parametrize(
    "firing",
    [
        {},
        {"firing_schedule": "layerwise", "firing_window": 5},
        {"schedule": "nodewise"},
        {"schedule": "coarse_to_fine"},
    ],
)
@pytest.mark.parametrize("max_spikes", [1, 2, 5])
@pytest.mark.parametrize("architecture", ["vit", "bert"])
def test_every_firing_rule(architecture, max_spikes, firing, dtype):
    snn = make_snn(architecture, dtype=dtype, weight_bits=8, max_spikes_per_step=max_spikes, **firing)
    batch = make_inputs(snn)
    naive = run_naively(snn, batch, 30)
    for chunk_steps in (4, 64):
        assert_same(simulated(snn, batch, 30, chunk_steps=chunk_steps), naive)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_steps", [1, 3, 64])
@pytest.mark.parametrize("weight_bits", [None, 8])
def test_input_per_step(weight_bits, chunk_steps, dtype):
    snn = make_snn(dtype=dtype, weight_bits=weight_bits)
    batch = make_inputs(snn, steps=5)
    naive = run_naively(snn, batch, 30)
    for time_steps in (5, 30):
        run = simulated(snn, batch, time_steps, chunk_steps=chunk_steps)
        # The embedding is a convolution in floating point, of one frame or of several at once.
        assert_same(run, naive.until(time_steps), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("node_placement", ["full", "reference"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_on_either_side(architecture, node_placement, side, dtype):
    snn = make_snn(architecture, node_placement=node_placement, weight_bits=8, dtype=dtype)
    batch = make_inputs(snn, side=side)
    run, naive = simulated(snn, batch, 40), run_naively(snn, batch, 40)
    # The reference's placement has analog products, in floating point.
    assert_same(run, naive, 0.0 if node_placement == "full" else TOLERANCE[dtype])


@pytest.mark.parametrize("stop", ["never", "equilibrium"])
@pytest.mark.parametrize("chunk_steps", [1, pytest.param(3, marks=slow), 7, pytest.param(64, marks=slow)])
@pytest.mark.parametrize("architecture", ["vit", "swin", "bert"])
def test_neither_chunks_nor_stopping_change_an_answer(architecture, chunk_steps, stop):
    snn = make_snn(architecture, weight_bits=8)
    batch = make_inputs(snn)
    naive = run_naively(snn, batch, 90)
    assert len(set(naive.equilibrium_step.tolist())) > 1  # samples are dropped one after another
    assert_same(simulated(snn, batch, 90, chunk_steps=chunk_steps, stop=stop), naive)


@pytest.fixture
def in_groups(monkeypatch):
    """Say of how many samples a pass may be, of whatever network, and of how many steps."""

    def say(samples, steps=5):
        monkeypatch.setattr(simulation, "SHORTEST_CHUNK", steps)
        monkeypatch.setattr(SpikePreTrainedModel, "row_bytes", lambda self, inputs: 1000)
        monkeypatch.setitem(simulation.CHUNK_BYTES, "cpu", samples * steps * 1000)

    return say


@pytest.mark.parametrize("stop", ["never", "equilibrium"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("architecture", ["vit", "swin", "bert"])
def test_neither_do_groups(architecture, samples, stop, in_groups):
    """Of 4 samples one after another, or 2 and 2."""
    snn = make_snn(architecture, weight_bits=8)
    batch = make_inputs(snn)
    naive = run_naively(snn, batch, 90)
    in_groups(samples)
    passes = []
    snn.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append((kwargs["engine"].step, kwargs["engine"].num_samples)),
        with_kwargs=True,
    )
    for time_steps in (90, int(naive.equilibrium_step.max()) - 1, 1):
        run = simulated(snn, batch, time_steps, stop=stop)
        assert_same(run, naive.until(time_steps))
        assert [done for done, _ in passes].count(0) == (4 // min(samples, 2) if time_steps > 1 else 1)
        assert max(count for _, count in passes[:-1] or [(0, 0)]) <= 2
        assert passes[-1][1] == 4  # the last step, of all
        passes.clear()


@pytest.mark.parametrize("steps", [None, 5])
def test_groups_with_schedule_and_input_per_step(steps, in_groups):
    """Gates open after the first chunk of each group; groups end at different steps."""
    snn = make_snn(weight_bits=8, firing_schedule="layerwise", firing_window=5)
    batch = make_inputs(snn, steps=steps)
    naive = run_naively(snn, batch, 90)
    assert len(set(naive.equilibrium_step.tolist())) > 1
    assert bool((naive.equilibrium_step > 10).all())
    in_groups(1)
    with mock.patch.object(simulation.Run, "go", autospec=True, side_effect=simulation.Run.go) as go:
        for stop in ("never", "equilibrium"):
            assert_same(simulated(snn, batch, 90, stop=stop), naive, TOLERANCE[torch.float32] if steps else 0.0)
    assert go.call_count == 2 * 4


def test_groups_of_samples_that_are_done_when_they_are_clear(in_groups):
    snn = make_snn(weight_bits=8)
    batch = make_inputs(snn)
    clearest = simulation.margin(simulated(snn, batch, 90).per_step).amax(1)
    arguments = {"stop": "confidence", "confidence_threshold": float(clearest.sort().values[1])}
    whole = simulated(snn, batch, 90, **arguments)
    assert len(set(whole.decision_step.tolist())) > 2  # one is never clear, and settles
    assert whole.decision_step.min() == -1
    in_groups(1)
    run = simulated(snn, batch, 90, **arguments)
    for field in ("readout", "per_step", "decision_step", "equilibrium_step", "spike_counts"):
        assert torch.equal(getattr(run, field), getattr(whole, field)), field


@pytest.mark.parametrize(
    ("arguments", "chunks"),
    [
        ({"stop": "never"}, [399, 1]),
        ({"stop": "equilibrium"}, [64, 64, 1]),
        ({"stop": "equilibrium", "chunk_steps": 399}, [399, 1]),
        ({"stop": "confidence", "confidence_threshold": 1e9}, [64, 64, 1]),  # never clear
    ],
)
def test_chunks_that_are_run(arguments, chunks):
    snn = make_snn(levels=32, firing_schedule="layerwise", firing_window=40)
    batch = make_inputs(snn)
    with mock.patch.object(
        engines.SpikingEngine, "advance", autospec=True, side_effect=engines.SpikingEngine.advance
    ) as run:
        found = snn(**batch, time_steps=400, **arguments)
    assert [call.args[1] for call in run.call_args_list] == chunks
    assert 64 < found.equilibrium_step.max() <= 128
    whole = snn(**batch, time_steps=400, chunk_steps=399)
    assert torch.equal(found.logits, whole.logits)
    assert torch.equal(found.spike_counts, whole.spike_counts)


@pytest.mark.parametrize("stop", ["never", "equilibrium"])
def test_a_run_shorter_than_the_way_to_equilibrium(stop):
    snn = make_snn(weight_bits=8, levels=32)
    batch = make_inputs(snn)
    naive = run_naively(snn, batch, 110)
    equilibrium = naive.equilibrium_step
    ends = sorted(set(equilibrium.tolist()))
    for time_steps in (1, 2, ends[0], ends[-1] - 1):
        run = simulated(snn, batch, time_steps, stop=stop, chunk_steps=5)
        assert_same(run, naive.until(time_steps))
        assert torch.equal(run.equilibrium_step, torch.where(equilibrium <= time_steps, equilibrium, -1))


@pytest.mark.parametrize("architecture", ["vit", "bert"])
def test_a_sample_fires_the_same_alone_as_in_a_batch(architecture):
    """On integers. A text keeps its padding here; without it, see `test_integer_softmax.py`."""
    snn = make_snn(architecture, weight_bits=8)
    batch = make_inputs(snn)
    together = simulated(snn, batch, 90, stop="equilibrium")
    for sample in range(4):
        alone = simulated(snn, {k: v[sample : sample + 1] for k, v in batch.items()}, 90, stop="equilibrium")
        assert torch.equal(alone.spike_counts[0], together.spike_counts[sample])
        assert torch.equal(alone.equilibrium_step[0], together.equilibrium_step[sample])
        assert all(torch.equal(alone.levels[name][0], x[sample]) for name, x in together.levels.items())
        assert torch.equal(alone.per_step[0], together.per_step[sample])


class TestWorkIsSkipped:
    @staticmethod
    def rows_of(snn, batch, name, **arguments):
        """Rows of each pass through the linear map `name`."""
        rows = []
        module = snn.get_submodule(name)
        assert isinstance(module, Linear)
        hook = module.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
        run = simulated(snn, batch, **arguments)
        hook.remove()
        return rows, run

    def test_a_layer_that_has_settled_is_one_row_a_chunk(self):
        snn = make_snn()
        batch = make_inputs(snn, batch=1)
        rows, run = self.rows_of(snn, batch, "vit.layers.0.attention.q_proj", time_steps=81, chunk_steps=8)
        assert rows[0] > 4
        assert int(run.equilibrium_step) < 72
        assert rows[-2:] == [1, 1]  # a chunk of 8 and the last step alone

    def test_a_static_input_is_one_row_a_chunk_whatever_happens_behind_it(self):
        snn = make_snn("bert", node_placement="reference")  # its embeddings do not fire
        rows, _ = self.rows_of(
            snn,
            make_inputs(snn),
            "bert.encoder.layer.0.attention.self.query",
            time_steps=17,
            chunk_steps=8,
        )
        assert rows == [4, 4, 4]

    def test_a_sample_that_has_settled_is_left_out(self):
        snn = make_snn(weight_bits=8)
        batch = make_inputs(snn)
        rows, run = self.rows_of(snn, batch, "classifier", time_steps=200, chunk_steps=1, stop="equilibrium")
        # At the first step all; then those not at rest after the step before; all again to prove it.
        last = int(run.equilibrium_step.max())
        moving = [int((run.equilibrium_step > step).sum()) for step in range(last)]
        assert rows == [*moving, 4]

    def test_a_layer_whose_gate_is_closed_is_one_row_a_chunk(self):
        snn = make_snn(firing_schedule="layerwise", firing_window=16)
        batch = make_inputs(snn, batch=1)
        name = "vit.layers.1.mlp.fc2"
        rows, _ = self.rows_of(snn, batch, name, time_steps=33, chunk_steps=8)
        assert rows[:2] == [1, 1]
        assert rows[2] > 4

    def test_input_that_has_arrived_takes_no_more_rows(self):
        snn = make_snn()
        passes = []
        projection = snn.vit.embeddings.patch_embeddings.projection
        projection.register_forward_hook(lambda _, args, out: passes.append(out.shape[0]))
        simulated(snn, make_inputs(snn, steps=5), 17, chunk_steps=4)
        assert passes == [4 * 4, 4 * 1, 4, 4, 4]


class TestNodesAtRest:
    """They are not asked again while what their products are of stays where it is."""

    @staticmethod
    def nodes_that_rest(snn, batch, **arguments):
        """Names of the nodes that rest in each chunk."""
        chunks = []

        class Watched(engines.CumulativeEngine):
            def advance(self, *given):
                super().advance(*given)
                chunks.append([])

            def rest(self, node, *given):
                chunks[-1].append(node.name)
                return super().rest(node, *given)

        run = simulated(snn, batch, engine_class=Watched, **arguments)
        return chunks, run

    @staticmethod
    def behind_products(snn):
        """Names of the nodes behind products with weights or of attention, whose operands are levels."""
        return [node.name for node in snn.nodes if "embeddings" not in node.name and "norm" not in node.name]

    @pytest.mark.parametrize("stop", ["never", "equilibrium"])
    @pytest.mark.parametrize("weight_bits", [None, 8])
    def test_in_the_step_that_proves_equilibrium_all_behind_exact_products_do(self, weight_bits, stop):
        if weight_bits is None and not FIXED:
            pytest.skip("here products of float32 are not exact")
        snn = make_snn(weight_bits=weight_bits)
        batch = make_inputs(snn)
        chunks, run = self.nodes_that_rest(snn, batch, time_steps=200, stop=stop)
        assert bool((run.equilibrium_step > 0).all())
        assert chunks[0] == []
        assert chunks[-1] == self.behind_products(snn)
        assert len(chunks[-1]) == 2 * 8
        expected = snn(**batch, execution="equilibrium")
        assert torch.equal(run.readout, expected.logits)

    def test_not_where_products_are_not_exact(self):
        snn = make_snn(dtype=torch.float64)
        chunks, run = self.nodes_that_rest(snn, make_inputs(snn), time_steps=200)
        assert bool((run.equilibrium_step > 0).all())
        of_attention = [name for name in self.behind_products(snn) if "probs" in name or "context" in name]
        assert chunks[-1] == [name for name in of_attention if "context" in name]

    def test_a_first_layer_does_before_the_last(self):
        snn = make_snn(weight_bits=8, layers=4)
        batch = make_inputs(snn, batch=1)
        chunks, _ = self.nodes_that_rest(snn, batch, time_steps=81, chunk_steps=4)
        of_layer = [[sum(f"layers.{i}." in name for name in names) for i in range(4)] for names in chunks]
        assert of_layer[0] == [0, 0, 0, 0]
        assert of_layer[-1] == [8, 8, 8, 8]
        assert any(first == 8 > last for first, *_, last in of_layer)

    def test_not_while_one_sample_is_on_its_way(self):
        snn = make_snn(weight_bits=8)
        batch = make_inputs(snn)
        steps = int(simulated(snn, batch, 200).equilibrium_step.max())
        chunks, run = self.nodes_that_rest(snn, batch, time_steps=steps, chunk_steps=steps, output_time_steps=False)
        assert int(run.equilibrium_step.max()) == steps  # it moved in the last step
        assert chunks[0] == []
        assert len(chunks[-1]) < len(self.behind_products(snn))

    @pytest.mark.parametrize("chunk_steps", [pytest.param(1, marks=slow), 5])
    @pytest.mark.parametrize(
        ("change", "where"),
        [
            ("silenced", "mlp.hidden_node"),
            ("shifted", "mlp.hidden_node"),
            ("other levels", "mlp.hidden_node"),
            ("other order", "mlp.hidden_node"),
            ("turned", "attention.probs_node"),
            ("like", "mlp.hidden_node"),
            ("scaled", "attention.scores"),
        ],
    )
    def test_not_behind_a_hook_that_comes_and_goes(self, change, where, chunk_steps):
        """A node may then be at the target of a current that it has had no longer."""

        def simulated_with_hook(snn, engine_class):
            passes = []

            def hook(module, args, output):
                passes.append(1)
                if not 4 <= len(passes) * chunk_steps % 24 <= 12:
                    return output
                if change == "scaled":
                    return output * 0.25
                if change == "shifted":
                    return output + 0.25
                if change == "other levels":
                    return output[:, torch.arange(output.shape[1] - 1, -1, -1)]
                if change == "other order":
                    return output.unflatten(-1, (4, 6)).transpose(-1, -2).flatten(-2)
                if change == "turned":
                    return output.transpose(-1, -2)
                if change == "like":
                    return output.like(output.integers * 0)
                return output.masked_fill(torch.ones((), dtype=torch.bool), 0.0)

            handle = snn.vit.layers[0].get_submodule(where).register_forward_hook(hook)
            try:
                return simulated(snn, batch, 97, chunk_steps=chunk_steps, engine_class=engine_class)
            finally:
                handle.remove()

        class Asking(engines.CumulativeEngine):
            def rests(self, node, current):
                return False

        snn = make_snn(weight_bits=8)
        batch = make_inputs(snn)
        run = simulated_with_hook(snn, engines.CumulativeEngine)
        expected = simulated_with_hook(snn, Asking)
        assert torch.equal(run.per_step, expected.per_step)
        assert torch.equal(run.spike_counts, expected.spike_counts)
        assert torch.equal(run.equilibrium_step, expected.equilibrium_step)
        assert not torch.equal(run.spike_counts, simulated(snn, batch, 97).spike_counts)

    def test_what_they_hand_on_is_their_own(self):
        """The next chunk changes tracers in place, here when more input comes after a pause."""
        snn = make_snn(weight_bits=8)
        batch = make_inputs(snn, steps=80)
        batch["pixel_values"][:, 1:79] = 0
        handed = []
        node = snn.vit.layers[0].mlp.hidden_node
        node.register_forward_hook(lambda _, args, out: handed.append((out, out.integers.clone())))
        chunks, _ = self.nodes_that_rest(snn, batch, time_steps=97, chunk_steps=4)
        rests = [node.name in names for names in chunks]
        assert rests[18:20] == [True, False]  # up to step 76, and up to 80
        assert all(torch.equal(out.integers, levels) for out, levels in handed)


class TensorSizes(TorchDispatchMode):
    """Bytes of the largest tensor that any operator returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return out


@pytest.mark.parametrize("weight_bits", [None, 8])
def test_memory_of_a_pass_does_not_grow_with_the_number_of_steps(weight_bits):
    snn = make_snn(weight_bits=weight_bits)
    batch = make_inputs(snn)
    largest = {}
    for time_steps in (9, 17, 129):
        with TensorSizes() as mode:
            simulated(snn, batch, time_steps, chunk_steps=8, output_time_steps=False)
        largest[time_steps] = mode.largest
    assert largest[9] == largest[17] == largest[129]
    with TensorSizes() as mode:
        simulated(snn, batch, 129, chunk_steps=64, output_time_steps=False)
    assert mode.largest > largest[129]  # it is the chunk that counts, and this would have seen it


@pytest.mark.parametrize(("granularity", "levels"), [("per_tensor", 16), ("per_channel", 16), ("per_tensor", 256)])
@pytest.mark.parametrize("which", ["as built", "references"])
def test_bytes_of_the_largest_tensor_of_a_long_text(which, granularity, levels, monkeypatch):
    """Scores of attention: as levels, one byte each, where a kernel makes neurons of them, else as numbers."""
    monkeypatch.setitem(TINY, "max_position_embeddings", 64)
    snn = make_snn("bert", granularity=granularity, levels=levels)
    batch = make_texts(snn.config, [60, 9, 60, 40])
    with by_references() if which == "references" else nullcontext():
        one_byte = granularity == "per_tensor" and levels <= 128
        fused = kernels.products_with_neurons(batch["input_ids"]) and one_byte
        bytes_ = snn.row_bytes(batch["input_ids"])
        assert bytes_ == 60 * 60 * 2 * (1 if fused else 4)
        with TensorSizes() as mode:
            simulated(snn, batch, 17, chunk_steps=8, output_time_steps=False)
        assert mode.largest == bytes_ * 4 * 8

"""The heart of the suite: the three engines agree, and equilibrium means equality to the bit."""

import pytest
import torch

from spikezip_hf import SpikeViTForImageClassification, verify_equivalence
from spikezip_hf.models.engines import RecordingEngine
from tests.conftest import crossed, make_images, make_qann

SIZES = {
    "tiny": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24},
    "small": {},
    "deep": {"num_hidden_layers": 5, "hidden_size": 24, "num_attention_heads": 3},
    "patchy": {"image_size": 12, "patch_size": 2, "num_attention_heads": 1, "qkv_bias": False},
}


def spiking(qann, schedule=None, **fields):
    """The twin, with a schedule that is made for it if one is named."""
    snn = SpikeViTForImageClassification.from_quantized(qann, **{"time_steps": 1000, **fields})
    if schedule is not None:
        snn.calibrate_schedule([{"pixel_values": make_images(qann.config, 4, snn.dtype)}], schedule)
    return snn


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("levels", [4, 8, 16, 32])
@pytest.mark.parametrize("size", SIZES)
def test_quant_equals_cumulative_at_equilibrium_to_the_bit(size, levels, seed):
    qann = make_qann(seed, levels=levels, **SIZES[size])
    images = make_images(qann.config, 6, seed=seed)
    snn = spiking(qann)
    certificate = verify_equivalence(qann, snn, {"pixel_values": images})
    assert certificate.mismatches == {}
    assert bool((certificate.equilibrium_step > 0).all())
    assert certificate.exact, str(certificate)
    with torch.no_grad():
        expected = qann(images).logits
    assert torch.equal(snn(images).logits, expected)
    assert torch.equal(snn(images, execution="equilibrium").logits, expected)


@pytest.mark.parametrize("levels", [128, 130, 256])
def test_many_levels(levels):
    qann = make_qann(levels=levels)
    images = make_images(qann.config, 2)
    certificate = verify_equivalence(qann, spiking(qann, time_steps=4000), {"pixel_values": images})
    assert certificate.exact, str(certificate)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "mixed"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_spikes_per_step": 3},
        {"firing_schedule": "layerwise", "firing_window": 4},
        {"schedule": "nodewise"},
        {"schedule": "coarse_to_fine"},
    ],
)
def test_every_schedule_has_the_same_fixed_point(fields, granularity):
    qann = make_qann(granularity=granularity)
    images = make_images(qann.config, 4)
    certificate = verify_equivalence(qann, spiking(qann, **fields), {"pixel_values": images})
    assert certificate.exact, str(certificate)


@pytest.mark.parametrize(
    ("seed", "levels", "steps"),
    crossed([0, 1], [8, 32], [None, 3], default=[(0, 32, None), (1, 8, 3)]),
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_spikes_per_step": 2},
        {"firing_schedule": "layerwise", "firing_window": 5},
        {"schedule": "nodewise"},
        {"schedule": "coarse_to_fine"},
        {"schedule": "coarse_to_fine", "max_spikes_per_step": 3},
    ],
)
def test_cumulative_equals_event_spike_for_spike(fields, seed, levels, steps):
    """In float64, step by step: the logits of every step, and the spikes of every node up to every one of them."""
    qann = make_qann(seed, torch.float64, levels=levels, granularity="per_channel" if seed else "per_tensor")
    snn = spiking(qann, **fields)
    images = make_images(qann.config, 3, torch.float64, steps=steps)
    for time_steps in (7, 40):
        cumulative = snn(images, time_steps=time_steps, output_time_steps=True, stop="never")
        event = snn(images, time_steps=time_steps, output_time_steps=True, stop="never", execution="event")
        assert torch.equal(cumulative.spike_counts, event.spike_counts)
        assert torch.equal(cumulative.equilibrium_step, event.equilibrium_step)
        # Sums of up to 40 changes against one product of their sum: rounding in the last digits, no flipped level.
        assert torch.allclose(cumulative.logits_per_step, event.logits_per_step, rtol=0, atol=1e-12)


def test_levels_agree_after_every_step():
    qann = make_qann(3, torch.float64)
    snn = spiking(qann)
    images = make_images(qann.config, 2, torch.float64)
    for time_steps in (1, 2, 3, 5, 8, 13, 21, 29):
        cumulative = snn.trajectory(images, time_steps=time_steps, stop="never").levels
        event = snn.trajectory(images, time_steps=time_steps, stop="never", execution="event").levels
        assert list(cumulative) == list(event) == snn.node_names
        assert all(torch.equal(cumulative[name], event[name]) for name in cumulative)


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize(
    "fields", [{}, {"firing_schedule": "layerwise", "firing_window": 7}, {"schedule": "coarse_to_fine"}]
)
def test_chunks_give_the_same_spikes(fields, steps):
    qann = make_qann(1, torch.float64)
    snn = spiking(qann, time_steps=61, **fields)
    images = make_images(qann.config, 3, torch.float64, steps=steps)
    streaming = snn(images, chunk_steps=1, output_time_steps=True, stop="never")
    for chunk_steps in (3, 8, 61, 1000):
        out = snn(images, chunk_steps=chunk_steps, output_time_steps=True, stop="never")
        assert torch.equal(out.spike_counts, streaming.spike_counts)
        assert torch.equal(out.equilibrium_step, streaming.equilibrium_step)
        # A float64 product of more rows may round differently; no level may.
        assert torch.allclose(out.logits_per_step, streaming.logits_per_step, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [8, 32])
def test_input_per_step_ends_at_the_quantized_network_of_its_sum(levels):
    qann = make_qann(levels=levels)
    frames = make_images(qann.config, 3, steps=6)
    certificate = verify_equivalence(qann, spiking(qann), {"pixel_values": frames})
    assert certificate.exact, str(certificate)
    assert int(certificate.equilibrium_step.min()) >= 6  # the input itself changes until then


def test_quantized_network_of_input_per_step_is_that_of_the_sum():
    qann = make_qann(dtype=torch.float64)
    frames = make_images(qann.config, 3, torch.float64, steps=6)
    with torch.no_grad():
        # Another order of the same sum: rounding in the last digits.
        assert torch.allclose(qann(frames).logits, qann(frames.sum(1)).logits, rtol=0, atol=1e-12)


def test_static_image_equals_one_frame_followed_by_nothing():
    qann = make_qann(0, torch.float64)
    snn = spiking(qann)
    images = make_images(qann.config, 3, torch.float64)
    frames = torch.stack([images, torch.zeros_like(images)], dim=1)
    static, framed = snn(images), snn(frames)
    assert torch.equal(static.logits, framed.logits)
    assert torch.equal(static.spike_counts, framed.spike_counts)


@pytest.mark.parametrize("stop", ["never", "equilibrium"])
@pytest.mark.parametrize("time_steps", [1, 8, 20, 1000])
def test_last_step_is_run_alone_on_the_rows_of_the_quantized_network(time_steps, stop):
    qann = make_qann()
    images = make_images(qann.config, 3)
    out = spiking(qann)(images, time_steps=time_steps, stop=stop, output_hidden_states=True)
    assert all(len(state) == 3 for state in out.hidden_states)


def test_proof_ends_the_run():
    qann = make_qann()
    snn = spiking(qann)
    passes = []
    snn.vit.register_forward_hook(lambda *_: passes.append(1))
    out = snn(make_images(qann.config, 2), chunk_steps=8)
    # Chunks up to the one in which everything settles, and one step for the proof.
    assert len(passes) == -(-int(out.equilibrium_step.max()) // 8) + 1


@pytest.mark.parametrize("execution", ["cumulative", "event"])
def test_a_spike_of_size_m_counts_m(execution):
    qann = make_qann(dtype=torch.float64)
    images = make_images(qann.config, 2, torch.float64)
    snn = spiking(qann, max_spikes_per_step=5)
    run = snn.trajectory(images, time_steps=1, stop="never", execution=execution)
    levels = [run.levels[name].flatten(1).abs() for name in snn.node_names]
    assert max(int(level.max()) for level in levels) > 1
    # From rest, the spikes of the first step are the levels after it.
    assert torch.equal(run.spike_counts, torch.stack([level.sum(1, dtype=torch.int64) for level in levels], dim=1))


class TestEquilibriumIsNeverClaimedWithoutProof:
    def test_truncated_run(self):
        qann = make_qann(levels=32)
        images = make_images(qann.config, 4)
        full = spiking(qann)(images)
        last = int(full.equilibrium_step.max())
        for time_steps in (1, 2, last // 2, last - 1):
            out = spiking(qann)(images, time_steps=time_steps)
            # A sample is at equilibrium exactly if its own T_eq lies within the run.
            expected = torch.where(full.equilibrium_step <= time_steps, full.equilibrium_step, -1)
            assert torch.equal(out.equilibrium_step, expected)
            certificate = verify_equivalence(qann, spiking(qann), {"pixel_values": images}, time_steps=time_steps)
            assert not certificate.exact
            assert "not at equilibrium" in str(certificate)

    def test_run_that_ends_on_the_step_of_equilibrium(self):
        qann = make_qann(levels=32)
        images = make_images(qann.config, 4)
        last = int(spiking(qann)(images).equilibrium_step.max())
        certificate = verify_equivalence(qann, spiking(qann), {"pixel_values": images}, time_steps=last)
        assert certificate.exact, str(certificate)

    @pytest.mark.parametrize("stop", ["equilibrium", "never"])
    @pytest.mark.parametrize("execution", ["cumulative", "event"])
    def test_closed_gates(self, execution, stop):
        qann = make_qann(num_hidden_layers=3)
        snn = spiking(qann, firing_schedule="layerwise", firing_window=50)
        images = make_images(qann.config, 2)
        # Layers 0 and 1 have long been still at step 99, layer 2 has not been let go.
        out = snn(images, time_steps=99, execution=execution, stop=stop)
        assert out.equilibrium_step.tolist() == [-1, -1]
        assert int(out.spike_counts[:, snn.node_names.index("layers.2.mlp.output_node")].sum()) == 0
        assert int(out.spike_counts[:, snn.node_names.index("layers.1.mlp.output_node")].sum()) > 0

    def test_event_form_that_has_drifted(self):
        """In bfloat16 the event-driven sums end at other levels; its neurons rest, and that proves nothing."""
        qann = make_qann(levels=32).to(torch.bfloat16)
        snn = spiking(qann)
        images = make_images(qann.config, 4, torch.bfloat16)
        run = snn.trajectory(images, time_steps=200, execution="event")
        expected = snn.trajectory(images, time_steps=200).levels
        drifted = torch.stack([(run.levels[n] != expected[n]).flatten(1).any(1) for n in snn.node_names]).any(0)
        assert bool(drifted.any())
        assert run.equilibrium_step[drifted].tolist() == [-1] * int(drifted.sum())
        assert verify_equivalence(qann, snn, {"pixel_values": images}).exact  # the cumulative form does not drift

    def test_input_still_arriving(self):
        qann = make_qann()
        snn = spiking(qann)
        frames = make_images(qann.config, 2, steps=300)
        frames[:, 1:299] = 0  # nothing for a long time, then one more frame
        assert snn(frames, time_steps=300).equilibrium_step.tolist() == [-1, -1]
        assert int(snn(frames, time_steps=900).equilibrium_step.min()) > 300

    def test_run_that_ends_with_its_input(self):
        qann = make_qann()
        frames = make_images(qann.config, 2, steps=300)
        frames[:, 1:] = 0
        assert spiking(qann)(frames, time_steps=300).equilibrium_step.tolist() == [300, 300]

    def test_a_run_is_as_long_as_it_needs_to_be(self):
        qann = make_qann()
        images = make_images(qann.config, 2)
        short = spiking(qann)(images, output_time_steps=True)
        never = spiking(qann)(images, output_time_steps=True, time_steps=200, stop="never")
        assert torch.equal(short.spike_counts, never.spike_counts)
        assert torch.equal(short.logits, never.logits)
        assert short.logits_per_step.shape == (2, 1000, 5)
        assert torch.equal(short.logits_per_step[:, -1], short.logits)
        # Step 199 is computed alone, 150 among others: a product of other rows may round in other last bits.
        torch.testing.assert_close(never.logits_per_step[:, 150], never.logits_per_step[:, 199])

    @pytest.mark.parametrize("execution", ["cumulative", "event"])
    def test_equilibrium_step_is_the_last_one_in_which_anything_moves(self, execution):
        qann = make_qann(dtype=torch.float64)
        snn, images = spiking(qann), make_images(qann.config, 1, torch.float64)
        last = int(snn(images, execution=execution).equilibrium_step)
        levels = [
            snn.trajectory(images, time_steps=last + extra, stop="never", execution=execution).levels
            for extra in (-1, 0, 1, 20)
        ]
        assert any(not torch.equal(levels[0][name], levels[1][name]) for name in snn.node_names)
        for later in levels[2:]:
            assert all(torch.equal(levels[1][name], later[name]) for name in snn.node_names)


class TestCertificateNeedsAll:
    """Each condition alone is enough to refuse it."""

    def test_logits(self):
        qann = make_qann()
        snn = spiking(qann)
        with torch.no_grad():
            snn.classifier.bias[2] += 1e-3
        certificate = verify_equivalence(qann, snn, {"pixel_values": make_images(qann.config, 2)})
        assert certificate.mismatches == {}
        assert not certificate.logits_equal
        assert not certificate.exact
        assert "logits differ" in str(certificate)

    def test_levels(self):
        qann = make_qann()
        with torch.no_grad():
            qann.classifier.weight.zero_()  # a head that sees nothing
        snn = spiking(qann)
        with torch.no_grad():
            snn.vit.layers[1].mlp.fc1.weight[3] += 1.0
        certificate = verify_equivalence(qann, snn, {"pixel_values": make_images(qann.config, 2)})
        assert certificate.logits_equal
        assert certificate.mismatches
        assert not certificate.exact

    def test_proof(self, monkeypatch):
        qann = make_qann()
        snn = spiking(qann)
        simulate = snn.trajectory

        def unproven(*args, **kwargs):
            run = simulate(*args, **kwargs)
            run.equilibrium_step[0] = -1
            return run

        monkeypatch.setattr(snn, "trajectory", unproven)
        certificate = verify_equivalence(qann, snn, {"pixel_values": make_images(qann.config, 2)})
        assert certificate.logits_equal
        assert not certificate.mismatches
        assert not certificate.exact

    def test_model_in_training_mode(self):
        qann = make_qann(hidden_dropout_prob=0.5).train()
        certificate = verify_equivalence(qann, spiking(qann), {"pixel_values": make_images(qann.config, 2)})
        assert certificate.exact, str(certificate)
        assert qann.training


class TestCorruption:
    @pytest.mark.parametrize("factor", [1.5, 1 + 1e-6])
    @pytest.mark.parametrize("index", [0, 5, 9, -1])
    def test_one_corrupted_threshold_is_found_and_named(self, index, factor):
        qann = make_qann()
        snn = spiking(qann)
        node = snn.nodes[index]
        with torch.no_grad():
            node.scale.mul_(factor)
        certificate = verify_equivalence(qann, snn, {"pixel_values": make_images(qann.config, 4)})
        assert not certificate.exact
        assert certificate.threshold_mismatches == (node.name,)
        assert node.name in str(certificate)
        if factor == 1.5:
            assert next(iter(certificate.mismatches)) == node.name

    def test_one_corrupted_weight_is_found(self):
        qann = make_qann()
        snn = spiking(qann)
        with torch.no_grad():
            snn.vit.layers[1].mlp.fc1.weight[3] += 1.0
        certificate = verify_equivalence(qann, snn, {"pixel_values": make_images(qann.config, 4)})
        assert not certificate.exact
        assert next(iter(certificate.mismatches)) == "layers.1.mlp.hidden_node"

    def test_strangers_are_refused(self):
        qann, other = make_qann(), make_qann(hidden_size=16)
        batch = {"pixel_values": make_images(qann.config, 1)}
        with pytest.raises(TypeError, match="Spike twin"):
            verify_equivalence(qann, qann, batch)
        with pytest.raises(ValueError, match="differ in the sizes"):
            verify_equivalence(other, spiking(qann), batch)


def test_nodes_are_listed_in_the_order_they_fire():
    qann = make_qann()
    recorder = RecordingEngine()
    qann(make_images(qann.config, 1), engine=recorder)
    assert list(recorder.levels) == qann.node_names == spiking(qann).node_names

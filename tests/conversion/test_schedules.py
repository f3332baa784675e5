"""Firing schedules that are made for a network."""

import pytest
import torch

from spikezip_hf import SpikeViTForImageClassification
from spikezip_hf.conversion.schedules import depths, steps_to_cover
from spikezip_hf.hub.results import network_digest
from spikezip_hf.models.engines import RecordingEngine
from tests.models.test_fast_engine import make_inputs, make_snn


@pytest.mark.parametrize("architecture", ["vit", "bert", "roberta"])
def test_depth_is_the_longest_way_through_the_nodes(architecture):
    snn = make_snn(architecture)
    depth = depths(snn.to_quantized(), [make_inputs(snn)])
    assert list(depth) == snn.node_names
    own = [name for name in depth if "1." in name]  # the second layer's
    start = min(depth[name] for name in own)
    found = {name.rsplit(".", 2)[-1]: depth[name] - start for name in own}
    # q, k and v read from the same node; the context from probabilities, which are later than v.
    assert found["v_node"] == found["q_node"] == found["k_node"]
    assert found["probs_node"] == found["q_node"] + 1
    assert found["context_node"] == found["q_node"] + 2
    # A node before, two layers of eight, and one after: the last LayerNorm or the head.
    assert max(depth.values()) == 2 * 8 + 1


def test_residual_paths_do_not_hide_a_longer_one():
    """A node behind a residual addition waits for the branch, not only for the stream."""
    depth = depths(make_snn().to_quantized(), [make_snn().dummy_inputs])
    assert depth["layers.0.layernorm_after_node"] == depth["layers.0.attention.output_node"] + 1


def test_depth_of_a_swin_goes_through_windows_and_patch_merging():
    depth = depths(make_snn("swin").to_quantized(), [make_snn("swin").dummy_inputs])
    block = "encoder.layers.0.blocks.1"
    assert depth[f"{block}.attention.q_node"] == depth[f"{block}.layernorm_before_node"] + 1
    assert depth[f"{block}.attention.output_node"] == depth[f"{block}.attention.context_node"] + 1
    merged = "encoder.layers.0.downsample"
    assert depth[f"{merged}.norm_node"] == depth[f"{block}.mlp.output_node"] + 1
    assert depth["encoder.layers.1.blocks.0.layernorm_before_node"] == depth[f"{merged}.output_node"] + 1
    # Two nodes before, three blocks of eight, two in patch merging, and the last LayerNorm.
    assert max(depth.values()) == 1 + 3 * 8 + 2 + 1


@pytest.mark.parametrize(
    ("levels", "coverage", "steps"),
    [
        ([0, 0, 0, 0], 0.9, 1),
        ([0, 1, 2, -3], 0.5, 1),
        ([0, 1, 2, -3], 0.75, 2),
        ([0, 1, 2, -3], 1.0, 3),
        ([-8], 0.1, 8),
    ],
)
def test_steps_to_cover(levels, coverage, steps):
    assert steps_to_cover(torch.tensor(levels), coverage) == steps


def test_nodewise_waits_for_the_nodes_before():
    snn = make_snn("bert")
    batch = make_inputs(snn)
    snn.calibrate_schedule([batch], "nodewise", coverage=1.0)
    config = snn.config
    assert config.firing_schedule == "nodewise"
    assert list(config.firing_steps) == snn.node_names
    recorder = RecordingEngine()
    snn.to_quantized()(**batch, engine=recorder)
    largest = {name: int(levels.abs().max()) for name, levels in recorder.levels.items()}
    first = "embeddings.norm_node"
    assert config.firing_steps[first] == 1
    assert config.firing_steps["encoder.layer.0.attention.self.q_node"] == 1 + max(largest[first], 1)
    # All of its input has come before a node opens: nothing is taken back, and spikes are as few as can be.
    out = snn(**batch, time_steps=2000)
    assert bool((out.equilibrium_step > 0).all())
    assert int(out.spike_counts.sum()) == sum(int(levels.abs().sum()) for levels in recorder.levels.values())


@pytest.mark.parametrize("architecture", ["vit", "swin", "bert"])
def test_coarse_to_fine_takes_fewer_spikes(architecture):
    # Sixteen levels and a few layers: enough for transients.
    snn = make_snn(architecture, layers=4)
    batch = make_inputs(snn)
    paper = snn(**batch, time_steps=2000)
    ours = snn.calibrate_schedule()(**batch, time_steps=2000)
    assert snn.config.firing_schedule == "coarse_to_fine"
    assert bool((ours.equilibrium_step > 0).all())
    assert torch.equal(ours.logits, paper.logits)
    assert ours.spike_counts.sum() < paper.spike_counts.sum()


def test_nothing_fires_at_a_difference_of_one_before_its_fine_step():
    snn = make_snn()
    snn.calibrate_schedule(fine_start=6 / 16, fine_pace=2.0, opening_pace=0.5)
    batch = make_inputs(snn)
    run = snn.trajectory(**batch, time_steps=snn.config.fine_steps[snn.node_names[-1]] - 1, stop="never")
    recorder = RecordingEngine()
    snn.to_quantized()(**batch, engine=recorder)
    first = snn.node_names[0]  # its input is static, and its coarse steps are over
    assert torch.equal(run.levels[first], recorder.levels[first])
    assert bool((run.equilibrium_step < 0).all())


def test_a_schedule_is_saved_and_comes_back(tmp_path):
    snn = make_snn().calibrate_schedule()
    snn.save_pretrained(tmp_path)
    loaded = SpikeViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.firing_steps == snn.config.firing_steps
    assert loaded.config.fine_steps == snn.config.fine_steps
    batch = make_inputs(snn)
    assert torch.equal(loaded(**batch).spike_counts, snn(**batch).spike_counts)


@pytest.mark.parametrize("schedule", ["nodewise", "coarse_to_fine"])
def test_time_steps_are_enough(schedule):
    """Else the last nodes would never open, and every input get the same answer."""
    snn = make_snn(layers=6, levels=32, time_steps=8)
    batch = make_inputs(snn)
    snn.calibrate_schedule([batch], schedule)
    assert bool((snn(**batch).equilibrium_step > 0).all())
    assert make_snn(time_steps=5000).calibrate_schedule().config.time_steps == 5000


def test_results_of_a_scheduled_network_are_still_its_own_when_it_is_loaded(tmp_path):
    snn = make_snn("bert", layers=3).calibrate_schedule()  # in a file, steps are sorted by name
    snn.save_pretrained(tmp_path)
    loaded = type(snn).from_pretrained(tmp_path)
    assert list(loaded.config.firing_steps) != list(snn.config.firing_steps)
    assert network_digest(loaded) == network_digest(snn)
    loaded.config.fine_steps["pooler.hidden_node"] += 1
    assert network_digest(loaded) != network_digest(snn)


class TestRefuses:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"schedule": "layerwise"}, "schedule must be one of"),
            ({"schedule": "nodewise"}, "needs batches"),
            ({"schedule": "nodewise", "batches": []}, "no batches"),
            ({"schedule": "nodewise", "coverage": 0}, "coverage must be above 0"),
            ({"coverage": 0.5}, "coverage is no setting of 'coarse_to_fine'"),
            ({"schedule": "nodewise", "fine_pace": 1}, "fine_pace is no setting of 'nodewise'"),
            ({"opening_pace": -1}, "opening_pace must be a number of steps"),
            ({"fine_pace": float("nan")}, "fine_pace must be a number of steps"),
        ],
    )
    def test_a_setting_out_of_range(self, arguments, message):
        snn = make_snn()
        with pytest.raises(ValueError, match=message):
            snn.calibrate_schedule(**arguments)
        assert snn.config.firing_schedule == "synchronous"

    def test_a_threshold_of_another_schedule(self):
        snn = make_snn(stop="confidence", confidence_threshold=0.5)
        with pytest.raises(ValueError, match="calibrated for another schedule"):
            snn.calibrate_schedule()
        assert snn.config.firing_schedule == "synchronous"

    def test_a_schedule_of_another_network(self):
        snn = make_snn(layers=2).calibrate_schedule()
        other = make_snn(layers=3)
        for field in ("firing_steps", "fine_steps", "firing_schedule"):
            setattr(other.config, field, getattr(snn.config, field))
        with pytest.raises(ValueError, match=r"firing_steps of the config has no step for layers\.2"):
            other(**make_inputs(other))

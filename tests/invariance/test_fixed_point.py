"""However a network is run, it ends where the quantized network is, bit for bit in float32: by any schedule, in chunks
of any length, with graded spikes, up to any stop. And before it is there, it does not claim to be."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.invariance.architectures import (
    ARCHITECTURES,
    TIME_STEPS,
    assert_same_samples,
    quantized,
    quantized_levels,
    reference,
    run,
    select,
    twins,
)


def assert_fixed_point(qann, batch, found) -> None:
    """What is said to be at equilibrium is: the readout's last step had the QANN's shape, and it has its bits."""
    proven = found.equilibrium_step > 0
    for name, levels in quantized_levels(qann, batch).items():
        assert torch.equal(found.levels[name][proven], levels[proven]), name
    assert torch.equal(found.readout[proven], quantized(qann, batch)[proven])


@pytest.mark.parametrize("schedule", ["layerwise", "nodewise", "coarse_to_fine"])
def test_schedules(plain, schedule):
    snn = copy.deepcopy(plain.snn)
    if schedule == "layerwise":
        snn.config.firing_schedule, snn.config.firing_window = schedule, 5
    else:
        snn.calibrate_schedule([plain.batch], schedule)
    found = run(snn, plain.batch, time_steps=max(200, snn.config.time_steps))
    assert (found.equilibrium_step > 0).all()
    assert_fixed_point(plain.qann, plain.batch, found)
    assert not torch.equal(found.spike_counts, reference(plain.name, torch.float32).spike_counts)  # another way there


def test_executions(plain):
    """The paper's operators step by step, in float64: in float32 their sums of changes drift."""
    _, _, snn, batch = twins(plain.name, torch.float64)
    expected = reference(plain.name, torch.float64)
    assert_same_samples(run(snn, batch, execution="event"), expected, exact=False)
    assert torch.equal(run(snn, batch, execution="equilibrium").readout, expected.readout)


def test_too_few_steps_claim_nothing(plain):
    """A run that is cut off one step ahead of the first, or in between, says which samples are there."""
    steps = reference(plain.name, torch.float32).equilibrium_step
    for last in (int(steps.min()) - 1, int(steps.max()) - 1):
        for stop in ("equilibrium", "never"):
            found = run(plain.snn, plain.batch, time_steps=last, stop=stop)
            assert torch.equal(found.equilibrium_step, torch.where(steps <= last, steps, -1))
            assert_fixed_point(plain.qann, plain.batch, found)


def test_frames_of_nothing_behind_the_input_leave_the_fixed_point():
    for name in ("events", "events, 8 bits"):
        _, qann, snn, batch = twins(name, torch.float32)
        frames = batch["pixel_values"]
        longer = {"pixel_values": torch.cat([frames, torch.zeros_like(frames)], 1)}
        found = run(snn, longer)
        assert (found.equilibrium_step >= 12).all()
        assert_fixed_point(qann, batch, found)


RUNS = st.fixed_dictionaries(
    {
        "samples": st.lists(st.integers(0, 5), min_size=1, max_size=5),
        "time_steps": st.sampled_from([6, 9, 12, 17, 120, 120, 120]),
        "chunk_steps": st.none() | st.integers(1, 40),
        "stop": st.sampled_from(["equilibrium", "never"]),
        "more_spikes": st.sampled_from([0, 0, 1, 6]),
        "seed": st.none() | st.integers(0, 999),
    }
)


def check_any_run(name, samples, time_steps, chunk_steps, stop, more_spikes, seed):
    """Args:
    seed: of a random schedule; None for the paper's.
    """
    _, qann, snn, batch = twins(name, torch.float32)
    snn, batch = copy.deepcopy(snn), select(batch, torch.tensor(samples))
    snn.config.max_spikes_per_step += more_spikes
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        opens = torch.randint(1, 20, (2, len(snn.nodes)), generator=generator)
        snn.config.firing_schedule = "coarse_to_fine"
        snn.config.firing_steps, snn.config.fine_steps = (dict(zip(snn.node_names, row.tolist())) for row in opens)
    found = run(snn, batch, time_steps=time_steps, chunk_steps=chunk_steps, stop=stop)
    assert_fixed_point(qann, batch, found)
    if time_steps > 2 * TIME_STEPS:
        assert (found.equilibrium_step > 0).all()


@settings(
    derandomize=True,
    max_examples=6,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # `plain` is shared, and nothing changes it
)
@given(chosen=RUNS)
def test_any_run(plain, chosen):
    check_any_run(plain.name, **chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=150, deadline=None, database=None)
@given(chosen=RUNS)
def test_any_of_many_runs(name, chosen):
    check_any_run(name, **chosen)

"""What a sample does is its own: its order, company, padding, chunks and schedule change nothing, or only the way."""

import pytest
import torch

from tests.invariance.architectures import assert_same_samples, quantized, reference, run, select


@pytest.fixture
def whole(own):
    return reference(own.name, own.qann.dtype)


def test_the_table_is_worth_testing(own, whole):
    """All are at equilibrium, late and each in its time, and with answers of their own."""
    assert (whole.equilibrium_step > 5).all()
    assert torch.equal(whole.readout, quantized(own.qann, own.batch))
    assert len(whole.equilibrium_step.unique()) > 1
    assert len(whole.readout.flatten(1).unique(dim=0)) == 6
    assert all(levels.any() for levels in whole.levels.values())


def test_permuted_and_repeated(own, whole):
    order = torch.tensor([4, 2, 5, 0, 2, 1, 3, 2])
    found = run(own.snn, select(own.batch, order), output_time_steps=True)
    assert_same_samples(found, whole, own.exact, order)


def test_split(own, whole):
    for part in torch.arange(6).split((1, 2, 3)):
        found = run(own.snn, select(own.batch, part), output_time_steps=True)
        assert_same_samples(found, whole, own.exact, part)


@pytest.mark.parametrize("chunk_steps", [1, 7])
def test_chunks(own, whole, chunk_steps):
    found = run(own.snn, own.batch, output_time_steps=True, chunk_steps=chunk_steps)
    assert_same_samples(found, whole, own.exact)

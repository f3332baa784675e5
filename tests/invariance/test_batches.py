"""What a sample does is its own: its order, company, padding, chunks and schedule change nothing, or only the way."""

import pytest
import torch

from tests.invariance.architectures import assert_readout, assert_same_samples, quantized, reference, run, select


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


@pytest.mark.parametrize("side", ["less on the right", "on the left"])
def test_padding(own, whole, side):
    """Levels at padding are 0, so counts of spikes and neurons say that those of tokens are the same."""
    if not own.architecture.is_text or own.qann.dtype == torch.float32:
        pytest.skip("of texts, and in float64: a softmax over another number of positions has other last bits")
    mask = own.batch["attention_mask"]
    lengths = mask.sum(1)
    assert lengths.max() < mask.shape[1] - 1  # all texts are padded
    if side == "on the left":
        moved = {name: rolled(tensor, mask.shape[1] - lengths) for name, tensor in own.batch.items()}
    else:
        moved = {name: tensor[:, :-2] for name, tensor in own.batch.items()}
    found = run(own.snn, moved)
    assert torch.equal(found.equilibrium_step, whole.equilibrium_step)
    assert torch.equal(found.spike_counts, whole.spike_counts)
    assert torch.equal(found.neuron_counts, whole.neuron_counts)
    readout, expected = found.readout, whole.readout
    if readout.dim() == 3:  # of each token
        readout, expected = readout[moved["attention_mask"].bool()], expected[mask.bool()]
    assert_readout(readout, expected, exact=False)


def rolled(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return torch.stack([row.roll(int(places)) for row, places in zip(x, by)])


@pytest.mark.parametrize("chunk_steps", [1, 7])
def test_chunks(own, whole, chunk_steps):
    found = run(own.snn, own.batch, output_time_steps=True, chunk_steps=chunk_steps)
    assert_same_samples(found, whole, own.exact)

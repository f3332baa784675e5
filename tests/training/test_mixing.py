"""Frames of recordings are mixed like the static images that they add up to."""

import pytest
import torch

pytest.importorskip("torchvision")

from spikezip_hf.training.mixing import image_mixer


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_frames_are_mixed_alike(alphas):
    mixer = image_mixer(*alphas, num_labels=4)
    frames, labels = torch.rand(4, 6, 2, 8, 8, dtype=torch.float64), torch.arange(4)
    torch.manual_seed(1)
    mixed, probabilities = mixer(frames, labels)
    torch.manual_seed(1)
    expected, same = mixer(frames.sum(1), labels)
    # Float64: a sum of mixed frames, and a mix of sums.
    torch.testing.assert_close(mixed.sum(1), expected, rtol=1e-12, atol=1e-12)
    assert mixed.shape == frames.shape
    assert not torch.equal(mixed, frames)
    assert torch.equal(probabilities, same)

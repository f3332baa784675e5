"""The order of samples in an epoch."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededByEpoch(Sampler[int]):
    """Grouping by length whose order depends on seed and epoch alone.

    transformers draws it from the global generator, so that an epoch resumed in its middle goes on in another order,
    and several processes may not agree on one.

    Args:
        sampler: what to order; its generator is replaced.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int):
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader as an epoch begins."""
        self.epoch = epoch

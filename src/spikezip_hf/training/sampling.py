"""Which samples calibrate, and the order of samples in an epoch."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, Subset
from transformers.trainer_pt_utils import LengthGroupedSampler

CALIBRATION_BATCH = 32  # fixed, so that scales do not depend on batch size and number of processes


def calibration_batches(dataset, count: int, seed: int, collate: Callable) -> DataLoader | list:
    """Batches of `count` samples of a training set, drawn by the seed; of a stream, the first ones.

    Args:
        collate: makes a batch of samples, a dict of tensors.
    """
    if isinstance(dataset, IterableDataset):
        examples = list(islice(dataset, count))
        return [collate(examples[at : at + CALIBRATION_BATCH]) for at in range(0, len(examples), CALIBRATION_BATCH)]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    return DataLoader(Subset(dataset, chosen), batch_size=CALIBRATION_BATCH, collate_fn=collate)


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

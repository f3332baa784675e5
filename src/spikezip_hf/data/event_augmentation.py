"""Recordings to the inputs of a model, shifted and mirrored for training."""

from typing import Any

import torch

from spikezip_hf.data.events import COLUMNS, with_events


def event_transforms(
    processor: Any, *, random_shift: bool = False, horizontal_flip: float = 0.0
) -> tuple["EventTransform", "EventTransform"]:
    """What makes inputs of a batch of a set of recordings, for `with_transform`: in training, and otherwise.

    Args:
        processor: an `EventImageProcessor`.
        random_shift: shift recordings by up to an eighth of the image, each way; what comes in is empty.
        horizontal_flip: share of the recordings to mirror.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 <= horizontal_flip <= 1:
        raise ValueError(f"horizontal_flip must lie between 0 and 1, got {horizontal_flip}.")
    return EventTransform(processor, random_shift, horizontal_flip), EventTransform(processor)


class EventTransform:
    """See `event_transforms`. Random numbers are torch's global ones."""

    def __init__(self, processor: Any, random_shift: bool = False, horizontal_flip: float = 0.0):
        self.processor, self.random_shift, self.horizontal_flip = processor, random_shift, horizontal_flip

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        batch = with_events(batch)
        rows = [dict(zip(COLUMNS, values)) for values in zip(*(batch[name] for name in COLUMNS))]
        pixels = self.processor(rows, return_tensors="pt")["pixel_values"]
        labels = {"labels": list(batch["label"])} if "label" in batch else {}
        return {"pixel_values": [self.augment(one) for one in pixels], **labels}

    def augment(self, pixels: torch.Tensor) -> torch.Tensor:
        """One recording, (..., H, W); all its frames and channels alike."""
        if self.horizontal_flip and torch.rand(()) < self.horizontal_flip:
            pixels = pixels.flip(-1)
        return shifted(shifted(pixels, -2), -1) if self.random_shift else pixels


def shifted(pixels: torch.Tensor, dim: int) -> torch.Tensor:
    """Moved along `dim` by up to an eighth of its length, at random; zeros come in."""
    length = pixels.shape[dim]
    most = length // 8
    padding = [0, 0] * (-dim - 1) + [most, most]
    start = int(torch.randint(2 * most + 1, ()))
    return torch.nn.functional.pad(pixels, padding).narrow(dim, start, length)

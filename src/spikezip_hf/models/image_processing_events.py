# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Recordings of event cameras to the inputs of a network: counts of events, as one image or per time-step.

Everything up to the last line is whole numbers, and the factor at the end is a power of two. So the frames of a
recording sum up to its static image exactly, in any order and for any number of frames, and the quantized network,
which sees the sum, has one answer for both.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .configuration_quantization import check_choice, check_positive_integer

SPLITS_BY = ("time", "count")


def parts_of_events(t: np.ndarray, parts: int, by: str = "time") -> np.ndarray:
    """Which of `parts` consecutive parts of its recording each event is in: (events,) from 0.

    Args:
        t: (events,) whole numbers, times.
        by: "time", parts of equal length from the first event to the last, which is in the last part; "count", parts
            of equally many events, in the order of time.

    Raises:
        ValueError: `by` or `parts` is out of range.
    """
    check_choice("by", by, SPLITS_BY)
    check_positive_integer("parts", parts)
    if by == "time" and len(t) and (int(t.max()) >= 2**63 or (int(t.max()) - int(t.min()) + 1) * parts >= 2**63):
        raise ValueError(f"t of the events goes from {t.min()} to {t.max()}: these are no times of one recording.")
    if by == "time" and len(t):
        elapsed = t.astype(np.int64) - int(t.min())
        return elapsed * parts // (int(elapsed.max()) + 1)
    part = np.empty(len(t), np.int64)
    part[np.argsort(t, kind="stable")] = np.arange(len(t)) * parts // max(len(t), 1)
    return part


def events_to_frames(
    events: Any,
    frames: int,
    sensor_size: Sequence[int],
    by: str = "time",
    time_bins: int = 1,
    size: Sequence[int] | None = None,
) -> np.ndarray:
    """Counts of events, (frames, 2 * time_bins, height, width) int64. Every event is in exactly one frame.

    Args:
        events: "x", "y", "p" and "t" of (events,) each: a structured array, a dict, a row of a data set.
        sensor_size: (height, width) in pixels.
        by: what is equal among frames, see `parts_of_events`.
        time_bins: parts of the recording, each with two channels of its own. Channel p * time_bins + b has
            polarity p (0 darker, 1 brighter) in part b.
        size: (height, width) of the result, the sensor's by default. Where it is smaller, the events of several
            pixels are added up; where it is larger, pixels are repeated (nearest neighbour, as in the paper's code).

    Raises:
        ValueError: an event is outside of the sensor, its polarity is not 0 or 1, its columns are of different
            lengths or no whole numbers, or an argument is out of range.
    """
    x, y, p, t = (np.asarray(events[name]) for name in "xypt")
    if not x.shape == y.shape == p.shape == t.shape or x.ndim != 1:
        raise ValueError(
            f"x, y, p and t must be of one length, got shapes {x.shape}, {y.shape}, {p.shape}, {t.shape}."
        )
    for name, values in (("x", x), ("y", y), ("p", p), ("t", t)):
        if not are_whole(values):
            raise ValueError(
                f"{name} of the events must be whole numbers, got others as {values.dtype}: x and y are in pixels, p "
                "is 0 or 1, t counts units of the clock, such as microseconds."
            )
    height, width = sensor_size
    for name, values, bound in (("x", x, width), ("y", y, height), ("p", p, 2)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < bound:
            raise ValueError(
                f"{name} of the events goes from {values.min()} to {values.max()}, and must be from 0 to {bound - 1}: "
                f"sensor_size is ({height}, {width}), polarity 0 or 1."
            )
    rows, columns = size or sensor_size
    pooled_rows, pooled_columns = min(rows, height), min(columns, width)
    channel = p.astype(np.int64) * time_bins + parts_of_events(t, time_bins, by)
    place = parts_of_events(t, frames, by) * (2 * time_bins) + channel
    place = place * pooled_rows + y.astype(np.int64) * pooled_rows // height
    place = place * pooled_columns + x.astype(np.int64) * pooled_columns // width
    shape = (frames, 2 * time_bins, pooled_rows, pooled_columns)
    counts = np.bincount(place, minlength=math.prod(shape)).reshape(shape)
    if pooled_rows < rows:
        counts = counts[:, :, np.arange(rows) * height // rows]
    if pooled_columns < columns:
        counts = counts[:, :, :, np.arange(columns) * width // columns]
    return counts


def are_whole(values: np.ndarray) -> bool:
    """Whether all are whole numbers, of whatever type."""
    if values.dtype.kind == "f":
        return bool((np.isfinite(values) & (np.floor(values) == values)).all())
    return values.dtype.kind in "iub"


class EventImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Settings that may be given beside a checkpoint's when its processor is loaded."""

    sensor_size: dict
    frames: int | None
    split_by: str
    time_bins: int


class EventImageProcessor(BaseImageProcessor):
    """Recordings to `pixel_values`: static, (B, channels, H, W), or per step, (B, frames, channels, H, W).

    Per step, frame f is the current that arrives at step f of a simulation; the sum is the static image, bit for bit.

    Args:
        sensor_size: {"height", "width"} of the recordings in pixels.
        size: {"height", "width"} of the images; the sensor's by default. See `events_to_frames`.
        frames: None for one static image; F for input at each of the first F steps.
        split_by: what is equal among frames and time bins: "time" or "count" (of events).
        time_bins: parts of a recording that get channels of their own, 2 * time_bins in all. 1 for the two polarities
            alone; 9 in the paper's code for CIFAR10-DVS.
        rescale_factor: of counts to currents. A power of two, so that no sum is rounded.

    Raises:
        ValueError: an argument is out of range; names it.

    Example:
        >>> processor = EventImageProcessor({"height": 34, "width": 34}, frames=10)
        >>> processor([{"x": [1], "y": [2], "p": [0], "t": [10]}], return_tensors="pt")["pixel_values"].shape
        torch.Size([1, 10, 2, 34, 34])
    """

    _auto_class = "AutoImageProcessor"  # the code travels with what is saved
    model_input_names = ["pixel_values"]
    valid_kwargs = EventImagesKwargs

    def __init__(
        self,
        sensor_size: Mapping[str, int] | None = None,
        size: Mapping[str, int] | None = None,
        frames: int | None = None,
        split_by: str = "time",
        time_bins: int = 1,
        rescale_factor: float = 0.125,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sensor_size = dict(sensor_size or {"height": 128, "width": 128})
        self.size = dict(size or self.sensor_size)
        self.frames, self.split_by, self.time_bins = frames, split_by, time_bins
        self.rescale_factor = rescale_factor
        for name in ("sensor_size", "size"):
            value = getattr(self, name)
            if set(value) != {"height", "width"} or not all(type(side) is int and side > 0 for side in value.values()):
                raise ValueError(f"{name} must have height and width, integers of at least 1, got {value!r}.")
        if not 0 < rescale_factor < math.inf or math.frexp(rescale_factor)[0] != 0.5:
            raise ValueError(
                f"rescale_factor must be a power of two, got {rescale_factor!r}: with others, frames would not add up "
                "to the static image exactly."
            )
        check_choice("split_by", split_by, SPLITS_BY)
        check_positive_integer("time_bins", time_bins)
        if frames is not None:
            check_positive_integer("frames", frames)

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return 2 * self.time_bins

    def preprocess(self, images, return_tensors=None, **kwargs) -> BatchFeature:  # type: ignore[override]
        """Recordings to `pixel_values`, float32.

        Args:
            images: recordings, each with "x", "y", "p" and "t": structured arrays, dicts, rows of a data set; or one.

        Raises:
            ValueError: there are none, or one does not fit the sensor; see `events_to_frames`.
        """
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)}: no such argument of {type(self).__name__}; set it when loading.")
        several = isinstance(images, Iterable) and not is_recording(images)
        recordings = list(images) if several else [images]
        if not recordings:
            raise ValueError("There are no recordings.")
        if others := [type(one).__name__ for one in recordings if not is_recording(one)]:
            raise ValueError(
                f"A recording of events has x, y, p and t, as a dict or a structured array; got {others[0]}. (This is "
                "the processor of a network for event cameras, which takes no pictures.)"
            )
        sensor_size, size = ((one["height"], one["width"]) for one in (self.sensor_size, self.size))
        counts = np.stack(
            [
                events_to_frames(one, self.frames or 1, sensor_size, self.split_by, self.time_bins, size)
                for one in recordings
            ]
        )
        pixels = torch.from_numpy(counts if self.frames else counts[:, 0]).to(torch.float32) * self.rescale_factor
        return BatchFeature({"pixel_values": list(pixels)}, tensor_type=return_tensors)


def is_recording(images: Any) -> bool:
    """Whether something is one recording, and not several or something else."""
    if isinstance(images, np.ndarray):
        return {*"xypt"} <= {*(images.dtype.names or ())}
    return isinstance(images, Mapping) and all(name in images for name in "xypt")

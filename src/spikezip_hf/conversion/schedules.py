# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Firing schedules that are made for a network: at which step each of its nodes may begin to fire, and how.

A neuron spends spikes in vain when it follows inputs that are still on their way. So a node should open after the
nodes that it reads from. When that is follows from the network itself: an `ArrivalEngine` runs one pass of the QANN
and hands on, with every tensor, the time at which it is complete.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from transformers.utils import logging

from ..models.engines import QuantEngine
from ..models.quantization import LSQQuantizer

logger = logging.get_logger(__name__)

# The schedules, and their settings.
SCHEDULES: dict[str, dict[str, float]] = {
    "nodewise": {"coverage": 0.7},
    "coarse_to_fine": {"opening_pace": 0.8, "fine_start": 0.375, "fine_pace": 1.0},
}


class Timed(torch.Tensor):
    """A tensor and the time at which it has all come: `arrival`. What is made of several has the latest of theirs."""

    arrival: float

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, Timed):
            result.arrival = arrival_of(args, kwargs)
        return result


def arrival_of(*things) -> float:
    """The latest arrival among tensors, through tuples, lists and dicts."""
    latest = 0.0
    for thing in things:
        if isinstance(thing, Timed):
            latest = max(latest, getattr(thing, "arrival", 0.0))
        elif isinstance(thing, tuple | list):
            latest = max(latest, arrival_of(*thing))
        elif isinstance(thing, dict):
            latest = max(latest, arrival_of(*thing.values()))
    return latest


def timed(x: torch.Tensor, arrival: float) -> Timed:
    x = x.as_subclass(torch.Tensor).as_subclass(Timed)  # another object, whose time is its own
    x.arrival = arrival
    return x


class ArrivalEngine(QuantEngine):
    """A pass of the QANN in which each node takes `duration(node, levels)` from when its input has come.

    Attributes:
        begins: {node name: when its input has come}, the largest of all passes, in network order.
    """

    def __init__(self, duration: Callable[[LSQQuantizer, torch.Tensor], float]):
        self.duration = duration
        self.begins: dict[str, float] = {}

    def linear(self, module, x):
        return timed(module(x.as_subclass(torch.Tensor)), arrival_of(x))

    def matmul(self, product, a, b):
        return timed(torch.matmul(a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor)), arrival_of(a, b))

    def apply(self, operator, x, *others):
        return timed(operator(x.as_subclass(torch.Tensor), *others), arrival_of(x))

    def fire(self, node, current):
        current = self.silence_padding(current)
        begins = arrival_of(current)
        self.begins[node.name] = max(begins, self.begins.get(node.name, 0.0))
        levels = node.quantize(current.as_subclass(torch.Tensor))
        rows = self.token_rows()
        own = levels if rows is None or levels.dim() < 3 else levels.transpose(1, -2)[rows]
        return timed(node.dequantize(levels, current.dtype), begins + self.duration(node, own))


def depths(qann, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, int]:
    """How many nodes one after another come before each node: {node name: depth}."""
    return {name: int(depth) for name, depth in arrivals(qann, batches, lambda node, levels: 1).items()}


@torch.no_grad()
def arrivals(qann, batches, duration) -> dict[str, float]:
    """When the input of each node has come, {node name: time}, in network order.

    Raises:
        ValueError: no batches.
    """
    engine = ArrivalEngine(duration)
    for batch in batches:
        qann(**{name: x for name, x in batch.items() if name != "labels"}, engine=engine)
    if not engine.begins:
        raise ValueError("calibrate_schedule got no batches.")
    return engine.begins


def steps_to_cover(levels: torch.Tensor, coverage: float) -> int:
    """The smallest number of steps, at least 1, in which `coverage` of these neurons reach their levels (k = 1)."""
    counts = levels.abs().flatten().long().bincount()
    share = counts.cumsum(0).double() / counts.sum()
    return max(int((share < coverage).sum()), 1)


def calibrate_schedule(
    snn, batches: Iterable[Mapping[str, torch.Tensor]] | None, schedule: str, settings: Mapping[str, float]
) -> None:
    """Write a schedule for this network into its config: see `SpikePreTrainedModel.calibrate_schedule`."""
    config = snn.config
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {tuple(SCHEDULES)}, got {schedule!r}; others need no calibration.")
    chosen = {**SCHEDULES[schedule], **settings}
    for name, value in chosen.items():
        if name not in SCHEDULES[schedule]:
            raise ValueError(f"{name} is no setting of {schedule!r}, whose settings are {tuple(SCHEDULES[schedule])}.")
        if name == "coverage" and not 0.0 < value <= 1.0:
            raise ValueError(f"coverage must be above 0 and at most 1, got {value!r}.")
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number of steps, at least 0, got {value!r}.")
    if config.stop == "confidence":
        raise ValueError(
            "confidence_threshold was calibrated for another schedule: set config.stop to 'equilibrium' first, and "
            "calibrate the threshold again afterwards."
        )
    qann = snn.to_quantized()
    if schedule == "nodewise":
        if batches is None:
            raise ValueError("schedule='nodewise' needs batches, dicts of model inputs, to look at levels.")
        begins = arrivals(qann, batches, lambda node, levels: steps_to_cover(levels, chosen["coverage"]))
        firing_steps, fine_steps = {name: 1 + int(begin) for name, begin in begins.items()}, None
    else:
        depth = depths(qann, [snn.dummy_inputs])
        start = chosen["fine_start"] * config.quantization_levels
        firing_steps = {name: 1 + int(chosen["opening_pace"] * nodes) for name, nodes in depth.items()}
        fine_steps = {name: 1 + int(start + chosen["fine_pace"] * nodes) for name, nodes in depth.items()}
    config.firing_schedule, config.firing_steps, config.fine_steps = schedule, firing_steps, fine_steps
    # The last nodes need their time, too: as many steps as there are levels, and as many again to take some back.
    enough = max((fine_steps or firing_steps).values()) + 2 * config.quantization_levels
    if config.time_steps < enough:
        logger.warning(f"time_steps was {config.time_steps}, too few for this schedule: it is {enough} now.")
        config.time_steps = enough
    config.check_fields()

"""Scales from data."""

from collections.abc import Iterable, Mapping

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.models.engines import QuantEngine
from spikezip_hf.models.modeling_quantization import eval_mode
from spikezip_hf.models.quantization import MIN_SCALE, LSQQuantizer, dequantize, quantize
from spikezip_hf.models.rows import unwrap

METHODS = ("lsq", "mse")
# Scales tried by the "mse" method, as fractions of the one that just covers the largest activation: each 1/32 of the
# five octaves below it, so that the best is missed by less than 6 %.
MSE_FRACTIONS = [2 ** (-5 * i / 31) for i in range(32)]


class FloatEngine(QuantEngine):
    """The network without its quantizers: what an unsigned node stands for, a ReLU, stays."""

    def emit(self, node, current):
        current = unwrap(current)
        return current if node.signed else current.relu()


class MeanEngine(FloatEngine):
    """Keeps E|x| of every node: of all elements, or of each channel."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def emit(self, node, current):
        x = super().emit(node, current)
        total = reduce_to_scales(node, x.detach().abs(), sum_exactly)
        self.sums[node.name] = self.sums.get(node.name, 0) + total
        # Padding counts no more than it fires.
        self.counts[node.name] = self.counts.get(node.name, 0) + int(self.neurons(x).sum()) // total.numel()
        return x


class RangeEngine(FloatEngine):
    """Keeps the smallest scale at which nothing of a node is clipped."""

    def __init__(self) -> None:
        self.ranges: dict[str, torch.Tensor] = {}

    def emit(self, node, current):
        x = super().emit(node, current)
        needed = torch.maximum(x / node.max_level, x / node.min_level if node.signed else x.new_zeros(()))
        needed = reduce_to_scales(node, needed.detach(), torch.amax).double()
        self.ranges[node.name] = torch.maximum(self.ranges.get(node.name, needed), needed)
        return x


class ErrorEngine(FloatEngine):
    """Keeps the squared error of every candidate scale, (candidates, scales)."""

    def __init__(self, candidates: dict[str, torch.Tensor]) -> None:
        self.candidates = candidates
        self.errors: dict[str, torch.Tensor] = {}

    def emit(self, node, current):
        x = super().emit(node, current)
        errors = []
        for scale in self.candidates[node.name]:
            levels = quantize(x, scale, node.min_level, node.max_level)
            # Squares of small errors are 0 in float16, and all candidates would look alike.
            error = (dequantize(levels, scale, x.dtype) - x).detach().to(levels.dtype).square()
            errors.append(reduce_to_scales(node, error, sum_exactly))
        self.errors[node.name] = self.errors.get(node.name, 0) + torch.stack(errors)
        return x


def sum_exactly(x: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sum in float64, so that batching and order do not show."""
    return x.sum(dim, dtype=torch.float64)


def reduce_to_scales(node: LSQQuantizer, x: torch.Tensor, reduce) -> torch.Tensor:
    """Reduce x over all elements that share a scale: to (1,) or (channels,)."""
    return reduce(x).reshape(1) if node.scale.numel() == 1 else reduce(x.flatten(0, -2), dim=0)


def calibrate(model, batches: Iterable[Mapping[str, torch.Tensor]], method: str, overwrite: bool) -> None:
    """The function behind `QuantPreTrainedModel.calibrate`; see there. Sets the scales of all nodes, or of none."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}.")
    if isinstance(batches, Mapping):
        raise ValueError("batches must be an iterable of dicts of model inputs, not one dict: pass [batch].")
    model.fit_weights(overwrite)
    if method == "lsq":
        means = observe(model, batches, MeanEngine())
        # LSQ's initialisation (Esser et al. 2019, section 2.1): 2 E|x| / sqrt(S_max).
        scales = {
            node.name: 2 * means.sums[node.name] / means.counts[node.name] / node.max_level**0.5
            for node in model.nodes
        }
    else:
        batches = list(batches)
        ranges = observe(model, batches, RangeEngine()).ranges
        fractions = torch.tensor(MSE_FRACTIONS, dtype=torch.float64, device=model.device)
        candidates = {name: (fractions[:, None] * scale).clamp_min(MIN_SCALE) for name, scale in ranges.items()}
        errors = observe(model, batches, ErrorEngine(candidates)).errors
        scales = {
            name: candidates[name].gather(0, error.argmin(0, keepdim=True)).squeeze(0)
            for name, error in errors.items()
        }
    nodes = [node for node in model.nodes if overwrite or not bool(node.initialized)]
    for node in nodes:
        # A channel that is always 0 has no scale of its own: any will do, so it gets the smallest of the others.
        scale = scales[node.name]
        alive = scale[scale > MIN_SCALE]
        if not bool(scale.isfinite().all()) or not alive.numel():
            raise ValueError(f"{node.name}: the calibration data gives it no usable scale (all zero, or not finite).")
        scales[node.name] = torch.where(scale > MIN_SCALE, scale, alive.min())
    for node in nodes:
        node.set_scale(scales[node.name])


@torch.no_grad()
def observe(model, batches, engine):
    """Run the float network over `batches` on an observing engine, in eval mode; returns the engine."""
    seen = 0
    with eval_mode(model):
        for batch in tqdm(batches, desc="calibrating", unit="batch"):
            if not isinstance(batch, Mapping):
                raise ValueError(f"Each of batches must be a dict of model inputs, got {type(batch).__name__}.")
            model(**model.inputs_of(batch), engine=engine)
            seen += 1
    if not seen:
        raise ValueError("batches is empty: calibration needs at least one batch of model inputs.")
    return engine

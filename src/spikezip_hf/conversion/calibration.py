"""Scales from data."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.errors import memory_advice
from spikezip_hf.models.engines import QuantEngine
from spikezip_hf.models.modeling_quantization import eval_mode
from spikezip_hf.models.quantization import MIN_SCALE, LSQQuantizer, dequantize, quantize
from spikezip_hf.models.rows import unwrap

METHODS = ("lsq", "mse", "percentile")
# Scales tried by the "mse" method, as fractions of the one that just covers the largest activation: each 1/32 of the
# five octaves below it, so that the best is missed by less than 6 %.
MSE_FRACTIONS = [2 ** (-5 * i / 31) for i in range(32)]
# As many candidates at once as make a tensor of so many elements: small ones cost what calling torch costs.
TRIED_AT_ONCE = 2**16
# The "percentile" method counts in bins of equal ratio, below what just covers the largest activation: a scale is at
# most 1.1 % wider than the exact percentile, and its histogram takes 8 KiB whatever the data.
BINS_PER_OCTAVE, OCTAVES = 64, 16
BINS = BINS_PER_OCTAVE * OCTAVES
PERCENTILE = 99.9  # of four tried on two networks at three numbers of levels, the closest to the ANN on average


class FloatEngine(QuantEngine):
    """The network without its quantizers: what an unsigned node stands for, a ReLU, stays."""

    def fire(self, node, current):
        current = unwrap(self.silence_padding(current))
        return current if node.signed else current.relu()

    def elements(self, node: LSQQuantizer, x: torch.Tensor) -> int:
        """How many elements of x share each scale of a node. Padding counts no more than it fires."""
        return int(self.neurons(x).sum()) // node.scale.numel()


class MeanEngine(FloatEngine):
    """Keeps E|x| of every node: of all elements, or of each channel."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def fire(self, node, current):
        x = super().fire(node, current)
        total = reduce_to_scales(node, x.detach().abs(), sum_exactly)
        self.sums[node.name] = self.sums.get(node.name, 0) + total
        self.counts[node.name] = self.counts.get(node.name, 0) + self.elements(node, x)
        return x


class RangeEngine(FloatEngine):
    """Keeps the smallest scale at which nothing of a node is clipped."""

    def __init__(self) -> None:
        self.ranges: dict[str, torch.Tensor] = {}

    def fire(self, node, current):
        x = super().fire(node, current)
        largest = reduce_to_scales(node, needed_scale(node, x), torch.amax).double()
        self.ranges[node.name] = torch.maximum(self.ranges.get(node.name, largest), largest)
        return x


class HistogramEngine(FloatEngine):
    """Counts the elements of a node by the scale at which they are just not clipped, (scales, BINS).

    Bin i holds the scales from `ranges` * 2^(-i / BINS_PER_OCTAVE), included, down to the next bin; the last one all
    that are smaller, zeros and padding among them. `counts` leaves padding out.
    """

    def __init__(self, ranges: dict[str, torch.Tensor]) -> None:
        self.ranges = ranges
        self.histograms: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def fire(self, node, current):
        x = super().fire(node, current)
        needed = needed_scale(node, x).reshape(-1, node.scale.numel())
        octaves = (self.ranges[node.name].to(needed.dtype) / needed).log2()
        # A channel of zeros has 0 / 0; NaN elsewhere is in its range, too, and refused with that.
        bins = octaves.mul_(BINS_PER_OCTAVE).nan_to_num_(nan=0.0).clamp_(0, BINS - 1).long()
        bins += torch.arange(bins.shape[1], device=bins.device) * BINS
        counted = bins.flatten().bincount(minlength=bins.shape[1] * BINS).view(-1, BINS)
        self.histograms[node.name] = self.histograms.get(node.name, 0) + counted
        self.counts[node.name] = self.counts.get(node.name, 0) + self.elements(node, x)
        return x

    def scale(self, name: str, percentile: float) -> torch.Tensor:
        """The smallest scales at which so many percent of the elements of each are not clipped, (scales,) float64.

        What is silent so often that this would be nothing keeps its whole range.
        """
        clipped = math.floor(self.counts[name] * (100 - percentile) / 100)  # so many may be
        bins = (self.histograms[name].cumsum(1) > clipped).int().argmax(1)
        fractions = torch.where(bins < BINS - 1, 2.0 ** (-bins.double() / BINS_PER_OCTAVE), 1.0)
        return self.ranges[name] * fractions


class ErrorEngine(FloatEngine):
    """Keeps the squared error of every candidate scale, (candidates, scales)."""

    def __init__(self, candidates: dict[str, torch.Tensor]) -> None:
        self.candidates = candidates
        self.errors: dict[str, torch.Tensor] = {}

    def fire(self, node, current):
        x = super().fire(node, current)
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        candidates = self.candidates[node.name]
        each = candidates.view(len(candidates), *(1,) * (x.dim() - 1), -1)
        errors = []
        for scales in each.split(max(1, TRIED_AT_ONCE // max(1, x.numel()))):
            levels = quantize(wide, scales, node.min_level, node.max_level)
            # Squares of small errors are 0 in float16, and all candidates would look alike.
            error = (dequantize(levels, scales, x.dtype) - x.detach()).to(levels.dtype).square()
            errors.append(sum_exactly(error.reshape(len(scales), -1, node.scale.numel()), 1))
        self.errors[node.name] = self.errors.get(node.name, 0) + torch.cat(errors)
        return x


def needed_scale(node: LSQQuantizer, x: torch.Tensor) -> torch.Tensor:
    """The scale at which each element gets the largest level, or the smallest if it is negative; float32 or wider."""
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    return torch.maximum(x / node.max_level, x / node.min_level if node.signed else x.new_zeros(()))


def sum_exactly(x: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sum in float64, so that batching and order do not show."""
    return x.sum(dim, dtype=torch.float64)


def reduce_to_scales(node: LSQQuantizer, x: torch.Tensor, reduce) -> torch.Tensor:
    """Reduce x over all elements that share a scale: to (1,) or (channels,)."""
    return reduce(x).reshape(1) if node.scale.numel() == 1 else reduce(x.flatten(0, -2), dim=0)


def check_percentile(name: str, percentile: float) -> None:
    """Raise ValueError, naming the field, unless it is above 0 and at most 100."""
    if not 0 < percentile <= 100:
        raise ValueError(f"{name} must be above 0 and at most 100, got {percentile!r}.")


@memory_advice("give calibrate smaller batches, or method='lsq', which does not keep all of them.")
def calibrate(
    model,
    batches: Iterable[Mapping[str, torch.Tensor]],
    method: str,
    overwrite: bool = True,
    percentile: float = PERCENTILE,
) -> None:
    """The function behind `QuantPreTrainedModel.calibrate`; see there. Sets all scales, or none."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}.")
    check_percentile("percentile", percentile)
    if isinstance(batches, Mapping):
        raise ValueError("batches must be an iterable of dicts of model inputs, not one dict: pass [batch].")
    with scales_kept_on_error(model):
        model.fit_weights(overwrite)
        if method == "lsq":
            scales = lsq_scales(model, batches)
        elif method == "mse":
            scales = mse_scales(model, list(batches))
        else:
            scales = percentile_scales(model, list(batches), percentile)
        nodes = [node for node in model.nodes if overwrite or not bool(node.initialized)]
        for node in nodes:
            # A channel that is always 0 has no scale of its own: any will do, so it gets the smallest of the others.
            scale = scales[node.name]
            alive = scale[scale > MIN_SCALE]
            if not bool(scale.isfinite().all()) or not alive.numel():
                raise ValueError(
                    f"{node.name}: the calibration data gives it no usable scale (all zero, or not finite)."
                )
            scales[node.name] = torch.where(scale > MIN_SCALE, scale, alive.min())
        for node in nodes:
            node.set_scale(scales[node.name])


@contextmanager
def scales_kept_on_error(model) -> Iterator[None]:
    """After an error inside, or Ctrl-C, scales are what they were. Those of weights are set before data is seen."""
    before = [(one, one.scale.detach().clone(), one.initialized.clone()) for one in model.quantizers]
    try:
        yield
    except BaseException:
        for quantizer, scale, initialized in before:
            quantizer.scale.data.copy_(scale)
            quantizer.initialized.copy_(initialized)
        raise


def lsq_scales(model, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """LSQ's initialisation (Esser et al. 2019, section 2.1): 2 E|x| / sqrt(S_max)."""
    means = observe(model, batches, MeanEngine())
    return {
        node.name: 2 * means.sums[node.name] / means.counts[node.name] / node.max_level**0.5 for node in model.nodes
    }


def mse_scales(model, batches: list[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Of the candidates, the scale with the least squared error."""
    ranges = observe(model, batches, RangeEngine(), "calibrating, pass 1 of 2").ranges
    fractions = torch.tensor(MSE_FRACTIONS, dtype=torch.float64, device=model.device)
    candidates = {name: (fractions[:, None] * scale).clamp_min(MIN_SCALE) for name, scale in ranges.items()}
    errors = observe(model, batches, ErrorEngine(candidates), "calibrating, pass 2 of 2").errors
    return {
        name: candidates[name].gather(0, error.argmin(0, keepdim=True)).squeeze(0) for name, error in errors.items()
    }


def percentile_scales(model, batches: list[Mapping[str, torch.Tensor]], percentile: float) -> dict[str, torch.Tensor]:
    """The smallest scale at which so many percent are not clipped."""
    ranges = observe(model, batches, RangeEngine(), "calibrating, pass 1 of 2").ranges
    histograms = observe(model, batches, HistogramEngine(ranges), "calibrating, pass 2 of 2")
    return {name: histograms.scale(name, percentile) for name in ranges}


@torch.no_grad()
def observe(model, batches, engine, what: str = "calibrating"):
    """Run the float network over `batches` on an observing engine, in eval mode; returns the engine.

    Args:
        what: it is done for, beside the progress bar.
    """
    seen = 0
    with eval_mode(model):
        for batch in tqdm(batches, desc=what, unit="batch"):
            if not isinstance(batch, Mapping):
                raise ValueError(f"Each of batches must be a dict of model inputs, got {type(batch).__name__}.")
            model(**model.inputs_of(batch), engine=engine)
            seen += 1
    if not seen:
        raise ValueError("batches is empty: calibration needs at least one batch of model inputs.")
    return engine

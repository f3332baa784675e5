# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The quantizers of the QANN: of activations, which are also thresholds and bounds of ST-BIF+ neurons, and of weights.

    Quantize(x) = s * clamp(floor(x / s + 1/2), S_min, S_max)          (paper Eq. 2)

`floor(. + 1/2)` and not `round`: a neuron that starts at V_0 = s/2 with threshold s breaks ties upwards, and the
quantizer has to break them the same way. The scale is learned by LSQ (Esser et al. 2019, "Learned Step Size
Quantization", arXiv:1902.08153).
"""

from collections.abc import Callable

import torch
from torch import nn

from .remembering import remembered

# A scale below this counts as collapsed and is used as this. It is far under any scale that calibration gives, and
# keeps x / s finite for every activation that a float16 model can hold.
MIN_SCALE = 2.0**-27


def level_bounds(levels: int, signed: bool) -> tuple[int, int]:
    """(S_min, S_max) of a quantizer with `levels` levels: -L/2 .. L/2-1 when signed, 0 .. L-1 when not.

    Raises:
        ValueError: `levels` is not an even integer from 4 to 256.
    """
    if not isinstance(levels, int) or levels % 2 or not 4 <= levels <= 256:
        raise ValueError(f"quantization_levels must be an even integer from 4 to 256, got {levels!r}.")
    return (-(levels // 2), levels // 2 - 1) if signed else (0, levels - 1)


def threshold(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale`, at least MIN_SCALE, in the type that inputs of `dtype` are quantized in: float32 or wider."""
    s = scale.clamp_min(MIN_SCALE)
    return s if s.dtype == dtype == torch.float32 else s.to(torch.promote_types(dtype, torch.float32))


def ratio(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x / s, in at least float32; a new tensor, and no other, since memory is what quantizing costs."""
    s = threshold(scale, x.dtype)
    return x / s if x.dtype == s.dtype else x.to(s.dtype).div_(s)


def quantize(x: torch.Tensor, scale: torch.Tensor, min_level: int, max_level: int) -> torch.Tensor:
    """Levels clamp(floor(x/s + 1/2), S_min, S_max): whole numbers in a floating type (float32 or wider)."""
    return ratio(x, scale).add_(0.5).floor_().clamp_(min_level, max_level)


def dequantize(levels: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values s * levels, multiplied in at least float32, returned as `dtype`."""
    s = threshold(scale, dtype)
    return (levels.to(s.dtype) * s).to(dtype)


class LSQFunction(torch.autograd.Function):
    """Quantize and dequantize, with LSQ's gradients (Esser et al. 2019, Eq. 3 and 5).

    The scale is of any shape that broadcasts to x. Forward and backward are one function each, a few passes over
    memory and one saved tensor, not a chain of operators that each keep their own.

    An autograd function and not the usual `(q - x).detach() + x`: that sum rounds, and the values a QANN computes
    with would differ in the last bit from the ones its neurons emit.
    """

    @staticmethod
    def forward(x, scale, min_level, max_level, gradient_scale):
        return quantize(x, scale, min_level, max_level).mul_(threshold(scale, x.dtype)).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, scale, ctx.min_level, ctx.max_level, ctx.gradient_scale = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx, grad_output):
        x, scale = ctx.saved_tensors
        position = ratio(x, scale)
        # All in floating point, without masks of bool, whose kernels are several times slower on a CPU.
        grad_output = grad_output.to(position.dtype)
        passed = torch.ops.aten.hardtanh_backward(grad_output, position, ctx.min_level, ctx.max_level)
        grad_x = passed.to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # Inside, grad_output * (level - position); outside, where nothing is passed, grad_output * level.
            level = (position + 0.5).floor_().clamp_(ctx.min_level, ctx.max_level)
            per_element = level.mul_(grad_output).addcmul_(passed, position, value=-1)
            grad_scale = (per_element.sum_to_size(scale.shape) * ctx.gradient_scale).to(scale.dtype)
        return grad_x, grad_scale, None, None, None


class Quantizer(nn.Module):
    """A learned step size, and whether it was ever set.

    Args:
        scales: how many scales there are.

    Attributes:
        scale: (scales,), positive. Float32 whatever type the model is cast to, if not wider.
        initialized: saved bool scalar, False until data, weights or a checkpoint have set the scale.
    """

    name: str = ""  # path in the network, key of its state in a simulation; set by `name_operators`
    min_level: int
    max_level: int

    def __init__(self, scales: int):
        super().__init__()
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # the default may be a half
        self.scale = nn.Parameter(torch.full((scales,), self.default_scale, dtype=dtype))
        self.register_buffer("initialized", torch.tensor(False))
        self.initialized: torch.Tensor

    @property
    def default_scale(self) -> float:
        """The scale of a quantizer that was never set."""
        raise NotImplementedError

    def threshold(self, dtype: torch.dtype) -> torch.Tensor:
        """The scale as inputs of `dtype` are compared with it, in float32 or wider; V_thr of a neuron. No gradient."""

        def without_gradient():
            scale = threshold(self.scale, dtype)
            return scale.detach() if scale.requires_grad else scale

        return remembered(self, dtype, without_gradient)

    def problem(self, allow_unset: bool = False) -> str | None:
        """Why the scale cannot be used, in words; None if it can.

        Args:
            allow_unset: never having been set is no problem yet.
        """
        if self.scale.dtype not in (torch.float32, torch.float64):
            return f"is of {self.scale.dtype}, and must be float32 or wider"
        if not bool(torch.isfinite(self.scale).all()):
            return "is not finite"
        if not bool((self.scale >= MIN_SCALE).all()):
            return f"is below {MIN_SCALE:g}"
        if not allow_unset and not bool(self.initialized):
            return "was never set by calibrate() or a checkpoint"
        return None

    @torch.no_grad()
    def set_scale(self, scale: torch.Tensor) -> None:
        """Store a scale, (1,) or (scales,), and mark the quantizer as initialized.

        Raises:
            ValueError: the scale is not finite or not positive.
        """
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.initialized.fill_(True)
        if problem := self.problem():
            self.initialized.fill_(False)
            raise ValueError(f"{self.name or 'quantizer'}.scale {problem}: its calibration data is unusable.")

    def _apply(self, fn, recurse=True):
        # `.half()` and `.bfloat16()` are meant for weights; a rounded threshold would be another quantizer.
        def keep_precision(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return tensor.to(applied.device) if applied.dtype in (torch.float16, torch.bfloat16) else applied

        return super()._apply(keep_precision, recurse)


class LSQQuantizer(Quantizer):
    """An activation node: LSQ quantizer in the QANN, threshold and bounds of an ST-BIF+ neuron in the SNN.

    Args:
        levels: number of levels L, even, 4 to 256. Signed levels are -L/2 .. L/2-1, unsigned ones 0 .. L-1.
        signed: an unsigned quantizer also stands for the ReLU in front of it.
        num_features: features of one position. LSQ's gradient scale is 1/sqrt(N * S_max); N counts the features that
            share one scale at one position, never batch or sequence length, so that a gradient does not depend on how
            its batch was put together.
        per_channel: one scale for each of the `num_features` channels of the last dimension instead of one in all.
        stage: depth of the node in the network, read by firing schedules.
    """

    def __init__(self, levels: int, signed: bool, num_features: int, per_channel: bool = False, stage: int = 0):
        self.min_level, self.max_level = level_bounds(levels, signed)
        self.levels = levels
        super().__init__(num_features if per_channel else 1)
        self.signed = signed
        self.stage = stage
        self.features_per_scale = 1 if per_channel else num_features

    @property
    def gradient_scale(self) -> float:
        """LSQ's factor of the gradient of a scale (Esser et al. 2019, section 2.2)."""
        return (self.max_level * self.features_per_scale) ** -0.5

    @property
    def default_scale(self) -> float:
        """The scale of a node never calibrated: a range of 8, about that of a LayerNorm's output."""
        return 8.0 / self.levels

    @property
    def level_dtype(self) -> torch.dtype:
        """Integer type that holds a level *and* the difference of two (int8 would wrap above 128 levels)."""
        return torch.int8 if self.levels <= 128 else torch.int16

    def forward(self, x, then: Callable | None = None):
        """Quantized values, same shape and type as `x`; contiguous. Or `then(node, x)`.

        Whatever an engine does with a node it does by a call, so that hooks on it run.

        Contiguous, here and in `quantize`, because the layout of an operand chooses the kernel of the product that
        follows: the QANN and the simulation must hand over the same layout to get the same bits.
        """
        if then is not None:
            return then(self, x)
        return LSQFunction.apply(x.contiguous(), self.scale, self.min_level, self.max_level, self.gradient_scale)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Levels of `x`, whole numbers in a floating type, contiguous. No gradient, here and below."""
        return quantize(x.contiguous(), self.threshold(x.dtype), self.min_level, self.max_level)

    def dequantize(self, levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Values of `levels` as `dtype`."""
        return dequantize(levels, self.threshold(dtype), dtype)

    @torch.no_grad()
    def set_levels(self, levels: int, rescale: bool = True) -> None:
        """Change the number of levels.

        Args:
            rescale: also change the scale as LSQ's rule, 2 E|x| / sqrt(S_max), does: with half the levels about 1.5
                times wider, so that some of the range is given up for finer steps. Keeping the range is far worse.

        Raises:
            ValueError: as for the constructor.
        """
        min_level, max_level = level_bounds(levels, self.signed)
        if rescale:
            self.scale.mul_((self.max_level / max_level) ** 0.5)
        self.levels, self.min_level, self.max_level = levels, min_level, max_level

    def extra_repr(self) -> str:
        kind = "signed" if self.signed else "unsigned"
        return f"levels={self.levels}, {kind}, scales={self.scale.numel()}, stage={self.stage}"


class WeightQuantizer(Quantizer):
    """LSQ quantizer of a weight, with one scale for each output channel.

    Levels are -(2^(bits-1) - 1) .. 2^(bits-1) - 1, as many below zero as above: the range that integer kernels take.

    Args:
        bits: of a weight; 8 is what hardware has.
        shape: (out_channels, ...) of the weight.
    """

    def __init__(self, bits: int, shape: torch.Size):
        self.bits = bits
        self.max_level = 2 ** (bits - 1) - 1
        self.min_level = -self.max_level
        self.gradient_scale = (self.max_level * shape[1:].numel()) ** -0.5
        super().__init__(shape[0])

    @property
    def default_scale(self) -> float:
        """The scale before `fit`: a range of 1."""
        return 1.0 / self.max_level

    def forward(self, weight: torch.Tensor, then: Callable | None = None):
        """Quantized weight, same shape and type; or `then(quantizer, weight)`, as of `LSQQuantizer`."""
        if then is not None:
            return then(self, weight)
        scale = self.scale.view(-1, *(1,) * (weight.dim() - 1))
        return LSQFunction.apply(weight, scale, self.min_level, self.max_level, self.gradient_scale)

    @torch.no_grad()
    def fit(self, weight: torch.Tensor) -> None:
        """Set each scale so that the largest weight of its channel gets the largest level.

        Raises:
            ValueError: a weight is not finite.
        """
        largest = weight.abs().flatten(1).amax(1).to(self.scale.dtype)
        # A channel of zeros, or next to it, stays zeros at any scale.
        usable = largest.clamp_min(MIN_SCALE * self.max_level)
        self.set_scale(usable / self.max_level)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, scales={self.scale.numel()}"

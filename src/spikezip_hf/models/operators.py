# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The modules a network is made of, and their event-driven forms: SESA, Spike-Softmax, Spike-LayerNorm.

The modules are plain float operators with a name. Which meaning their tensors have (values, accumulated values,
changes of one step) is the business of the engines. The event-driven forms keep the state of one simulation; they live
in the run of an `EventEngine`, one for each named module, and end with it.
"""

from typing import Any

import torch
from torch import nn

from .kernels import (
    exponentials,
    fixed_operand,
    float_linear,
    integer_linear,
    integer_matmul,
    integer_softmax,
    weight_form,
    weight_operand,
)
from .quantization import WeightQuantizer
from .remembering import remembered
from .rows import Rows, align, in_inference, unwrap


class LinearMap(nn.Module):
    """A linear map that can be asked for its product without the bias, (..., in_features) to (..., out_features).

    Its weight may have more dimensions than two; all but the first are those of the input.
    """

    name: str = ""
    in_features: int
    weight: torch.Tensor
    bias: Any
    weight_quantizer: WeightQuantizer | None

    def forward(self, x, bias: bool = True):
        if isinstance(x, Rows):
            return self.infer(x)
        if bias and in_inference(self):  # the same bits as for such values within a network
            return self.infer(Rows(x)).values
        return nn.functional.linear(x, quantized_weight(self).flatten(1), self.bias if bias else None)

    def infer(self, x: Rows) -> Rows:
        """The product in inference: exact where it is of levels, if it can be, and in floating point else."""
        if not torch.is_grad_enabled():
            return self.product(x)
        with torch.no_grad():
            exact = self.product(x)
        return exact.with_gradient_of(nn.functional.linear(x.values, quantized_weight(self).flatten(1), self.bias))

    def product(self, x: Rows) -> Rows:
        """`infer` without gradients."""
        exact = self.exact_product(x) if x.peak and x.bias is None else None
        if exact is not None:
            return exact
        return Rows(float_linear(x.values, quantized_weight(self).flatten(1), self.bias), timeline=x.timeline)

    def exact_product(self, x: Rows) -> Rows | None:
        """Levels times integer weights, or times a weight in fixed point; None where there are no sums without
        rounding."""
        if x.uniform and self.weight_quantizer is not None:
            return self.integer_product(x)
        assert x.scale is not None
        assert x.integers is not None
        weight, scale, factors = quantized_weight(self).flatten(1), x.scale, None
        if not x.uniform:  # a scale for each feature becomes a part of the weight
            scale, factors = torch.ones_like(scale[:1]), scale
        # Bytes as in a simulation, also where levels are of a floating type, as in exported steps.
        levels = x.integers.to(torch.int8) if x.peak < 128 else x.integers
        operand = fixed_operand(levels, weight, factors)
        if operand is None:
            return None
        return Rows(
            integers=integer_linear(levels, operand),
            scale=scale,
            bias=self.bias,
            dtype=weight.dtype,
            timeline=x.timeline,
            sources=x.sources,
        )

    def integer_product(self, x: Rows) -> Rows:
        """Levels times integer weights, and what they are scaled with."""
        levels, weight, quantizer = x.levels, self.weight, self.weight_quantizer
        assert quantizer is not None
        assert levels is not None
        assert x.scale is not None
        bound = self.in_features * x.peak * quantizer.max_level
        operand, weight_scale = integer_weight(self, weight_form(levels, weight.flatten(1), bound))
        product = integer_linear(levels, operand)
        scale = x.scale * weight_scale
        dtype, bias = weight.dtype, self.bias
        if bias is not None and bias.dtype != scale.dtype:
            bias = bias.to(scale.dtype)
        return Rows(integers=product, scale=scale, bias=bias, dtype=dtype, timeline=x.timeline, sources=x.sources)


class Linear(LinearMap, nn.Linear):
    """nn.Linear as a linear map of this library.

    Args:
        weight_bits: quantize the weight to this many bits, for each output channel by itself; None for no quantizer.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, weight_bits: int | None = None):
        super().__init__(in_features, out_features, bias)
        self.weight_quantizer = None if weight_bits is None else WeightQuantizer(weight_bits, self.weight.shape)


class Conv2d(nn.Conv2d):
    """nn.Conv2d that can be asked for its map without the bias; `weight_bits` as for Linear."""

    name: str = ""

    def __init__(self, *args, weight_bits: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight_quantizer = None if weight_bits is None else WeightQuantizer(weight_bits, self.weight.shape)

    def forward(self, x: torch.Tensor, bias: bool = True) -> torch.Tensor:
        return self._conv_forward(x, quantized_weight(self), self.bias if bias else None)


class PatchLinear(LinearMap):
    """Linear map of patches side by side, (rows, channels, H, W) to (rows, patches, out_features).

    It is the convolution whose stride is its kernel, with that one's weight, for input of spikes: their levels are
    multiplied like those of any other linear map. It is no nn.Linear, which others (PEFT's "all-linear") take for a
    matrix between the last dimensions of what goes in and out.

    Args:
        patch_size: (height, width), of which those of an image are multiples.
    """

    def __init__(self, channels: int, out_features: int, patch_size: tuple[int, int], weight_bits: int | None = None):
        super().__init__()
        self.in_features, self.out_features = channels * patch_size[0] * patch_size[1], out_features
        self.patch_size = patch_size
        like = nn.Linear(self.in_features, out_features)
        self.weight = nn.Parameter(like.weight.detach().unflatten(1, (channels, *patch_size)))
        self.bias = like.bias
        self.weight_quantizer = None if weight_bits is None else WeightQuantizer(weight_bits, self.weight.shape)

    def forward(self, x, bias: bool = True):
        return super().forward(patches(x, self.patch_size), bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, patch_size={self.patch_size}"


def patches(x, patch_size: tuple[int, int]):
    """Pixels of each patch in the order of a convolution's weight: (rows, channels, H, W) to (rows, patches, channels
    * height * width)."""
    if isinstance(x, Rows):
        return x.reshaped(lambda pixels: patches(pixels, patch_size), how=("patches", *patch_size))
    height, width = patch_size
    x = x.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def quantized_weight(module: LinearMap | Conv2d) -> torch.Tensor:
    """The weight that a product is done with."""
    quantizer = module.weight_quantizer
    if quantizer is None:
        return module.weight
    return remembered(module, "values", lambda: quantizer(module.weight))


def integer_weight(module: LinearMap, form: str | torch.dtype):
    """Levels of a quantized weight, an operand in that form (see `kernels.weight_form`), and their scales
    (out_features,)."""
    quantizer = module.weight_quantizer
    assert quantizer is not None

    def levels_and_scale(quantizer, weight):
        scale = quantizer.threshold(weight.dtype)
        return weight_operand(weight.flatten(1), scale, quantizer.max_level, form), scale

    return remembered(module, form, lambda: quantizer(module.weight, levels_and_scale))


class MatMul(nn.Module):
    """Product of two dynamic operands, (..., n, d) @ (..., d, m)."""

    name: str = ""

    def forward(self, a, b):
        if isinstance(a, Rows) and isinstance(b, Rows):
            return self.infer(a, b)
        return torch.matmul(a, b)

    def infer(self, a: Rows, b: Rows) -> Rows:
        """The product in inference: of levels, if each side has one scale."""
        if a.levels is None or b.levels is None:
            return torch.matmul(a, b)  # type: ignore[arg-type, return-value]
        timeline, (a, b) = align((a, b))
        assert a.levels is not None
        assert b.levels is not None
        assert a.scale is not None
        assert b.scale is not None
        product = integer_matmul(a.levels, b.levels, a.shape[-1] * a.peak * b.peak)
        sources = a.sources + b.sources if a.sources and b.sources else ()
        rows = Rows(integers=product, scale=a.scale * b.scale, dtype=a.dtype, timeline=timeline, sources=sources)
        if not torch.is_grad_enabled():
            return rows
        return rows.with_gradient_of(torch.matmul(a.values, b.values))


class MeanPool(nn.Module):
    """Mean over positions, (..., N, features) to (..., features): a static linear map.

    Args:
        first: the first position that counts; class tokens stand ahead of it.
    """

    name: str = ""

    def __init__(self, first: int = 0):
        super().__init__()
        self.first = first

    def forward(self, x):
        return self.infer(x) if isinstance(x, Rows) else self.mean(x)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., self.first :, :].mean(-2)

    def infer(self, x: Rows) -> Rows:
        """The mean in inference: of levels it is their sum, which is exact, and 1/N is in the scale."""
        if not x.peak or x.bias is not None:
            return Rows(self.mean(x.values), timeline=x.timeline)
        assert x.integers is not None
        assert x.scale is not None
        levels = x.integers[..., self.first :, :]
        count = levels.shape[-2]
        rows = Rows(
            integers=levels.sum(-2, dtype=torch.int32),
            scale=x.scale / count,
            peak=x.peak * count,
            dtype=x.dtype,
            timeline=x.timeline,
        )
        return rows.with_gradient_of(self.mean(x.values)) if torch.is_grad_enabled() else rows

    def extra_repr(self) -> str:
        return f"first={self.first}"


class Softmax(nn.Module):
    """Softmax over the last dimension, in at least float32; in inference of whole numbers, if they have one scale."""

    name: str = ""

    def forward(self, x, keys=None):
        """Softmax of x (..., N), over those of the last dimension where `keys`, bool, is True; None for all."""
        if isinstance(x, Rows):
            return self.infer(x, keys)
        if keys is not None:
            x = x.masked_fill(~keys, torch.finfo(x.dtype).min)
        return nn.functional.softmax(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)

    def infer(self, x: Rows, keys) -> Rows:
        """Softmax in inference: of whole numbers, where exponentials are too, and their sum is exact."""
        timeline, (x, keys) = align((x, keys))
        keys = unwrap(keys)
        table = self.exponentials(x) if x.uniform and x.dtype == torch.float32 else None
        if table is None:
            return Rows(self.forward(x.values, keys), timeline=timeline)
        probabilities = Rows(
            integer_softmax(x.given, table, keys), dtype=x.dtype, timeline=timeline, sources=x.sources
        )
        if not torch.is_grad_enabled():
            return probabilities
        return probabilities.with_gradient_of(self.forward(x.values, keys))

    def exponentials(self, x: Rows) -> torch.Tensor | None:
        """The table for scores of this scale, found once in a simulation; None where there is none, as in a graph."""
        scale = x.scale
        if scale is None or not in_inference(self):
            return None
        if not x.sources:
            return exponentials(scale)
        # Sources say where the scale is from: to look at its number again would have a simulation wait for a GPU.
        return remembered(self, ("exponentials", x.sources), lambda: exponentials(scale))


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm with a name."""

    name: str = ""

    def forward(self, x):
        return Rows(super().forward(x.values), timeline=x.timeline) if isinstance(x, Rows) else super().forward(x)


class Dropout(nn.Dropout):
    """nn.Dropout, which in inference does not come between a product and what follows."""

    def forward(self, x):
        return super().forward(x) if self.training else x


class Tanh(nn.Tanh):
    """nn.Tanh with a name."""

    name: str = ""


def name_operators(network: nn.Module, prefix: str = "") -> None:
    """Give every operator and node of `network` its path as name, the key of its state in a simulation.

    Args:
        prefix: path of `network` itself.
    """
    for path, module in network.named_modules(prefix=prefix):
        if hasattr(type(module), "name"):
            module.name = path  # type: ignore[assignment]


class SESA:
    """Spike-equivalent product of two spike trains (paper section 3.2.3, Eq. 4).

        O_t = S_A,t @ B_t + A_t @ S_B,t - A_t @ B_t

    where A_t, B_t are the spikes of step t and S_A,t, S_B,t the accumulated ones, step t included. Summed over the
    steps this is S_A,T @ S_B,T: three products a step, each with spikes on at least one side.
    """

    def __init__(self) -> None:
        self.accumulated_a: torch.Tensor | float = 0.0
        self.accumulated_b: torch.Tensor | float = 0.0

    def step(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.accumulated_a = self.accumulated_a + a
        self.accumulated_b = self.accumulated_b + b
        return self.accumulated_a @ b + a @ self.accumulated_b - a @ b


class SpikeOperator:
    """Differential form of a non-linear operator (paper section 3.2.4, Eq. 5).

    X_t = X_{t-1} + x_t        O_t = sigma(X_t)        o_t = O_t - O_{t-1},  O_{-1} = 0
    """

    def __init__(self, sigma: nn.Module):
        self.sigma = sigma
        self.accumulated_input: torch.Tensor | float = 0.0
        self.last_output: torch.Tensor | float = 0.0

    def step(self, x: torch.Tensor) -> torch.Tensor:
        self.accumulated_input = self.accumulated_input + x
        output = self.sigma(self.accumulated_input)
        change = output - self.last_output
        self.last_output = output
        return change


class SpikeSoftmax(SpikeOperator):
    """Spike-Softmax: Eq. 5 with sigma = softmax."""


class SpikeLayerNorm(SpikeOperator):
    """Spike-LayerNorm: Eq. 5 with sigma = LayerNorm, its affine part included."""


# The event-driven form of each non-linear operator.
SPIKE_FORMS: dict[type[nn.Module], type[SpikeOperator]] = {Softmax: SpikeSoftmax, LayerNorm: SpikeLayerNorm}

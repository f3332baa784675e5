# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The inner loops of inference: a reference in plain torch for each, and a compiled kernel where there is one.

Kernels give the bits of their reference, always: on integers there is nothing to round, and floating-point operations
are the same ones in the same order. So which of them runs is a matter of speed alone, but for one thing: where kernels
multiply bytes, products of levels and weights of float32 are exact (`in_fixed_point`). They are in the package
(`spikezip_hf.kernels`) and do not travel with a checkpoint; code that was loaded from the Hub finds them if the
package is installed, and does with the references if not.
"""

import math
from functools import cache, lru_cache

import torch

from .quantization import quantize

try:
    from spikezip_hf.kernels import gpu, native
except ImportError:
    gpu = native = None  # type: ignore[assignment]


def compiled(*tensors: torch.Tensor | None, neurons: bool = False):
    """The compiled kernels if they can take these tensors, else None: so where a graph is made.

    Args:
        neurons: they are to run neurons, which is all that the kernels for a GPU do.
    """
    device = None
    for x in tensors:
        if x is None:
            continue
        if device is None:
            device = x.device
        elif x.device != device:
            return None
    if native is None or device is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if device.type == "cpu":
        return native.library()
    return gpu.gpu_library(device) if neurons and device.type == "cuda" else None


def products_with_neurons(x: torch.Tensor) -> bool:
    """Whether kernels do products with weights together with the neurons behind them, where `x` is."""
    kernels = compiled(x)
    return kernels is not None and kernels.has_products


def values_of(
    integers: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """integers * scale + bias, in the type of `scale`, then as `dtype`.

    Args:
        integers: (..., features) whole numbers.
        scale, bias: (1,) or (features,); no bias if None.
    """
    kernels = compiled(integers, scale, bias)
    if kernels is not None and kernels.takes_values(integers, scale, bias, dtype):
        return kernels.values(integers, scale, bias)
    values = integers.to(scale.dtype)
    values = values.mul_(scale) if values is not integers else values * scale
    return (values if bias is None else values.add_(bias)).to(dtype)


def sum_of(terms: list[tuple]) -> torch.Tensor | None:
    """The sum of two terms in one pass, by a compiled kernel; `values_of`, `index_select`, `torch.add` give the same.

    Args:
        terms: of (numbers, scale, bias, index) each: numbers (rows, ..., features), values, whose scale and bias are
            None, or whole numbers with those of `values_of`; index, (chosen,) int64 or None, which of the rows.

    Returns:
        (chosen, ..., features) float32; None where there is no kernel that takes them.
    """
    kernels = compiled(*(x for term in terms for x in term[:3]))
    return kernels.sum(terms) if kernels is not None and kernels.takes_sum(terms) else None


def weight_levels(weight: torch.Tensor, scale: torch.Tensor, max_level: int, dtype: torch.dtype) -> torch.Tensor:
    """Levels of a weight (out, in), from -max_level to max_level, as an operand: (in, out), contiguous.

    Args:
        scale: (out,).
        dtype: of the levels, a whole number each.
    """
    kernels = compiled(weight, scale)
    if kernels is not None and dtype == torch.int8 and kernels.takes_weights(weight, scale):
        return kernels.weight_levels(weight, scale, max_level)
    return quantize(weight, scale[:, None], -max_level, max_level).to(dtype).t().contiguous()


def integer_matmul(a: torch.Tensor, b: torch.Tensor, bound: int):
    """Product of two batches of levels, (rows, [windows,] heads, n, k) @ (..., k, m): exact whole numbers.

    Args:
        bound: of the absolute value of a sum.

    Returns:
        The sums, or, by the compiled kernels, a product that has still to be done: one with what follows.
    """
    kernels = compiled(a, b)
    if kernels is not None and kernels.takes_products(a, b, bound):
        return kernels.deferred(a, b)
    exact = exact_dtype(bound)
    with torch.autocast(a.device.type, enabled=False):
        return torch.matmul(a.to(exact), b.to(exact))


# Exponentials of a softmax of whole numbers are whole multiples of 2**-30.
EXPONENTIAL_BITS = 30
HIDDEN = -(2**30)  # a score of what is not looked at: below any other by more than a table is long
LONGEST_TABLE = 2**20


@torch.no_grad()
def exponentials(scale: torch.Tensor) -> torch.Tensor | None:
    """2**30 * exp(-scale * d) for d = 0, 1, ..., rounded to whole numbers, up to the first 0: int32.

    Args:
        scale: (1,), positive.

    Returns:
        (entries,); None where there would be more than 2**20.
    """
    table = table_of_exponentials(float(scale))
    return None if table is None else table.to(scale.device)


@lru_cache(maxsize=64)  # those of a network
@torch.inference_mode(False)  # what is kept can be used outside of it, too
def table_of_exponentials(step: float) -> torch.Tensor | None:
    """`exponentials` of a scale, on the CPU; not to be changed."""
    entries = (EXPONENTIAL_BITS + 1) * math.log(2) / step + 2 if step > 0 else math.inf
    if not entries < LONGEST_TABLE:
        return None
    exponents = torch.arange(int(entries), dtype=torch.float64, device="cpu").mul_(-step)
    return exponents.exp_().mul_(2.0**EXPONENTIAL_BITS).round_().to(torch.int32)


def integer_softmax(integers, table: torch.Tensor, keys: torch.Tensor | None):
    """Softmax of scores that are whole numbers times a scale: float32, each the same in any order of adding.

    The exponential of a score is a whole number that depends on its distance to the largest one alone, so the sum of
    exponentials is exact. Each of them is off by 2**-31 of the largest at most; four roundings to float32 follow.

    Args:
        integers: (rows, ..., N), whole numbers below 2**29, or a product of `integer_matmul`.
        table: `exponentials` of the scale.
        keys: bool, which of the N are looked at; None for all.

    Returns:
        (rows, ..., N) probabilities; or, by the compiled kernels, what has still to be done: with neurons.
    """
    if not isinstance(integers, torch.Tensor):
        if integers.kernels.takes_softmax(integers, table, keys):
            return integers.kernels.deferred_softmax(integers, table, keys, integer_softmax)
        integers = integers.sums()
    if keys is not None:
        integers = integers.masked_fill(~keys, HIDDEN)
    distance = (integers.amax(-1, keepdim=True) - integers).clamp_(max=len(table) - 1).int()
    parts = table.index_select(0, distance.flatten()).view_as(distance)
    return parts.float() * parts.sum(-1, keepdim=True, dtype=torch.int64).float().reciprocal()


def integer_linear(x: torch.Tensor, weight):
    """Product of levels and a weight of integers or in fixed point, (..., k) @ (k, m): exact.

    Args:
        weight: an operand, as `weight_operand` and `fixed_operand` make it.

    Returns:
        The sums, or, by the compiled kernels, a product that has still to be done: one with what follows.
    """
    if not isinstance(weight, torch.Tensor):
        return weight.times(x)
    flat = x.reshape(-1, x.shape[-1])
    if weight.dtype == torch.int8:
        product = torch._int_mm(flat.contiguous(), weight)
    else:
        with torch.autocast(x.device.type, enabled=False):
            product = torch.mm(flat.to(weight.dtype), weight)
    return product.unflatten(0, x.shape[:-1])


def weight_form(levels: torch.Tensor, weight: torch.Tensor, bound: int) -> str | torch.dtype:
    """How to hold the integers of `weight` for products with these levels.

    Args:
        bound: of the absolute value of a sum.

    Returns:
        "panels" for the compiled kernels; int8 where torch multiplies bytes; else a floating type in which no sum of
        this product is rounded.
    """
    kernels = compiled(levels, weight)
    if kernels is not None and kernels.takes_linear(levels, weight, bound):
        return "panels"
    bytes_will_do = levels.device.type == "cpu" and levels.dtype == torch.int8 and bound < 2**31 and multiplies_bytes()
    return torch.int8 if bytes_will_do else exact_dtype(bound)


def weight_operand(weight: torch.Tensor, scale: torch.Tensor, max_level: int, form: str | torch.dtype):
    """Levels of a weight (out, in) in the form that `weight_form` has found."""
    if isinstance(form, torch.dtype):
        return weight_levels(weight, scale, max_level, form)
    kernels = compiled(weight)
    assert kernels is not None
    return kernels.weight_panels(weight.float().contiguous(), scale.float().contiguous(), max_level)


# A weight in fixed point is a multiple of a quantum, of which 2**26 are beyond the largest weight of its row.
FIXED_BITS = 26
SMALLEST_EXPONENT = -100  # of a row's largest weight: quanta are ordinary numbers
LONGEST_SUM = 2**16  # of products of bytes, in 32 bits


def in_fixed_point(x: torch.Tensor) -> bool:
    """Whether products of int8 levels and weights of float32 are done in fixed point, where `x` is: where compiled
    kernels do them as fast as in floating point. The reference takes twice as long, and does them in tests alone.
    """
    return products_with_neurons(x)


def fixed_operand(levels: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor | None):
    """A weight in fixed point, an operand of `integer_linear` for products with these levels, whose sums are exact.

    Args:
        weight: (out, in).
        factors: (in,) that it is multiplied with; None for none.

    Returns:
        The operand, which is the weight itself, only read when it is multiplied with. None where such products are
        done in floating point.
    """
    own = [weight] if factors is None else [weight, factors]
    plain = all(type(x.data) is torch.Tensor and x.dtype == torch.float32 and x.device.type == "cpu" for x in own)
    in_rows = all(x.is_contiguous() and x.numel() for x in own) and weight.shape[1] <= LONGEST_SUM
    if not plain or not in_rows or levels.dtype != torch.int8 or torch.is_autocast_enabled("cpu"):
        return None
    if not in_fixed_point(levels):
        return None
    kernels = compiled(levels, *own)
    if kernels is None or not kernels.has_products:
        return fixed_point(weight, factors).t()
    return kernels.fixed_point(weight, factors)


@torch.no_grad()
def fixed_point(weight: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    """A weight in fixed point: whole multiples, up to 2**26, of the quantum of its row, which is a power of two.

    A weight is off by half a quantum at most, 2**-26 of the largest of its row (or 2**-127); from a quarter of that on
    float32 is no finer. A sum of such numbers times levels is exact in float64, in any order.

    Args:
        weight: (out, in) float32.
        factors: (in,) that it is multiplied with; None for none.

    Returns:
        (out, in) float64; NaN in a row where a number is none, or beyond float32.
    """
    exact = weight.double() if factors is None else weight.double() * factors.double()
    largest = exact.abs().amax(1)
    exponents = torch.frexp(largest).exponent.clamp(min=SMALLEST_EXPONENT) - FIXED_BITS
    quanta = torch.exp2(exponents.double()).where(largest < 2.0**128, torch.nan)[:, None]
    return (exact / quanta).round() * quanta


@cache
def multiplies_bytes() -> bool:
    """Whether torch's product of int8 matrices is fast and exact on this CPU.

    Without instructions for it (VNNI), oneDNN adds pairs of products in 16 bits, which then overflow; and without
    AVX-512 torch multiplies one number at a time, twenty times as slow as in float32.
    """
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    a, b = (torch.full(shape, 127, dtype=torch.int8, device="cpu") for shape in ((9, 64), (64, 33)))
    a[::2], b[:, ::2] = -128, -127
    return torch.equal(torch._int_mm(a, b).double(), a.double() @ b.double())


def exact_dtype(bound: int) -> torch.dtype:
    """The smallest floating type that holds every whole number up to `bound`."""
    return torch.float32 if bound < 2**24 else torch.float64


def float_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias in floating point. No gradient.

    In float32 on a CPU oneDNN's product is faster than the one that `torch.nn.Linear` takes (`benchmarks/README.md`).
    """
    onednn = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
    if not onednn:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

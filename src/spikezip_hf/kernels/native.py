# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Kernels for the CPU, in C (`native.c` and its headers), on tensors.

They are built on first use (`building.py`). If there is no compiler, or what it built does not give the references'
bits, the references do the work. With `SPIKEZIP_KERNELS=reference` in the environment the compiler is left alone.
"""

import ctypes
import subprocess
from functools import cache

import torch
from transformers.utils import logging

from . import building, checks, wanted
from .deferred import Contexts, FixedPoint, LinearProduct, MatrixProduct, Panels, Probabilities, is_spread, version_of
from .memory import keep_memory

logger = logging.get_logger(__name__)

int64 = ctypes.c_int64
PANEL = 64  # as in products.h
CPU = torch.device("cpu")  # named wherever memory is taken: the default may be another device


@cache
def library() -> "Library | None":
    """The kernels, built if need be; None where there are none to be had."""
    if not wanted():
        return None
    compiler = building.compiler()
    if compiler is None:
        logger.info("No C compiler found: the reference kernels do the work, 3 to 5 times slower.")
        return None
    try:
        path = building.build(compiler)
        try:
            built = Library(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):  # damaged
            path.unlink(missing_ok=True)
            built = Library(ctypes.CDLL(str(building.build(compiler))))
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning(f"The CPU kernels could not be built, the reference ones do the work: {said.strip()[-500:]}")
        return None
    with CPU:
        exact = checks.gives_reference(built)
    if not exact:
        logger.warning("The CPU kernels, as this compiler built them, are not exact: the reference ones do the work.")
        return None
    keep_memory()
    return built


def address(x: torch.Tensor | None) -> ctypes.c_void_p | None:
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def numbers(*values: int):
    return (int64 * len(values))(*values)


FLOATS, INTEGERS, LEVELS, SCORES, CONTEXTS = range(5)  # as in native.c
TERM_TYPES = torch.float32, torch.int32, torch.int8  # as in arrays.h
OPERANDS = "panels", "correction", "numbers", "factors"  # as in weights.h
NOT_FIRED = -(2**63)


def no_memory_lacks(lacks: int, *called: object) -> None:
    """Raise MemoryError if a kernel says that it found no memory for what it needs on the way."""
    if lacks:
        raise MemoryError("The kernels found no memory for their work.")


class Weight(ctypes.Structure):
    """The struct of that name in weights.h, where its fields are explained."""

    _fields_ = [
        *((name, int64) for name in ("n", "k")),
        *((name, ctypes.c_void_p) for name in OPERANDS),
    ]

    @classmethod
    def of(cls, weight: Panels | FixedPoint) -> "Weight":
        """What kernels are to multiply with. It points to the tensors of `weight`, and does not keep them."""
        if isinstance(weight, FixedPoint):
            weight.check()
        n, k = weight.shape
        return cls(n, k, *(address(getattr(weight, name, None)) for name in OPERANDS))


class Term(ctypes.Structure):
    """The struct of that name in arrays.h, where its fields are explained."""

    _fields_ = [
        ("numbers", ctypes.c_void_p),
        ("kind", int64),
        ("scale", ctypes.c_void_p),
        ("scales", int64),
        ("bias", ctypes.c_void_p),
        ("biases", int64),
        ("index", ctypes.c_void_p),
    ]

    @classmethod
    def of(cls, numbers: torch.Tensor, scale, bias, index) -> "Term":
        """What kernels are to add. It points to the tensors, and does not keep them."""
        kind = TERM_TYPES.index(numbers.dtype)
        return cls(address(numbers), kind, *numbers_of(scale), *numbers_of(bias), address(index))


class Neurons(ctypes.Structure):
    """The struct of that name in native.c, where its fields are explained."""

    _fields_ = [
        ("current", ctypes.c_void_p),
        ("kind", int64),
        ("weight", Weight),
        ("right", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("k", int64),
        ("width", int64),
        ("table", ctypes.c_void_p),
        ("entries", int64),
        *((name, ctypes.c_void_p) for name in ("keys", "scale", "bias", "threshold")),
        *((name, int64) for name in ("scales", "biases", "thresholds")),
        ("tokens", ctypes.c_void_p),
        *((name, int64) for name in ("positions", "places", "features", "steps", "samples")),
        *(
            (name, ctypes.c_void_p)
            for name in ("index", "tracer", "levels", "row_of", "changed", "counts", "at_target")
        ),
        *((name, int64) for name in ("min_level", "max_level", "max_spikes", "closed", "coarse", "fresh")),
    ]


class Library:
    """The functions of the shared library, on tensors. The `takes_...` say what they can be called with."""

    def __init__(self, functions: ctypes.CDLL):
        self.functions = functions
        functions.spikezip_fire.restype = int64
        functions.spikezip_panel_bytes.restype = int64
        for name in ("sum", "weight_levels", "weight_panels", "linear", "products"):
            getattr(functions, f"spikezip_{name}").errcheck = no_memory_lacks
        self.use_tiles(True)
        self.has_products = self.products_by != "nothing"

    def use_tiles(self, wanted: bool) -> None:
        """Multiply by tiles (AMX), if there and wanted, else by vectors (AVX-512 VNNI or AVX2). For the process."""
        self.products_by = ("nothing", "vectors", "tiles")[self.functions.spikezip_products_by(int(wanted))]

    def takes_values(
        self, integers: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> bool:
        return (
            integers.dtype in (torch.int8, torch.int32)
            and integers.is_contiguous()
            and dtype == torch.float32
            and all(is_spread(x, integers.shape[-1]) for x in (scale, bias))
        )

    def values(self, integers: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `models.kernels.values_of`."""
        return self.sum([(integers, scale, bias, None)])

    def takes_sum(self, terms: list[tuple]) -> bool:
        """Whether all is of the types that the kernel reads, and as many rows of one shape."""

        def takes(numbers, scale, bias, index) -> bool:
            if index is not None:
                first, last = index.aminmax() if len(index) else (-1, -1)
                if first < 0 or last >= len(numbers):
                    return False
            if scale is not None:
                return self.takes_values(numbers, scale, bias, torch.float32)
            return numbers.dtype == torch.float32 and numbers.is_contiguous()

        if any(numbers.dim() < 2 for numbers, *_ in terms):
            return False
        shapes = {(len(numbers if index is None else index), *numbers.shape[1:]) for numbers, *_, index in terms}
        return len(shapes) == 1 and all(takes(*term) for term in terms)

    def sum(self, terms: list[tuple]) -> torch.Tensor:
        """See `models.kernels.sum_of`; of one term or two."""
        numbers, *_, index = terms[0]
        rows = numbers.shape[:1] if index is None else index.shape
        total = torch.empty(rows + numbers.shape[1:], dtype=torch.float32, device=CPU)
        if total.numel():
            given = (Term * len(terms))(*(Term.of(*term) for term in terms))
            count, features = len(total) if total.dim() > 1 else 1, total.shape[-1]
            shape = count, total.numel() // (count * features), features
            self.functions.spikezip_sum(given, *map(int64, (len(terms), *shape)), address(total))
        return total

    def takes_weights(self, weight: torch.Tensor, scale: torch.Tensor) -> bool:
        floats = weight.dtype == scale.dtype == torch.float32 and weight.is_contiguous() and scale.is_contiguous()
        return floats and weight.dim() == 2 and scale.numel() == len(weight) and weight.numel() > 0

    def weight_levels(self, weight: torch.Tensor, scale: torch.Tensor, max_level: int) -> torch.Tensor:
        """See `models.kernels.weight_levels`."""
        n, k = weight.shape
        levels = torch.empty(k, n, dtype=torch.int8, device=CPU)
        self.functions.spikezip_weight_levels(
            address(weight), address(scale), int64(n), int64(k), max_level, address(levels)
        )
        return levels

    def takes_linear(self, levels: torch.Tensor, weight: torch.Tensor, bound: int) -> bool:
        """Whether products of these levels and the integers of this weight are done by panels."""
        bytes_ = levels.dtype == torch.int8 and weight.dtype != torch.float64 and bound < 2**31
        return self.has_products and bytes_ and levels.numel() > 0 and weight.numel() > 0

    def weight_panels(self, weight: torch.Tensor, scale: torch.Tensor, max_level: int) -> Panels:
        """See `models.kernels.weight_panels`."""
        n, k = weight.shape
        width = -(-n // PANEL) * PANEL
        size = width // PANEL * self.functions.spikezip_panel_bytes(int64(k))
        panels = torch.empty(size, dtype=torch.int8, device=CPU)
        correction = torch.empty(width, dtype=torch.int32, device=CPU)
        self.functions.spikezip_weight_panels(
            address(weight), address(scale), int64(n), int64(k), max_level, address(panels), address(correction)
        )
        return Panels(self, panels, correction, (n, k))

    def fixed_point(self, weight: torch.Tensor, factors: torch.Tensor | None) -> FixedPoint:
        """See `models.kernels.fixed_point`; the numbers are not kept, but made while they are multiplied."""
        return FixedPoint(self, weight, factors, version_of(weight))

    def linear(
        self, product: LinearProduct, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sums of a product, (..., out_features) of `sum_dtype`; with a scale, values in float32."""
        levels = product.levels.contiguous()
        weight = Weight.of(product.weight)
        dtype = product.weight.sum_dtype if scale is None else torch.float32
        out = torch.empty(product.shape, dtype=dtype, device=CPU)
        if not out.numel():
            return out
        self.functions.spikezip_linear(
            address(levels),
            int64(levels.numel() // weight.k),
            ctypes.byref(weight),
            *numbers_of(scale),
            *numbers_of(bias),
            address(out),
        )
        return out

    def takes_products(self, a: torch.Tensor, b: torch.Tensor, bound: int) -> bool:
        fits = bound < 2**31 and a.dim() > 3 and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
        return self.has_products and a.dtype == b.dtype == torch.int8 and fits and a.numel() > 0 and b.numel() > 0

    def deferred(self, a: torch.Tensor, b: torch.Tensor) -> MatrixProduct:
        """`products` of these, to be done later."""
        return MatrixProduct(self, a, b)

    def products(self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """See `models.kernels.integer_matmul`; with a scale, one number, times that, in float32.

        Heads lie inside positions, as they do in what is made of them next, unless the product is one of attention
        scores, (n, n).
        """
        batch = a.shape[:-3]  # rows, or rows and windows
        a, b = with_rows_in_place(a.flatten(0, -4)), b.flatten(0, -4)
        rows, heads, m, k = a.shape
        n = b.shape[-1]
        dtype = torch.int32 if scale is None else torch.float32
        if b.stride(-1) == 1:  # probabilities and values: a context, whose heads come together again
            out = torch.empty(rows, m, heads, n, dtype=dtype, device=CPU).transpose(1, 2)
        else:
            out = torch.empty(rows, heads, m, n, dtype=dtype, device=CPU)
        self.functions.spikezip_products(
            address(a),
            numbers(*a.stride()),
            address(b),
            numbers(*b.stride()),
            address(out),
            numbers(*out.stride()),
            *map(int64, (rows, heads, m, k, n)),
            address(scale),
        )
        return out.unflatten(0, batch)

    def deferred_softmax(self, *given) -> Probabilities:
        """Softmax of a product's scores, to be done later."""
        return Probabilities(*given)

    def takes_softmax(self, product: MatrixProduct, table: torch.Tensor, keys: torch.Tensor | None) -> bool:
        rows, *_, n = product.shape
        own = [x for x in (table, keys) if x is not None]
        counts = keys is None or (keys.dtype == torch.bool and keys.shape == (rows, 1, 1, n))
        return product.left.dim() == 4 and counts and all(x.device == CPU for x in own) and table.is_contiguous()

    def takes_contexts(self, product: MatrixProduct) -> bool:
        return product.left.dim() == 4 and product.right.stride(-1) == 1 and product.right.shape[-1] <= PANEL

    def takes_neurons(
        self,
        current: torch.Tensor | LinearProduct | Probabilities | Contexts,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        threshold: torch.Tensor,
        index: torch.Tensor,
        tracer: torch.Tensor,
        tokens: torch.Tensor | None,
    ) -> bool:
        """Whether all is of the types that the kernel reads and of shapes that fit one another. That the rows which
        `index` names are there is for the caller to know."""
        return (
            (not isinstance(current, torch.Tensor) or current.dtype in (torch.float32, torch.int32))
            and tracer.dtype == torch.int8
            and tracer.is_contiguous()
            and tracer.numel() > 0
            and current.shape[1:] == tracer.shape[1:]
            and index.shape[1] == len(tracer)
            and all(is_spread(x, current.shape[-1]) for x in (scale, bias, threshold))
            and (tokens is None or (tokens.dtype == torch.bool and tokens.shape == (len(tracer), current.shape[-2])))
        )

    def fire(
        self,
        current: torch.Tensor | LinearProduct | Probabilities | Contexts,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        threshold: torch.Tensor,
        bounds: tuple[int, int],
        index: torch.Tensor,
        tracer: torch.Tensor,
        tokens: torch.Tensor | None,
        max_spikes: int,
        closed_steps: int,
        coarse_steps: int = 0,
        fresh: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        """See `models.neurons.Firing`; `tracer`, contiguous, is left as after the last step.

        Args:
            fresh: the neurons begin at 0, whatever the memory of `tracer` holds.

        Returns:
            Rows of levels; which steps (T, B) have a row, and which row stands for a step; counts; whether at target;
            whether a current is NaN.
        """
        steps, samples = index.shape
        features = current.shape[-1]
        neurons = Neurons(kind=FLOATS)
        if isinstance(current, LinearProduct):
            given = current.levels.contiguous()
            neurons = Neurons(kind=LEVELS, weight=Weight.of(current.weight))
        elif isinstance(current, Probabilities | Contexts):
            given, right = with_rows_in_place(current.product.left), current.product.right
            strides = numbers(*given.stride()[:3], *right.stride())
            neurons = Neurons(k=given.shape[-1], right=right.data_ptr(), strides=ctypes.addressof(strides))
            if isinstance(current, Contexts):
                neurons.kind, neurons.width = CONTEXTS, right.shape[-1]
            else:
                neurons.kind, neurons.table, neurons.entries = SCORES, current.table.data_ptr(), len(current.table)
                keys = None if current.keys is None else current.keys.contiguous()
                neurons.keys = None if keys is None else keys.data_ptr()
        else:
            given = current.contiguous()
            if given.dtype == torch.int32:
                neurons = Neurons(kind=INTEGERS)
        index = index.long().contiguous()
        if tokens is not None:
            tokens = tokens.contiguous()
        levels = torch.empty(steps * samples, *tracer.shape[1:], dtype=torch.int8, device=CPU)
        row_of, counts = (torch.empty(steps, samples, dtype=torch.int64, device=CPU) for _ in range(2))
        changed = torch.empty(steps, samples, dtype=torch.bool, device=CPU)
        at_target = torch.empty(samples, dtype=torch.bool, device=CPU)
        given_and_filled = {
            "current": given,
            "scale": scale,
            "bias": bias,
            "threshold": threshold,
            "tokens": tokens,
            "index": index,
            "tracer": tracer,
            "levels": levels,
            "row_of": row_of,
            "changed": changed,
            "counts": counts,
            "at_target": at_target,
        }
        for name, tensor in given_and_filled.items():
            setattr(neurons, name, None if tensor is None else tensor.data_ptr())
        for name, number in (("scales", scale), ("biases", bias), ("thresholds", threshold)):
            setattr(neurons, name, 0 if number is None else number.numel())
        neurons.places, neurons.features = tracer.numel() // (samples * features), features
        by_heads = isinstance(current, Probabilities) or tokens is not None
        neurons.positions = current.shape[-2] if by_heads else neurons.places
        neurons.steps, neurons.samples = steps, samples
        neurons.min_level, neurons.max_level = bounds
        neurons.max_spikes, neurons.closed, neurons.coarse = max_spikes, closed_steps, coarse_steps
        neurons.fresh = fresh
        rows = self.functions.spikezip_fire(ctypes.byref(neurons))
        no_memory_lacks(rows == NOT_FIRED)
        if abs(rows) < len(levels):
            levels = levels[: abs(rows)]
        return levels, changed, row_of, counts, at_target, rows < 0


def with_rows_in_place(left: torch.Tensor) -> torch.Tensor:
    """The left side of a product as the kernels read it: the numbers of a row side by side."""
    return left if left.stride(-1) == 1 else left.contiguous()


def numbers_of(x: torch.Tensor | None) -> tuple[ctypes.c_void_p | None, int64]:
    """Address and count of one number or one for each feature, in float32; none if None."""
    return (None, int64(0)) if x is None else (address(x), int64(x.numel()))

# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Products of integers that are not done yet, but together with what follows, block by block.

The sums of a product would take four bytes for each neuron and step in memory, to be written and read again. What
follows makes one byte of them (the neurons of a node), or values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .native import Library


@dataclass(frozen=True, eq=False)
class Panels:
    """An integer weight as the kernels multiply with it.

    Attributes:
        kernels: those that made it, and multiply.
        panels: int8, see products.h; `correction` belongs to it.
        shape: (out_features, in_features) of the weight.
    """

    kernels: Library
    panels: torch.Tensor
    correction: torch.Tensor
    shape: tuple[int, int]
    sum_dtype = torch.int32

    def times(self, levels: torch.Tensor) -> LinearProduct:
        return LinearProduct(levels, self)


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A weight of float32 that the kernels multiply with as fixed-point numbers (`models.kernels.fixed_point`).

    It is read when the product is done: until then it must not change.

    Attributes:
        numbers: (out_features, in_features) float32; with `factors`, (in_features,), times those.
        version: of `numbers`, when this was made.
    """

    kernels: Library
    numbers: torch.Tensor
    factors: torch.Tensor | None
    version: int
    sum_dtype = torch.float64

    def check(self) -> None:
        """Raise RuntimeError if the weight is another by now, or has no memory."""
        if version_of(self.numbers) != self.version or not self.numbers.data_ptr():
            raise RuntimeError(
                "A weight was changed, or its memory given back, between its product and the neurons behind it. In "
                "inference products are done together with those: change weights outside of the forward pass."
            )

    @property
    def shape(self) -> torch.Size:
        return self.numbers.shape

    def times(self, levels: torch.Tensor) -> LinearProduct:
        return LinearProduct(levels, self)


@dataclass(frozen=True, eq=False)
class LinearProduct:
    """Levels (..., in_features), int8, that are to be multiplied with a weight. Neurons can do it (`Library.fire`)."""

    levels: torch.Tensor
    weight: Panels | FixedPoint
    with_neurons = True

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.levels.shape[:-1], self.weight.shape[0]))

    @property
    def device(self) -> torch.device:
        return self.levels.device

    def sums(self) -> torch.Tensor:
        """The product, (..., out_features) of the weight's `sum_dtype`."""
        return self.weight.kernels.linear(self)

    def __reduce__(self):
        return done, (self.sums(),)  # a copy is of what it stands for: kernels are of one process

    def values(self, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """The product times a scale, plus a bias, in float32, as `models.kernels.values_of`; None without a kernel."""
        if not all(is_spread(x, self.shape[-1]) for x in (scale, bias)):
            return None
        return self.weight.kernels.linear(self, scale, bias)


@dataclass(frozen=True, eq=False)
class MatrixProduct:
    """Two batches of levels, (rows, [windows,] heads, m, k) and (..., k, n) in int8, that are to be multiplied."""

    kernels: Library
    left: torch.Tensor
    right: torch.Tensor
    with_neurons = False

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.left.shape[:-1], self.right.shape[-1]))

    @property
    def device(self) -> torch.device:
        return self.left.device

    def sums(self) -> torch.Tensor:
        """The product, (rows, [windows,] heads, m, n) int32."""
        return self.kernels.products(self.left, self.right)

    def contexts(self) -> Contexts:
        """The same with heads side by side, still to be done."""
        return Contexts(self)

    def __reduce__(self):
        return done, (self.sums(),)

    def values(self, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """As of `LinearProduct`; of one scale and no bias."""
        if bias is not None or scale.numel() != 1 or not is_spread(scale, 1):
            return None
        return self.kernels.products(self.left, self.right, scale)


@dataclass(frozen=True, eq=False)
class Contexts:
    """A product of probabilities and values, (rows, heads, m, n), head beside head: (rows, m, heads * n). Neurons can
    do it (`Library.fire`)."""

    product: MatrixProduct
    with_neurons = True

    @property
    def shape(self) -> torch.Size:
        rows, heads, m, n = self.product.shape
        return torch.Size((rows, m, heads * n))

    @property
    def device(self) -> torch.device:
        return self.product.device

    def sums(self) -> torch.Tensor:
        """(rows, m, heads * n) int32."""
        return merged(self.product.sums())

    def values(self, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """As of `MatrixProduct`."""
        values = self.product.values(scale, bias)
        return None if values is None else merged(values)

    def __reduce__(self):
        return done, (self.sums(),)


def merged(x):
    """(..., heads, m, n) as (..., m, heads * n): heads side by side."""
    return x.transpose(-3, -2).flatten(-2)


@dataclass(frozen=True, eq=False)
class Probabilities:
    """The softmax of scores that are a product, to be made together with neurons (`Library.fire`).

    Attributes:
        product: the scores, (rows, heads, queries, keys), whole numbers.
        table, keys: as of `models.kernels.integer_softmax`; keys (rows, 1, 1, keys).
        function: that one, for who wants values.
    """

    product: MatrixProduct
    table: torch.Tensor
    keys: torch.Tensor | None
    function: Callable
    dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        return self.product.shape

    @property
    def device(self) -> torch.device:
        return self.product.device

    def values(self) -> torch.Tensor:
        """(rows, heads, queries, keys) float32."""
        return self.function(self.product.sums(), self.table, self.keys)

    def __reduce__(self):
        return done, (self.values(),)


def version_of(x: torch.Tensor) -> int:
    """Torch's counter of changes; tensors made in inference mode have none."""
    return 0 if x.is_inference() else x._version


def done(sums: torch.Tensor) -> torch.Tensor:
    """What a copy of a product is."""
    return sums


def is_spread(x: torch.Tensor | None, features: int) -> bool:
    """Whether `x` is nothing, one number, or one for each feature, as the kernels take them."""
    return x is None or (x.dtype == torch.float32 and x.is_contiguous() and x.numel() in (1, features))

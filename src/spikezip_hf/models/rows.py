# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What travels through a network in inference: integers with their scale, and the steps that its rows stand for.

A node hands on *levels* and their scale, s * S. A product of levels and integer weights, or of two levels, is a sum of
integers: exact, in any order and by any kernel, and so the same for one row and for a thousand. Its scale, and the
bias of an affine map, come afterwards. Whoever needs values (a residual addition, LayerNorm) gets
integers * scale + bias.

In a simulation many steps are rows of one pass, and where nothing changes from a step to the next one row stands for
both. A `Timeline` says which steps of a chunk have a row of their own.
"""

from functools import cached_property

import torch

from .kernels import compiled, sum_of, values_of


class Timeline:
    """Which steps of a chunk are rows of a tensor, sample by sample: those at which it may have changed.

    Args:
        changed: (steps, samples) bool, on the CPU. The first step is True for every sample.
        index, num_rows: what follows from it, where it is known already.

    Attributes:
        index: (steps, samples) int64, the row that stands for a step. Rows are in order of steps, then samples.
        num_rows: how many rows there are.
    """

    def __init__(self, changed: torch.Tensor, index: torch.Tensor | None = None, num_rows: int = 0):
        self.changed = changed
        if index is not None:
            self.index, self.num_rows = index, num_rows
            return
        numbers = changed.flatten().cumsum(0).view(changed.shape) - 1
        self.index = torch.where(changed, numbers, -1).cummax(0).values
        self.num_rows = int(numbers[-1, -1]) + 1 if changed.numel() else 0

    @cached_property
    def mask(self) -> int:
        """`changed` as a number, a byte for each step and sample. Quickly compared, as tensors so small are not."""
        return int.from_bytes(self.changed.numpy().tobytes(), "little")

    @classmethod
    def constant(cls, steps: int, samples: int) -> "Timeline":
        """One row a sample for all steps."""
        changed = torch.zeros(steps, samples, dtype=torch.bool, device="cpu")
        changed[0] = True
        return cls(changed, torch.arange(samples, device="cpu").expand(steps, -1), samples)

    def union(self, other: "Timeline") -> "Timeline":
        """Rows wherever one of the two has one. One of the two itself, if it has all.

        Raises:
            ValueError: they are of other steps or samples.
        """
        if self.changed.shape != other.changed.shape:
            raise ValueError(
                f"Rows of {tuple(self.changed.shape)} steps and samples meet rows of {tuple(other.changed.shape)}: a "
                "hook must hand on what it makes of the Rows of the running chunk."
            )
        samples = self.changed.shape[1]
        if self.num_rows == samples or other.num_rows == samples:  # those of the first step, which all have
            return other if self.num_rows == samples else self
        both = self.mask | other.mask
        for timeline in (self, other):
            if timeline.mask == both:
                return timeline
        return Timeline(self.changed | other.changed)

    def rows_of(self, wanted: "Timeline") -> torch.Tensor | None:
        """The rows, (rows,) int64, that stand for those of `wanted`, which has all of them and more; None for all."""
        if wanted is self or wanted.num_rows == self.num_rows:
            return None
        return self.index.masked_select(wanted.changed)

    def select(self, x: torch.Tensor, wanted: "Timeline") -> torch.Tensor:
        """Rows of `x`, which are those of this timeline, as those of `wanted`."""
        rows = self.rows_of(wanted)
        return x if rows is None else x.index_select(0, rows.to(x.device))


def in_inference(module: torch.nn.Module) -> bool:
    """Whether what travels are Rows. Not in a compiled graph: it rounds in its own way whatever it is given."""
    return not (module.training or torch.compiler.is_compiling() or torch.jit.is_tracing())


class _Replace(torch.autograd.Function):
    """Its second argument, with the gradient of the first."""

    @staticmethod
    def forward(ctx, differentiable, exact):
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output, None


class Rows:
    """A tensor of values (rows, ...) that remembers its integers, its scale and its steps.

    It behaves like the tensor of its values: torch functions take it, and act on values. Shapes of rows can be changed
    without giving up the integers. Neither is to be changed in place.

    Args:
        values: (rows, ...), if they are there, or what makes them when they are asked for
            (`spikezip_hf.kernels.deferred.Probabilities`); else they are made of the integers.
        integers: (rows, ...) whole numbers: int8 or int16 levels, or sums of products in int32 or a floating type
            (those of a weight in fixed point are multiples of a quantum); or a product that is done when it is asked
            for (`spikezip_hf.kernels.deferred`).
        scale: (1,) or (features,) that they are multiplied with, in float32 or wider.
        bias: (features,) that is added.
        peak: bound of the absolute value of levels.
        dtype: of the values.
        timeline: the steps that rows stand for; None where rows are samples.
        sources: what the integers, or the values of a softmax of integers, are made of: names of the nodes whose
            levels these are, or are products of, factors of the scale, and changes of shape. Empty where there is more
            to them. As long as these nodes stay where they are, and sources are the same, so are the numbers.
    """

    __iter__ = None  # a ModelOutput takes what can be iterated for a list of its fields

    def __init__(
        self,
        values=None,
        *,
        integers=None,
        scale: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        peak: int = 0,
        dtype: torch.dtype | None = None,
        timeline: Timeline | None = None,
        sources: tuple = (),
    ):
        self._values = values
        self._integers = integers
        self.scale = scale
        self.bias = bias
        self.peak = peak
        self.dtype = values.dtype if values is not None else dtype
        self.timeline = timeline
        self.sources = sources

    @property
    def values(self) -> torch.Tensor:
        """integers * scale + bias, computed in at least float32 and rounded to `dtype`."""
        if self.pending is not None:
            self._values = self.pending.values()
        if self._values is None:
            assert self.scale is not None
            assert self.dtype is not None
            if self.product is not None and self.dtype == torch.float32:
                self._values = self.product.values(self.scale, self.bias)
            if self._values is None:
                assert self.integers is not None
                self._values = values_of(self.integers, self.scale, self.bias, self.dtype)
        return self._values

    @property
    def pending(self):
        """What will make the values when they are asked for; None where they are there, or are made of integers."""
        return None if self._values is None or isinstance(self._values, torch.Tensor) else self._values

    @property
    def integers(self) -> torch.Tensor | None:
        """The whole numbers; a product that was still to be done is done."""
        if self.product is not None:
            self._integers = self.product.sums()
        return self._integers

    @property
    def product(self):
        """The product that `integers` are the sums of, if it is still to be done."""
        return None if self._integers is None or isinstance(self._integers, torch.Tensor) else self._integers

    @property
    def levels(self) -> torch.Tensor | None:
        """Integers whose one scale is all that lies between them and the values; None if there are no such."""
        return self.integers if self.uniform and self.peak else None

    @property
    def uniform(self) -> bool:
        """Whether one scale is all that lies between integers and values, so that their places do not matter."""
        return self.scale is not None and self.scale.numel() == 1 and self.bias is None

    @property
    def given(self):
        """What there is: integers, or the product they come of, else values."""
        return self._values if self._integers is None else self._integers

    shape = property(lambda self: self.given.shape)
    device = property(lambda self: self.given.device)

    def dim(self) -> int:
        return len(self.shape)

    def reshaped(self, function, features_stay: bool = False, how: tuple = ()) -> "Rows":
        """`function`, a change of shape or order within each row, of the integers if they have one scale, else of the
        values.

        Args:
            features_stay: the last dimension stays as it is, so levels with a scale for each feature keep theirs.
            how: a name for `function`, which is always the same one under this name; without it sources are lost.
        """
        if not self.uniform and not (features_stay and self.peak and self.bias is None):
            return Rows(function(self.values), timeline=self.timeline)
        assert self.integers is not None
        values = None if self._values is None else function(self._values)
        return self.like(function(self.integers), values, self.sources_and(how))

    def copy(self) -> "Rows":
        """The same Rows once more, whose attributes may be set to others."""
        return Rows(
            self._values,
            integers=self._integers,
            scale=self.scale,
            bias=self.bias,
            peak=self.peak,
            dtype=self.dtype,
            timeline=self.timeline,
            sources=self.sources,
        )

    def like(self, integers: torch.Tensor, values: torch.Tensor | None = None, sources: tuple = ()) -> "Rows":
        """Other integers with the same meaning."""
        rows = self.copy()
        rows._integers, rows._values, rows.sources = integers, values, sources
        return rows

    def sources_and(self, how: tuple) -> tuple:
        """The sources with one more thing that was done; none if they, or it, are unknown."""
        return (*self.sources, how) if self.sources and how else ()

    def unflatten(self, dim, sizes) -> "Rows":
        return self.reshaped(lambda x: x.unflatten(dim, sizes), how=("unflatten", dim, *sizes))

    def flatten(self, start=0, end=-1) -> "Rows":
        return self.reshaped(lambda x: x.flatten(start, end), how=("flatten", start, end))

    def transpose(self, a, b) -> "Rows":
        return self.reshaped(lambda x: x.transpose(a, b), how=("transpose", a, b))

    def heads_merged(self) -> "Rows":
        """(rows, ..., heads, N, d) as (rows, ..., N, heads * d), heads side by side; a product is done later if it can
        be."""
        product = self.product if self._values is None else None
        if product is not None and not product.with_neurons and product.kernels.takes_contexts(product):
            return self.like(product.contexts(), sources=self.sources_and(("heads merged",)))
        return self.transpose(-3, -2).flatten(-2)

    def __getitem__(self, key) -> "Rows":
        keys = key if isinstance(key, tuple) else (key,)
        plain = all(
            isinstance(k, int | slice) or (isinstance(k, torch.Tensor) and k.dtype == torch.int64) for k in keys
        )
        return self.reshaped(lambda x: x[key], features_stay=plain and len(keys) < self.dim())

    def to(self, *args, **kwargs) -> "Rows":
        """On another device with its integers, or in another type."""
        if isinstance(args[0] if args else kwargs.get("device"), str | int | torch.device):
            rows = self.copy()
            rows._integers = self.integers
            rows._values = None if self._values is None else self.values
            for name in ("_values", "_integers", "scale", "bias"):
                x = getattr(rows, name)
                setattr(rows, name, None if x is None else x.to(*args, **kwargs))
            return rows
        return Rows(self.values.to(*args, **kwargs), timeline=self.timeline)

    def scaled(self, factor: float) -> "Rows":
        """`factor` times the values, by way of the scale where there are integers."""
        if self._integers is None or self.bias is not None:
            return Rows(self.values * factor, timeline=self.timeline)
        assert self.scale is not None
        scale = self.scale * factor
        rows = Rows(integers=self._integers, scale=scale, dtype=self.dtype, timeline=self.timeline)
        rows.sources = self.sources_and(("scaled", factor))
        if self._values is None or not self._values.requires_grad:
            return rows
        return rows.with_gradient_of(self._values * factor)

    def with_gradient_of(self, differentiable: torch.Tensor) -> "Rows":
        """The same, its values with the gradient of what was computed in floating point."""
        rows = self.copy()
        rows._values = _Replace.apply(differentiable, self.values.detach())
        return rows

    def retimed(self, timeline: Timeline) -> "Rows":
        """The same rows, standing for other steps."""
        rows = self.copy()
        rows.timeline = timeline
        return rows

    def on(self, timeline: Timeline) -> "Rows":
        """The same on a timeline that has all rows of this one's and more."""
        assert self.timeline is not None
        if timeline is self.timeline:
            return self
        source = self.timeline
        if self.integers is None:
            return Rows(source.select(self.values, timeline), timeline=timeline)
        return self.like(source.select(self.integers, timeline), sources=self.sources).retimed(timeline)

    def term(self, timeline: Timeline | None) -> tuple:
        """What is given, as a term of `sum_of` on a timeline that has all rows of this one's and more."""
        index = None if timeline is None or self.timeline is None else self.timeline.rows_of(timeline)
        return self.given, *((None, None) if self._integers is None else (self.scale, self.bias)), index

    def __add__(self, other):
        total = added(self, other) if isinstance(other, Rows) and not torch.is_grad_enabled() else None
        return self.__torch_function__(torch.add, (), (self, other)) if total is None else total

    def __radd__(self, other):
        return self.__torch_function__(torch.add, (), (other, self))

    def __mul__(self, other):
        if isinstance(other, float):
            return self.scaled(other)
        return self.__torch_function__(torch.mul, (), (self, other))

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name):
        if name.startswith("__"):  # Rows are copied and pickled as what they are
            raise AttributeError(name)
        method = getattr(torch.Tensor, name)  # its AttributeError is the right one
        if not callable(method):
            return getattr(self.values, name)
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    def __repr__(self) -> str:
        kind = "values" if self._integers is None else "integers"
        return f"Rows({kind} {tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """`function` of the values. It acts on each row by itself, or it has no business in a network."""
        kwargs = kwargs or {}
        if function is torch.nn.functional.dropout and not kwargs["training"]:
            return args[0]
        if function.__name__.endswith("_") and not function.__name__.endswith("__"):
            raise TypeError(f"{function.__name__} would change values and leave their levels: Rows are not changed.")
        timeline, (args, kwargs) = align((args, kwargs))
        result = function(*unwrap(args), **unwrap(kwargs))
        return Rows(result, timeline=timeline) if isinstance(result, torch.Tensor) else result


def _as_values(name: str):
    return lambda self, *others: Rows.__torch_function__(getattr(torch.Tensor, name), (), (self, *others))


for _name in ("sub", "rsub", "truediv", "rtruediv", "rmul", "matmul", "rmatmul", "pow", "neg", "abs", "gt", "lt"):
    setattr(Rows, f"__{_name}__", _as_values(f"__{_name}__"))


def added(a: Rows, b: Rows) -> Rows | None:
    """a + b in one pass over memory, values made and rows chosen on the way; None without a kernel for it."""
    given = a.given, b.given  # what has still to be done makes its own values
    if not all(isinstance(x, torch.Tensor) for x in given) or compiled(*given) is None:
        return None
    if a.dtype != torch.float32 or b.dtype != torch.float32 or (a.timeline is None) != (b.timeline is None):
        return None
    timeline = common_timeline([a, b])
    total = sum_of([a.term(timeline), b.term(timeline)])
    return None if total is None else Rows(total, timeline=timeline)


def common_timeline(found: list[Rows]) -> Timeline | None:
    """The one timeline that has all rows of these; None if they have none."""
    timeline = found[0].timeline if found else None
    for rows in found[1:]:
        if rows.timeline is not timeline:
            timeline = timeline.union(rows.timeline)  # type: ignore[union-attr, arg-type]
    return timeline


def align(args):
    """The one timeline of all Rows in `args`, and `args` with them brought to it."""
    timeline = common_timeline([x for x in nested(args) if isinstance(x, Rows) and x.timeline is not None])
    if timeline is None:
        return None, args
    return timeline, mapped(lambda rows: rows.on(timeline) if rows.timeline is not None else rows, args)


def nested(x):
    """Whatever is in tuples, lists and dicts, flat."""
    if isinstance(x, dict):
        x = tuple(x.values())
    if isinstance(x, tuple | list):
        for item in x:
            yield from nested(item)
    else:
        yield x


def mapped(function, x):
    """`x` with `function` applied to the Rows in it, through tuples, lists and dicts."""
    if isinstance(x, Rows):
        return function(x)
    if isinstance(x, dict):
        return {key: mapped(function, value) for key, value in x.items()}
    if isinstance(x, tuple | list) and not hasattr(x, "_fields") and type(x) is not torch.Size:
        return type(x)(mapped(function, value) for value in x)
    return x


def unwrap(x):
    """`x` with values in place of Rows."""
    return mapped(lambda rows: rows.values, x)

"""The connection graph of a network, read off the network itself.

A network calls the primitives of an engine and, between them, torch functions on what these return. Here both are
written down: the engine's tensors are `Traced`, and whatever is done to them becomes an operation of the graph. So a
graph says what the network does, whatever its architecture, and a function that the format has no word for is refused
by its name.

Sizes are told apart by two passes: what differs between a pass of 2 and one of 3 samples is the batch, what differs
between texts of 6 and of 7 tokens is the length. A network that goes another way in the second pass, or has a constant
of another value there, depends on its inputs in a way that no graph can say, and is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spikezip_hf.export.spike_graph import CURRENT, STATIC, Operation
from spikezip_hf.models.engines import QuantEngine, padding_bias
from spikezip_hf.models.operators import Conv2d, LayerNorm, LinearMap, PatchLinear, Softmax, Tanh
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.rows import nested

BATCHES, LENGTHS = (2, 3), (6, 7)


class UntraceableError(ValueError):
    """The network does something that a spike graph has no word for."""


@dataclass
class Trace:
    """What one pass did.

    Attributes:
        operations: in the order in which they were done; shapes are those of the pass.
        tensors: {name: tensor}, their parameters and constants.
        nodes: {node name: node}, in network order.
        thresholds: {node name: name of a tensor}.
    """

    operations: list[Operation] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    nodes: dict[str, LSQQuantizer] = field(default_factory=dict)
    thresholds: dict[str, str] = field(default_factory=dict)


class Traced(torch.Tensor):
    """A tensor of a pass that is written down.

    Attributes:
        operation: name of what gave it, an operation or an input.
        phase: "static" ahead of `engine.static`, "current" behind it, and of inputs of floats.
        recorder: what writes the pass down.
    """

    operation: str
    phase: str
    recorder: "Recorder"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        recorder = next(x.recorder for x in nested((args, kwargs)) if isinstance(x, Traced))
        return recorder.call(function, args, kwargs)


class Answer(torch.Tensor):
    """What the network asked of its inputs in order to check them, and all that is made of it: no constant."""


class Recorder:
    """Writes a pass down.

    Args:
        parameters: {name: parameter} of the network, by which constants are named.
    """

    def __init__(self, parameters: dict[str, torch.Tensor]):
        self.trace = Trace()
        self.names = {identity(p): name for name, p in parameters.items()}
        self.taken: dict[str, int] = {}

    def record(
        self,
        name: str,
        kind: str,
        inputs: list[Traced],
        result: torch.Tensor,
        phase: str,
        attributes: dict | None = None,
        parameters: dict[str, torch.Tensor | None] | None = None,
    ) -> Traced:
        """Note an operation, and return its result to be followed on."""
        self.taken[name] = self.taken.get(name, 0) + 1
        if self.taken[name] > 1:
            name = f"{name}:{self.taken[name]}"
        given = {key: x for key, x in (parameters or {}).items() if x is not None}
        own = {key: self.names.get(identity(x), f"{name}.{key}") for key, x in given.items()}
        self.trace.tensors.update({own[key]: x.detach() for key, x in given.items()})
        names = [x.operation for x in inputs]
        self.trace.operations.append(Operation(name, kind, names, list(result.shape), phase, attributes or {}, own))
        traced = plain(result).as_subclass(Traced)
        traced.operation, traced.phase, traced.recorder = name, phase, self
        return traced

    def constant(self, x: torch.Tensor) -> Traced:
        """A tensor that is the same in every pass."""
        if isinstance(x, Answer):
            raise UntraceableError("A comparison of inputs is used as a number: the graph would not know it.")
        size = x.shape
        repeated = x.dim() > 0 and size[0] > 1 and x.stride(0) == 0
        x = x[:1] if repeated else x
        name = self.names.get(identity(x))
        if name is None and x.numel() and bool((x == x.flatten()[0]).all()):
            return self.record("full", "full", [], x.expand(size), STATIC, {"value": x.flatten()[0].item()})
        known = self.record(name or "constant", "constant", [], x, STATIC, {}, {"value": x})
        return self.record("broadcast", "broadcast", [known], plain(known).expand(size), STATIC) if repeated else known

    def call(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        """Do `function`, and note it if its result is one to follow.

        Raises:
            UntraceableError: the format has no word for it; the message names it.
        """
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        name = function.__name__
        name = name.strip("_") if name.startswith("__") else name
        if name == "get":  # shape, dtype and so on
            name = function.__self__.__name__  # type: ignore[attr-defined]
            if not isinstance(result, torch.Tensor):
                return result
        if name in SIZES:
            return result
        if name in QUESTIONS:
            return result.as_subclass(Answer)
        if name not in RULES:
            raise UntraceableError(
                f"The network calls torch's {name}() between two primitives, and a spike graph has no word for it. It "
                f"knows {', '.join(sorted(RULES))}; more are made in spikezip_hf/export/tracing.py."
            )
        try:
            said = RULES[name](*args, **kwargs)
        except TypeError as error:  # arguments that a rule does not foresee
            raise no_word(f"{name}() as it is called here ({error})") from error
        if isinstance(said, torch.Tensor):
            return said
        kind, operands, attributes, parameters = (*said, {})[:4]
        phases = {x.phase for x in operands if isinstance(x, Traced)}
        constants = [x for x in operands if not isinstance(x, Traced)]
        if len(phases) > 1 or (CURRENT in phases and constants):
            raise UntraceableError(
                f"{name}() takes a current and a constant: in a spiking network a constant goes through "
                "engine.static, or it would come in anew at each step."
            )
        phase = phases.pop()
        if phase == CURRENT and kind not in LINEAR:
            raise UntraceableError(f"{name}() is not linear, and acts on a current: use engine.apply.")
        if phase == CURRENT and result.dtype != operands[0].dtype:
            raise no_word(f"A change of a tensor's type by {name}()")
        inputs = [x if isinstance(x, Traced) else self.constant(torch.as_tensor(x)) for x in operands]
        return self.record(kind, kind, inputs, result, phase, attributes, parameters)


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(torch.Tensor)


def identity(x: torch.Tensor) -> tuple:
    """What tells a tensor from any other that is alive: where it lies, and how."""
    return x.data_ptr(), tuple(x.shape), tuple(step for step, size in zip(x.stride(), x.shape) if size > 1)


# Functions of which the network asks something about sizes and types, or about inputs in order to check them.
SIZES = {"size", "dim", "numel", "is_floating_point", "len", "stride", "is_contiguous"}
QUESTIONS = {"eq", "all", "any", "min", "max"}
# What distributes over sums, and so acts on changes as it does on values.
LINEAR = {"add", "scale", "reshape", "permute", "index", "concatenate", "broadcast", "mean", "sum", "roll", "pad"}


def no_word(what: str):
    return UntraceableError(f"{what}: a spike graph has no word for it.")


def rule_same(x, *args, **kwargs):
    return x


def rule_to(x, *args, **kwargs):
    if x.dtype != plain(x).to(*map(plain_or, args), **kwargs).dtype:
        raise no_word("A change of a tensor's type between two primitives")
    return x


def plain_or(x):
    return plain(x) if isinstance(x, torch.Tensor) else x


def rule_ne(x, other):
    if x.dtype == torch.bool and not isinstance(other, torch.Tensor) and other == 0:
        return x
    raise no_word("A comparison of inputs")


def rule_dropout(x, p=0.5, training=True, inplace=False):
    if training:
        raise no_word("Dropout in training mode")
    return x


def rule_add(a, b, *, alpha=1):
    if alpha != 1:
        raise no_word("add() with alpha")
    return "add", [a, b], {}


def rule_mul(a, b):
    x, factor = (a, b) if isinstance(a, Traced) else (b, a)
    if isinstance(factor, torch.Tensor):
        raise no_word("mul() by a tensor (a product of two dynamic tensors is engine.matmul)")
    return "scale", [x], {"factor": float(factor)}


def rule_reshape(x, *args, **kwargs):
    return "reshape", [x], {}


def rule_broadcast(x, *args, **kwargs):
    return "broadcast", [x], {}


def rule_transpose(x, dim0, dim1):
    axes = list(range(x.dim()))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return "permute", [x], {"axes": axes}


def rule_permute(x, *dims):
    dims = dims if isinstance(dims[0], int) else dims[0]
    return "permute", [x], {"axes": [axis % x.dim() for axis in dims]}


def rule_cat(tensors, dim=0):
    return "concatenate", list(tensors), {"axis": dim % tensors[0].dim()}


def rule_reduce(kind: str):
    def rule(x, dim=None, keepdim=False, *, dtype=None):
        dims = range(x.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
        return kind, [x], {"axes": sorted(axis % x.dim() for axis in dims), "keep": keepdim}

    return rule


def rule_pad(x, pad, mode="constant", value=None):
    if mode != "constant" or value or min(pad) < 0:
        raise no_word("pad() by other than zeros beside")
    if not any(pad):
        return x
    pairs = [list(pair) for pair in zip(pad[::2], pad[1::2])][::-1]  # torch names them from the last axis on
    return "pad", [x], {"pads": [[0, 0]] * (x.dim() - len(pairs)) + pairs}


def rule_roll(x, shifts, dims=None):
    if dims is None:
        raise no_word("roll() without dims")
    shifts, dims = ((x,) if isinstance(x, int) else tuple(x) for x in (shifts, dims))
    return "roll", [x], {"shifts": list(shifts), "axes": [axis % x.dim() for axis in dims]}


def rule_index(x, key):
    key = key if isinstance(key, tuple) else (key,)
    used = sum(item is not None and item is not Ellipsis for item in key)
    index: list = []
    for item in key:
        if isinstance(item, slice):
            index.append([item.start, item.stop, item.step])
        elif item is None:
            index.append("new")
        elif item is Ellipsis:
            index.extend([[None, None, None]] * (x.dim() - used))
        elif isinstance(item, int) and not isinstance(item, bool):
            index.append(item)
        else:
            raise no_word(f"Indexing by {type(item).__name__}")
    return "index", [x], {"index": index}


def rule_masked_fill(x, mask, value):
    return "masked_fill", [x, mask], {"value": float(value)}


def rule_not(x):
    return "logical_not", [x], {}


def rule_embedding(ids, weight, *args, **kwargs):
    return "embedding", [ids], {}, {"weight": weight}


def rule_layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    if len(normalized_shape) != 1:
        raise no_word("LayerNorm over more than the last dimension")
    return "layer_norm", [x], {"eps": eps}, {"weight": weight, "bias": bias}


# By the name of a torch function: what it is in a graph, (kind, operands, attributes, parameters), or the operand
# itself, where it changes nothing.
RULES: dict[str, Callable] = {
    **dict.fromkeys(("contiguous", "clone", "detach"), rule_same),
    "to": rule_to,
    "ne": rule_ne,
    "dropout": rule_dropout,
    **dict.fromkeys(("add", "radd"), rule_add),
    **dict.fromkeys(("mul", "rmul"), rule_mul),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"), rule_reshape),
    **dict.fromkeys(("expand", "expand_as"), rule_broadcast),
    "transpose": rule_transpose,
    "permute": rule_permute,
    **dict.fromkeys(("cat", "concat"), rule_cat),
    "mean": rule_reduce("mean"),
    "sum": rule_reduce("sum"),
    "pad": rule_pad,
    "roll": rule_roll,
    "getitem": rule_index,
    "masked_fill": rule_masked_fill,
    **dict.fromkeys(("invert", "bitwise_not", "logical_not"), rule_not),
    "embedding": rule_embedding,
    "layer_norm": rule_layer_norm,
}


class TracingEngine(QuantEngine):
    """A pass of the QANN whose tensors are written down. Their values are of no use but for their shapes."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def operation(self, name: str, kind: str, result: torch.Tensor, *inputs, **said) -> Traced:
        return self.recorder.record(name, kind, list(inputs), result, CURRENT, **said)

    def affine(self, module: nn.Module, x: Traced) -> Traced:
        """A linear map or convolution: float weights, or levels with a scale for each output channel."""
        if not isinstance(module, LinearMap | Conv2d):
            raise no_word(f"{type(module).__name__} as an affine map")
        kind, attributes = "linear", {}
        if isinstance(module, Conv2d):
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise no_word(f"Conv2d with padding={module.padding!r}, padding_mode={module.padding_mode!r}")
            kind = "conv2d"
            attributes = {name: list(getattr(module, name)) for name in ("stride", "padding", "dilation")}
            attributes["groups"] = module.groups  # type: ignore[assignment]
        if isinstance(module, PatchLinear):  # the convolution whose stride is its kernel
            kind, attributes = "conv2d", {"stride": list(module.patch_size), "padding": [0, 0], "dilation": [1, 1]}
            attributes["groups"] = 1  # type: ignore[assignment]
        parameters = {"weight": module.weight, "bias": module.bias}
        if (quantizer := module.weight_quantizer) is not None:
            scale = quantizer.threshold(module.weight.dtype)
            spread = scale.view(-1, *(1,) * (module.weight.dim() - 1))
            levels = torch.floor(module.weight.detach() / spread + 0.5)
            levels = levels.clamp(quantizer.min_level, quantizer.max_level)
            parameters.update(weight=levels.to(torch.int8), weight_scale=scale)
        result = module(plain(x))
        if isinstance(module, PatchLinear):  # (B, patches, features) here, (B, features, rows, columns) in a graph
            result = result.transpose(1, 2).unflatten(2, (x.shape[2] // module.patch_size[0], -1))
            planes = self.operation(module.name, kind, result, x, attributes=attributes, parameters=parameters)
            return planes.flatten(2).transpose(1, 2)  # type: ignore[return-value]
        return self.operation(module.name, kind, result, x, attributes=attributes, parameters=parameters)

    def encode(self, module, inputs, per_step=False):
        return self.affine(module, inputs)

    def static(self, current):
        if not isinstance(current, Traced):
            current = self.recorder.constant(current)
        if current.phase != STATIC:
            raise UntraceableError("engine.static of what is a current already.")
        return self.operation("static", "static", current, current)

    def linear(self, module, x):
        return self.affine(module, x)

    def matmul(self, product, a, b):
        return self.operation(product.name, "matmul", product(plain(a), plain(b)), a, b)

    def apply(self, operator, x):
        result, said = operator(plain(x)), {}
        if isinstance(operator, LayerNorm):
            kind, _, attributes, parameters = rule_layer_norm(
                x, operator.normalized_shape, operator.weight, operator.bias, operator.eps
            )
            said = {"attributes": attributes, "parameters": parameters}
        elif isinstance(operator, Softmax | Tanh):
            kind = type(operator).__name__.lower()
        else:
            raise no_word(f"The operator {type(operator).__name__}")
        return self.operation(operator.name, kind, result, x, **said)

    def without_padding(self, scores, tokens):
        return (scores + self.static(padding_bias(tokens, scores.dtype)),)

    def first_token(self, x):
        if self.tokens is None:
            return x[:, 0]
        return self.operation("first_token", "first_token", plain(x)[:, 0], x, self.tokens)

    def fire(self, node, current):
        trace = self.recorder.trace
        if node.name in trace.nodes:
            raise UntraceableError(f"{node.name} fires twice in a pass: its neurons would be two populations.")
        trace.nodes[node.name] = node
        trace.thresholds[node.name] = f"{node.name}.threshold"
        trace.tensors[trace.thresholds[node.name]] = node.threshold(current.dtype)
        silenced = [] if self.tokens is None or current.dim() < 3 else [self.tokens]
        return self.operation(node.name, "fire", node(plain(current)), current, *silenced)

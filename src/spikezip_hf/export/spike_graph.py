"""A spiking network as a file for hardware simulators: what is in it, and how it is read and checked.

`SPIKE_GRAPH.md` beside this file is the definition of the format. This file needs numpy and safetensors and nothing
else, so that it can be copied into a simulator, with `interpreter.py` if that is wanted.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_origin

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

FORMAT, VERSION = "spikezip_hf spike graph", 1
GRAPH_FILE, TENSORS_FILE = "spike_graph.json", "spike_graph.safetensors"
CONTENT_DIGEST = "content_sha256"
STATIC, CURRENT = "static", "current"  # phases of operations
BATCH, LENGTH = "batch", "length"
INPUT_TYPES = ("float", "int", "bool")
DEFAULTS = ("ones", "zeros", "positions")


class SpikeGraphError(ValueError):
    """A file is no spike graph, or one that this version cannot read; the message names the field."""


@dataclass(frozen=True)
class Kind:
    """What operations of one kind have.

    Attributes:
        inputs: fewest and most; None for any number.
        parameters, optional: tensors that it needs, and those that it may have.
        attributes: their names and types.
        phases: where it may stand.
    """

    inputs: tuple[int, int | None] = (1, 1)
    parameters: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    attributes: dict[str, type | UnionType] = field(default_factory=dict)
    phases: tuple[str, ...] = (CURRENT,)


Number = int | float
ANYWHERE = (STATIC, CURRENT)
KINDS = {
    # what only constants and inputs go through, once
    "constant": Kind((0, 0), parameters=("value",), phases=(STATIC,)),
    "full": Kind((0, 0), attributes={"value": Number}, phases=(STATIC,)),
    "embedding": Kind(parameters=("weight",), phases=(STATIC,)),
    "masked_fill": Kind((2, 2), attributes={"value": Number}, phases=(STATIC,)),
    "logical_not": Kind(phases=(STATIC,)),
    # affine maps
    "linear": Kind(parameters=("weight",), optional=("bias", "weight_scale")),
    "conv2d": Kind(
        parameters=("weight",),
        optional=("bias", "weight_scale"),
        attributes={"stride": list, "padding": list, "dilation": list, "groups": int},
    ),
    # linear maps without parameters, which do to changes what they do to values
    "add": Kind((2, 2), phases=ANYWHERE),
    "scale": Kind(attributes={"factor": Number}, phases=ANYWHERE),
    "reshape": Kind(phases=ANYWHERE),
    "broadcast": Kind(phases=ANYWHERE),
    "permute": Kind(attributes={"axes": list}, phases=ANYWHERE),
    "index": Kind(attributes={"index": list}, phases=ANYWHERE),
    "concatenate": Kind((1, None), attributes={"axis": int}, phases=ANYWHERE),
    "mean": Kind(attributes={"axes": list, "keep": bool}, phases=ANYWHERE),
    "sum": Kind(attributes={"axes": list, "keep": bool}, phases=ANYWHERE),
    "pad": Kind(attributes={"pads": list}, phases=ANYWHERE),
    "roll": Kind(attributes={"shifts": list, "axes": list}, phases=ANYWHERE),
    "first_token": Kind((2, 2)),
    # what needs memory of what came before
    "static": Kind(),
    "matmul": Kind((2, 2)),
    "softmax": Kind(),
    "tanh": Kind(),
    "layer_norm": Kind(optional=("weight", "bias"), attributes={"eps": Number}, phases=ANYWHERE),
    "fire": Kind((1, 2)),
}


@dataclass
class Operation:
    """One operation; its name is that of its result.

    Attributes:
        shape: of the result; numbers, "batch" or "length".
        parameters: {parameter: name of a tensor}.
    """

    name: str
    kind: str
    inputs: list[str]
    shape: list
    phase: str
    attributes: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass
class Neurons:
    """The ST-BIF+ neurons of the `fire` operation of the same name.

    Attributes:
        threshold: name of a tensor, (1,) or (features,), V_thr.
        min_level, max_level: S_min and S_max.
        shape: of the neurons of one sample; numbers, or "length".
        count: of neurons of one sample; None where that depends on its length.
        first_firing_step: first step, from 1, at which they may fire.
        first_fine_step: first step at which they fire at a difference of one level.
    """

    name: str
    threshold: str
    min_level: int
    max_level: int
    shape: list
    count: int | None
    first_firing_step: int = 1
    first_fine_step: int = 1


@dataclass
class Input:
    """An input of the network.

    Attributes:
        type: "float", "int" or "bool".
        default: how it is made if it is not given, {"rule": "ones", "zeros" or "positions", ...}; None if it must be.
    """

    name: str
    type: str
    shape: list
    default: dict | None = None


@dataclass
class SpikeGraph:
    """A whole spiking network: see SPIKE_GRAPH.md for each field.

    Attributes:
        outputs: {name: operation}, what the network gives.
        tensors: {name: array}.
    """

    network: str
    made_by: str
    quantization_levels: int
    time_steps: int
    max_spikes_per_step: int
    firing_schedule: str
    inputs: list[Input]
    operations: list[Operation]
    neurons: list[Neurons]
    outputs: dict[str, str]
    tensors: dict[str, np.ndarray]

    def to_dict(self, tensors_sha256: str) -> dict:
        """The content of the JSON file."""
        content = {name: value for name, value in vars(self).items() if name != "tensors"}
        for name in ("inputs", "operations", "neurons"):
            content[name] = [asdict(item) for item in content[name]]
        listed = {name: {"type": str(x.dtype), "shape": list(x.shape)} for name, x in self.tensors.items()}
        content = {
            "format": FORMAT,
            "version": VERSION,
            **content,
            "tensors_sha256": tensors_sha256,
            "tensors": listed,
        }
        return {**content, CONTENT_DIGEST: digest_of_content(content)}

    def check(self) -> None:
        """Raises SpikeGraphError, naming operation and field, if something does not fit."""
        check_graph(self)


def digest_of_content(content: dict) -> str:
    """sha256 of all that a JSON file says, but for this: a number in it that was altered makes another network."""
    rest = {name: value for name, value in content.items() if name != CONTENT_DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_spike_graph(folder: str | os.PathLike) -> SpikeGraph:
    """Read a spike graph and check all of it.

    Raises:
        FileNotFoundError: one of its two files is not there.
        SpikeGraphError: what is there is not a spike graph of this version; the message names the field.
    """
    folder = Path(folder)
    for name in (GRAPH_FILE, TENSORS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: a spike graph is {GRAPH_FILE} and {TENSORS_FILE}.")
    try:
        content = json.loads((folder / GRAPH_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SpikeGraphError(f"{folder / GRAPH_FILE} is not JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SpikeGraphError(f"{folder / GRAPH_FILE}: format is not {FORMAT!r}.")
    if content.get("version") != VERSION:
        raise SpikeGraphError(
            f"version of {folder / GRAPH_FILE} is {content.get('version')!r}, and this reader knows {VERSION}: read "
            "it with the spikezip_hf that wrote it, or write the graph again."
        )
    if sha256_of(folder / TENSORS_FILE) != content.get("tensors_sha256"):
        raise SpikeGraphError(
            f"tensors_sha256 is not that of {TENSORS_FILE}: the file is damaged, or of another graph."
        )
    try:
        tensors = load_file(folder / TENSORS_FILE)
    except SafetensorError as error:
        raise SpikeGraphError(f"{folder / TENSORS_FILE} cannot be read: {error}.") from error
    listed = content.get("tensors")
    if not isinstance(listed, dict):
        raise SpikeGraphError("tensors is missing or no object.")
    for name, entry in listed.items():
        if name not in tensors:
            raise SpikeGraphError(f"tensors: {name!r} is not in {TENSORS_FILE}.")
        found = {"type": str(tensors[name].dtype), "shape": list(tensors[name].shape)}
        if found != entry:
            raise SpikeGraphError(f"tensors: {name!r} is {found} in {TENSORS_FILE}, and {entry} in {GRAPH_FILE}.")
    graph = SpikeGraph(
        **{name: plain_field(content, name, kind) for name, kind in PLAIN_FIELDS.items()},
        inputs=objects(content, "inputs", Input),
        operations=objects(content, "operations", Operation),
        neurons=objects(content, "neurons", Neurons),
        tensors=tensors,
    )
    graph.check()
    if content.get(CONTENT_DIGEST, digest_of_content(content)) != digest_of_content(content):
        raise SpikeGraphError(
            f"{CONTENT_DIGEST} is not that of the rest of {folder / GRAPH_FILE}: it is damaged, or was changed. If on "
            f"purpose, leave {CONTENT_DIGEST} out."
        )
    return graph


PLAIN_FIELDS: dict[str, Any] = {
    "network": str,
    "made_by": str,
    "quantization_levels": int,
    "time_steps": int,
    "max_spikes_per_step": int,
    "firing_schedule": str,
    "outputs": dict,
}


def plain_field(content: dict, name: str, kind: type):
    if not isinstance(content.get(name), kind):
        raise SpikeGraphError(f"{name} is missing, or no {kind.__name__}.")
    return content[name]


def objects(content: dict, name: str, kind: type) -> list:
    """The objects of a list, each with the fields that it should have."""
    made = []
    for number, item in enumerate(plain_field(content, name, list)):
        try:
            made.append(kind(**item))
        except TypeError as error:  # fields that are missing or too many
            raise SpikeGraphError(f"{name}[{number}]: {str(error).replace('.__init__()', '')}.") from error
        for own in fields(kind):
            wanted: Any = get_origin(own.type) if get_origin(own.type) in (list, dict) else own.type
            if not isinstance(getattr(made[-1], own.name), wanted):
                raise SpikeGraphError(f"{name}[{number}]: {own.name} is {getattr(made[-1], own.name)!r}.")
    return made


def check_graph(graph: SpikeGraph) -> None:
    """See `SpikeGraph.check`."""
    for name in ("time_steps", "max_spikes_per_step"):
        if getattr(graph, name) < 1:
            raise SpikeGraphError(f"{name} must be at least 1, got {getattr(graph, name)}.")
    known: dict[str, tuple[list, str]] = {}  # {name: (shape, phase)}
    for given in graph.inputs:
        if given.type not in INPUT_TYPES:
            raise SpikeGraphError(f"inputs: type of {given.name!r} is {given.type!r}, not one of {INPUT_TYPES}.")
        default = given.default or {}
        rule = default.get("rule")
        if given.default is not None and rule not in DEFAULTS:
            raise SpikeGraphError(f"inputs: default of {given.name!r} is {given.default!r}, whose rule is unknown.")
        if rule == "positions" and ("attention_mask" not in known or "first" not in default):
            raise SpikeGraphError(f"inputs: default of {given.name!r} needs 'first', and an attention_mask before it.")
        known[given.name] = (given.shape, CURRENT if given.type == "float" else STATIC)
    neurons = {item.name: item for item in graph.neurons}
    fired = [operation.name for operation in graph.operations if operation.kind == "fire"]
    if list(neurons) != fired:
        raise SpikeGraphError(f"neurons are {list(neurons)}, and the fire operations {fired}: they must be the same.")
    for operation in graph.operations:
        check_operation(operation, known, graph.tensors)
        if operation.kind == "fire":
            check_neurons(neurons[operation.name], operation, graph.tensors)
        known[operation.name] = (operation.shape, operation.phase)
    for name, value in graph.outputs.items():
        if known.get(value, (None, None))[1] != CURRENT:
            raise SpikeGraphError(f"outputs: {name!r} is {value!r}, which is no operation of phase {CURRENT!r}.")


def check_operation(operation: Operation, known: dict, tensors: dict[str, np.ndarray]) -> None:
    where = f"operation {operation.name!r}"
    kind = KINDS.get(operation.kind)
    if kind is None:
        raise SpikeGraphError(f"{where}: kind {operation.kind!r} is unknown to version {VERSION}.")
    if operation.name in known:
        raise SpikeGraphError(f"{where}: name is that of an earlier operation or input.")
    fewest, most = kind.inputs
    if len(operation.inputs) < fewest or (most is not None and len(operation.inputs) > most):
        raise SpikeGraphError(f"{where}: {operation.kind} has {len(operation.inputs)} inputs.")
    if operation.phase not in kind.phases:
        raise SpikeGraphError(f"{where}: phase is {operation.phase!r}; {operation.kind} has {kind.phases}.")
    for number, name in enumerate(operation.inputs):
        if name not in known:
            raise SpikeGraphError(f"{where}: inputs has {name!r}, which no earlier operation gives.")
        if known[name][1] != phase_of_input(operation, number):
            raise SpikeGraphError(f"{where}: inputs has {name!r}, of phase {known[name][1]!r}, which it cannot take.")
    for size in operation.shape:
        if size not in (BATCH, LENGTH) and not (isinstance(size, int) and size > 0):
            raise SpikeGraphError(f"{where}: shape has {size!r}, which is no size.")
    for name, type_ in kind.attributes.items():
        if not isinstance(operation.attributes.get(name), type_):
            raise SpikeGraphError(f"{where}: attributes has no {name!r}, or one of another type.")
    for name in (*kind.parameters, *operation.parameters):
        if name not in operation.parameters or name not in (*kind.parameters, *kind.optional):
            raise SpikeGraphError(f"{where}: parameters has {list(operation.parameters)}, which does not fit.")
        if operation.parameters[name] not in tensors:
            raise SpikeGraphError(f"{where}: {name} is tensor {operation.parameters[name]!r}, which is not there.")
    expected = parameter_shapes(operation, known)
    for name, shape in expected.items():
        if name in operation.parameters:
            found = tensors[operation.parameters[name]].shape
            if not fits(found, shape):
                raise SpikeGraphError(f"{where}: shape of {name} is {list(found)}, and should be {shape}.")
    if "weight_scale" in operation.parameters and tensors[operation.parameters["weight"]].dtype != np.int8:
        raise SpikeGraphError(f"{where}: weight is not int8, and has a weight_scale.")


def phase_of_input(operation: Operation, number: int) -> str:
    """What an operation takes as its input of this number, from 0."""
    mask = operation.kind in ("fire", "first_token") and number == 1
    return STATIC if operation.phase == STATIC or operation.kind == "static" or mask else CURRENT


def parameter_shapes(operation: Operation, known: dict) -> dict[str, list]:
    """What the shapes of an operation tell of those of its parameters; None for a size that they leave open."""
    shape = operation.shape
    before = known[operation.inputs[0]][0] if operation.inputs else []
    if operation.kind == "linear":
        return {"weight": [shape[-1], before[-1]], "bias": shape[-1:], "weight_scale": shape[-1:]}
    if operation.kind == "conv2d":
        features = [shape[-3]]
        weight = [*features, before[-3] // operation.attributes["groups"], None, None]
        return {"weight": weight, "bias": features, "weight_scale": features}
    if operation.kind == "layer_norm":
        return {"weight": before[-1:], "bias": before[-1:]}
    if operation.kind == "embedding":
        return {"weight": [None, shape[-1]]}
    if operation.kind == "constant":
        return {"value": shape}
    return {}


def fits(found: tuple, expected: list) -> bool:
    return len(found) == len(expected) and all(size is None or size == own for own, size in zip(found, expected))


def check_neurons(neurons: Neurons, operation: Operation, tensors: dict[str, np.ndarray]) -> None:
    where = f"neurons {neurons.name!r}"
    if neurons.threshold not in tensors:
        raise SpikeGraphError(f"{where}: threshold is tensor {neurons.threshold!r}, which is not there.")
    threshold = tensors[neurons.threshold]
    if threshold.shape not in ((1,), tuple(operation.shape[-1:])):
        raise SpikeGraphError(f"{where}: shape of threshold is {list(threshold.shape)}, not [1] or one a feature.")
    if not (np.isfinite(threshold).all() and (threshold > 0).all()):
        raise SpikeGraphError(f"{where}: threshold is not positive.")
    if neurons.min_level > 0 or neurons.max_level < 1:
        raise SpikeGraphError(f"{where}: min_level {neurons.min_level}, max_level {neurons.max_level} hold no levels.")
    if neurons.shape != operation.shape[1:]:
        raise SpikeGraphError(f"{where}: shape is {neurons.shape}, and the operation's {operation.shape}.")

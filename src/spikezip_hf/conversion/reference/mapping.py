"""How the tensors of a file become the state dict of a Quant model: which goes where, and what is said of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.quantization import MIN_SCALE, LSQQuantizer

UNTRAINED_SCALE = 1.0  # of each quantizer of the reference before its first batch


class Entry(NamedTuple):
    """One tensor of ours and where it is in the file.

    Attributes:
        ours: name in the Quant model's state dict.
        theirs: name in the file.
        part: which third of its rows, where the file stacks queries, keys and values; None for all.
    """

    ours: str
    theirs: str
    part: int | None = None

    @property
    def source(self) -> str:
        """The place in the file, in words."""
        return self.theirs if self.part is None else f"{self.theirs} ({('first', 'second', 'last')[self.part]} third)"


def affine(ours: str, theirs: str, bias: bool = True, part: int | None = None) -> Iterator[Entry]:
    """Weight and bias of a linear map, a convolution or a LayerNorm."""
    for name in ("weight", "bias") if bias else ("weight",):
        yield Entry(f"{ours}.{name}", f"{theirs}.{name}", part)


def node(ours: str, theirs: str) -> Iterator[Entry]:
    """The scale of a quantizer."""
    yield Entry(f"{ours}.scale", f"{theirs}.s")


@dataclass(frozen=True)
class ImportReport:
    """What became of a file.

    Attributes:
        file: its path.
        architecture: class of the model that was made.
        mapped: {name in the model's state dict: where in the file it is from}.
        folded: {name in the file: which weight it was made part of}.
        ignored: {name in the file: why it is not in the model}.
        settings: {field of the config: its value, and where that is from}.
        notes: what the file does not say and was taken for granted, and what looks odd.
    """

    file: str
    architecture: str
    mapped: dict[str, str]
    folded: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": self.file,
            "architecture": self.architecture,
            "mapped": self.mapped,
            "folded": self.folded,
            "ignored": self.ignored,
            "settings": self.settings,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        scales = sum(name.endswith(".scale") for name in self.mapped)
        lines = [
            f"{self.file}: {self.architecture}",
            f"mapped: {len(self.mapped) - scales} weights and {scales} scales; nothing is missing",
            *(f"  {name}: {value}" for name, value in self.settings.items()),
            *(
                line
                for what, names in (("folded", self.folded), ("ignored", self.ignored))
                for line in in_short(what, [f"{name}, {why}" for name, why in names.items()])
            ),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def in_short(what: str, entries: list[str], most: int = 6) -> list[str]:
    """A line for each entry, and one that counts those beyond `most`."""
    more = [f"{what}: and {len(entries) - most} more"] if len(entries) > most else []
    return [f"{what}: {entry}" for entry in entries[:most]] + more


def shape_of(tensors: dict[str, torch.Tensor], name: str, dims: int) -> torch.Size:
    """Shape of a tensor that sizes are read from.

    Raises:
        ValueError: it is missing, or has another number of dimensions.
    """
    if name not in tensors:
        raise ValueError(f"{name} is missing in the file.")
    shape = tensors[name].shape
    if len(shape) != dims:
        raise ValueError(f"{name} should have {dims} dimensions, and is {tuple(shape)}.")
    return shape


def count_layers(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    """How many layers there are under `prefix`.

    Raises:
        ValueError: none, or one in between is missing.
    """
    names = (name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix))
    found = {int(name) for name in names if name.isdigit()}
    if not found or found != set(range(len(found))):
        raise ValueError(f"Layers {prefix}0, 1, ... are not all in the file: there are {sorted(found)}.")
    return len(found)


def fill(
    model: TwinPreTrainedModel, entries: list[Entry], tensors: dict[str, torch.Tensor], ignored: dict[str, str]
) -> dict[str, str]:
    """Load the tensors into `model`, which is on the meta device, and say what went where.

    Raises:
        ValueError: a tensor is missing, not known, of another shape, or not finite, or a scale is not positive; the
            message names all of the first kind that is found.
    """
    expected = model.state_dict()
    dtype = common_dtype([tensors[entry.theirs] for entry in entries if entry.theirs in tensors])
    known = {entry.theirs for entry in entries}
    refuse("missing in the file", sorted(known - tensors.keys()))
    refuse(
        "in the file and not known, so the network would not be the same", sorted(tensors.keys() - known - {*ignored})
    )

    state: dict[str, torch.Tensor] = {}
    wrong_shapes, not_finite, bad_scales = [], [], []
    for entry in entries:
        tensor = tensors[entry.theirs]
        is_scale = entry.ours.endswith(".scale")
        if entry.part is not None and len(tensor) % 3 == 0:
            tensor = tensor.chunk(3)[entry.part]
        if is_scale and tensor.numel() == 1:
            tensor = tensor.reshape(1)
        if tensor.shape != expected[entry.ours].shape:
            wrong_shapes.append(f"{entry.source} is {tuple(tensor.shape)}, not {tuple(expected[entry.ours].shape)}")
        elif not bool(torch.isfinite(tensor).all()):
            not_finite.append(entry.source)
        elif is_scale and not bool((tensor >= MIN_SCALE).all()):
            bad_scales.append(f"{entry.source} = {tensor.item():g}")
        # A copy: the file is mapped into memory, and parts of a stack would keep all of it.
        kept = torch.promote_types(tensor.dtype, torch.float32) if is_scale else dtype
        state[entry.ours] = tensor.to(kept, copy=True, memory_format=torch.contiguous_format)
        if is_scale:
            state[entry.ours.removesuffix("scale") + "initialized"] = torch.tensor(True)
    refuse("of another shape", wrong_shapes)
    refuse("not finite", not_finite)
    refuse("no usable scale, which has to be above 0", bad_scales)

    model.to_empty(device="cpu")
    model.load_state_dict(state, assign=True)
    return {entry.ours: entry.source for entry in entries}


def refuse(what: str, names: list[str]) -> None:
    """Raise ValueError if there are any such names."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"{', '.join(names[:5])}{more}: {what}.")


def common_dtype(tensors: list[torch.Tensor]) -> torch.dtype:
    """The type that holds all of them."""
    dtype = tensors[0].dtype if tensors else torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype if dtype.is_floating_point else torch.float32


def oddities(model: TwinPreTrainedModel) -> list[str]:
    """What makes scales look as if the levels or the file were not the right ones.

    Raises:
        ValueError: no scale was ever trained.
    """
    nodes: list[LSQQuantizer] = model.nodes
    untouched = [node.name for node in nodes if bool((node.scale == UNTRAINED_SCALE).all())]
    if len(untouched) == len(nodes):
        raise ValueError("All scales are 1, as they are before the first batch of training: nothing was trained.")
    notes = [f"{name}: its scale is 1, as before the first batch of training" for name in untouched]
    for module in model.modules():
        for name, norm in module.named_children():
            node = getattr(module, f"{name}_node", getattr(module, "norm_node", None))
            if not isinstance(norm, torch.nn.LayerNorm) or node is None:
                continue
            # A LayerNorm's outputs have about the size of its weights, and LSQ starts at 1.6 sqrt(S_max) times that.
            size = float(norm.weight.detach().square().mean().sqrt())
            reach = float(node.scale.detach().mean()) * node.max_level
            if not 0.75 * size <= reach <= 40 * size:
                notes.append(
                    f"{node.name}: its largest level is {reach:.3g}, behind a LayerNorm of weights {size:.3g}"
                )
    for node in nodes:
        if node.name.endswith("probs_node") and bool((node.scale >= 2.0).any()):
            notes.append(f"{node.name}: its scale is 2 or more, so no attention probability reaches level 1")
    return notes

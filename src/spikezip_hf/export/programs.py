"""The quantized network, or one step of the spiking one, as a program of `torch.export`."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from spikezip_hf.export.checking import SAMPLES, ExportError
from spikezip_hf.export.quantized import QuantizedModule
from spikezip_hf.export.streaming import StreamingStep
from spikezip_hf.hub.results import network_digest
from spikezip_hf.models.checkpoint_files import moved_in_whole
from spikezip_hf.models.checkpoints import plain_class
from spikezip_hf.models.configuration_quantization import check_choice
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel
from spikezip_hf.models.version import __version__

KINDS = ("quantized", "step")


def exportable(model: TwinPreTrainedModel, kind: str, inputs: str = "static") -> QuantizedModule | StreamingStep:
    """The module that a graph is made of.

    Raises:
        ValueError, TypeError: there is no such kind, or none of this model.
    """
    check_choice("kind", kind, KINDS)
    if kind == "step":
        return StreamingStep(model, inputs)  # type: ignore[arg-type]
    if inputs != "static":
        raise ValueError('inputs="frames" is for kind="step": the quantized network is given the whole input.')
    return QuantizedModule(model)  # type: ignore[arg-type]


@torch.no_grad()
def trace(module: QuantizedModule | StreamingStep) -> ExportedProgram:
    """The program of a module, without the places on this machine where its code was found."""
    program = torch.export.export(module, module.example(), dynamic_shapes=module.dynamic_shapes())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def export_program(model: TwinPreTrainedModel, kind: str = "quantized", inputs: str = "static") -> ExportedProgram:
    """A program of `torch.export`, of any batch size and length of texts; its weights are the model's own tensors.

    Its arguments are those of `QuantizedModule` or `StreamingStep`: a dict of inputs, and for a step, the state.

    Args:
        model: a Quant model for "quantized", a Spike model for "step"; in float32, on a CPU.
        kind: "quantized", the quantized network; "step", one step of the spiking network.
        inputs: see `StreamingStep`.

    Raises:
        TypeError, ValueError: that cannot be exported of this model.
        ExportError: the program does something else than the module that it was made of.
    """
    module = exportable(model, kind, inputs)
    program = trace(module)
    check_program(program, module)
    return program


@torch.no_grad()
def check_program(program: ExportedProgram, module: QuantizedModule | StreamingStep) -> None:
    """Raise ExportError unless the program gives the bits of its module, for another batch than it was made with.

    To the bit, as it runs the same operators on the same tensors.
    """
    arguments = module.example(SAMPLES)
    ours, theirs = (pytree.tree_leaves(run(*arguments)) for run in (module, program.module()))
    if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise ExportError("The exported program does not give what the network does.")


def network_facts(model: TwinPreTrainedModel, kind: str) -> dict[str, Any]:
    """What whoever is given an exported network should know of it, in any format."""
    config = model.config
    told = {
        "version": __version__,
        "kind": kind,
        "network": plain_class(type(model)).__name__,
        "network_digest": network_digest(model),
        "quantization_levels": config.quantization_levels,
        "weight_bits": config.weight_bits,
        "nodes": {node.name: [node.min_level, node.max_level] for node in model.nodes},
    }
    if isinstance(model, SpikePreTrainedModel):
        told.update({name: getattr(config, name) for name in ("time_steps", "max_spikes_per_step", "firing_schedule")})
    if model is not model.base_model:
        told["labels"] = config.id2label
    return told


def facts(model: TwinPreTrainedModel, module: QuantizedModule | StreamingStep) -> dict[str, Any]:
    """The same of a module's graph."""
    if isinstance(module, StreamingStep):
        return {**network_facts(model, "step"), "inputs": module.inputs}
    return network_facts(model, "quantized")


def export_torch(
    model: TwinPreTrainedModel, path: str | os.PathLike, kind: str = "quantized", inputs: str = "static"
) -> dict[str, Any]:
    """Write the program of `export_program` to a .pt2 file, whole or not at all; `torch.export.load` reads it.

    Args:
        path: of the file; or a folder, for `model.pt2` in it.

    Returns:
        What is known of the file. It stands in it, too, as the extra file spikezip.json.

    Raises:
        TypeError, ValueError, ExportError: as for `export_program`.
    """
    target = file_in(path, ".pt2")
    module = exportable(model, kind, inputs)
    program = trace(module)
    check_program(program, module)
    told = facts(model, module)
    with moved_in_whole(target.parent) as aside:
        torch.export.save(program, aside / target.name, extra_files={"spikezip.json": json.dumps(told)})
    return {"written": str(target), **told}


def file_in(path: str | os.PathLike, suffix: str) -> Path:
    """The file to write: `path`, or a file `model` in it if it has no such suffix.

    Raises:
        ValueError: it has another suffix.
    """
    path = Path(path)
    if path.suffix == suffix and not path.is_dir():
        return path
    if path.suffix in (".onnx", ".pt2") and not path.is_dir():
        raise ValueError(f"{path} has to end in {suffix} for this format, or to be a folder.")
    return path / f"model{suffix}"

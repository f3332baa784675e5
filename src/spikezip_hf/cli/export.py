"""What `spikezip export` does."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikezip_hf.export import export_onnx, export_torch, save_spike_graph
from spikezip_hf.export.programs import network_facts
from spikezip_hf.loading import class_of, load_twin
from spikezip_hf.models.configuration_quantization import check_choice
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel

WHAT = ("quantized", "step")


def write_spike_graph(model: SpikePreTrainedModel, folder: Path) -> dict[str, Any]:
    graph = save_spike_graph(model, folder)
    operations = dict(Counter(operation.kind for operation in graph.operations))
    return {"written": str(folder), **network_facts(model, "spike graph"), "operations": operations}


def write_nir(model: SpikePreTrainedModel, folder: Path, subgraph: str | None = None) -> dict[str, Any]:
    from spikezip_hf.export.nir_graph import save_nir  # needs nir

    maps, refused = save_nir(model, folder, subgraph)
    told = network_facts(model, "affine maps")
    return {"written": str(folder), **told, "maps": maps, "unsayable": dict(Counter(refused.values()))}


def write_program(write: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`write` with the options of the command, of the network that `what` names."""

    def written(model: TwinPreTrainedModel, path: Path, what: str | None = None, inputs: str = "static"):
        spiking = isinstance(model, SpikePreTrainedModel)
        what = what or ("step" if spiking else "quantized")
        network = model.to_quantized() if spiking and what == "quantized" else model
        return write(network, path, kind=what, inputs=inputs)

    return written


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        write: called with the model, the path and those of the options that were given; returns the answer.
        options: of the command that it takes.
        spiking: whether it is of spiking networks alone.
    """

    write: Callable[..., dict[str, Any]]
    options: tuple[str, ...] = ()
    spiking: bool = False


FORMATS = {
    "onnx": Format(write_program(export_onnx), ("what", "inputs")),
    "torch": Format(write_program(export_torch), ("what", "inputs")),
    "spike-graph": Format(write_spike_graph, spiking=True),
    "nir": Format(write_nir, ("subgraph",), spiking=True),
}


def export(source: str, output: Path, format: str, **options: str | None) -> tuple[dict[str, Any], str]:
    """Export a checkpoint: the answer, and the same in words.

    Args:
        options: `what` (by default what the checkpoint holds: of a Spike model a step, of a Quant model the quantized
            network), `inputs` and `subgraph`; None where not given.

    Raises:
        ValueError, TypeError, ImportError, OSError: the checkpoint, the file or an option will not do; says why.
    """
    check_choice("format", format, tuple(FORMATS))
    chosen = FORMATS[format]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in chosen.options:
            takers = " and ".join(other for other, item in FORMATS.items() if name in item.options)
            raise ValueError(f"--{name} is for the format {takers}, and not for {format}: leave it out.")
    if "what" in given:
        check_choice("what", given["what"], WHAT)
    cls, _ = class_of(source)
    if (chosen.spiking or given.get("what") == "step") and not issubclass(cls, SpikePreTrainedModel):
        asked = f"the format {format}" if chosen.spiking else "a step"
        raise ValueError(
            f"{source} holds a {cls.__name__}, and {asked} is of a spiking network: convert it first, "
            f"`spikezip convert {source} OUTPUT`."
        )
    answer = chosen.write(load_twin(source, TwinPreTrainedModel), output, **given)
    return answer, describe(answer)


def describe(answer: dict[str, Any]) -> str:
    """An export in words."""
    kind = f"{answer['kind']} ({len(answer['maps'])})" if "maps" in answer else answer["kind"]
    lines = [f"Written: {answer['written']}, {kind} of a {answer['network']} ({len(answer['nodes'])} nodes)."]
    if checked := answer.get("checked"):
        ties, difference = checked["ties"], checked["logit_difference"]
        levels = f"all but {ties}, next to a threshold, equal" if ties else "all equal"
        logits = f"logits within {difference:.1e}" if difference else "logits equal"
        lines.append(f"Checked in onnxruntime: {checked['levels']} levels, {levels}; {logits}.")
    if unsayable := answer.get("unsayable"):
        counts = ", ".join(f"{count} {kind}" for kind, count in unsayable.items())
        lines.append(f"NIR has no word for {counts}: the whole network is what --format spike-graph writes.")
    return "\n".join(lines)

"""What `spikezip export` does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spikezip_hf.export import export_onnx, export_torch
from spikezip_hf.loading import class_of, load_twin
from spikezip_hf.models.configuration_quantization import check_choice
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel

# Of each format: what writes it, given the model, the path and the options of the command.
FORMATS: dict[str, Callable[..., dict[str, Any]]] = {"onnx": export_onnx, "torch": export_torch}
WHAT = ("quantized", "step")


def export(source: str, output: Path, format: str, what: str | None, inputs: str) -> tuple[dict[str, Any], str]:
    """Export a checkpoint: the answer, and the same in words.

    Args:
        what: None for what the checkpoint holds: of a Spike model a step, of a Quant model the quantized network.

    Raises:
        ValueError, TypeError, ImportError, OSError: the checkpoint, the file or an option will not do; says why.
    """
    check_choice("format", format, tuple(FORMATS))
    if what is not None:
        check_choice("what", what, WHAT)
    cls, _ = class_of(source)
    spiking = issubclass(cls, SpikePreTrainedModel)
    what = what or ("step" if spiking else "quantized")
    if what == "step" and not spiking:
        raise ValueError(
            f"{source} holds a {cls.__name__}, and a step is of a spiking network: convert it first, "
            f"`spikezip convert {source} OUTPUT`."
        )
    model = load_twin(source, TwinPreTrainedModel)
    if what == "quantized" and spiking:
        model = model.to_quantized()
    answer = FORMATS[format](model, output, kind=what, inputs=inputs)
    return answer, describe(answer)


def describe(answer: dict[str, Any]) -> str:
    """An export in words."""
    lines = [
        f"Written: {answer['written']}, {answer['kind']} of a {answer['network']} ({len(answer['nodes'])} nodes)."
    ]
    if checked := answer.get("checked"):
        lines.append(
            f"Checked in onnxruntime: {checked['levels']} levels, {checked['ties']} of them others next to a "
            f"threshold; logits within {checked['logit_difference']:.1e} of equal levels."
        )
    return "\n".join(lines)

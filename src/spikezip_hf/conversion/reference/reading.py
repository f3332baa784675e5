"""From a file to a Quant model: what is in it, whose layout that is, what the config has to be."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

from spikezip_hf.conversion.reference import roberta, vit
from spikezip_hf.conversion.reference.files import Checkpoint, read_checkpoint
from spikezip_hf.conversion.reference.mapping import ImportReport, fill, oddities
from spikezip_hf.conversion.reference.weights import plain_weights
from spikezip_hf.models.configuration_spike_roberta import QuantRobertaConfig
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel
from spikezip_hf.models.quantization import LSQQuantizer, level_bounds

logger = logging.get_logger(__name__)

# Attributes of a quantizer that some layouts save beside its scale.
BOUNDS = ("pos_max", "neg_min")


def read_reference(
    path: str | Path,
    quantization_levels: int | None = None,
    *,
    num_attention_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    layer_norm_eps: float | None = None,
    weight_bits: int | None = None,
) -> tuple[QuantPreTrainedModel, ImportReport]:
    """A quantized network of the paper's code, or of one in its layout, as a Quant model.

    Its forward pass is the same function: the same products, quantizers and operators in the same order. Logits are
    those of the file's own network up to the rounding of floating point.

    Args:
        path: a `.pth` file of torch.save, or a safetensors file; a state dict, or a training's checkpoint with one.
        quantization_levels: levels of each quantizer. The tensors do not say it, so it has to be given, unless the
            file keeps the training's arguments or the quantizers' bounds.
        num_attention_heads: heads of a layer. Tensors do not say this either; by default that of the network of the
            reference which is as wide.
        image_size: pixels, height and width; by default the square that the position embeddings fit.
        layer_norm_eps: of each LayerNorm; by default the reference's, 1e-6 for ViT and 1e-5 for RoBERTa.
        weight_bits: of the file's weights, if it has quantizers for them and does not say it. The model gets the
            values that they stand for, in floating point.

    Returns:
        The model, in eval mode on the CPU, and what became of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file would run code, is not of this layout, lacks a tensor, has one that is not known or of
            another shape, has a scale that is not above 0, or is of a network that cannot be represented; or an
            argument is missing or contradicts the file. The message names what and, where there is one, the remedy.
    """
    checkpoint = read_checkpoint(path)
    layout = layout_of(checkpoint.tensors, path)
    tensors, bounds = without_bounds(checkpoint.tensors)
    tensors, folded = plain_weights(tensors, checkpoint.settings, weight_bits)
    for prefix, why in layout.REFUSED.items():
        if found := sorted(name for name in tensors if name.startswith(prefix)):
            raise ValueError(f"{found[0]} cannot be imported: {why}.")
    check_training(checkpoint.settings)
    ignored = dict(checkpoint.others)
    for name in sorted(tensors):
        if name.endswith(".position_ids"):
            ignored[name] = "a buffer that is counted and not learned"
            del tensors[name]

    levels, levels_from = choose_levels(quantization_levels, checkpoint, bounds, path)
    if layout is roberta and levels == 256 and not bounds:
        raise ValueError(
            "quantization_levels=256: the reference's text branch does not quantize at all at 256 levels."
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    fields: dict[str, Any] = layout.sizes(tensors, size)
    heads, heads_from = choose_heads(num_attention_heads, fields["hidden_size"], layout)
    eps = layout.LAYER_NORM_EPS if layer_norm_eps is None else layer_norm_eps
    if not 0.0 < eps < 1.0:
        raise ValueError(f"layer_norm_eps must be above 0 and below 1, got {eps!r}.")
    config = layout.quant_class.config_class(
        **fields,
        quantization_levels=levels,
        num_attention_heads=heads,
        layer_norm_eps=eps,
        scale_granularity="per_tensor",
    )
    with torch.device("meta"):
        model = layout.quant_class(config)
    mapped = fill(model, list(layout.entries(tensors, config)), tensors, ignored)
    check_bounds(model, mapped, bounds)

    notes = [*assumptions(checkpoint.settings, config), *oddities(model)]
    for note in notes:
        logger.info(note)
    report = ImportReport(
        file=str(path),
        architecture=type(model).__name__,
        mapped=mapped,
        folded=folded,
        ignored=ignored,
        settings={
            **{name: f"{value}, from the tensors" for name, value in fields.items()},
            "quantization_levels": f"{levels}, by {levels_from}",
            "num_attention_heads": f"{heads}, {heads_from}",
            "layer_norm_eps": f"{eps:g}, {'the default of the reference' if layer_norm_eps is None else 'as given'}",
        },
        notes=tuple(notes),
    )
    return model.eval(), report


def layout_of(tensors: dict[str, torch.Tensor], path: str | Path) -> ModuleType:
    """The layout that the names are of.

    Raises:
        ValueError: none that is known; the message says what the file is instead, where it can be told.
    """
    for layout in (vit, roberta):
        if layout.MARK in tensors and any(name.endswith(".s") for name in tensors):
            return layout
    if any(".linear.weight" in name for name in tensors):
        raise ValueError(
            f"{path} is of the reference's converted SNN, which saves no thresholds: import the quantized network."
        )
    if not any(name.endswith(".s") for name in tensors):
        raise ValueError(
            f"{path} has no scales (no name ends in .s), so it is of an ordinary network: load that with transformers "
            "or timm, and quantize it with from_ann."
        )
    raise ValueError(
        f"{path} is of no layout that is known: there is neither {vit.MARK} nor {roberta.MARK}. Its names begin with "
        f"{', '.join(sorted(tensors)[:3])}."
    )


def without_bounds(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, int]]]:
    """The tensors without quantizers' bounds, and {name of the quantizer: (smallest level, largest level)}."""
    bounds = {}
    for name in tensors:
        path = name.removesuffix(".s")
        if name.endswith(".s") and all(f"{path}.{bound}" in tensors for bound in BOUNDS):
            largest, smallest = (whole_number(f"{path}.{bound}", tensors[f"{path}.{bound}"]) for bound in BOUNDS)
            bounds[path] = (smallest, largest)
    beside = {f"{path}.{bound}" for path in bounds for bound in BOUNDS}
    return {name: tensor for name, tensor in tensors.items() if name not in beside}, bounds


def whole_number(name: str, tensor: torch.Tensor) -> int:
    """A bound of a quantizer.

    Raises:
        ValueError: it is no whole number; names it.
    """
    if tensor.numel() != 1 or not float(tensor).is_integer():
        raise ValueError(f"{name} is {tensor.tolist()}: a quantizer's bound has to be one whole number.")
    return int(tensor)


def check_training(settings: dict[str, Any]) -> None:
    """Raise ValueError if the training's arguments say that the network is one that cannot be represented."""
    act = settings.get("act_layer", "relu")
    if act != "relu":
        raise ValueError(f"act_layer of the training is {act!r}: only ReLU becomes spikes.")
    if settings.get("remove_softmax"):
        raise ValueError("remove_softmax: the network's attention has no softmax, and ours has one.")


def choose_levels(
    given: int | None, checkpoint: Checkpoint, bounds: dict[str, tuple[int, int]], path: str | Path
) -> tuple[int, str]:
    """The number of levels, and where it is from.

    Raises:
        ValueError: nobody says it, two say something else, or it is out of range.
    """
    told = {}
    if given is not None:
        told["your argument"] = given
    if "level" in checkpoint.settings:
        told["the training's argument `level`"] = checkpoint.settings["level"]
    if bounds:
        counts = {largest - smallest + 1 for smallest, largest in bounds.values()}
        if len(counts) > 1:
            raise ValueError(
                f"The quantizers have {sorted(counts)} levels, and a network of ours has one number of them."
            )
        told["the quantizers' bounds"] = counts.pop()
    if not told:
        named = re.search(r"q(\d+)", Path(path).name)
        hint = f" Its name suggests {named.group(1)}." if named else ""
        raise ValueError(
            f"quantization_levels has to be given: the tensors of {path} do not say it. It is --level of the "
            f"training, and --levels of `spikezip import`.{hint}"
        )
    for value in told.values():
        level_bounds(value, signed=True)
    if len(set(told.values())) > 1:
        raise ValueError(
            f"quantization_levels: {', '.join(f'{value} by {source}' for source, value in told.items())}. Leave the "
            "argument out, if the file is right."
        )
    source, levels = next(iter(told.items()))
    return levels, source


def choose_heads(given: int | None, hidden_size: int, layout: ModuleType) -> tuple[int, str]:
    """The number of attention heads, and where it is from.

    Raises:
        ValueError: it is not known, or does not divide the width.
    """
    if given is None:
        if hidden_size not in layout.HEADS:
            raise ValueError(
                f"num_attention_heads has to be given: the tensors do not say it, and the reference has no network "
                f"that is {hidden_size} wide. It is --heads of `spikezip import`."
            )
        return layout.HEADS[hidden_size], "that of the reference's network of this width"
    if isinstance(given, bool) or not isinstance(given, int) or given < 1 or hidden_size % given:
        raise ValueError(f"num_attention_heads is {given!r}, which does not divide the width {hidden_size}.")
    return given, "as given"


def check_bounds(model: QuantPreTrainedModel, mapped: dict[str, str], bounds: dict[str, tuple[int, int]]) -> None:
    """Raise ValueError, naming the quantizer, if its bounds are not those of our node."""
    for name, node in model.named_modules():
        if not isinstance(node, LSQQuantizer):
            continue
        path = mapped[f"{name}.scale"].removesuffix(".s")
        ours = (node.min_level, node.max_level)
        if bounds.get(path, ours) != ours:
            raise ValueError(
                f"{path} has levels from {bounds[path][0]} to {bounds[path][1]}, and ours there has them from "
                f"{ours[0]} to {ours[1]}: it is another network."
            )


def assumptions(settings: dict[str, Any], config: PreTrainedConfig) -> list[str]:
    """What the file does not say, in words."""
    notes = []
    if "act_layer" not in settings:
        notes.append("the activation is taken to be ReLU, the only one that the reference converts")
    if isinstance(config, QuantRobertaConfig):
        if config.node_placement == "reference":
            notes.append("LayerNorms' outputs stay analog and the context is clipped at 0, as in the reference")
        notes.append(
            "the tokenizer is not in the file; the reference pads to 50 tokens with id 0: pass attention_mask"
        )
        return notes
    if "remove_softmax" not in settings:
        notes.append("attention is taken to have its softmax")
    if config.reduced_channels:
        notes.append("how images were made of events is not in the file: give the model its EventImageProcessor")
    elif settings.get("mean") and settings.get("std"):
        notes.append(f"images were normalised with mean {settings['mean']} and std {settings['std']}")
    else:
        notes.append("how images were normalised is not in the file; the reference's commands say mean and std 0.5")
    notes.append("the reference's converted network has LayerNorms of eps 1e-5; this is its quantized network")
    return notes

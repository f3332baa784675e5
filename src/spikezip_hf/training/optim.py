"""Parameter groups: who decays, at which learning rate."""

import re
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from spikezip_hf.models.quantization import Quantizer

LAYER = re.compile(r"(?:^|\.)(?:layer|layers|blocks)\.(\d+)\.(?:blocks\.(\d+)\.)?")
STEM = re.compile(r"(?:^|\.)(?:(?:embeddings|patch_embed)\.|(?:cls_token|dist_token|pos_embed)$)")
FINAL_NORM = re.compile(r"(?:^|\.)(?:layernorm|layernorm_node|norm)\.(?!.*\.(?:layer|layers)\.)")


def scale_parameter_names(model: nn.Module) -> set[str]:
    """Names of the learned quantizer scales of `model`, of activations and of weights."""
    return {f"{path}.scale" for path, module in model.named_modules() if isinstance(module, Quantizer)}


def layer_id(name: str, num_layers: int, depths: Sequence[int] = ()) -> int:
    """Depth of a parameter of ViT (transformers' or timm's), BERT, RoBERTa or Swin, as timm counts it.

    0 for embeddings, i + 1 for layer i, num_layers for the final LayerNorm, num_layers + 1 for the head.

    Args:
        depths: blocks of each stage, where the layers are in stages; patch merging counts with the block before it.
    """
    if match := LAYER.search(name):
        if not depths:
            return int(match[1]) + 1
        stage = int(match[1])
        return sum(depths[:stage]) + (depths[stage] if match[2] is None else int(match[2]) + 1)
    if STEM.search(name):
        return 0
    return num_layers if FINAL_NORM.search(name) else num_layers + 1


def learning_rate_factor(name: str, num_layers: int, layer_decay: float, depths: Sequence[int] = ()) -> float:
    """Layer-wise decay, layer_decay ^ (num_layers + 1 - id) (Clark et al. 2020; Bao et al. 2022)."""
    return layer_decay ** (num_layers + 1 - layer_id(name, num_layers, depths))


def parameter_groups(
    model: PreTrainedModel,
    *,
    decay_names: Iterable[str],
    learning_rate: float,
    weight_decay: float,
    scale_learning_rate: float | None = None,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Optimizer groups, one for each learning rate and decay that occur, in the order of the parameters.

    A decayed scale shrinks the range of its neuron whatever the data says, so scales never decay.

    Args:
        decay_names: names of the parameters that decay.
        learning_rate: of the head; layers below it have less by `layer_decay` each.
        scale_learning_rate: of the scales instead, before layer-wise decay; None for the same.
        layer_decay: 1 for one rate at all depths.
    """
    scales, decaying = scale_parameter_names(model), set(decay_names)
    depths = getattr(model.config, "depths", ())
    layers = [int(match[1]) for match in (LAYER.search(name) for name, _ in model.named_parameters()) if match]
    # Not from the config, without stages: that of a timm network does not tell.
    num_layers = sum(depths) or max(layers, default=-1) + 1
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rate if scale_learning_rate is None or name not in scales else scale_learning_rate
        if layer_decay != 1:
            rate *= learning_rate_factor(name, num_layers, layer_decay, depths)
        decay = weight_decay if name in decaying and name not in scales else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]

"""Parameter groups for quantization-aware training."""

from torch import nn

from spikezip_hf.models.quantization import LSQQuantizer


def scale_parameter_names(model: nn.Module) -> set[str]:
    """Names of the learned quantizer scales of `model`."""
    return {f"{path}.scale" for path, module in model.named_modules() if isinstance(module, LSQQuantizer)}


def parameter_groups(
    model: nn.Module, decay_names: set[str], weight_decay: float, scale_learning_rate: float | None
) -> list[dict]:
    """Optimizer groups: weights with decay, weights without, and scales without and at their own learning rate.

    A decayed scale shrinks the range of its neuron whatever the data says, so scales never decay.

    Args:
        decay_names: names of the parameters that decay.
        scale_learning_rate: None for the optimizer's own.
    """
    scales = scale_parameter_names(model)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for n, p in named if n in decay_names and n not in scales], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n not in decay_names and n not in scales], "weight_decay": 0.0},
        {"params": [p for n, p in named if n in scales], "weight_decay": 0.0},
    ]
    if scale_learning_rate is not None:
        groups[-1]["lr"] = scale_learning_rate
    return [group for group in groups if group["params"]]

"""Where in a training the first value appears that is not finite: looked for once something is known to be wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spikezip_hf.models.quantization import LSQQuantizer


def is_finite(value: Any) -> bool:
    """Whether nothing in a tensor, or in a tree of them as modules return it, is NaN or infinite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    return not isinstance(value, tuple | list) or all(map(is_finite, value))


def broken_inputs(inputs: Mapping[str, Any]) -> str | None:
    """The first tensor of a batch that is not finite, in words; None if all are."""
    for name, value in inputs.items():
        if not is_finite(value):
            rows = [row for row, one in enumerate(value) if not is_finite(one)]
            shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            return f"{name} of the batch is not finite in row {shown} (from 0): mend such samples, or leave them out"
    return None


def broken_parameters(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first parameter that is not finite, in words; None if all are."""
    for name, parameter in named:
        if not is_finite(parameter.detach()):
            return f"the parameter {name} is not finite: go back to an earlier checkpoint, with a lower learning_rate"
    return None


def broken_outputs(networks: Mapping[str, nn.Module], forward: Callable[[], Mapping[str, torch.Tensor]]) -> str:
    """The first output of a module that is not finite, and the first node it reaches, in words; or a part of the loss.

    Args:
        networks: {what to call it: what is looked at in the forward pass}; "" for names as they are.
        forward: the pass, which returns the parts of the loss, weighed.
    """
    with recorded(networks) as broken, torch.no_grad():
        try:
            parts = forward()
        except FloatingPointError as error:  # a Quant teacher's, which looks for NaN by itself
            return str(error)
    if broken:
        first = f"the first output that is not finite is that of {broken[0][0]} ({type(broken[0][1]).__name__})"
        node = next((name for name, module in broken if isinstance(module, LSQQuantizer)), None)
        return first if node in (None, broken[0][0]) else f"{first}, and the first node it reaches is {node}"
    for name, part in parts.items():
        if not is_finite(part):
            return f"all modules give finite values, and of the loss itself {name}, with its weight, is not finite"
    return "it could not be found again: a second forward pass of the same batch, with other random numbers, is finite"


@contextmanager
def recorded(networks: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, nn.Module]]]:
    """The list of modules, with their names, that give values that are not finite, in their order."""
    broken: list[tuple[str, nn.Module]] = []

    def look(name: str) -> Callable:
        def hook(module, arguments, output):
            if not is_finite(output):
                broken.append((name, module))

        return hook

    handles = [
        module.register_forward_hook(look(f"{network} {name or type(module).__name__}".strip()))
        for network, whole in networks.items()
        for name, module in whole.named_modules()
    ]
    try:
        yield broken
    finally:
        for handle in handles:
            handle.remove()


def broken_gradients(model: nn.Module) -> str | None:
    """The gradient that keeps all together from being a finite length, in words; None if it is one.

    One that is finite but too large to be squared counts: clipping would make zeros of all of them.
    """
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    if is_finite(nn.utils.get_total_norm(gradients.values())):
        return None
    broken = [name for name, gradient in gradients.items() if not is_finite(gradient)]
    if broken:  # backward goes from the last to the first
        return f"the gradient of {broken[-1]} is not finite ({len(broken)} of {len(gradients)} parameters)"
    largest = max(gradients, key=lambda name: float(gradients[name].abs().max()))
    return f"the gradient of {largest} is too large for its norm, up to {float(gradients[largest].abs().max()):.1e}"

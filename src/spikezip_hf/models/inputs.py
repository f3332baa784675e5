# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What models are given, looked at before any work is done."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch

from .configuration_quantization import pair


def names_its_arguments(forward: Callable) -> Callable:
    """`forward`, whose error of an argument that it does not take names the model and what that takes."""
    known = tuple(inspect.signature(forward).parameters)[1:]

    @wraps(forward)
    def checked(self, *args, **kwargs):
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__} takes no {name}: its input is {self.main_input_name}, and its other "
                    f"arguments are {', '.join(one for one in known if one not in (self.main_input_name, 'engine'))}."
                )
        return forward(self, *args, **kwargs)

    return checked


def check_tensor(name: str, value: Any, maker: str) -> None:
    """Raise ValueError unless `value` is a tensor of real numbers.

    Args:
        maker: what makes such tensors, for whoever has none.
    """
    if isinstance(value, Mapping):
        raise ValueError(
            f"{name} must be a tensor, got {type(value).__name__}: give its entries by name, model(**batch)."
        )
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}: the model's own {maker} makes it.")
    if value.dtype.is_complex:
        raise ValueError(f"{name} must hold real numbers, got {value.dtype}.")


def check_pixels(pixel_values: Any, config: Any, takes_any_size: bool = False, interpolate: bool = False) -> None:
    """Raise ValueError unless these are images that a network of `config` takes.

    Args:
        takes_any_size: whether the network can take other sizes than the config's, for the remedy.
        interpolate: whether it is asked to.
    """
    if pixel_values is None:
        raise ValueError("pixel_values is missing.")
    check_tensor("pixel_values", pixel_values, "image processor")
    channels, size, patch = config.num_channels, pair(config.image_size), pair(config.patch_size)
    given = tuple(pixel_values.shape)
    if interpolate:
        fits = given[-3:-2] == (channels,) and given[-2] >= patch[0] and given[-1] >= patch[1]
        expected = f"{channels}, at least {patch[0]}, at least {patch[1]}"
        remedy = "patch_size of the config."
    else:
        fits = given[-3:] == (channels, *size)
        expected = ", ".join(map(str, (channels, *size)))
        other = ", or pass interpolate_pos_encoding=True to take them as they are" if takes_any_size else ""
        remedy = f"image_size of the config: let the model's own image processor resize the images{other}."
    if pixel_values.dim() not in (4, 5) or not fits or not pixel_values.numel():
        raise ValueError(
            f"pixel_values must be (batch, {expected}), or (batch, steps, {expected}) for input per step; got "
            f"{given}. The sizes are num_channels and {remedy}"
        )

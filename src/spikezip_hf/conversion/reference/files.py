"""The tensors of a `.pth` file, read without running anything that is in it."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

# Under which the training scripts of the reference, and others, keep the weights of a whole training.
WEIGHTS = ("model", "state_dict")
# What wrappers put in front of each name: DataParallel, torch.compile, the reference's text classifier.
WRAPPERS = ("module.", "_orig_mod.", "bert.")


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: {name: tensor}, names as in the network itself.
        settings: arguments of the training that wrote the file, if it kept them; plain values.
        others: {name: why it is no weight} of what else is in the file.
    """

    tensors: dict[str, torch.Tensor]
    settings: dict[str, Any]
    others: dict[str, str]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of torch.save, has no weights in it, or needs more than tensors, plain values and
            an argparse.Namespace; the message names the objects and the remedy. Nothing of it is run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    if path.suffix == ".safetensors":
        try:
            return Checkpoint(load_file(path), {}, {})
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as a safetensors file: {error}.") from error
    content = load_plain(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, and no state dict.")
    others = {}
    weights: Mapping[str, Any] = content
    for key in WEIGHTS:
        if isinstance(content.get(key), Mapping):
            weights = content[key]
            others = {str(name): "of the training, not of the network" for name in content if name != key}
            break
    for name in [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]:
        others[str(name)] = f"a {type(weights[name]).__name__}, no tensor"
    tensors = {str(name): value.detach() for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors: a state dict is expected, bare or under {' or '.join(WEIGHTS)}.")
    settings = content.get("args")
    return Checkpoint(
        unwrapped(tensors), dict(vars(settings)) if isinstance(settings, argparse.Namespace) else {}, others
    )


def load_plain(path: Path) -> Any:
    """What torch.save has put into a file, if it is tensors and plain values.

    argparse.Namespace is let through beside them, since the reference's ViT scripts keep their arguments in one: it
    has no code that loading could run.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, AttributeError, EOFError, RuntimeError, LookupError, OSError) as error:
        objects = foreign_objects(path, str(error))
        if not objects:
            first_line = str(error).strip().partition("\n")[0].partition(" In PyTorch 2.6")[0]
            raise ValueError(f"{path} cannot be read as a file of torch.save: {first_line}") from error
        raise ValueError(
            f"{path} needs {', '.join(objects)}: that is more than tensors, and loading it would run code of the "
            "file, so it was not loaded. Where whoever made the file is trusted, have its tensors saved alone, "
            'torch.save({"model": model.state_dict()}, "tensors.pth"), and import that.'
        ) from error


def foreign_objects(path: Path, message: str) -> list[str]:
    """Names of what a file asks for beside tensors and plain values; none if that is not what is wrong with it."""
    if zipfile.is_zipfile(path):
        try:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        except (pickle.UnpicklingError, ValueError, RuntimeError):
            found = []
        if found := sorted(set(found) - {"argparse.Namespace"}):
            return found
    named = re.search(r"GLOBAL ([\w.]+)|class_name: '?([\w.]+)", message)
    return [next(group for group in named.groups() if group)] if named else []


def unwrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names that they have in the network itself."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            return unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors

"""What tests of files do to them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import make_images

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@torch.no_grad()
def answers(model) -> torch.Tensor:
    """Logits of four noisy images."""
    return model.eval()(make_images(model.config, 4)).logits


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As another tool would, without a seal."""
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

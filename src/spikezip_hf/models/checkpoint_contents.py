# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What a checkpoint's tensors are of: the types and parts that scales need, and the network they were saved from."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from .checkpoint_files import METADATA, NETWORK, DamagedFile, read_header
from .configuration_quantization import NETWORK_FIELDS

# What scales may be stored as, in the words of safetensors: rounded, they would be other thresholds.
SCALE_TYPES = {torch.float32: "F32", torch.float64: "F64"}


def lone_scales(keys: list[str]) -> list[str]:
    """Of keys, those of quantizers whose weight is not among them: a part that is there, or missing, in half."""
    # A node stands beside the linear map that it feeds from, the quantizer of its weight within.
    parts = {key.rsplit(".", depth)[0] for key in keys if key.endswith(".weight") for depth in (1, 2)}
    return [key for key in keys if key.endswith((".scale", ".initialized")) and key.rsplit(".", 2)[0] not in parts]


def check_types(source: str, types: Mapping[str, str]) -> None:
    """Raise ValueError if a scale is stored in a type that rounds it, or what goes with it in another than bool.

    Args:
        types: of tensors by their names, as safetensors calls them.
    """
    for name, found in types.items():
        if name.endswith(".scale") and found not in SCALE_TYPES.values():
            raise ValueError(
                f"{source}: {name} is stored as {found}, and thresholds must be float32 or wider: rounded, they are "
                "those of another network. Save the model with save_pretrained, which keeps them."
            )
        if name.endswith(".initialized") and found not in ("BOOL", str(torch.bool)):
            raise ValueError(f"{source}: {name} is stored as {found}, and must be bool. Save the model again.")


def types_in(path: str) -> dict[str, str]:
    """Types of the tensors in a file, as safetensors calls them."""
    return {name: entry["dtype"] for name, entry in read_header(path)[0].items() if name != METADATA}


def network_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Fields of a config without which the tensors beside it are another network."""
    return {name: getattr(config, name) for name in NETWORK_FIELDS if hasattr(config, name)}


def check_network(path: str, config: PreTrainedConfig) -> None:
    """Raise ValueError, naming the field, if weights were saved with another network's config than this one."""
    header, _ = read_header(path)
    try:
        saved = dict(json.loads(header.get(METADATA, {}).get(NETWORK, "{}")))
    except (ValueError, TypeError) as error:
        raise DamagedFile(path, "has a header that cannot be read") from error
    fields = json.loads(json.dumps(network_fields(config)))  # where a tuple is a list
    for name, value in saved.items():
        if name in fields and fields[name] != value:
            raise ValueError(
                f"{name} of the config is {fields[name]!r}, and {path} was saved with {value!r}: with these weights "
                "it would be another network. Put the config.json back that was saved with them."
            )

"""Fixtures: small random networks, calibrated, and their spiking twins."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from spikezip_hf import QuantViTForImageClassification


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_ann(seed: int = 0, dtype: torch.dtype = torch.float32, **fields) -> ViTForImageClassification:
    """A random ReLU ViT with activations large enough to use all levels."""
    torch.manual_seed(seed)
    defaults = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "relu",
        "image_size": 8,
        "patch_size": 4,
        "num_labels": 5,
        "initializer_range": 0.15,
    }
    ann = ViTForImageClassification(ViTConfig(**{**defaults, **fields}))
    for name, parameter in ann.named_parameters():
        if name.endswith("bias"):  # transformers starts biases at 0, which would hide a bias counted twice
            torch.nn.init.normal_(parameter, std=0.1)
    return ann.to(dtype).eval()


def make_qann(seed: int = 0, dtype: torch.dtype = torch.float32, levels: int = 16, granularity="per_tensor", **fields):
    """Its quantized twin, calibrated on noise."""
    ann = make_ann(seed, dtype, **fields)
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=levels, scale_granularity=granularity)
    return qann.calibrate([{"pixel_values": make_images(qann.config, 32, dtype, seed + 1)}])


def make_images(config, batch: int, dtype: torch.dtype = torch.float32, seed: int = 7, steps: int | None = None):
    """Noise (batch, channels, H, W), or (batch, steps, channels, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    height = width = config.image_size
    shape = (batch, config.num_channels, height, width) if steps is None else (batch, steps, 3, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

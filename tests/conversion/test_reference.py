"""Checkpoints of the paper's layout become Quant models that compute what the file's own network computes."""

import argparse
import os

import pytest
import torch

from spikezip_hf import QuantRobertaForSequenceClassification, QuantViTForImageClassification
from spikezip_hf.conversion import read_reference
from spikezip_hf.models.quantization import quantize
from tests.conversion.reference_networks import ReferenceRoberta, ReferenceViT, quantizers, randomized


def images(batch=6, height=8, width=8, dtype=torch.float32):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3)).to(dtype)


def make_vit(dtype=torch.float32, **fields):
    size = fields.get("image", 8)
    height, width = (size, size) if isinstance(size, int) else size
    return randomized(ReferenceViT(**fields).to(dtype), images(16, height, width, dtype))


def texts(batch=5, length=9):
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(2, 60, (batch, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([9, 7, 4, 9, 2])[:batch, None]).long()
    return ids.masked_fill(mask == 0, 1), mask


def make_roberta(dtype=torch.float32, **fields):
    return randomized(ReferenceRoberta(**fields).to(dtype), *texts())


def save(network, path, **beside):
    torch.save({"model": network.state_dict(), **beside}, path)
    return path


@torch.no_grad()
def node_levels(qann, inputs):
    """Levels of each node of our network in a forward pass."""
    levels, hooks = {}, []
    for node in qann.nodes:
        hooks.append(
            node.register_forward_hook(
                lambda module, args, output: levels.update({module.name: (output.values / module.scale).round()})
            )
        )
    qann(**inputs)
    for hook in hooks:
        hook.remove()
    return levels


@torch.no_grad()
def test_vit_computes_the_same(tmp_path):
    network = make_vit(torch.float64)
    qann, report = read_reference(save(network, tmp_path / "vit.pth"), 16, num_attention_heads=4)
    assert type(qann) is QuantViTForImageClassification and qann.calibrated and not qann.training
    expected, logits = network(images(dtype=torch.float64)), qann(images(dtype=torch.float64)).logits
    # Ours multiplies levels and scales the sum, the file's network multiplies values: the last bits differ.
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.1
    assert len(report.mapped) == len([name for name in qann.state_dict() if not name.endswith("initialized")])

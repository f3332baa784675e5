"""Gradients of a quantized network in eval mode: values are those of exact inference, gradients those of training."""

import pytest
import torch

from spikezip_hf.models import engines
from spikezip_hf.models.operators import MatMul
from spikezip_hf.models.rows import Rows
from tests.models.test_fast_engine import make_inputs, make_snn

networks = pytest.mark.parametrize("architecture", ["vit", "bert", "roberta"])
weights = pytest.mark.parametrize("weight_bits", [None, 8])


def make_qann(architecture, **fields):
    return make_snn(architecture, **fields).to_quantized().eval()


def gradients(model, batch):
    """{parameter: gradient} of a sum that weighs every logit."""
    model.zero_grad()
    logits = model(**batch).logits
    (logits * torch.arange(1.0, logits.numel() + 1).view_as(logits).to(logits.dtype)).sum().backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@weights
@networks
@pytest.mark.parametrize("granularity", ["per_tensor", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_have_the_same_bits_with_and_without_gradients(architecture, granularity, weight_bits, dtype):
    qann = make_qann(architecture, weight_bits=weight_bits, granularity=granularity, dtype=dtype)
    batch = make_inputs(qann)
    with torch.no_grad():
        expected = qann(**batch)
    out = qann(**batch)
    assert out.logits.requires_grad
    assert torch.equal(out.logits, expected.logits)


@pytest.mark.parametrize("head_dim", [4, 8])
def test_attention_scores_have_the_same_bits_with_and_without_gradients(head_dim):
    """A root of 8 is no power of two: where it is multiplied matters."""
    q, k = (
        Rows(
            integers=torch.randint(-8, 8, (3, 2, 9, head_dim), dtype=torch.int8),
            scale=torch.tensor([scale]),
            peak=8,
            dtype=torch.float32,
        )
        for scale in (0.0371, 0.0519)
    )
    product = MatMul().eval()
    with_gradient = product(q, k.transpose(-1, -2)) * head_dim**-0.5
    with torch.no_grad():
        without = product(q, k.transpose(-1, -2)) * head_dim**-0.5
    assert torch.equal(with_gradient.values if isinstance(with_gradient, Rows) else with_gradient, without.values)


@weights
@networks
def test_gradients_are_those_of_fake_quantization(architecture, weight_bits, monkeypatch):
    """In float64, where no level differs, against the same network whose tensors are plain values, as in training."""
    qann = make_qann(architecture, weight_bits=weight_bits, dtype=torch.float64)
    batch = make_inputs(qann)
    exact = gradients(qann, batch)
    monkeypatch.setattr(engines, "in_inference", lambda module: False)
    plain = gradients(qann, batch)
    assert list(exact) == list(plain)
    assert any(name.endswith("_node.scale") and bool(x.any()) for name, x in exact.items())
    for name in plain:
        # The same sums in another order.
        assert torch.allclose(exact[name], plain[name], rtol=1e-9, atol=1e-10), name


@weights
def test_gradients_reach_the_input(weight_bits):
    qann = make_qann("vit", weight_bits=weight_bits, dtype=torch.float64)
    batch = make_inputs(qann)
    batch["pixel_values"].requires_grad_()
    qann(**batch).logits.sum().backward()
    assert bool(batch["pixel_values"].grad.abs().sum() > 0)


@weights
def test_a_frozen_network_has_no_gradient(weight_bits):
    qann = make_qann("vit", weight_bits=weight_bits).requires_grad_(False)
    assert not qann(**make_inputs(qann)).logits.requires_grad

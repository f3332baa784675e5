"""SESA, Spike-Softmax and Spike-LayerNorm sum up to what they stand for (paper Eq. A21, A27), and bias enters once."""

import pytest
import torch

from spikezip_hf.models.engines import EventEngine
from spikezip_hf.models.operators import (
    SESA,
    Conv2d,
    Dropout,
    LayerNorm,
    Linear,
    MatMul,
    Softmax,
    SpikeLayerNorm,
    SpikeSoftmax,
    name_operators,
)
from spikezip_hf.models.rows import Rows


def spike_trains(steps, *shape):
    """Ternary spikes {-1, 0, 1}, (steps, ...)."""
    return torch.randint(-1, 2, (steps, *shape)).double()


@pytest.mark.parametrize("steps", [1, 2, 17])
def test_sesa_sums_to_the_product_of_the_accumulated_operands(steps):
    q, k = spike_trains(steps, 2, 3, 5, 4), spike_trains(steps, 2, 3, 4, 6)
    sesa = SESA()
    total = 0
    for t in range(steps):
        total = total + sesa.step(q[t], k[t])
        # Eq. A24 after every step, not only at the end; integers, so exactly.
        assert torch.equal(total, q[: t + 1].sum(0) @ k[: t + 1].sum(0))


@pytest.mark.parametrize(
    ("form", "sigma"), [(SpikeSoftmax, Softmax()), (SpikeLayerNorm, LayerNorm(6, eps=1e-3).double())]
)
def test_differential_operators_sum_to_the_operator_of_the_sum(form, sigma):
    if isinstance(sigma, LayerNorm):
        torch.nn.init.normal_(sigma.weight)
        torch.nn.init.normal_(sigma.bias)
    x = spike_trains(12, 2, 5, 6) * 0.3
    operator = form(sigma)
    total = 0
    for t in range(len(x)):
        change = operator.step(x[t])
        total = total + change
        # float64 sums of at most 12 changes
        assert torch.allclose(total, sigma(x[: t + 1].sum(0)), rtol=0, atol=1e-13)
    assert not operator.step(torch.zeros_like(x[0])).any()  # no input, no output


def test_affine_maps_add_their_bias_in_the_first_step_only():
    network = torch.nn.ModuleDict({"linear": Linear(6, 4), "conv": Conv2d(3, 4, 2, 2)}).double()
    name_operators(network)
    engine = EventEngine(2, torch.device("cpu"))
    x, image = spike_trains(5, 2, 7, 6), spike_trains(1, 2, 3, 4, 4)[0]
    linear_total, conv_total = 0, 0
    for t in range(5):
        engine.advance(1)
        linear_total = linear_total + engine.linear(network["linear"], x[t])
        conv_total = conv_total + engine.encode(network["conv"], image)
    assert torch.allclose(linear_total, network["linear"](x.sum(0)), rtol=0, atol=1e-13)  # order of a sum
    assert torch.equal(conv_total, network["conv"](image))  # a static image is one charge


def test_the_event_engine_uses_these_forms_by_name():
    network = torch.nn.ModuleDict({"scores": MatMul(), "softmax": Softmax(), "norm": LayerNorm(6)}).double()
    name_operators(network)
    engine = EventEngine(2, torch.device("cpu"))
    engine.advance(1)
    scores = engine.matmul(network["scores"], spike_trains(1, 2, 3, 6)[0], spike_trains(1, 2, 6, 6)[0])
    engine.apply(network["norm"], engine.apply(network["softmax"], scores))
    assert {name: type(state) for name, state in engine.products.items()} == {"scores": SESA}
    assert {name: type(state) for name, state in engine.operators.items()} == {
        "softmax": SpikeSoftmax,
        "norm": SpikeLayerNorm,
    }


def test_dropout_hands_on_what_it_gets_in_inference_and_drops_in_training():
    dropout, rows, x = Dropout(0.5), Rows(torch.ones(2, 3)), torch.ones(1000)
    torch.manual_seed(0)
    assert set(dropout(x).tolist()) == {0.0, 2.0}
    dropout.eval()
    assert dropout(rows) is rows
    assert dropout(x) is x

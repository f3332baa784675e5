"""Softmax of whole numbers: what it is held to, and that no order of adding can be seen in it."""

import math

import pytest
import torch

from spikezip_hf.models import kernels
from spikezip_hf.models.kernels import (
    EXPONENTIAL_BITS,
    LONGEST_TABLE,
    exponentials,
    integer_softmax,
    table_of_exponentials,
)
from spikezip_hf.models.operators import MatMul, Softmax
from spikezip_hf.models.remembering import parameters_remembered
from spikezip_hf.models.rows import Rows
from tests.models.test_fast_engine import make_inputs, make_snn

STEPS = [1e-4, 0.003, 0.07, 1.0, 40.0]


def scores(*shape, largest=3000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("step", STEPS)
def test_the_table_is_of_exponentials_down_to_the_first_zero(step):
    table = exponentials(torch.tensor([step]))
    step = float(torch.tensor(step))
    expected = [round(2**EXPONENTIAL_BITS * math.exp(-step * distance)) for distance in range(len(table))]
    assert table.dtype == torch.int32
    assert (table.double() - torch.tensor(expected).double()).abs().max() <= 1  # two libraries' exp, at a tie
    assert int(table[0]) == 2**EXPONENTIAL_BITS
    assert int(table[-1]) == 0
    assert len(table) < 4 or int(table[-4]) > 0


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, 21.4 / LONGEST_TABLE])
def test_there_is_none_where_it_would_be_endless(step):
    assert exponentials(torch.tensor([step])) is None


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64])
@pytest.mark.parametrize("step", STEPS)
def test_is_the_softmax(step, dtype):
    x = scores(2, 3, 5, 40)
    found = integer_softmax(x.to(dtype), exponentials(torch.tensor([step])), None)
    exact = torch.softmax(x.double() * float(torch.tensor(step)), -1)
    # An exponential is off by 2**-31 of the largest, and 40 of them are in the sum; then four roundings to float32.
    assert (found - exact).abs().max() <= 41 * 2.0**-31 + 4 * 2.0**-24
    assert found.dtype == torch.float32


def test_neither_order_nor_what_is_hidden_can_be_seen():
    x, table = scores(3, 2, 4, 50), exponentials(torch.tensor([0.002]))
    found = integer_softmax(x, table, None)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(integer_softmax(x[..., order], table, None), found[..., order])

    keys = torch.rand(3, 1, 1, 50, generator=torch.Generator().manual_seed(2)) < 0.6
    hidden = integer_softmax(x, table, keys)
    for row in range(3):
        seen = keys[row].flatten()
        assert torch.equal(hidden[row][..., seen], integer_softmax(x[row][..., seen], table, None))
        assert not hidden[row][..., ~seen].any()


def test_where_everything_is_hidden_all_is_alike():
    found = integer_softmax(scores(1, 1, 2, 8), exponentials(torch.tensor([0.1])), torch.zeros(1, 1, 1, 8).bool())
    assert torch.equal(found, torch.full((1, 1, 2, 8), 0.125))


def attention_scores(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-8, 8, (2, 3, *shape), generator=generator).to(torch.int8) for shape in ((9, 4), (4, 9)))
    scale = torch.tensor([0.3], dtype=dtype)
    q, k = (Rows(integers=x, scale=scale, peak=8, dtype=dtype) for x in (q, k))
    return MatMul().eval()(q, k)


def test_a_table_is_made_once_and_old_ones_are_let_go():
    with torch.inference_mode():
        table = exponentials(torch.tensor([0.25]))
    assert exponentials(torch.tensor([0.25])) is table
    assert not table.is_inference()
    for step in range(1, 101):
        exponentials(torch.tensor([step / 7]))
    assert table_of_exponentials.cache_info().currsize == 64
    assert exponentials(torch.tensor([0.25])) is not table


@torch.no_grad()
@pytest.mark.parametrize("sources", [(), ("q", "k")])
def test_in_a_simulation_scores_may_have_another_scale_later(sources):
    product, softmax = attention_scores(), Softmax().eval()
    product.sources = sources
    with parameters_remembered():
        for factor in (1.0, 0.25):
            expected = integer_softmax(product.integers, exponentials(product.scale * factor), None)
            assert torch.equal(softmax(product * factor).values, expected)


@torch.no_grad()
def test_what_the_operator_makes_of_a_product_of_levels():
    product, softmax = attention_scores(), Softmax().eval()
    found = softmax(product)
    assert torch.equal(found.values, integer_softmax(product.integers, exponentials(product.scale), None))
    double = softmax(attention_scores(torch.float64))
    assert torch.equal(double.values, torch.softmax(attention_scores(torch.float64).values, -1))
    # Values, or a sum with a bias, have no whole numbers.
    assert torch.equal(softmax(Rows(product.values)).values, torch.softmax(product.values, -1))
    assert torch.equal(softmax(product + 0.5).values, torch.softmax(product.values + 0.5, -1))


def test_gradients_are_those_of_the_softmax_in_floating_point():
    product, softmax = attention_scores(), Softmax().eval()
    leaf = product.values.clone().requires_grad_()
    found = softmax(product.with_gradient_of(leaf * 1.0))
    with torch.no_grad():
        assert torch.equal(found.values, softmax(product).values)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    (found.values * weights).sum().backward()
    other = product.values.clone().requires_grad_()
    (torch.softmax(other, -1) * weights).sum().backward()
    assert torch.equal(leaf.grad, other.grad)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("weight_bits", [None, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "mixed"])
@pytest.mark.parametrize("architecture", ["roberta", "bert"])
def test_a_text_has_the_same_bits_whatever_padding_is_beside_it(
    architecture, granularity, weight_bits, side, monkeypatch
):
    """In float32: sums of products and of softmax are exact, and all else is of one position."""
    monkeypatch.setattr(kernels, "in_fixed_point", lambda x: True)  # where kernels do not, the reference does
    snn = make_snn(architecture, weight_bits=weight_bits, granularity=granularity)
    batch = make_inputs(snn, side=side)
    run = snn(**batch, time_steps=90, stop="equilibrium")
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    for sample in range(len(lengths)):
        own = {name: x[sample : sample + 1, batch["attention_mask"][sample].bool()] for name, x in batch.items()}
        alone = snn(**own, time_steps=90, stop="equilibrium")
        assert torch.equal(alone.logits[0], run.logits[sample])
        assert torch.equal(alone.equilibrium_step[0], run.equilibrium_step[sample])
        assert torch.equal(alone.spike_counts[0], run.spike_counts[sample])

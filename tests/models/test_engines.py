"""What the primitives of a spiking engine do to rows and state."""

import pytest
import torch

from spikezip_hf.models.engines import CumulativeEngine, QuantEngine
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.rows import Rows, Timeline


def test_static_currents_are_one_row_a_sample_that_stands_for_every_step():
    engine = CumulativeEngine(3, torch.device("cpu"))
    engine.advance(4)
    per_sample, shared = torch.arange(12.0).reshape(3, 4), torch.ones(1, 4)
    rows = engine.static(per_sample)
    assert torch.equal(rows.values, per_sample)
    assert rows.timeline.index.tolist() == [[0, 1, 2]] * 4
    assert torch.equal(engine.static(shared), shared)
    engine.advance(2, torch.tensor([0, 2]))
    assert torch.equal(engine.static(per_sample).values, per_sample[[0, 2]])


def test_tracers_do_not_keep_their_chunk_alive():
    node = LSQQuantizer(16, True, 1)
    node.set_scale(torch.ones(1))
    engine = CumulativeEngine(2, torch.device("cpu"))
    engine.advance(8)
    engine.fire(node, Rows(torch.randn(16, 3), timeline=Timeline(torch.ones(8, 2, dtype=torch.bool))))
    assert engine.tracers[node.name].untyped_storage().nbytes() == 2 * 3  # int8, one step


@pytest.mark.parametrize("per_channel", [False, True])
def test_operands_are_handed_on_contiguous(per_channel):
    """Another layout may choose another kernel, and the twins would part in the last bit."""
    node = LSQQuantizer(16, True, 5, per_channel)
    node.set_scale(torch.ones_like(node.scale))
    x = torch.randn(2, 5, 3).transpose(1, 2)
    assert node(x).is_contiguous()
    assert node.quantize(x).is_contiguous()
    frames = torch.randn(2, 4, 3, 8, 8)
    assert QuantEngine().encode(lambda frame: frame, frames, per_step=True).is_contiguous()

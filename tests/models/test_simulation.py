"""The loop through time when kernels round differently for another number of rows, made to happen on purpose."""

import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from spikezip_hf.models.engines import CumulativeEngine
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.simulation import simulate


@pytest.mark.parametrize("groups", [1, 2])
def test_a_tie_that_shapes_round_differently_keeps_the_rest_of_the_run_in_the_shape_of_the_quantized_network(groups):
    node = LSQQuantizer(8, True, 1)
    node.set_scale(torch.ones(1))
    chunks = []

    def network(engine):
        chunks.append(engine.chunk)
        # Level 3 as rows of a chunk, level 0 alone: three steps to walk down after the first proof has failed.
        current = torch.full((engine.num_samples, 1), 3.0 if engine.chunk > 1 else 0.0)
        return ImageClassifierOutput(logits=engine.fire(node, current))

    run = simulate(
        network,
        "logits",
        CumulativeEngine(groups, torch.device("cpu")),
        time_steps=20,
        chunk_steps=4,
        stop="equilibrium",
        keep_steps=True,
        group_size=1,
    )
    assert chunks == [4] * groups + [1, 1, 1]
    assert run.readout.tolist() == [[0.0]] * groups
    assert run.per_step[..., 0].tolist() == [[1.0, 2.0, 3.0, 3.0, 2.0, 1.0] + [0.0] * 14] * groups
    assert run.equilibrium_step.tolist() == [7] * groups

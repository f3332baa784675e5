"""The loop through time when kernels round differently for another number of rows, made to happen on purpose."""

import torch
from transformers.modeling_outputs import ImageClassifierOutput

from spikezip_hf.models.engines import CumulativeEngine
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.simulation import simulate


def test_a_tie_that_shapes_round_differently_keeps_the_rest_of_the_run_in_the_shape_of_the_quantized_network():
    node = LSQQuantizer(8, True, 1)
    node.set_scale(torch.ones(1))
    chunks = []

    def network(engine):
        chunks.append(engine.chunk)
        # Level 3 as rows of a chunk, level 0 alone: three steps to walk down after the first proof has failed.
        current = torch.full((1, 1), 3.0 if engine.chunk > 1 else 0.0)
        return ImageClassifierOutput(logits=engine.fire(node, current))

    run = simulate(
        network,
        "logits",
        CumulativeEngine(1, torch.device("cpu")),
        time_steps=20,
        chunk_steps=4,
        stop="equilibrium",
        keep_steps=False,
    )
    assert chunks == [4, 1, 1, 1]
    assert run.readout.item() == 0.0
    assert run.equilibrium_step.item() == 7

"""The loop through time: its chunks, and kernels that round differently for another number of rows, on purpose."""

from functools import partial

import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from spikezip_hf.models.engines import CumulativeEngine
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.simulation import CHUNK_BYTES, LONGEST_CHUNK, SHORTEST_CHUNK, default_chunk, simulate


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


def test_groups_are_for_a_cpu_and_of_about_one_size():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    never = partial(default_chunk, stop="never")
    rows = CHUNK_BYTES["cpu"] // 1000
    assert rows // SHORTEST_CHUNK == 1048
    assert never(1, 32, 1000, cpu) == (1, rows)
    assert never(1048, 32, 1000, cpu) == (1048, 16)
    assert never(1049, 32, 1000, cpu) == (525, rows // 525)
    assert never(1049, 16, 1000, cpu) == (1049, 15)  # all that there are
    assert never(1049, 1, 1000, cpu) == (1049, 15)
    assert never(8, 32, 2**21, cpu) == (1, 8)
    assert never(8, 32, 2**24, cpu) == (8, 1)  # one row is all that fits
    assert never(1049, 32, 1000, gpu) == (1049, 2**28 // 1000 // 1049)
    assert never(8, 32, 2**28, gpu) == (8, 1)


def test_chunks_of_a_run_that_may_end_early_are_not_too_long():
    for stop in ("equilibrium", "confidence"):
        assert default_chunk(1, 512, 2**20, torch.device("cpu"), stop) == (1, 16)
        for device in ("cpu", "cuda"):
            assert default_chunk(2, 512, 1000, torch.device(device), stop) == (2, LONGEST_CHUNK)

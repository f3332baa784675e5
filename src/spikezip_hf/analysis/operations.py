# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""How many operations a spiking network does on a batch: counted in its event-driven form, sample by sample.

**What one addition is.** Event-driven hardware does something in a product when a spike arrives, and nothing else. A
spike of size m, of either sign, (m <= `max_spikes_per_step`; 1 in the paper) that reaches n accumulators is counted as
m * n additions. Zeros among weights are not skipped, padding is silent, and a bias is added once a sample.

| kind               | one is                                                                                        |
|--------------------|-----------------------------------------------------------------------------------------------|
| `weights`          | an addition of a weight for a spike (paper Eq. 3): over a run, spikes * fan-out               |
| `SESA S_A B`       | an addition of an entry of the tracer S_A,t for a spike of B_t: the first product of Eq. 4    |
| `SESA A S_B`       | the same with sides exchanged: the second                                                     |
| `SESA A B`         | an addition of 1 for a pair of spikes that meet in A_t B_t: the third                         |
| `input product`    | a multiply-add of the patch embedding, whose input is current: once for each frame that comes |
| `analog weights`   | a multiply-add of a weight and a changed analog value (`node_placement="reference"`)          |
| `bias`             | an addition, once a sample and output                                                         |
| `residual`         | an addition of a residual branch, up to the accumulated input X_t of a LayerNorm, or of a     |
|                    | mean over positions                                                                           |
| `LayerNorm`        | an element normalised anew: each step does all of them (Eq. 5)                                |
| `softmax`          | the same of a softmax                                                                         |
| `other operator`   | the same of another one: the tanh of a head, if there is one                                  |
| `membrane update`  | a neuron compared with its threshold: each neuron in each step (Eq. 1)                        |
| `spike`            | a spike fired, which resets a membrane and moves a tracer (N_post of Eq. A1)                  |

In SESA one side of the first two products is a tracer, a number of several bits. It stands where a weight stands in a
linear map: a spike adds one of its entries to each accumulator, entries that are 0 included. The paper calls all three
"binary operations" (section 3.3), which they are not, but for the third with k = 1; its Eq. A1 to A6 have no term for
them, nor for softmax, LayerNorm, residual additions and the neurons' updates.

A `residual` addition is counted for each branch that changes an element in a step (where both of a `+` change, they
are added; whatever then has changed is added to X_t). What a softmax or a neuron takes in needs none: the additions of
the product before it go there. A mean of spikes needs none either, as its 1/N is in the weights behind it; the `dense`
network adds up all positions first. The scores' factor 1/sqrt(d) is taken for part of a threshold. The sum of a text's
embeddings, a look-up that is the same in every network, is not counted; the LayerNorm behind it is, once a sample.

Beside each count stands `dense`, that of the quantized (or ordinary) network in its one pass.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch

from spikezip_hf.analysis.counting import CountingEngine, Entry, Residuals
from spikezip_hf.analysis.operation_counts import KINDS, Operations
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from spikezip_hf.models.operators import LayerNorm
from spikezip_hf.models.simulation import Trajectory

__all__ = ["KINDS", "Operations", "count_operations"]


def count_operations(
    snn: SpikePreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    time_steps: int | None = None,
    *,
    stop: str | None = None,
    confidence_threshold: float | None = None,
    float64: bool = True,
) -> Operations:
    """Simulate a batch in its event-driven form, and count what it takes.

    Args:
        snn: any Spike model.
        inputs: its inputs; "labels" are left aside.
        time_steps: T, most steps; the config's by default.
        stop: as in the model's forward, and so `confidence_threshold`: "equilibrium", "never" or "confidence"; the
            config's by default. It decides for how many steps what is done in each step is counted.
        float64: count on a copy in float64, which fires as the default simulation does but for ties. In float32 the
            event-driven form drifts, and its counts with it; it is quicker and needs no copy.

    Raises:
        TypeError: `snn` is no Spike model.
        ValueError: an input or argument that the model refuses, or an operand that is neither spikes nor weights.
    """
    if not isinstance(snn, SpikePreTrainedModel):
        raise TypeError(
            f"snn is a {type(snn).__name__}; operations are counted in a Spike model: make one with from_quantized."
        )
    time_steps = snn.config.time_steps if time_steps is None else time_steps
    stop = snn.config.stop if stop is None else stop
    if float64:
        snn = copy.deepcopy(snn).double()
    prepared = snn.prepare(**snn.inputs_of(inputs))
    given = prepared if isinstance(prepared, torch.Tensor) else prepared.given
    seen: list[CountingEngine] = []

    def watched(engine, *flags):
        if not isinstance(engine, CountingEngine):  # the quantized network's pass, which confirms levels
            return snn.network(prepared, engine, *flags)
        seen[:] = [engine]
        with Residuals(engine):
            return snn.network(prepared, engine, *flags)

    run = snn.run(
        watched,
        given,
        given.shape[1] if given.dim() == 5 else 1,
        time_steps=time_steps,
        execution="event",
        stop=stop,
        confidence_threshold=confidence_threshold,
        engine_class=CountingEngine,
    )
    return collect(snn, seen[0], run, time_steps, stop)


def collect(snn, engine: CountingEngine, run: Trajectory, time_steps: int, stop: str) -> Operations:
    """What the engine counted, with what is done in each step counted for each sample's own steps."""
    assert run.equilibrium_step is not None
    assert run.spike_counts is not None
    assert run.neuron_counts is not None
    steps = torch.full_like(run.equilibrium_step, engine.step + engine.chunk)
    if stop != "never":
        steps = torch.where(run.equilibrium_step > 0, run.equilibrium_step, steps)
    if run.decision_step is not None:
        steps = torch.where(run.decision_step > 0, run.decision_step, steps)
    entries = [
        replace(entry, count=entry.count * steps) if entry.each_step else entry for entry in engine.entries.values()
    ]
    for module in snn.modules():  # of a text's embeddings: part of the input, not of the simulation
        if isinstance(module, LayerNorm) and (module.name, "LayerNorm") not in engine.entries:
            assert engine.static_elements is not None
            entries.insert(0, Entry(module.name, "LayerNorm", engine.static_elements, engine.static_elements))
    for entry in entries:
        entry.count, entry.dense = entry.count.cpu(), entry.dense.cpu()
    return Operations(
        entries=tuple(entries),
        steps=steps.cpu(),
        equilibrium_step=run.equilibrium_step.cpu(),
        time_steps=time_steps,
        neurons=run.neuron_counts.sum(-1).cpu(),
        spikes=run.spike_counts.sum(-1).cpu(),
        levels=snn.config.quantization_levels,
        weight_bits=snn.config.weight_bits,
    )

"""From a spiking model to a spike graph, and to its files."""

import os
from dataclasses import replace
from math import prod

import numpy as np
import torch
from safetensors.numpy import save_file

from spikezip_hf.export.spike_graph import (
    BATCH,
    CURRENT,
    GRAPH_FILE,
    LENGTH,
    STATIC,
    TENSORS_FILE,
    Input,
    Neurons,
    Operation,
    SpikeGraph,
    sha256_of,
)
from spikezip_hf.export.tracing import (
    BATCHES,
    LENGTHS,
    Recorder,
    Trace,
    Traced,
    TracingEngine,
    UntraceableError,
    plain,
)
from spikezip_hf.files import write_json
from spikezip_hf.models.checkpoint_files import moved_in_whole
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from spikezip_hf.models.version import __version__


def save_spike_graph(snn: SpikePreTrainedModel, folder: str | os.PathLike) -> SpikeGraph:
    """Write a network as `spike_graph.json` and `spike_graph.safetensors`, both or neither.

    Returns:
        What was written.

    Raises:
        TypeError, ValueError: as `to_spike_graph`.
        NotADirectoryError: `folder` is a file.
    """
    graph = to_spike_graph(snn)
    with moved_in_whole(folder) as aside:
        save_file(graph.tensors, aside / TENSORS_FILE)
        write_json(aside / GRAPH_FILE, graph.to_dict(sha256_of(aside / TENSORS_FILE)))
    return graph


def to_spike_graph(snn: SpikePreTrainedModel) -> SpikeGraph:
    """The spike graph of a spiking model.

    Raises:
        TypeError: it is not a Spike model.
        ValueError: a scale was never set.
        UntraceableError: the network does something that the format has no word for; the message names it.
    """
    if not isinstance(snn, SpikePreTrainedModel):
        raise TypeError(
            f"A spike graph is made of a Spike model, got {type(snn).__name__}: convert a Quant model with "
            "from_quantized first."
        )
    snn.check_nodes()
    sizes = {BATCH: BATCHES, LENGTH: lengths(snn)}
    batches = [example(snn, batch, length) for batch, length in zip(*sizes.values())]
    passes = [traced_pass(snn, inputs) for inputs in batches]
    trace, outputs = passes[0]
    operations = merged(trace, passes[1][0], sizes)
    graph = SpikeGraph(
        network=type(snn).__name__,
        made_by=f"spikezip_hf {__version__}",
        quantization_levels=snn.config.quantization_levels,
        time_steps=snn.config.time_steps,
        max_spikes_per_step=snn.config.max_spikes_per_step,
        firing_schedule=snn.config.firing_schedule,
        inputs=[
            Input(name, type_of(x), symbolic(x.shape, batches[1][name].shape, sizes, name), default_of(snn, name))
            for name, x in batches[0].items()
        ],
        operations=operations,
        neurons=neurons_of(snn, trace, operations),
        outputs={snn.readout: outputs[snn.readout].operation},
        tensors={name: array(x) for name, x in trace.tensors.items()},
    )
    graph.check()
    return graph


def neurons_of(snn, trace: Trace, operations: list[Operation]) -> list[Neurons]:
    """The neurons of each node, with their gates by the schedule of the config."""
    schedule = snn.config.schedule(trace.nodes.values())
    shapes = {operation.name: operation.shape[1:] for operation in operations}
    return [
        Neurons(
            name=name,
            threshold=trace.thresholds[name],
            min_level=node.min_level,
            max_level=node.max_level,
            shape=shapes[name],
            count=None if LENGTH in shapes[name] else prod(shapes[name]),
            **{gate: steps[name] for gate, steps in schedule.items()},
        )
        for name, node in trace.nodes.items()
    ]


def lengths(snn) -> tuple[int, int]:
    """Lengths of texts to trace with; networks of images make nothing of them."""
    if snn.main_input_name != "input_ids":
        return LENGTHS
    longest = min(LENGTHS[1], snn.max_tokens)
    if longest <= BATCHES[1]:
        raise UntraceableError(f"Texts of at most {longest} tokens (max_position_embeddings) are too short to trace.")
    return longest - 1, longest


def example(snn, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Inputs for a pass, of any values; texts with padding, so that what they take for it is in the graph."""
    if snn.main_input_name != "input_ids":
        dummy = snn.dummy_inputs[snn.main_input_name]
        return {snn.main_input_name: snn.prepare(dummy.expand(batch, *dummy.shape[1:]).clone())}
    tokens = torch.ones(batch, length, dtype=torch.bool, device=snn.device)
    tokens[0, -1] = False
    ids = torch.zeros(batch, length, dtype=torch.long, device=snn.device)
    text = snn.prepare(ids, tokens)
    return {name: x for name, x in text._asdict().items() if x is not None}


def default_of(snn, name: str) -> dict | None:
    """How an input of texts is made where it is not given."""
    if name == "position_ids":
        return {"rule": "positions", "first": snn.first_position}
    return {"attention_mask": {"rule": "ones"}, "token_type_ids": {"rule": "zeros"}}.get(name)


def type_of(x: torch.Tensor) -> str:
    return "bool" if x.dtype == torch.bool else "float" if x.is_floating_point() else "int"


@torch.no_grad()
def traced_pass(snn, inputs: dict[str, torch.Tensor]) -> tuple[Trace, dict[str, Traced]]:
    """One pass of the network, written down, and its outputs."""
    prefix = f"{snn.base_model_prefix}."
    recorder = Recorder({name.removeprefix(prefix): p for name, p in snn.named_parameters()})
    prepared = snn.prepare(**inputs)
    traced = {name: as_input(name, x, recorder) for name, x in inputs.items()}
    if hasattr(prepared, "_replace"):  # the named tuple of a text's inputs
        outputs = snn.network(prepared._replace(**traced), TracingEngine(recorder))
    else:
        outputs = snn.network(traced[snn.main_input_name], TracingEngine(recorder))
    return recorder.trace, outputs


def as_input(name: str, x: torch.Tensor, recorder: Recorder) -> Traced:
    traced = x.as_subclass(Traced)
    traced.operation, traced.recorder = name, recorder
    traced.phase = CURRENT if x.is_floating_point() else STATIC
    return traced


def merged(first: Trace, second: Trace, sizes: dict[str, tuple[int, int]]) -> list[Operation]:
    """The operations of two passes as one, with sizes by name.

    Raises:
        UntraceableError: the two passes differ in more than sizes.
    """
    if len(first.operations) != len(second.operations):
        raise UntraceableError("The network does other operations for another batch: no graph can say that.")
    operations = []
    for a, b in zip(first.operations, second.operations):
        shape = symbolic(a.shape, b.shape, sizes, a.name)
        operations.append(replace(a, shape=shape))
        if operations[-1] != replace(b, shape=shape):
            raise UntraceableError(f"{a.name} differs in two passes of other sizes: {a} and {b}.")
    for name, x in first.tensors.items():
        if not torch.equal(x, second.tensors[name]):
            raise UntraceableError(f"The constant {name} differs in two passes: it depends on the inputs.")
    return operations


def symbolic(first, second, sizes: dict[str, tuple[int, int]], where: str) -> list:
    """A shape, of its sizes in two passes.

    Raises:
        UntraceableError: a size that is neither fixed, nor the batch, nor the length.
    """
    shape: list = []
    for pair in zip(first, second):
        names = [name for name, both in sizes.items() if both == pair]
        if pair[0] != pair[1] and not names:
            raise UntraceableError(f"A size of {where} is {pair[0]} and {pair[1]} for batches of {sizes[BATCH]}.")
        shape.append(pair[0] if pair[0] == pair[1] else names[0])
    return shape


def array(x: torch.Tensor) -> np.ndarray:
    """A tensor for the file: float32 in place of shorter types, which numpy does not all know."""
    x = plain(x).cpu()
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return np.ascontiguousarray(x.numpy())

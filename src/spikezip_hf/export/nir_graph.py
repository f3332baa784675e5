"""What of a spiking network NIR can say: its affine maps, one graph each; the rest is refused by name.

NIR (Neuromorphic Intermediate Representation, Pedersen et al. 2024, doi:10.1038/s41467-024-52259-9; `nir` 1.0.8) has a
closed list of nodes, and files with any other cannot be read. It has no word for:

- **ST-BIF+ neurons** (`fire`). `nir.IF` fires at v > v_thr and not at v >= v_thr, never fires -1, is set to a
  constant and not lowered by the threshold, and has no bounds S_min and S_max. `nir.I`, two `nir.Threshold` and edges
  back are not one either: these are equations in continuous time, dv/dt = R I with a `Threshold` that stays 1 as long
  as v is above, so that what an edge back takes away depends on how a simulator cuts time into steps, which NIR
  leaves open. Nor is an unsigned neuron of few spikes an `IF`: its input may fall again, and then it takes one back.
- **products of two signals** (`matmul`, SESA), **softmax**, **LayerNorm**, **tanh**, currents that come once
  (`static`), and changes of order and shape other than flattening.

Each product of these networks stands between neurons, so that every affine map is a graph of its own: in ViT, Swin,
BERT and RoBERTa none meets another, or a residual addition, without something between that NIR cannot say. (The mean
of two heads, as DeiT has them, it could say; here they are two graphs.) Such a graph is good for carrying weights into
a tool that reads NIR, layer by layer, or for checking its linear algebra. It is no spiking network; that is in the
spike graph (`SPIKE_GRAPH.md`).

A map is y = W x + b on accumulated values. On the spikes of one step it is W x alone, and b is a current that comes
once, at the first step.
"""

import os

import numpy as np

from spikezip_hf.export.network_graph import to_spike_graph
from spikezip_hf.export.spike_graph import CURRENT, Operation, SpikeGraph
from spikezip_hf.models.checkpoint_files import moved_in_whole
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel

try:
    import nir
except ImportError as error:
    raise ImportError("Writing NIR needs its package: pip install 'spikezip-hf[export]'.") from error

MAPS = ("linear", "conv2d")
SAYABLE = (*MAPS, "add", "scale")  # add: two edges into one node


class NIRError(ValueError):
    """NIR has no word for something.

    Attributes:
        refused: {operation: kind}, all of them.
    """

    def __init__(self, message: str, refused: dict[str, str]):
        super().__init__(message)
        self.refused = refused


def to_nir(snn: SpikePreTrainedModel, subgraph: str | None = None) -> nir.NIRGraph:
    """One affine map of a network as a NIR graph; or, if none is named, what NIR cannot say of the network.

    Args:
        subgraph: path of a Linear or Conv2d, as `nir_subgraphs` names it. None for the whole network, which
            is refused: a spiking Transformer has neurons, at least, that NIR has no word for.

    Returns:
        Input, the map under its path, and Output. A `nir.Affine` is that of one position, a `nir.Conv2d` of an image.

    Raises:
        NIRError: it has parts that NIR has no word for; the message names them by kind, `refused` has all.
        ValueError, TypeError: as `to_spike_graph`.
    """
    graph = to_spike_graph(snn)
    if subgraph is None:
        refused = unsayable(graph)
        raise NIRError(f"NIR has no word for {counted(refused)}. {remedy(graph)}", refused)
    return as_nir(graph, map_named(graph, subgraph))


def nir_subgraphs(snn: SpikePreTrainedModel) -> dict[str, nir.NIRGraph]:
    """Every affine map of a network, {path: graph}, in network order.

    Raises:
        ValueError, TypeError: as `to_spike_graph`.
    """
    graph = to_spike_graph(snn)
    return {operation.name: as_nir(graph, operation) for operation in maps_of(graph)}


def save_nir(
    snn: SpikePreTrainedModel, folder: str | os.PathLike, subgraph: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """Write affine maps to `folder`, each as `PATH.nir`, all or none.

    Args:
        subgraph: path of one to write; None for all.

    Returns:
        Their paths in the network, in its order; and {operation: kind} of what NIR has no word for.

    Raises:
        NIRError: `subgraph` is no affine map.
        ValueError, TypeError: as `to_spike_graph`.
        NotADirectoryError: `folder` is a file.
    """
    graph = to_spike_graph(snn)
    maps = maps_of(graph) if subgraph is None else [map_named(graph, subgraph)]
    with moved_in_whole(folder) as aside:
        for operation in maps:
            nir.write(aside / f"{operation.name}.nir", as_nir(graph, operation))
    return [operation.name for operation in maps], unsayable(graph)


def maps_of(graph: SpikeGraph) -> list[Operation]:
    return [operation for operation in graph.operations if operation.kind in MAPS]


def map_named(graph: SpikeGraph, path: str) -> Operation:
    """The affine map of this path.

    Raises:
        NIRError: there is none.
    """
    operation = {item.name: item for item in graph.operations}.get(path)
    if operation is None:
        raise NIRError(f"subgraph={path!r} is no part of the network. {remedy(graph)}", {})
    if operation.kind not in MAPS:
        message = f"subgraph={path!r} is {operation.kind}, and no affine map. {remedy(graph)}"
        raise NIRError(message, {path: operation.kind})
    return operation


def unsayable(graph: SpikeGraph) -> dict[str, str]:
    """{operation: kind} of what is done in each step and NIR has no word for."""
    return {item.name: item.kind for item in graph.operations if item.phase == CURRENT and item.kind not in SAYABLE}


def counted(refused: dict[str, str]) -> str:
    """ "12 softmax (layers.0.attention.softmax, ...)", and so on."""
    said = []
    for kind in dict.fromkeys(refused.values()):
        names = [name for name, own in refused.items() if own == kind]
        said.append(f"{len(names)} {kind} ({names[0]}{', ...' if len(names) > 1 else ''})")
    return ", ".join(said)


def remedy(graph: SpikeGraph) -> str:
    maps = maps_of(graph)
    return (
        f"It can say the affine maps, one at a time: subgraph={maps[0].name!r} and {len(maps) - 1} others, see "
        "nir_subgraphs. The whole network is what save_spike_graph writes."
    )


def as_nir(graph: SpikeGraph, operation: Operation) -> nir.NIRGraph:
    """One affine map between Input and Output."""
    tensors = {name: graph.tensors[key] for name, key in operation.parameters.items()}
    weight = tensors["weight"]
    if "weight_scale" in tensors:  # levels of 8 bits: NIR's weights are the products
        scale = tensors["weight_scale"]
        weight = weight.astype(scale.dtype) * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    bias = tensors.get("bias", np.zeros(len(weight), weight.dtype))
    node: nir.NIRNode
    if operation.kind == "linear":
        node = nir.Affine(weight=weight, bias=bias) if "bias" in tensors else nir.Linear(weight=weight)
    else:
        shapes = {item.name: item.shape for item in graph.inputs} | {
            item.name: item.shape for item in graph.operations
        }
        said = operation.attributes
        node = nir.Conv2d(
            input_shape=tuple(shapes[operation.inputs[0]][-2:]),
            weight=weight,
            bias=bias,
            groups=said["groups"],
            **{name: tuple(said[name]) for name in ("stride", "padding", "dilation")},
        )
    nodes = {
        "input": nir.Input(input_type={"input": np.asarray(node.input_type["input"])}),
        operation.name: node,
        "output": nir.Output(output_type={"output": np.asarray(node.output_type["output"])}),
    }
    return nir.NIRGraph(nodes=nodes, edges=[("input", operation.name), (operation.name, "output")])

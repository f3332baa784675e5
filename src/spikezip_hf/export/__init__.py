"""Networks in other runtimes: programs of `torch.export`, ONNX files, and spike graphs for simulators of hardware.

`spikezip_hf.export.interpreter` runs a spike graph, in numpy. `spikezip_hf.export.nir_graph` writes the affine maps of
a network as NIR, and needs the package of that name.
"""

from spikezip_hf.export.checking import ExportError
from spikezip_hf.export.network_graph import save_spike_graph, to_spike_graph
from spikezip_hf.export.onnx_files import export_onnx
from spikezip_hf.export.portable import portable
from spikezip_hf.export.programs import export_program, export_torch
from spikezip_hf.export.quantized import QuantizedModule
from spikezip_hf.export.spike_graph import SpikeGraph, SpikeGraphError, load_spike_graph
from spikezip_hf.export.streaming import StreamingStep
from spikezip_hf.export.tracing import UntraceableError

__all__ = [
    "ExportError",
    "QuantizedModule",
    "SpikeGraph",
    "SpikeGraphError",
    "StreamingStep",
    "UntraceableError",
    "export_onnx",
    "export_program",
    "export_torch",
    "load_spike_graph",
    "portable",
    "save_spike_graph",
    "to_spike_graph",
]

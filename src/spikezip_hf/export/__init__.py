"""Networks in other runtimes: programs of `torch.export`, and ONNX files."""

from spikezip_hf.export.checking import ExportError
from spikezip_hf.export.onnx_files import export_onnx
from spikezip_hf.export.portable import portable
from spikezip_hf.export.programs import export_program, export_torch
from spikezip_hf.export.quantized import QuantizedModule
from spikezip_hf.export.streaming import StreamingStep

__all__ = [
    "ExportError",
    "QuantizedModule",
    "StreamingStep",
    "export_onnx",
    "export_program",
    "export_torch",
    "portable",
]

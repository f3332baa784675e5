"""The quantized network as a function of tensors, fit for `torch.export` and ONNX."""

import torch
from torch import nn

from spikezip_hf.export.engines import LevelEngine
from spikezip_hf.export.portable import portable
from spikezip_hf.export.signature import Signature, read_out
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel


class QuantizedModule(nn.Module):
    """A Quant model in inference, of plain operators: named tensors in, logits out.

    Its arithmetic is that of the model in eval mode, with levels and their scales; `floor(x/s + 1/2)` stands in the
    graph as such. With `weight_bits=8` the weights of linear maps are integers. Bits differ from the model's where
    products in floating point are rounded by another kernel, and nowhere else.

    Args:
        qann: a model of any Quant class, calibrated, in float32. Its weights are shared.
        output_levels: also return the levels of all nodes.

    Attributes:
        signature: names, shapes and types of what goes in and out.

    Raises:
        TypeError, ValueError: `qann` is none, or cannot be exported; the message says why.
    """

    def __init__(self, qann: QuantPreTrainedModel, output_levels: bool = False):
        super().__init__()
        self.signature = Signature(qann, QuantPreTrainedModel)
        self.model = portable(qann)
        self.output_levels = output_levels

    def forward(self, inputs: dict[str, torch.Tensor]):
        """Logits (B, classes), or (B, N, classes) for each token; of a model without a head the last hidden state.

        Args:
            inputs: `pixel_values`, or `input_ids`, `attention_mask` and, if the network knows several types of tokens,
                `token_type_ids`.

        Returns:
            That, or with `output_levels` that and {node name: (B, ...) whole numbers in float32}.
        """
        engine = LevelEngine()
        logits = read_out(self.model, engine, inputs)
        return (logits, engine.levels) if self.output_levels else logits

    def example(self, batch_size: int = 2) -> tuple:
        """Arguments to make a graph with, or to check it."""
        return (self.signature.sample(batch_size),)

    def dynamic_shapes(self) -> tuple:
        """Which dimensions of the arguments may differ, as `torch.export` wants to be told."""
        return (self.signature.dynamic(self.signature.inputs),)

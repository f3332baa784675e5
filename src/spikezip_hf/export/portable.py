"""A network for other runtimes: the same arithmetic as in inference here, of plain operators, without kernels of ours.

What travels between products are levels, whole numbers in a floating type, and their scale. A product of levels and
integer weights, or of two levels, is exact in any order of adding, and so the same in every runtime; so is the softmax
of such a product, by a table. Products with weights in floating point, convolution and LayerNorm are rounded by each
runtime in its own way.
"""

import copy

import torch
from torch import nn

from spikezip_hf.models.kernels import exact_dtype, exponentials
from spikezip_hf.models.layers import SelfAttentionCore
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.operators import (
    Conv2d,
    Linear,
    LinearMap,
    MatMul,
    PatchLinear,
    Softmax,
    patches,
    quantized_weight,
)
from spikezip_hf.models.quantization import LSQQuantizer, quantize
from spikezip_hf.models.rows import Rows


class PortableLinear(nn.Module):
    """A linear map as a runtime has it. A weight of 8 bits is integers with a scale for each output channel."""

    def __init__(self, source: LinearMap):
        super().__init__()
        self.name = source.name
        self.bias = source.bias
        self.quantizer_bound = 0  # of a sum, for levels of 1; 0 for weights in floating point
        self.weight_levels: torch.Tensor
        self.weight_scale: torch.Tensor
        quantizer = source.weight_quantizer
        if quantizer is None:
            self.weight = nn.Parameter(source.weight.flatten(1), requires_grad=False)
            return
        self.quantizer_bound = source.in_features * quantizer.max_level
        scale = quantizer.threshold(source.weight.dtype)
        levels = quantize(source.weight.detach().flatten(1), scale[:, None], quantizer.min_level, quantizer.max_level)
        self.register_buffer("weight_levels", levels.to(torch.int8))
        self.register_buffer("weight_scale", scale)

    def forward(self, x: Rows | torch.Tensor) -> Rows:
        rows = x if isinstance(x, Rows) else Rows(x)
        if not self.quantizer_bound:
            return Rows(nn.functional.linear(rows.values, self.weight, self.bias))
        if rows.levels is None:  # a scale for each channel: no whole sums
            weight = self.weight_levels.to(rows.dtype) * self.weight_scale[:, None]
            return Rows(nn.functional.linear(rows.values, weight, self.bias))
        assert rows.scale is not None
        exact = exact_dtype(self.quantizer_bound * rows.peak)
        sums = nn.functional.linear(rows.levels.to(exact), self.weight_levels.to(exact))
        return Rows(integers=sums, scale=rows.scale * self.weight_scale, bias=self.bias, dtype=rows.dtype)


class PortablePatchLinear(PortableLinear):
    """A `PatchLinear` as a runtime has it."""

    def __init__(self, source: PatchLinear):
        super().__init__(source)
        self.patch_size = source.patch_size

    def forward(self, x: Rows | torch.Tensor) -> Rows:
        return super().forward(patches(x, self.patch_size))


class PortableMatMul(nn.Module):
    """A `MatMul` as a runtime has it: of levels, if each side has one scale."""

    def __init__(self, source: MatMul):
        super().__init__()
        self.name = source.name

    def forward(self, a: Rows, b: Rows) -> Rows | torch.Tensor:
        if a.levels is None or b.levels is None:
            return torch.matmul(a, b)  # type: ignore[arg-type]
        assert a.scale is not None
        assert b.scale is not None
        exact = exact_dtype(a.shape[-1] * a.peak * b.peak)
        return Rows(
            integers=torch.matmul(a.levels.to(exact), b.levels.to(exact)), scale=a.scale * b.scale, dtype=a.dtype
        )


class PortableSoftmax(Softmax):
    """A `Softmax` as a runtime has it: of scores that are whole numbers by a table of their exponentials.

    Args:
        table: of the scores' scale; None for a softmax in floating point.
    """

    table: torch.Tensor | None

    def __init__(self, source: Softmax, table: torch.Tensor | None):
        super().__init__()
        self.name = source.name
        self.register_buffer("table", table)

    def exponentials(self, x: Rows) -> torch.Tensor | None:
        return self.table


def attention_softmax(attention: SelfAttentionCore) -> PortableSoftmax:
    """The softmax of an attention, whose scores have the scale of queries times that of keys."""
    q, k = (node.threshold(torch.float32).detach() for node in (attention.q_node, attention.k_node))
    one_scale = q.numel() == k.numel() == 1 and q.device.type != "meta"
    table = exponentials(q * k * attention.scaling) if one_scale else None
    return PortableSoftmax(attention.softmax, table)


def portable(model: TwinPreTrainedModel) -> TwinPreTrainedModel:
    """A copy of a Quant or Spike model, in eval mode, whose products are plain operators; float tensors are shared."""
    shared: dict[int, torch.Tensor] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in model.parameters()
    }
    shared.update((id(buffer), buffer) for buffer in model.buffers())
    twin = copy.deepcopy(model, shared).eval()
    for path, module in list(twin.named_modules()):
        if isinstance(module, PatchLinear):
            twin.set_submodule(path, PortablePatchLinear(module))
        elif isinstance(module, Linear):
            twin.set_submodule(path, PortableLinear(module))
        elif isinstance(module, SelfAttentionCore):
            module.softmax = attention_softmax(module)
        elif isinstance(module, MatMul):
            twin.set_submodule(path, PortableMatMul(module))
        elif isinstance(module, Conv2d) and module.weight_quantizer is not None:
            module.weight = nn.Parameter(quantized_weight(module), requires_grad=False)
            module.weight_quantizer = None
        elif isinstance(module, LSQQuantizer):
            del module.initialized  # nothing that a graph computes with
    return twin

"""Weights as the products are done with them: the reference saves pruned and quantized ones in parts."""

from typing import Any

import torch

from spikezip_hf.models.quantization import MIN_SCALE, quantize

# From so many bits on the reference's quantizer hands its input on as it is.
UNQUANTIZED_BITS = 9


def plain_weights(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], weight_bits: int | None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors with pruned and quantized weights as the values that they stand for, and {name: what became of it}.

    Raises:
        ValueError: a part is missing, the number of bits is not known, or a scale is not above 0; names the tensor.
    """
    plain, became = dict(tensors), {}
    for name in [name for name in tensors if name.endswith(".weight_mask")]:
        whole = name.removesuffix("_mask")
        if f"{whole}_orig" not in tensors or tensors[f"{whole}_orig"].shape != tensors[name].shape:
            raise ValueError(f"{whole}_orig is missing in the file, or not of the shape of {name}.")
        plain[whole] = plain.pop(f"{whole}_orig") * plain.pop(name)
        became[name] = f"{whole}, now without what was pruned"
    for name in [name for name in tensors if name.endswith(".quan_w_fn.s")]:
        bits = bits_of(name, settings, weight_bits)
        path = name.removesuffix(".quan_w_fn.s")
        scale = plain.pop(name)
        if f"{path}.weight" not in plain:
            raise ValueError(f"{path}.weight is missing in the file.")
        if scale.numel() != 1 or not bool(scale >= MIN_SCALE):
            raise ValueError(f"{name} = {scale.tolist()}: a weight's scale has to be one number above 0.")
        if bits >= UNQUANTIZED_BITS:
            became[name] = f"{path}.weight, which the reference does not quantize at {bits} bits"
            continue
        half = 2 ** (bits - 1)
        plain[f"{path}.weight"] = quantize(plain[f"{path}.weight"], scale, -half, half - 1) * scale
        became[name] = f"{path}.weight, now the values that its {bits} bits stand for"
    return plain, became


def bits_of(name: str, settings: dict[str, Any], given: int | None) -> int:
    """Bits of quantized weights.

    Raises:
        ValueError: nobody says it, two say something else, or it is out of range.
    """
    told = settings.get("weight_quantization_bit")
    if given is not None and told not in (None, given):
        raise ValueError(f"weight_bits is {given}, and the training's argument weight_quantization_bit {told}.")
    bits = told if given is None else given
    if bits is None:
        raise ValueError(
            f"weight_bits has to be given: weights are quantized ({name}), and the file does not say to what."
        )
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 32:
        raise ValueError(f"weight_bits must be an integer from 2 to 32, got {bits!r}.")
    return bits

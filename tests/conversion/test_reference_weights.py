"""Pruned and quantized weights of the reference's files: what is refused, and what bits beyond its quantizer's do."""

import pytest
import torch

from spikezip_hf.conversion.reference.weights import plain_weights

SCALE = {"layer.quan_w_fn.s": torch.tensor(0.5)}
WEIGHT = {"layer.weight": torch.tensor([[0.3, 0.7], [-9.0, 9.0]])}
MASK = {"layer.weight_mask": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}


@pytest.mark.parametrize(
    ("tensors", "settings", "bits", "message"),
    [
        (MASK, {}, None, r"layer\.weight_orig is missing in the file"),
        ({**MASK, "layer.weight_orig": torch.ones(2)}, {}, None, r"not of the shape of layer\.weight_mask"),
        (SCALE, {}, 4, r"layer\.weight is missing in the file"),
        ({**WEIGHT, "layer.quan_w_fn.s": torch.tensor(0.0)}, {}, 4, r"quan_w_fn\.s = 0\.0: .* one number above 0"),
        ({**WEIGHT, "layer.quan_w_fn.s": torch.tensor(float("nan"))}, {}, 4, "one number above 0"),
        ({**WEIGHT, "layer.quan_w_fn.s": torch.ones(2)}, {}, 4, "one number above 0"),
        ({**WEIGHT, **SCALE}, {}, None, r"weight_bits has to be given: .*layer\.quan_w_fn\.s"),
        ({**WEIGHT, **SCALE}, {"weight_quantization_bit": 8}, 4, "weight_bits is 4, .* weight_quantization_bit 8"),
        ({**WEIGHT, **SCALE}, {}, 1, "from 2 to 32, got 1"),
        ({**WEIGHT, **SCALE}, {"weight_quantization_bit": True}, None, "from 2 to 32, got True"),
        ({**WEIGHT, **SCALE}, {"weight_quantization_bit": 4.0}, None, r"from 2 to 32, got 4\.0"),
    ],
)
def test_refused(tensors, settings, bits, message):
    with pytest.raises(ValueError, match=message):
        plain_weights(tensors, settings, bits)


@pytest.mark.parametrize(("bits", "expected"), [(3, [[0.5, 0.5], [-2.0, 1.5]]), (8, [[0.5, 0.5], [-9.0, 9.0]])])
def test_quantized(bits, expected):
    plain, became = plain_weights({**WEIGHT, **SCALE}, {"weight_quantization_bit": bits}, None)
    assert plain.keys() == WEIGHT.keys()
    assert plain["layer.weight"].tolist() == expected
    assert f"{bits} bits" in became["layer.quan_w_fn.s"]


def test_from_nine_bits_on_the_reference_does_not_quantize():
    plain, became = plain_weights({**WEIGHT, **SCALE}, {}, 9)
    assert plain.keys() == WEIGHT.keys()
    assert torch.equal(plain["layer.weight"], WEIGHT["layer.weight"])
    assert "does not quantize at 9 bits" in became["layer.quan_w_fn.s"]


def test_pruned_and_the_given_dict_stays():
    given = {**MASK, "layer.weight_orig": WEIGHT["layer.weight"]}
    plain, _ = plain_weights(given, {}, None)
    assert plain.keys() == {"layer.weight"}
    assert torch.equal(plain["layer.weight"], torch.tensor([[0.3, 0.0], [0.0, 9.0]]))
    assert given.keys() == {"layer.weight_mask", "layer.weight_orig"}

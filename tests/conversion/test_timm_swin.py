"""timm's Swin, read: what it computed with ReLU, to rounding, and a reason by name where it cannot be read."""

import pytest
import torch
from transformers import SwinForImageClassification

from spikezip_hf import QuantSwinConfig, QuantSwinForImageClassification, QuantSwinModel, verify_equivalence
from spikezip_hf.conversion.calibration import FloatEngine
from spikezip_hf.conversion.timm_swin import read_swin
from tests.conftest import make_images, spiking_twin

timm = pytest.importorskip("timm", reason="timm is not installed")


def make_timm(**fields):
    """A random Swin with ReLU, in float64."""
    torch.manual_seed(0)
    defaults = {
        "img_size": 16,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
        "mlp_ratio": 1.5,
        "num_classes": 5,
    }
    model = timm.models.swin_transformer.SwinTransformer(**{**defaults, **fields})
    for name, module in list(model.named_modules()):
        if name.endswith("mlp"):
            module.act = torch.nn.ReLU()
    for name, parameter in model.named_parameters():
        # LayerNorms of gain 1 and no bias would hide that their channels are in another order.
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.25)
    return model.double().eval()


def quantized(model, quant_class=QuantSwinForImageClassification, **fields):
    return quant_class.from_ann(model, **fields).eval()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"depths": (1, 2, 1), "num_heads": (1, 2, 4)},  # the window shrinks to the map of the last stage
        {
            "img_size": (12, 16),
            "window_size": 2,
            "depths": (2, 1),
            "in_chans": 1,
            "qkv_bias": False,
        },  # the second pads
        {"img_size": 20, "window_size": 5, "patch_size": 2},  # patch merging of 5 x 5 pads
        {"drop_path_rate": 0.0, "depths": (2,), "num_heads": (2,)},
    ],
)
def test_logits_are_those_of_timm(fields):
    model = make_timm(**fields)
    qann = quantized(model)
    images = make_images(qann.config, 3, torch.float64)
    with torch.no_grad():
        # Queries, keys and values are one product there and three here: rounding in the last digits.
        assert torch.allclose(qann(images, engine=FloatEngine()).logits, model(images), rtol=0, atol=1e-12)


def test_logits_are_those_of_transformers():
    model = make_timm()
    config, state = read_swin(model)
    ann = SwinForImageClassification(config).double().eval()
    ann.load_state_dict(state)
    images = make_images(QuantSwinConfig(image_size=16), 3, torch.float64)
    with torch.no_grad():
        # As above.
        assert torch.allclose(ann(images).logits, model(images), rtol=0, atol=1e-12)


def test_without_a_head():
    model = make_timm(num_classes=0)
    qann = quantized(model, QuantSwinModel)
    images = make_images(qann.config, 3, torch.float64)
    with torch.no_grad():
        found = qann(images, engine=FloatEngine()).last_hidden_state
        # As above; timm's features are (B, height, width, channels).
        assert torch.allclose(found, model.forward_features(images).flatten(1, 2), rtol=0, atol=1e-12)


def test_gelu_is_refused():
    model = make_timm()
    model.layers[1].blocks[0].mlp.act = torch.nn.GELU()
    with pytest.raises(ValueError, match="only ReLU becomes spikes"):
        quantized(model)


def test_what_is_read_spikes_exactly():
    qann = quantized(make_timm(), quantization_levels=8, weight_bits=8).float()
    qann.calibrate([{"pixel_values": make_images(qann.config, 8)}])
    certificate = verify_equivalence(
        qann, spiking_twin(qann, time_steps=400), {"pixel_values": make_images(qann.config, 2)}
    )
    assert certificate.exact, str(certificate)


def test_config():
    config, _ = read_swin(make_timm(drop_path_rate=0.3, attn_drop_rate=0.2, proj_drop_rate=0.4))
    assert (config.drop_path_rate, config.attention_probs_dropout_prob, config.hidden_dropout_prob) == (0.3, 0.2, 0.4)
    assert (config.depths, config.num_heads, config.window_size) == ([2, 2], [2, 4], 4)
    assert (config.image_size, config.num_labels, config.hidden_act) == ([16, 16], 5, "relu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"img_size": 18}, r"window_size: the \(9, 9\) positions .* timm shifts before it pads"),
        ({"img_size": (8, 16)}, r"window_size: stage 0, block 1 has windows of \(4, 4\) shifted by \(0, 2\)"),
        ({"window_size": (2, 4)}, r"window_size: stage 0, block 0 has windows of \(2, 4\)"),
        ({"always_partition": True, "img_size": 8}, "window_size: stage 0, block 1"),
        ({"head_dim": 4}, "head_dim: the heads of stage 0 are not 16 channels"),
        ({"mlp_ratio": (1, 2)}, "mlp_ratio is 1 at first and 2 in stage 1"),
        ({"global_pool": "max"}, "head: the model pools by 'max'"),
    ],
)
def test_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        read_swin(make_timm(**fields))


def test_other_norms_are_refused():
    model = make_timm()
    model.layers[0].blocks[1].norm2 = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"layers\.0\.blocks\.1\.norm2 is Identity"):
        read_swin(model)
    model = make_timm()
    model.layers[1].downsample.norm.eps = 1e-6
    with pytest.raises(ValueError, match=r"layers\.1\.downsample\.norm\.eps is 1e-06, and 1e-05"):
        read_swin(model)


def test_a_weight_more_is_refused():
    model = make_timm()
    model.layers[0].blocks[0].gamma = torch.nn.Parameter(torch.ones(16))
    with pytest.raises(ValueError, match=r"layers\.0\.blocks\.0\.gamma: transformers' Swin has no such weight"):
        read_swin(model)


def test_swin_v2_is_refused():
    model = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=16, patch_size=2, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4
    )
    with pytest.raises(ValueError, match="SwinTransformerV2 is no SwinTransformer of timm"):
        read_swin(model)
    with pytest.raises(ValueError, match="Linear is no SwinTransformer"):
        read_swin(torch.nn.Linear(2, 2))


def test_a_module_of_another_class_is_refused_by_name():
    """One that shows neither in weights nor in settings."""
    model = make_timm()

    class Other(type(model.layers[0].blocks[0].attn)):
        pass

    model.layers[0].blocks[0].attn.__class__ = Other
    with pytest.raises(ValueError, match=r"layers\.0\.blocks\.0\.attn is a Other, which is not converted"):
        read_swin(model)

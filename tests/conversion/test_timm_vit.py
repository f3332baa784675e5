"""timm's ViTs to Quant ViTs: the same logits without quantizers, exact with them; what cannot be read is refused."""

import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

timm = pytest.importorskip("timm", reason="timm is not installed")

from timm.layers import RmsNorm, SwiGLU  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer  # noqa: E402

from spikezip_hf import (  # noqa: E402
    QuantViTForImageClassification,
    QuantViTModel,
    SpikeViTForImageClassification,
    verify_equivalence,
)
from spikezip_hf.conversion.ann import quantized_class  # noqa: E402
from spikezip_hf.conversion.calibration import FloatEngine  # noqa: E402

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
VARIANTS = {
    "AugReg": {},
    "average": {"global_pool": "avg", "fc_norm": False},
    "MAE": {"global_pool": "avg"},
    "no class token": {"global_pool": "avg", "fc_norm": False, "class_token": False},
    "no class token, fc_norm": {"global_pool": "avg", "class_token": False},
    "class token, fc_norm": {"fc_norm": True},
    "no_embed_class": {"no_embed_class": True},
    "distilled": {"distilled": True},
    "rectangular": {"img_size": (16, 24), "patch_size": (4, 8)},
    "eps": {"norm_layer": lambda *args, **kwargs: torch.nn.LayerNorm(*args, **{**kwargs, "eps": 1e-3})},
    "no qkv bias": {"qkv_bias": False},
    "no proj bias": {"proj_bias": False},
    "LayerScale": {"init_values": 0.5},
    "images of any size": {"dynamic_img_size": True},
    "gray": {"in_chans": 1},
    "regularized": {"drop_path_rate": 0.2, "drop_rate": 0.1, "attn_drop_rate": 0.1, "patch_drop_rate": 0.1},
}


def make_timm(name: str = "AugReg", dtype=torch.float32, act_layer="relu", **fields):
    """A random timm ViT with activations large enough to use all levels; norms, biases and tokens are random too."""
    torch.manual_seed(0)
    arguments = {**SHAPE, "num_classes": 5, "act_layer": act_layer, **VARIANTS[name], **fields}
    make = VisionTransformerDistilled if arguments.pop("distilled", False) else VisionTransformer
    model = make(**arguments)
    for key, parameter in model.named_parameters():
        if key.endswith("weight") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype).eval()


def images_of(model, batch: int = 4, seed: int = 7):
    generator = torch.Generator().manual_seed(seed)
    patch = model.patch_embed
    size = (batch, patch.proj.in_channels, *patch.img_size)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(patch.proj.weight.dtype)


@pytest.mark.parametrize("name", VARIANTS)
class TestEveryVariant:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        # Queries, keys and values are three products here and one there, which sum in another order; LayerScale is
        # multiplied into a weight. Logits are about 1: float64 keeps 12 digits of them, float32 5.
        [(torch.float64, 1e-12), (torch.float32, 1e-5)],
    )
    def test_without_quantizers_it_has_timm_s_logits(self, name, dtype, tolerance):
        model = make_timm(name, dtype)
        qann = QuantViTForImageClassification.from_ann(model)
        assert qann.dtype == dtype
        images = images_of(model)
        with torch.no_grad():
            ours, theirs = qann(images, engine=FloatEngine()).logits, model(images)
        assert float(theirs.std()) > 0.1
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)

    def test_calibrated_and_converted_it_is_exact(self, name):
        model = make_timm(name)
        qann = QuantViTForImageClassification.from_ann(model, quantization_levels=16)
        qann.calibrate([{"pixel_values": images_of(model, 16, seed=1)}])
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=800)
        certificate = verify_equivalence(qann, snn, {"pixel_values": images_of(model)})
        assert certificate.exact, str(certificate)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"])
def test_names_of_the_paper_s_networks_are_read(name):
    """The named networks' own fields, on the meta device: their weights would be up to 1.2 GB."""
    from spikezip_hf.conversion.timm_models import read_timm

    with torch.device("meta"):
        model = timm.create_model(name, act_layer="relu")
        config, weights = read_timm(QuantViTForImageClassification, model)
        quant = QuantViTForImageClassification(
            QuantViTForImageClassification.config_class.from_dict({**config.to_dict(), "model_type": "quant_vit"})
        )
    keys = {
        key: value.shape for key, value in quant.state_dict().items() if not key.endswith(("scale", "initialized"))
    }
    assert keys == {key: value.shape for key, value in weights.items()}
    assert config.layer_norm_eps == 1e-6


class TestWrapped:
    CONFIG = {"architecture": "vit_tiny_patch16_224", "num_labels": 3}
    ARGS = {**SHAPE, "act_layer": "relu"}

    def make(self, cls=TimmWrapperForImageClassification, **fields):
        return cls(TimmWrapperConfig(**{**self.CONFIG, **fields}, model_args=self.ARGS)).eval()

    def test_labels_come_along(self, tmp_path):
        wrapped = self.make(id2label={0: "ant", 1: "bee", 2: "cat"}, label2id={"ant": 0, "bee": 1, "cat": 2})
        wrapped.save_pretrained(tmp_path)
        loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
        qann = QuantViTForImageClassification.from_ann(loaded)
        assert qann.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
        images = images_of(wrapped.timm_model)
        with torch.no_grad():  # float32 sums in another order
            assert torch.allclose(qann(images, engine=FloatEngine()).logits, wrapped(images).logits, atol=1e-5)

    def test_without_a_head(self):
        wrapped = self.make(TimmWrapperModel)
        qann = QuantViTModel.from_ann(wrapped)
        images = images_of(wrapped.timm_model)
        with torch.no_grad():  # float32 sums in another order
            ours = qann(images, engine=FloatEngine()).last_hidden_state
            assert torch.allclose(ours, wrapped(images).last_hidden_state, atol=1e-5)

    def test_classes(self):
        assert quantized_class(self.make()) is QuantViTForImageClassification
        assert quantized_class(self.make(TimmWrapperModel)) is QuantViTModel
        with pytest.raises(ValueError, match=r"becomes a QuantViTModel, not a QuantViTForImageClassification"):
            QuantViTForImageClassification.from_ann(self.make(TimmWrapperModel))


def test_mae_without_a_head_ends_ahead_of_its_norm():
    model = make_timm("MAE", torch.float64, num_classes=0)
    qann = QuantViTModel.from_ann(model)
    images = images_of(model)
    with torch.no_grad():
        ours = qann(images, engine=FloatEngine()).last_hidden_state
        # Another order of the sums, float64.
        assert torch.allclose(ours, model.forward_features(images), rtol=0, atol=1e-12)


class TestActivations:
    def test_gelu_is_refused_unless_replaced(self):
        model = make_timm(act_layer="gelu")
        with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.act is GELU.*act_layer='relu'.*replace_activations"):
            QuantViTForImageClassification.from_ann(model)
        qann = QuantViTForImageClassification.from_ann(model, replace_activations=True)
        assert qann.config.hidden_act == "relu"


REFUSED = {
    "qk_norm": ({"qk_norm": True}, r"blocks\.0\.attn\.q_norm\.weight: weights of a part"),
    "scale_attn_norm": ({"scale_attn_norm": True}, r"blocks\.0\.attn\.norm\.weight: weights of a part"),
    "scale_mlp_norm": ({"scale_mlp_norm": True}, r"blocks\.0\.mlp\.norm\.weight: weights of a part"),
    "pre_norm": ({"pre_norm": True}, r"norm_pre\.weight: weights of a part"),
    "reg_tokens": ({"reg_tokens": 2}, "reg_token: weights of a part"),
    "SwiGLU": ({"mlp_layer": SwiGLU}, r"blocks\.0\.mlp is a SwiGLU"),
    "attention pooling": ({"global_pool": "map", "class_token": False}, "attn_pool is a AttentionPoolLatent"),
    "max pooling": ({"global_pool": "max"}, "global_pool is 'max'"),
    "no pooling": ({"global_pool": ""}, "global_pool is ''"),
    "prefix in the mean": ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix is True"),
    "no positions": ({"pos_embed": "none"}, "pos_embed is None"),
    "no final norm": ({"final_norm": False}, "final_norm=False"),
    "padding": ({"dynamic_img_size": True, "dynamic_img_pad": True}, "dynamic_img_pad"),
    "parallel blocks": ({"block_fn": ParallelScalingBlock}, r"blocks\.0 is a ParallelScalingBlock"),
    "differential attention": ({"attn_layer": "diff"}, r"blocks\.0\.attn is a DiffAttention"),
    "RMSNorm": ({"norm_layer": RmsNorm}, "is a RmsNorm"),
    "norm of the patches": ({"embed_norm_layer": torch.nn.LayerNorm}, r"patch_embed\.norm\.weight: weights of a part"),
}


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSED)
    def test_part_that_is_not_read(self, name):
        fields, message = REFUSED[name]
        with pytest.raises(ValueError, match=message):
            QuantViTForImageClassification.from_ann(make_timm(**fields))

    def test_other_eps(self):
        model = make_timm()
        model.blocks[1].norm2.eps = 1e-3
        with pytest.raises(ValueError, match=r"eps of blocks\.1\.norm2 is 0\.001"):
            QuantViTForImageClassification.from_ann(model)

    def test_other_scale_of_attention(self):
        model = make_timm()
        model.blocks[1].attn.scale = 1.0
        with pytest.raises(ValueError, match=r"blocks\.1 has other heads"):
            QuantViTForImageClassification.from_ann(model)

    def test_other_families(self):
        model = timm.create_model("resnet10t", num_classes=3)
        for make in (QuantViTForImageClassification.from_ann, quantized_class):
            with pytest.raises(ValueError, match=r"timm's ResNet cannot be converted, only VisionTransformer"):
                make(model)

    def test_subclass_with_its_own_forward(self):
        class Mine(VisionTransformer):
            pass

        with pytest.raises(ValueError, match=r"got Mine\. A subclass is refused"):
            QuantViTForImageClassification.from_ann(Mine(**SHAPE))

    def test_field_of_the_network(self):
        with pytest.raises(ValueError, match="pooling of the network to convert is 'class_token' and cannot become"):
            QuantViTForImageClassification.from_ann(make_timm(), pooling="mean")


class TestDeiT:
    def make(self, **fields):
        torch.manual_seed(0)
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        config = DeiTConfig(
            **{**size, "hidden_act": "relu", "image_size": 8, "patch_size": 4, "num_labels": 5, **fields},
            initializer_range=0.15,
        )
        return DeiTForImageClassificationWithTeacher(config).double().eval()

    def test_two_heads(self):
        deit = self.make()
        qann = QuantViTForImageClassification.from_ann(deit)
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            # Softmax is computed in float32 by transformers' DeiT and in float64 by ours: 1e-6 is its rounding.
            ours = qann(images, engine=FloatEngine()).logits
            assert torch.allclose(ours, deit(images).logits, rtol=0, atol=1e-6)
        qann.calibrate([{"pixel_values": images}])
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=800)
        assert verify_equivalence(qann, snn, {"pixel_values": images}).exact

    def test_gelu(self):
        with pytest.raises(ValueError, match="is GELUActivation; only ReLU"):
            QuantViTForImageClassification.from_ann(self.make(hidden_act="gelu"))


def test_drop_path_goes_on_in_the_quantized_network():
    qann = QuantViTForImageClassification.from_ann(make_timm("regularized"))
    assert qann.config.drop_path_rate == 0.2

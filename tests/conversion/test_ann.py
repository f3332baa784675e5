"""Ordinary models to Quant models: same network, or a refusal that names the part."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from spikezip_hf import QuantViTForImageClassification, QuantViTModel, SpikeViTForImageClassification
from spikezip_hf.conversion.calibration import FloatEngine
from tests.conftest import make_ann, make_images, make_qann


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_hidden_layers": 4, "patch_size": 2}, {"qkv_bias": False}, {"layer_norm_eps": 1e-3}, {"num_labels": 2}],
)
def test_without_its_quantizers_the_network_is_the_ann(fields):
    ann = make_ann(dtype=torch.float64, **fields)
    qann = QuantViTForImageClassification.from_ann(ann)
    images = make_images(ann.config, 4, torch.float64)
    with torch.no_grad():
        # Softmax is computed in float32 by transformers' ViT and in float64 by ours: 1e-6 is its rounding.
        assert torch.allclose(qann(images, engine=FloatEngine()).logits, ann(images).logits, rtol=0, atol=1e-6)


def test_hidden_states_are_those_of_the_ann():
    ann = make_ann()
    qann = QuantViTForImageClassification.from_ann(ann)
    images = make_images(ann.config, 4)
    with torch.no_grad():
        ours = qann(images, engine=FloatEngine(), output_hidden_states=True, output_attentions=True)
        ann.set_attn_implementation("eager")
        theirs = ann(images, output_hidden_states=True, output_attentions=True)
    # Two float32 implementations of the same sums.
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.attentions, theirs.attentions, strict=True))


def test_base_model():
    ann = ViTModel(make_ann().config, add_pooling_layer=False).eval()
    qann = QuantViTModel.from_ann(ann)
    images = make_images(ann.config, 2)
    with torch.no_grad():
        ours = qann(images, engine=FloatEngine()).last_hidden_state
        assert torch.allclose(ours, ann(images).last_hidden_state, atol=1e-5)  # float32 sums


def test_labels_types_and_mode_come_along():
    ann = make_ann(dtype=torch.bfloat16)
    ann.config.id2label = {i: f"class {i}" for i in range(5)}
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=8)
    assert qann.config.id2label[3] == "class 3"
    assert qann.config.quantization_levels == 8
    assert qann.config.model_type == "quant_vit"
    assert qann.dtype == torch.bfloat16
    assert all(node.scale.dtype == torch.float32 for node in qann.nodes)
    assert not qann.training
    assert not any(bool(node.initialized) for node in qann.nodes)


def test_many_levels_come_close_to_the_ann():
    ann = make_ann()
    images = make_images(ann.config, 16)
    errors = []
    for levels in (8, 32, 256):
        qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=levels)
        qann.calibrate([{"pixel_values": images}], method="mse")
        with torch.no_grad():
            errors.append(float((qann(images).logits - ann(images).logits).abs().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


class TestRefusals:
    def test_gelu(self):
        ann = make_ann(hidden_act="gelu")
        with pytest.raises(ValueError, match=r"layers\.0\.mlp\.activation_fn is GELU.*replace_activations=True"):
            QuantViTForImageClassification.from_ann(ann)
        qann = QuantViTForImageClassification.from_ann(ann, replace_activations=True)
        assert qann.config.hidden_act == "relu"

    def test_activation_put_in_by_hand(self):
        ann = make_ann()
        ann.vit.layers[1].mlp.activation_fn = torch.nn.SiLU()
        with pytest.raises(ValueError, match=r"layers\.1\.mlp\.activation_fn is SiLU"):
            QuantViTForImageClassification.from_ann(ann)

    def test_other_models(self):
        deit = DeiTForImageClassification(
            DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
        )
        bert = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        for other in (deit, bert, make_qann()):
            with pytest.raises(ValueError, match=f"ViTForImageClassification or .*, got {type(other).__name__}"):
                QuantViTForImageClassification.from_ann(other)

    def test_subclass_with_its_own_forward(self):
        class Mine(ViTForImageClassification):
            pass

        with pytest.raises(ValueError, match=r"got Mine\. A subclass is refused"):
            QuantViTForImageClassification.from_ann(Mine(make_ann().config))

    def test_pooler(self):
        with pytest.raises(ValueError, match=r"pooler: .*add_pooling_layer=False"):
            QuantViTModel.from_ann(ViTModel(make_ann().config))

    def test_mask_token(self):
        ann = ViTModel(make_ann().config, add_pooling_layer=False, use_mask_token=True)
        with pytest.raises(ValueError, match=r"embeddings\.mask_token: weights of a part"):
            QuantViTModel.from_ann(ann)

    def test_no_head(self):
        with pytest.raises(ValueError, match="num_labels is 0"):
            QuantViTForImageClassification.from_ann(
                ViTForImageClassification(ViTConfig(num_labels=0, num_hidden_layers=1))
            )

    def test_misspelt_field(self):
        with pytest.raises(ValueError, match="quantisation_levels: no such field in QuantViTConfig"):
            QuantViTForImageClassification.from_ann(make_ann(), quantisation_levels=8)

    def test_field_of_the_network(self):
        with pytest.raises(ValueError, match="num_attention_heads of the network to convert is 4 and cannot become 2"):
            QuantViTForImageClassification.from_ann(make_ann(), num_attention_heads=2)
        qann = QuantViTForImageClassification.from_ann(make_ann(), hidden_dropout_prob=0.1)
        assert qann.config.hidden_dropout_prob == 0.1

    def test_activation_under_another_name(self):
        ann = make_ann(hidden_act="gelu")
        for layer in ann.vit.layers:
            layer.mlp.gelu = layer.mlp.activation_fn
            del layer.mlp.activation_fn
        with pytest.raises(ValueError, match="hidden_act is 'gelu'; only ReLU becomes spikes"):
            QuantViTForImageClassification.from_ann(ann)

    def test_bad_levels(self):
        with pytest.raises(ValueError, match="quantization_levels must be"):
            QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=5)


class TestFromQuantized:
    def test_uncalibrated(self):
        qann = QuantViTForImageClassification.from_ann(make_ann())
        with pytest.raises(ValueError, match=r"embeddings\.patch_embeddings\.node\.scale was never set by calibrate"):
            SpikeViTForImageClassification.from_quantized(qann)

    @pytest.mark.parametrize("bad", [float("nan"), -0.1, 0.0])
    def test_broken_scale(self, bad):
        qann = make_qann()
        with torch.no_grad():
            qann.vit.layers[1].attention.k_node.scale.fill_(bad)
        with pytest.raises(ValueError, match=r"layers\.1\.attention\.k_node\.scale is"):
            SpikeViTForImageClassification.from_quantized(qann)

    def test_wrong_class(self):
        with pytest.raises(TypeError, match="takes a QuantViTForImageClassification, got ViTForImageClassification"):
            SpikeViTForImageClassification.from_quantized(make_ann())

    def test_misspelt_field(self):
        with pytest.raises(ValueError, match="timesteps: no such field in SpikeViTConfig"):
            SpikeViTForImageClassification.from_quantized(make_qann(), timesteps=8)

    @pytest.mark.parametrize("field", [{"quantization_levels": 8}, {"layer_norm_eps": 0.1}])
    def test_field_of_the_network(self, field):
        with pytest.raises(ValueError, match=f"{next(iter(field))} of the network to convert is"):
            SpikeViTForImageClassification.from_quantized(make_qann(), **field)

    def test_fields_come_along(self):
        snn = SpikeViTForImageClassification.from_quantized(
            make_qann(levels=8, granularity="per_channel"), time_steps=12, firing_schedule="layerwise"
        )
        assert snn.config.model_type == "spike_vit"
        assert snn.config.quantization_levels == 8
        assert snn.config.scale_granularity == "per_channel"
        assert snn.config.time_steps == 12
        assert snn.config.first_firing_step(snn.nodes[-1]) == 1 + snn.nodes[-1].stage * 4 > 1
        assert not snn.training

    def test_types_come_along(self):
        qann = make_qann().to(torch.bfloat16)
        snn = SpikeViTForImageClassification.from_quantized(qann)
        assert snn.dtype == torch.bfloat16
        assert all(
            torch.equal(a.scale, b.scale) and a.scale.dtype == torch.float32 for a, b in zip(snn.nodes, qann.nodes)
        )

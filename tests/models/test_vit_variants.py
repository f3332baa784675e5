"""ViTs as timm and DeiT have them: pooling, tokens, positions, the place of the last norm, sizes of images."""

import pytest
import torch

from spikezip_hf import (
    QuantViTConfig,
    QuantViTForImageClassification,
    QuantViTModel,
    SpikeViTConfig,
    SpikeViTForImageClassification,
    SpikeViTModel,
    verify_equivalence,
)
from spikezip_hf.analysis.counting import CountingEngine
from spikezip_hf.analysis.operations import count_operations
from spikezip_hf.conversion.calibration import FloatEngine
from spikezip_hf.conversion.schedules import depths
from spikezip_hf.hub.results import network_digest
from spikezip_hf.models.operators import MeanPool
from spikezip_hf.models.rows import Rows
from tests.conftest import made_once, make_ann, make_images, make_qann

VARIANTS = {
    "class token": {},
    "mean": {"pooling": "mean"},
    "mean, norm behind": {"pooling": "mean", "norm_after_pooling": True},
    "class token, norm behind": {"norm_after_pooling": True},
    "no class token": {"pooling": "mean", "use_class_token": False},
    "positions of patches": {"positions_of_patches_only": True},
    "mean, positions of patches": {"pooling": "mean", "positions_of_patches_only": True},
    "distilled": {"use_distillation_token": True},
    "distilled, positions of patches": {"use_distillation_token": True, "positions_of_patches_only": True},
    "rectangular": {"image_size": (8, 12), "patch_size": (4, 2)},
}


@made_once
def make_variant(name: str, dtype=torch.float32, levels: int = 16, **fields):
    """A random calibrated network of that kind, 2 layers, 32 wide."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    size = {"image_size": 8, "patch_size": 4, "num_labels": 5, "initializer_range": 0.15}
    config = QuantViTConfig(**{**shape, **size, "quantization_levels": levels, **VARIANTS[name], **fields})
    qann = QuantViTForImageClassification(config)
    for key, parameter in qann.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    qann = qann.to(dtype).eval()
    return qann.calibrate([{"pixel_values": images_for(qann, 16, seed=1)}])


def images_for(model, batch: int, size=None, seed: int = 7):
    config = model.config
    size = size or config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, config.num_channels, height, width, generator=generator, dtype=torch.float64)
    return pixels.to(model.dtype)


@pytest.mark.parametrize("name", VARIANTS)
class TestEveryVariant:
    @pytest.mark.parametrize("fields", [{}, {"weight_bits": 8}, {"scale_granularity": "per_channel"}])
    def test_certificate(self, name, fields):
        qann = make_variant(name, **fields)
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=600)
        certificate = verify_equivalence(qann, snn, {"pixel_values": images_for(qann, 4)})
        assert certificate.exact, str(certificate)

    def test_cumulative_equals_event_spike_for_spike(self, name):
        qann = make_variant(name, torch.float64)
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=40)
        images = images_for(qann, 3)
        cumulative = snn(images, output_time_steps=True, stop="never")
        event = snn(images, output_time_steps=True, stop="never", execution="event")
        assert torch.equal(cumulative.spike_counts, event.spike_counts)
        assert torch.equal(cumulative.equilibrium_step, event.equilibrium_step)
        # Sums of up to 40 changes against one product of their sum: rounding in the last digits, no flipped level.
        assert torch.allclose(cumulative.logits_per_step, event.logits_per_step, rtol=0, atol=1e-12)

    def test_training_and_inference_are_one_network(self, name):
        qann = make_variant(name, torch.float64, weight_bits=8)
        images = images_for(qann, 3)
        with torch.no_grad():
            # Products of integers against those of their values: the last digits of float64.
            assert torch.allclose(qann.train()(images).logits, qann.eval()(images).logits, rtol=0, atol=1e-12)

    def test_only_the_patch_embedding_sees_analog_input(self, name):
        qann = make_variant(name)
        for model in (qann, SpikeViTForImageClassification.from_quantized(qann)):
            report = model.product_inputs()
            assert report.analog == ["embeddings.patch_embeddings.projection"]
            heads = ["classifier"] + ["distillation_classifier"] * qann.config.use_distillation_token
            assert [report.products[head] for head in heads] == [("spikes", "weights")] * len(heads)

    def test_every_parameter_gets_a_gradient(self, name):
        qann = make_variant(name, torch.float64).train()
        qann(images_for(qann, 8), labels=torch.arange(8) % 5).loss.backward()
        assert [key for key, p in qann.named_parameters() if p.grad is None or not bool(p.grad.any())] == []

    def test_saved_and_loaded(self, name, tmp_path):
        qann = make_variant(name)
        qann.save_pretrained(tmp_path)
        loaded = QuantViTForImageClassification.from_pretrained(tmp_path)
        images = images_for(qann, 2)
        assert torch.equal(loaded(images).logits, qann(images).logits)
        base = QuantViTModel.from_pretrained(tmp_path)
        assert torch.equal(base(images).last_hidden_state, qann.vit(images).last_hidden_state)

    def test_bare_model(self, name):
        base = make_variant(name).vit
        snn = SpikeViTModel.from_quantized(base, time_steps=600)
        certificate = verify_equivalence(base, snn, {"pixel_values": images_for(base, 2)})
        assert certificate.exact, str(certificate)

    def test_other_sizes_of_images(self, name):
        qann = make_variant(name)
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=600)
        batch = {"pixel_values": images_for(qann, 2, (16, 20)), "interpolate_pos_encoding": True}
        certificate = verify_equivalence(qann, snn, batch)
        assert certificate.exact, str(certificate)
        event = snn(**batch, execution="event", time_steps=5, stop="never")
        assert torch.equal(event.neuron_counts, snn(**batch, time_steps=5, stop="never").neuron_counts)

    def test_schedule_follows_the_pooling(self, name):
        qann = make_variant(name)
        depth = depths(qann, [qann.dummy_inputs])
        assert list(depth) == qann.node_names
        assert (
            max(depth.values()) == depth[qann.node_names[-1]] == 17
        )  # the first node, and 8 of a layer one after another
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=600)
        snn.calibrate_schedule(schedule="coarse_to_fine")
        certificate = verify_equivalence(qann, snn, {"pixel_values": images_for(qann, 2)})
        assert certificate.exact, str(certificate)


class TestKeys:
    def test_those_of_the_default_are_what_they_were(self):
        keys = {key for key in make_variant("class token").state_dict() if "layers." not in key}
        node = ("scale", "initialized")
        assert keys == {
            "vit.embeddings.cls_token",
            "vit.embeddings.position_embeddings",
            "vit.embeddings.patch_embeddings.projection.weight",
            "vit.embeddings.patch_embeddings.projection.bias",
            *(f"vit.embeddings.patch_embeddings.node.{name}" for name in node),
            "vit.layernorm.weight",
            "vit.layernorm.bias",
            *(f"vit.layernorm_node.{name}" for name in node),
            "classifier.weight",
            "classifier.bias",
        }

    def test_a_config_without_the_fields_is_the_default(self):
        old = QuantViTConfig().to_dict()
        for name in ("pooling", "use_class_token", "use_distillation_token"):
            del old[name]
        assert QuantViTConfig.from_dict(old).pooling == "class_token"

    def test_positions(self):
        def positions(name):
            return make_variant(name).vit.embeddings.position_embeddings.shape[1]

        assert positions("class token") == 5
        assert positions("distilled") == 6
        assert positions("no class token") == positions("positions of patches") == 4
        assert positions("rectangular") == 2 * 6 + 1


class TestMeanPool:
    @pytest.mark.parametrize("scale", [torch.tensor([0.3]), torch.rand(4) + 0.1])
    def test_of_levels_is_their_sum(self, scale):
        levels = torch.randint(-8, 8, (3, 7, 4)).to(torch.int8)
        pooled = MeanPool(first=2)(Rows(integers=levels, scale=scale, peak=8, dtype=torch.float32))
        assert torch.equal(pooled.integers, levels[:, 2:].sum(1).int())
        expected = (levels[:, 2:].double() * scale.double()).mean(1)
        assert torch.allclose(pooled.values.double(), expected, rtol=0, atol=1e-6)  # float32 of a float64 mean

    def test_of_values_is_a_tensor_mean(self):
        x = torch.randn(3, 7, 4)
        assert torch.equal(MeanPool(1)(x), x[:, 1:].mean(1))
        assert torch.equal(MeanPool(1)(Rows(x)).values, x[:, 1:].mean(1))

    def test_class_token_is_not_in_the_mean(self):
        qann = make_variant("mean")
        reads = []
        qann.pool.register_forward_hook(lambda module, args, result: reads.append((args[0], result)))
        qann.eval()(images_for(qann, 2))
        ((tokens, pooled),) = reads
        assert torch.allclose(pooled.values, tokens.values[:, 1:].mean(1), rtol=0, atol=1e-6)  # 1/N in the scale


class TestOperations:
    def test_a_mean_of_spikes_adds_one_weight_for_each_spike(self):
        qann = make_variant("mean", torch.float64)
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=30)
        counted = count_operations(snn, {"pixel_values": images_for(snn, 2)}, stop="never")
        head = next(e for e in counted.entries if (e.module, e.kind) == ("classifier", "weights"))
        pool = next(e for e in counted.entries if (e.module, e.kind) == ("pool", "residual"))
        spikes = []
        engine = CountingEngine.pool  # what the patches' tokens fired, counted apart

        def watch(self, module, x):
            spikes.append(self.spikes_of(x).sizes[:, 1:].flatten(1).sum(1))
            return engine(self, module, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CountingEngine, "pool", watch)
            count_operations(snn, {"pixel_values": images_for(snn, 2)}, stop="never")
        assert torch.equal(head.count, torch.stack(spikes).sum(0) * 5)
        assert head.dense.tolist() == [32 * 5] * 2
        assert pool.count.tolist() == [0, 0]
        assert pool.dense.tolist() == [4 * 32] * 2

    def test_a_mean_of_the_residual_stream_adds_what_changed(self):
        qann = make_variant("mean, norm behind", torch.float64)
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=30)
        counted = count_operations(snn, {"pixel_values": images_for(snn, 2)}, stop="never")
        pool = next(e for e in counted.entries if (e.module, e.kind) == ("pool", "residual"))
        assert all(0 < count <= 30 * 4 * 32 for count in pool.count.tolist())
        norm = next(e for e in counted.entries if (e.module, e.kind) == ("fc_norm", "LayerNorm"))
        assert norm.dense.tolist() == [32, 32]


class TestSizes:
    def test_interpolated_positions_are_those_of_transformers(self):
        ann = make_ann(dtype=torch.float64)
        qann = QuantViTForImageClassification.from_ann(ann)
        images = images_for(qann, 2, (12, 16))
        with torch.no_grad():
            ours = qann(images, engine=FloatEngine(), interpolate_pos_encoding=True).logits
            theirs = ann(images, interpolate_pos_encoding=True).logits
        # Softmax is computed in float32 by transformers' ViT and in float64 by ours: 1e-6 is its rounding.
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)

    def test_the_config_s_own_size_is_left_as_it_is(self):
        qann = make_qann()
        images = make_images(qann.config, 2)
        assert torch.equal(qann(images, interpolate_pos_encoding=True).logits, qann(images).logits)

    def test_calibration_on_other_sizes(self):
        ann = make_ann()
        batch = {"pixel_values": images_for(ann, 8, 12), "interpolate_pos_encoding": True}
        assert QuantViTForImageClassification.from_ann(ann).calibrate([batch]).calibrated

    def test_refused_without_the_argument_that_is_named(self):
        qann = make_qann()
        snn = SpikeViTForImageClassification.from_quantized(qann)
        for model in (qann, snn):
            with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
                model(images_for(model, 1, 12))
            with pytest.raises(ValueError, match="3, at least 4, at least 4"):
                model(images_for(model, 1, (8, 3)), interpolate_pos_encoding=True)
            with pytest.raises(ValueError, match="num_channels"):
                model(torch.zeros(1, 1, 8, 8), interpolate_pos_encoding=True)


class TestFields:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"pooling": "max"}, "pooling must be one of 'class_token', 'mean'; got 'max'"),
            ({"use_class_token": False}, 'use_class_token is False.*pooling="mean"'),
            ({"use_distillation_token": True, "pooling": "mean"}, "use_distillation_token: the two heads"),
            ({"use_distillation_token": True, "norm_after_pooling": True}, "use_distillation_token: the two heads"),
            (
                {"use_distillation_token": True, "use_class_token": False, "pooling": "mean"},
                "use_distillation_token: the two heads",
            ),
        ],
    )
    def test_combinations_that_are_no_network(self, fields, message):
        for config in (QuantViTConfig, SpikeViTConfig):
            with pytest.raises(ValueError, match=message):
                config(**fields)

    @pytest.mark.parametrize(
        "field",
        [{"pooling": "mean"}, {"norm_after_pooling": True}, {"positions_of_patches_only": True}],
    )
    def test_a_checkpoint_keeps_them(self, field, tmp_path):
        make_variant("class token").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"{next(iter(field))} of the checkpoint is .* and cannot become"):
            QuantViTForImageClassification.from_pretrained(tmp_path, **field)


def test_digests_tell_networks_apart_that_have_the_same_weights():
    """The mean of the patches or the class token: nothing else is different."""
    qann = make_variant("class token")
    digest = network_digest(qann)
    qann.config.pooling = "mean"
    assert network_digest(qann) != digest

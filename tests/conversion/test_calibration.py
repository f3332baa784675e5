"""Scales from data."""

import inspect
import math

import pytest
import torch

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.conversion import calibration
from spikezip_hf.conversion.calibration import (
    BINS,
    BINS_PER_OCTAVE,
    METHODS,
    PERCENTILE,
    ErrorEngine,
    FloatEngine,
    HistogramEngine,
    RangeEngine,
)
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel
from spikezip_hf.models.operators import LinearMap
from spikezip_hf.models.quantization import LSQQuantizer, dequantize, quantize
from tests.conftest import make_ann, make_images, make_text_qann, make_texts


class KeepEngine(FloatEngine):
    """The float activations of every node, to compute scales by hand."""

    def __init__(self):
        self.activations = {}

    def fire(self, node, current):
        x = super().fire(node, current)
        self.activations.setdefault(node.name, []).append(x.flatten(0, -2).double())
        return x


@pytest.fixture
def qann():
    return QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=16)


@pytest.fixture
def batches(qann):
    # Of unequal sizes: an average of averages would be wrong.
    images = make_images(qann.config, 10)
    return [{"pixel_values": images[:7], "labels": torch.zeros(7)}, {"pixel_values": images[7:]}]


@torch.no_grad()
def activations(qann, batches):
    engine = KeepEngine()
    for batch in batches:
        qann(batch["pixel_values"], engine=engine)
    return {name: torch.cat(parts) for name, parts in engine.activations.items()}


def test_lsq_rule_over_all_batches(qann, batches):
    qann.calibrate(batches, method="lsq")
    for name, x in activations(qann, batches).items():
        node = next(node for node in qann.nodes if node.name == name)
        assert bool(node.initialized)
        expected = 2 * x.abs().mean() / node.max_level**0.5
        assert node.scale.item() == pytest.approx(expected.item(), rel=1e-5)  # stored in float32


def test_lsq_rule_per_channel(batches):
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=16, scale_granularity="per_channel")
    qann.calibrate(batches, method="lsq")
    for name, x in activations(qann, batches).items():
        node = next(node for node in qann.nodes if node.name == name)
        if name.endswith("probs_node"):
            assert node.scale.shape == (1,)
            continue
        expected = 2 * x.abs().mean(0) / node.max_level**0.5
        dead = expected == 0
        assert torch.allclose(node.scale[~dead].double(), expected[~dead], rtol=1e-5)
        assert bool((node.scale[dead] == node.scale[~dead].min()).all())


def test_mse_gives_less_error_than_its_neighbours(qann, batches):
    qann.calibrate(iter(batches), method="mse")  # an iterator too, though it is gone through twice
    for name, x in activations(qann, batches).items():
        node = next(node for node in qann.nodes if node.name == name)
        node.double()

        def error(factor, node=node, x=x):
            scale = node.scale.detach() * factor
            return float(
                (dequantize(quantize(x, scale, node.min_level, node.max_level), scale, x.dtype) - x).square().mean()
            )

        # Candidates are 12 % apart: further off than that it can only be worse.
        assert error(1.0) <= min(error(0.8), error(1.25))


@pytest.mark.parametrize("at_once", [1, 2000, calibration.TRIED_AT_ONCE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@torch.no_grad()
def test_candidates_are_tried_one_by_one_or_several_at_once(granularity, dtype, at_once, monkeypatch):
    monkeypatch.setattr(calibration, "TRIED_AT_ONCE", at_once)
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8, scale_granularity=granularity)
    generator = torch.Generator().manual_seed(0)
    for node in qann.nodes:
        scales, features = node.scale.numel(), node.scale.numel() if node.scale.numel() > 1 else 6
        x = (2 * torch.randn(2, 3, features, generator=generator)).to(dtype)
        candidates = torch.rand(32, scales, generator=generator, dtype=torch.float64) + 0.01
        engine = ErrorEngine({node.name: candidates})
        engine.fire(node, x)
        x, least, most = x if node.signed else x.relu(), node.min_level, node.max_level
        for scale, found in zip(candidates, engine.errors[node.name], strict=True):
            error = (dequantize(quantize(x, scale, least, most), scale, dtype) - x).float()
            expected = error.square().flatten(0, -2).sum(0)
            # Sums in float32 here, in float64 there.
            torch.testing.assert_close(found.float(), expected if scales > 1 else expected.sum()[None])


def exact_percentile(node, x, percentile):
    """The smallest scales at which so many percent of x, (rows, scales), are not clipped."""
    needed = torch.maximum(x / node.max_level, x / node.min_level if node.signed else torch.zeros(()))
    ordered = needed.sort(0, descending=True).values
    return ordered[math.floor(len(x) * (100 - percentile) / 100)]


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("percentile", [100, 99.9, 95])
def test_percentile_is_exact_but_for_its_bin(batches, granularity, percentile):
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=16, scale_granularity=granularity)
    qann.calibrate(batches, method="percentile", percentile=percentile)
    for name, x in activations(qann, batches).items():
        node = next(node for node in qann.nodes if node.name == name)
        scales = node.scale.numel()
        expected = exact_percentile(node, x.reshape(-1, scales), percentile)
        usual = expected > exact_percentile(node, x.reshape(-1, scales), 100) * 2 ** (1 / 16 - BINS / BINS_PER_OCTAVE)
        ratio = node.scale[usual].double() / expected[usual]
        assert bool(usual.any())
        # Float32 rounds the scale, and moves what lies on an edge to the next bin.
        assert bool((ratio > 1 - 1e-5).all())
        assert bool((ratio < 2 ** (1 / BINS_PER_OCTAVE) * (1 + 1e-5)).all())
        if percentile == 100:
            assert torch.allclose(ratio, torch.ones(()).double(), rtol=1e-6)


def test_default_percentile_is_one_everywhere():
    """models/ cannot import the constant."""
    assert inspect.signature(QuantPreTrainedModel.calibrate).parameters["percentile"].default == PERCENTILE


def test_percentile_clips_outliers(qann, batches):
    batches[0]["pixel_values"][0, 0, 0, 0] = 1e4
    first = qann.nodes[0]
    qann.calibrate(batches, "percentile", percentile=100)
    whole = first.scale.item()
    qann.calibrate(batches, "percentile", percentile=95)
    assert 0 < first.scale.item() < whole / 100


def test_padding_does_not_move_a_percentile():
    qann = make_text_qann("bert", quantization_levels=16)
    scales = []
    for extra in (0, 30):
        batch = make_texts(qann.config, [9, 4, 7], extra=extra)
        qann.calibrate([batch], "percentile", percentile=90)
        scales.append(torch.cat([node.scale.detach() for node in qann.nodes]))
    # Another length may round otherwise, which moves what lies on an edge to the next bin.
    assert torch.allclose(scales[0], scales[1], rtol=1.1 * math.log(2) / BINS_PER_OCTAVE)


def test_what_is_silent_almost_always_keeps_its_range():
    """A percentile of 0 would clip all that such a channel ever says."""
    node = LSQQuantizer(16, False, 2, per_channel=True)
    x = torch.zeros(1, 100, 2)
    x[0, :, 0] = torch.arange(100.0)
    x[0, 7, 1] = 30.0
    ranges = RangeEngine()
    ranges.fire(node, x)
    engine = HistogramEngine(ranges.ranges)
    engine.fire(node, x)
    scale = engine.scale(node.name, 90)
    assert 89 / 15 <= scale[0] <= 89 / 15 * 2 ** (1 / BINS_PER_OCTAVE)
    assert scale[1] == 2.0
    assert engine.histograms[node.name].shape == (2, BINS)  # bounded, whatever the data
    assert engine.histograms[node.name].sum(1).tolist() == [100, 100]


def test_unsigned_nodes_see_what_the_relu_leaves(qann, batches):
    seen = activations(qann, batches)
    assert float(seen["layers.0.mlp.hidden_node"].min()) == 0.0
    assert float(seen["layers.0.mlp.output_node"].min()) < 0.0


def test_mode_is_restored_and_no_gradient_is_kept(qann, batches):
    qann.train()
    qann.calibrate(batches)
    assert qann.training
    assert all(parameter.grad is None for parameter in qann.parameters())


def test_calibrating_again_replaces_the_scales(qann, batches):
    qann.calibrate([{"pixel_values": batches[0]["pixel_values"] * 100}])
    first = qann.nodes[0].scale.item()
    qann.calibrate(batches)
    assert qann.nodes[0].scale.item() < first


def test_scales_that_are_set_can_be_kept(qann, batches):
    qann.nodes[3].set_scale(torch.tensor([123.0]))
    qann.calibrate(batches, overwrite=False)
    assert qann.nodes[3].scale.item() == 123.0
    assert all(bool(node.initialized) for node in qann.nodes)
    qann.calibrate(batches)
    assert qann.nodes[3].scale.item() < 100.0


@pytest.mark.parametrize("method", METHODS)
def test_batching_and_order_do_not_matter(method):
    qann = QuantViTForImageClassification.from_ann(make_ann(dtype=torch.float64), quantization_levels=16)
    images = make_images(qann.config, 10, torch.float64)
    images[:3] *= 10
    scales = []
    for parts in ([images], [images[:3], images[3:]], [images[3:], images[:3]]):
        qann.calibrate([{"pixel_values": part} for part in parts], method)
        scales.append(torch.cat([node.scale.detach() for node in qann.nodes]))
    assert torch.allclose(scales[0], scales[1], rtol=1e-6)  # order of float64 sums
    assert torch.allclose(scales[0], scales[2], rtol=1e-6)


def test_dropout_is_off_while_calibrating():
    ann = make_ann(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=16)
    batches = [{"pixel_values": make_images(ann.config, 4)}]
    expected = [node.scale.detach().clone() for node in qann.eval().calibrate(batches).nodes]
    assert all(map(torch.equal, [node.scale for node in qann.train().calibrate(batches).nodes], expected))


@pytest.mark.parametrize(
    ("signed", "x", "expected"), [(True, [-16.0, 1.0], 2.0), (True, [-1.0, 21.0], 3.0), (False, [-99.0, 15.0], 1.0)]
)
def test_range_covers_both_ends(signed, x, expected):
    node, engine = LSQQuantizer(16, signed, 1), RangeEngine()
    engine.fire(node, torch.tensor([x]))
    engine.fire(node, torch.zeros(1, 2))
    assert engine.ranges[node.name].item() == pytest.approx(expected)


def test_small_errors_count_in_float16():
    """Attention over many tokens: probabilities whose squared errors float16 cannot hold."""
    node = LSQQuantizer(32, False, 1)
    x = torch.softmax(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)), -1)
    candidates = {"": torch.tensor([[1.0], [0.5], [0.25]], dtype=torch.float64) * float(x.max()) / 31}
    errors = []
    for dtype in (torch.float32, torch.float16):
        engine = ErrorEngine(candidates)
        engine.fire(node, x.to(dtype))
        errors.append(engine.errors[""].flatten())
    assert bool((errors[1] > 0).all())
    assert errors[1].argmin() == errors[0].argmin()


class TestRefusals:
    def test_no_batches(self, qann):
        with pytest.raises(ValueError, match="batches is empty"):
            qann.calibrate([])

    def test_one_dict(self, qann, batches):
        with pytest.raises(ValueError, match=r"pass \[batch\]"):
            qann.calibrate(batches[0])

    def test_batches_of_tensors(self, qann, batches):
        with pytest.raises(ValueError, match="must be a dict of model inputs, got Tensor"):
            qann.calibrate([batches[0]["pixel_values"]])

    def test_method(self, qann, batches):
        with pytest.raises(ValueError, match="method must be one of 'lsq', 'mse', 'percentile'"):
            qann.calibrate(batches, method="max")

    @pytest.mark.parametrize("percentile", [0, -1, 100.1])
    def test_percentile(self, qann, batches, percentile):
        with pytest.raises(ValueError, match="percentile must be above 0 and at most 100, got"):
            qann.calibrate(batches, method="percentile", percentile=percentile)
        assert not any(bool(node.initialized) for node in qann.nodes)

    @pytest.mark.parametrize("method", METHODS)
    def test_data_that_is_not_finite_sets_nothing(self, qann, batches, method):
        batches[1]["pixel_values"][0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"embeddings\.patch_embeddings\.node: .* no usable scale"):
            qann.calibrate(batches, method)
        assert not any(bool(node.initialized) for node in qann.nodes)

    def test_dead_node(self, qann, batches):
        with torch.no_grad():
            qann.vit.layers[0].mlp.fc1.bias.fill_(-1e6)
        with pytest.raises(ValueError, match=r"layers\.0\.mlp\.hidden_node: .* no usable scale \(all zero"):
            qann.calibrate(batches)
        assert not any(bool(node.initialized) for node in qann.nodes)

    @pytest.mark.parametrize("calibrated", [False, True])
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("case", ["no batches", "a bad batch", "a node without scale", "interrupted"])
    def test_nothing_has_changed(self, batches, case, method, calibrated):
        """Not the scales of weights either, which are set before any batch is seen."""
        qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=16, weight_bits=8)
        if calibrated:
            qann.calibrate(batches)
        with torch.no_grad():  # the weights have moved on, so that their scales would be others
            for module in qann.modules():
                if isinstance(module, LinearMap):
                    module.weight.mul_(1.5)
            if case == "a node without scale":
                qann.vit.layers[1].mlp.fc1.weight.zero_()
                qann.vit.layers[1].mlp.fc1.bias.zero_()

        def interrupted():
            yield batches[0]
            raise KeyboardInterrupt

        given = {
            "no batches": [],
            "a bad batch": [batches[0], {"pixel_values": torch.zeros(1, 3, 5, 5)}],
            "a node without scale": batches,
            "interrupted": interrupted(),
        }[case]
        before = {name: value.clone() for name, value in qann.state_dict().items()}
        with pytest.raises((ValueError, KeyboardInterrupt)):
            qann.calibrate(given, method=method)
        assert all(torch.equal(value, before[name]) for name, value in qann.state_dict().items())
        qann.fit_weights()
        assert not all(torch.equal(value, before[name]) for name, value in qann.state_dict().items())

"""Weights of 8 bits: the quantizer held to Eq. 2 and to LSQ's gradients, and the three networks with it."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification, SwinModel

from spikezip_hf import (
    QuantSwinForImageClassification,
    QuantSwinModel,
    QuantViTForImageClassification,
    QuantViTModel,
    verify_equivalence,
)
from spikezip_hf.models.operators import Conv2d, Linear, name_operators
from spikezip_hf.models.quantization import MIN_SCALE, WeightQuantizer
from tests.conftest import (
    ARCHITECTURES,
    made_once,
    make_ann,
    make_batch,
    make_swin_ann,
    make_text_ann,
    spiking_twin,
    text_class,
)
from tests.files.common import tensors_of, write_tensors

SHAPES = [(6, 10), (4, 3, 2, 2)]  # of a linear map and of a convolution
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
networks = pytest.mark.parametrize("architecture", ["vit", "swin", *ARCHITECTURES])


def edit_config(folder, **fields):
    """Fields of a saved config.json, changed by hand."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def per_channel(scale, weight):
    return scale.detach().reshape(-1, *[1] * (weight.dim() - 1))


def levels_of(weight, scale):
    """Eq. 2 with one scale for each output channel, the quotient in the type of the scale: the levels."""
    quotient = weight.detach().to(scale.dtype) / per_channel(scale, weight)
    return torch.floor(quotient + 0.5).clamp(-127, 127)


def values_of(weight, scale):
    """Eq. 2: the values, in the type of the weight."""
    return (levels_of(weight, scale) * per_channel(scale, weight)).to(weight.dtype)


def make_weight(shape, dtype=torch.float32):
    """Channels of very different size, as trained networks have them."""
    size = torch.logspace(-3, 1, shape[0], dtype=torch.float64)
    return (torch.randn(shape, dtype=torch.float64) * per_channel(size, torch.empty(shape))).to(dtype)


def fitted(weight, factor=1.0):
    """A quantizer fitted to `weight`, its scales then multiplied: below 1, the largest weights are clipped."""
    quantizer = WeightQuantizer(8, weight.shape)
    if weight.dtype == torch.float64:
        quantizer.double()
    quantizer.fit(weight)
    with torch.no_grad():
        quantizer.scale.mul_(factor)
    return quantizer


def make_ordinary(architecture, dtype=torch.float32, bare=False):
    if architecture == "vit":
        ann = make_ann(dtype=dtype)
        return ann.vit if bare else ann
    if architecture == "swin":
        ann = make_swin_ann(dtype=dtype)
        return SwinModel(ann.config, add_pooling_layer=False).to(dtype).eval() if bare else ann
    return make_text_ann(architecture, "Model" if bare else "ForSequenceClassification", dtype=dtype)


def make_uncalibrated(architecture, dtype=torch.float32, bare=False, weight_bits=8, **fields):
    if architecture == "vit":
        quant_class = QuantViTModel if bare else QuantViTForImageClassification
    elif architecture == "swin":
        quant_class = QuantSwinModel if bare else QuantSwinForImageClassification
    else:
        quant_class = text_class("Quant", architecture, "Model" if bare else "ForSequenceClassification")
    ann = make_ordinary(architecture, dtype, bare)
    return quant_class.from_ann(ann, quantization_levels=16, weight_bits=weight_bits, **fields).eval()


@made_once
def make_network(architecture, dtype=torch.float32, bare=False):
    qann = make_uncalibrated(architecture, dtype, bare)
    return qann.calibrate([make_batch(qann, seed=1)])


def weight_quantizers(model):
    """{path of a linear map or convolution: its quantizer}."""
    suffix = ".weight_quantizer"
    return {
        path.removesuffix(suffix): module
        for path, module in model.named_modules()
        if isinstance(module, WeightQuantizer) and path.endswith(suffix)
    }


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


class TestFit:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_weight_is_within_half_a_step_and_the_largest_on_the_last_level(self, dtype, shape):
        weight = make_weight(shape, dtype)
        quantizer = fitted(weight)
        assert quantizer.scale.shape == shape[:1]
        levels = levels_of(weight, quantizer.scale)
        step = per_channel(quantizer.scale, weight).double()
        # A quotient of up to 127 is rounded before it is compared: half a step, give or take 127 roundings.
        slack = 127 * torch.finfo(quantizer.scale.dtype).eps
        assert bool(((levels * step - weight.double()).abs() <= step * (0.5 + slack)).all())
        largest = weight.double().abs().flatten(1).argmax(1, keepdim=True)
        expected = 127 * weight.double().flatten(1).gather(1, largest).sign()
        assert torch.equal(levels.double().flatten(1).gather(1, largest), expected)
        assert quantizer.problem() is None

    @pytest.mark.parametrize("tiny", [0.0, 1e-30, 2.0**-40])
    def test_channels_next_to_zero_stay_zero_and_finite(self, tiny):
        weight = make_weight((4, 9))
        weight[2] = tiny
        quantizer = fitted(weight)
        assert quantizer.problem() is None
        assert quantizer.scale[2].item() == MIN_SCALE
        weight.requires_grad_()
        out = quantizer(weight)
        assert torch.equal(out[2], torch.zeros(9))
        out.sum().backward()
        assert bool(weight.grad.isfinite().all())
        assert bool(quantizer.scale.grad.isfinite().all())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_a_weight_that_is_not_finite_is_refused_by_name(self, bad):
        layer = Linear(5, 3, weight_bits=8)
        name_operators(layer, "layers.1.fc")
        with torch.no_grad():
            layer.weight[1, 2] = bad
        with pytest.raises(ValueError, match=r"layers\.1\.fc\.weight_quantizer\.scale is not finite"):
            layer.weight_quantizer.fit(layer.weight)
        assert not bool(layer.weight_quantizer.initialized)

    @networks
    def test_a_network_with_such_a_weight_is_refused_by_name(self, architecture):
        qann, ann = make_network(architecture), make_ordinary(architecture)
        path = list(weight_quantizers(qann))[-2]
        for model in (qann, ann):
            with torch.no_grad():
                model.get_submodule(path).weight[0, 0] = float("nan")
        name = weight_quantizers(qann)[path].name.replace(".", r"\.")
        with pytest.raises(ValueError, match=rf"{name}\.scale is not finite"):
            qann.fit_weights()
        with pytest.raises(ValueError, match=rf"{name}\.scale is not finite"):
            type(qann).from_ann(ann, weight_bits=8)


class TestValues:
    @pytest.mark.parametrize("factor", [1.0, 0.4])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_are_eq2_and_stay_when_quantized_again(self, dtype, shape, factor):
        weight = make_weight(shape, dtype)
        quantizer = fitted(weight, factor)
        levels = levels_of(weight, quantizer.scale)
        assert int(levels.abs().max()) == 127
        assert ((weight / per_channel(quantizer.scale, weight)).abs() > 128).any() == (factor < 1)  # clipped
        out = quantizer(weight)
        assert out.dtype == dtype
        assert torch.equal(out, values_of(weight, quantizer.scale))
        assert torch.equal(quantizer(out), out)

    def test_ties_go_up(self):
        quantizer = WeightQuantizer(8, torch.Size([1, 4]))
        quantizer.set_scale(torch.tensor([0.5]))
        assert quantizer(torch.tensor([[-0.75, -0.25, 0.25, 0.75]])).tolist() == [[-0.5, 0.0, 0.5, 1.0]]

    def test_there_are_as_many_levels_below_zero_as_above(self):
        quantizer = WeightQuantizer(8, torch.Size([2, 2]))
        quantizer.set_scale(torch.tensor([1.0, 0.5]))
        assert quantizer(torch.tensor([[-1e6, 1e6], [-1e6, 1e6]])).tolist() == [[-127, 127], [-63.5, 63.5]]

    def test_products_are_done_with_them(self):
        linear, conv = Linear(6, 4, weight_bits=8), Conv2d(3, 4, kernel_size=2, stride=2, weight_bits=8)
        x, image = torch.randn(5, 6), torch.randn(2, 3, 4, 4)
        for layer in (linear, conv):
            layer.weight_quantizer.fit(layer.weight)
        weight = values_of(linear.weight, linear.weight_quantizer.scale)
        kernel = values_of(conv.weight, conv.weight_quantizer.scale)
        assert torch.equal(linear(x), torch.nn.functional.linear(x, weight, linear.bias))
        assert torch.equal(linear(x, bias=False), torch.nn.functional.linear(x, weight))
        assert torch.equal(conv(image), torch.nn.functional.conv2d(image, kernel, conv.bias, stride=2))
        assert torch.equal(conv(image, bias=False), torch.nn.functional.conv2d(image, kernel, stride=2))
        assert not torch.equal(weight, linear.weight)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_keeps_the_scales_in_float32(self, dtype):
        layer = Linear(6, 4, weight_bits=8)
        layer.weight_quantizer.fit(layer.weight)
        scale = layer.weight_quantizer.scale.detach().clone()
        layer.to(dtype)
        assert layer.weight.dtype == dtype
        assert layer.weight_quantizer.scale.dtype == torch.float32
        assert torch.equal(layer.weight_quantizer.scale, scale)
        out = layer.weight_quantizer(layer.weight)
        assert torch.equal(out, values_of(layer.weight, scale))
        out.sum().backward()
        assert layer.weight.grad.dtype == dtype
        assert layer.weight_quantizer.scale.grad.dtype == torch.float32
        layer.weight_quantizer.fit(layer.weight)
        assert layer.weight_quantizer.scale.dtype == torch.float32


class StraightThrough(torch.autograd.Function):
    """Rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx, x):
        return torch.floor(x + 0.5)

    @staticmethod
    def backward(ctx, grad):
        return grad


def straight_through(weight, scale):
    """Esser et al. 2019, Eq. 1 and 2 for autograd, which finds Eq. 3 and 5: v/s, held at a bound, rounded, times s."""
    s = scale.reshape(-1, *[1] * (weight.dim() - 1))
    position = weight / s
    bounded = torch.where(position <= -127, -127.0, torch.where(position >= 127, 127.0, position))
    return StraightThrough.apply(bounded) * s


class TestGradients:
    @pytest.mark.parametrize("factor", [1.0, 0.4, 1.7])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_are_lsq_with_one_scale_for_each_channel(self, shape, factor):
        weight = make_weight(shape, torch.float64).requires_grad_()
        quantizer = fitted(weight, factor)
        grad = torch.randn(shape, dtype=torch.float64)
        quantizer(weight).backward(grad)

        ours = (weight.grad, quantizer.scale.grad)
        leaf, scale = weight.detach().requires_grad_(), quantizer.scale.detach().requires_grad_()
        expected_weight, expected_scale = torch.autograd.grad(straight_through(leaf, scale), (leaf, scale), grad)
        # Eq. 3's factor, with N the weights that share a scale: those of one output channel.
        expected_scale = expected_scale / math.sqrt(weight[0].numel() * 127)
        # Autograd goes through s * (1/s) and sums in another order: rounding in the last digits.
        assert torch.allclose(ours[0], expected_weight, rtol=1e-12, atol=0)
        assert torch.allclose(ours[1], expected_scale, rtol=1e-10, atol=1e-12)
        assert (expected_weight == 0).any() == (factor <= 1)  # clipped, or on the bound, which counts as that
        assert bool((expected_weight != 0).any())

    def test_of_a_channel_do_not_depend_on_the_others(self):
        weight = make_weight((4, 7), torch.float64)
        whole = fitted(weight, 0.5)
        whole(weight).square().sum().backward()
        for channel in range(4):
            alone = fitted(weight[channel : channel + 1], 0.5)
            alone(weight[channel : channel + 1]).square().sum().backward()
            # A sum over a row of one matrix or another: perhaps in another order.
            assert torch.allclose(alone.scale.grad[0], whole.scale.grad[channel], rtol=1e-12, atol=0)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_factor_counts_the_weights_of_one_scale(self, shape):
        assert WeightQuantizer(8, torch.Size(shape)).gradient_scale == pytest.approx(
            1 / math.sqrt(math.prod(shape[1:]) * 127), rel=1e-15
        )

    @networks
    def test_every_weight_and_its_scales_learn(self, architecture):
        qann = make_network(architecture, torch.float64).train()
        # One logit and not all, whose sum is flat for a network with a LayerNorm in front.
        qann(**make_batch(qann)).logits[:, 0].square().sum().backward()
        for path, quantizer in weight_quantizers(qann).items():
            assert bool(qann.get_submodule(path).weight.grad.any()), path
            assert bool(quantizer.scale.grad.any()), path


@networks
class TestNetworks:
    def test_products_with_weights_have_a_quantizer_and_nothing_else(self, architecture):
        ann, qann = make_ordinary(architecture), make_uncalibrated(architecture)
        expected = {
            path for path, module in ann.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        }
        quantizers = weight_quantizers(qann)
        assert set(quantizers) == expected
        assert ("vit.embeddings.patch_embeddings.projection" in expected) == (architecture == "vit")
        assert any(path.startswith("classifier") for path in expected)
        everywhere = [module for module in qann.modules() if isinstance(module, WeightQuantizer)]
        assert len(everywhere) == len(quantizers)
        assert len(qann.quantizers) == len(qann.nodes) + len(quantizers)
        assert weight_quantizers(make_uncalibrated(architecture, weight_bits=None)) == {}
        # Named as their layer, by which errors call them.
        assert all(q.name == f"{qann.get_submodule(path).name}.weight_quantizer" for path, q in quantizers.items())

    def test_conversion_fits_them_and_calibration_again(self, architecture):
        qann = make_uncalibrated(architecture)
        assert not qann.calibrated
        for path, quantizer in weight_quantizers(qann).items():
            assert bool(quantizer.initialized)
            largest = qann.get_submodule(path).weight.abs().flatten(1).amax(1)
            assert torch.equal(quantizer.scale, largest / 127)
        with torch.no_grad():
            for path in weight_quantizers(qann):
                qann.get_submodule(path).weight.mul_(2)
        before = {path: q.scale.detach().clone() for path, q in weight_quantizers(qann).items()}
        qann.calibrate([make_batch(qann)], overwrite=False)
        assert all(torch.equal(q.scale, before[path]) for path, q in weight_quantizers(qann).items())
        assert qann.calibrated
        qann.calibrate([make_batch(qann)])
        assert all(torch.equal(q.scale, before[path] * 2) for path, q in weight_quantizers(qann).items())

    @pytest.mark.parametrize("trained", [False, True])
    def test_spikes_are_exact(self, architecture, trained):
        qann = make_network(architecture)
        if trained:  # every scale a little off what was fitted, some weights clipped
            with torch.no_grad():
                for quantizer in qann.quantizers:
                    quantizer.scale.mul_(torch.empty_like(quantizer.scale).uniform_(0.7, 1.2))
        batch = make_batch(qann)
        snn = spiking_twin(qann, time_steps=400)
        certificate = verify_equivalence(qann, snn, batch)
        assert certificate.exact, str(certificate)
        assert torch.equal(snn(**batch).logits, logits(qann, batch))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_exact_too(self, architecture, dtype):
        qann = make_network(architecture).to(dtype)
        assert {quantizer.scale.dtype for quantizer in qann.quantizers} == {torch.float32}
        certificate = verify_equivalence(qann, spiking_twin(qann, time_steps=400), make_batch(qann))
        assert certificate.exact, str(certificate)

    def test_events_equal_the_cumulative_run(self, architecture):
        qann = make_network(architecture, torch.float64)
        snn, batch = spiking_twin(qann), make_batch(qann)
        for time_steps in (7, 40):
            run = {"time_steps": time_steps, "output_time_steps": True, "stop": "never"}
            cumulative, event = snn(**batch, **run), snn(**batch, **run, execution="event")
            assert torch.equal(cumulative.spike_counts, event.spike_counts)
            # Sums of up to 40 changes against one product of their sum: rounding in the last digits, no flipped level.
            assert torch.allclose(cumulative.logits_per_step, event.logits_per_step, rtol=0, atol=1e-12)

    def test_is_the_network_of_the_quantized_weights(self, architecture):
        qann = make_network(architecture)
        plain = make_uncalibrated(architecture, weight_bits=None)
        state = {key: value for key, value in qann.state_dict().items() if ".weight_quantizer." not in key}
        quantized = {
            f"{path}.weight": values_of(state[f"{path}.weight"], quantizer.scale)
            for path, quantizer in weight_quantizers(qann).items()
        }
        batch = make_batch(qann)
        plain.load_state_dict(state)
        assert not torch.equal(logits(plain, batch), logits(qann, batch))  # the weights were not on levels before
        plain.load_state_dict(state | quantized)
        # Its products are sums of rounded floats, those of the network with quantized weights of integers.
        assert torch.allclose(logits(plain, batch), logits(qann, batch), atol=1e-5)

    def test_reload_gives_the_same_bits(self, architecture, tmp_path):
        qann = make_network(architecture)
        snn = spiking_twin(qann, time_steps=400)
        image = architecture in ("vit", "swin")
        auto = AutoModelForImageClassification if image else AutoModelForSequenceClassification
        batch = make_batch(qann)
        for model in (qann, snn):
            folder = tmp_path / type(model).__name__
            model.save_pretrained(folder)
            for twin in (type(model).from_pretrained(folder), auto.from_pretrained(folder)):
                assert type(twin) is type(model)
                assert twin.config.weight_bits == 8
                assert torch.equal(logits(twin, batch), logits(qann, batch))
            base = AutoModel.from_pretrained(folder)
            with torch.no_grad():
                expected = model.base_model(**batch).last_hidden_state
                assert torch.equal(base(**batch).last_hidden_state, expected)


@networks
class TestRefusals:
    @pytest.mark.parametrize("part", ["scale", "initialized"])
    def test_a_checkpoint_without_one_of_the_scales(self, architecture, part, tmp_path):
        qann = make_network(architecture)
        snn = spiking_twin(qann)
        for index in (1, -1):  # within the encoder, and the head, whose weight is there
            for model in (qann, snn):
                model.save_pretrained(tmp_path)
                tensors = load_file(tmp_path / "model.safetensors")
                path = list(weight_quantizers(model))[index]
                del tensors[f"{path}.weight_quantizer.{part}"]
                save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
                with pytest.raises(ValueError, match=rf"holds no scales .*first: {path}.weight_quantizer.{part}"):
                    type(model).from_pretrained(tmp_path)

    def test_a_checkpoint_of_plain_weights_loaded_as_quantized(self, architecture, tmp_path):
        qann = make_uncalibrated(architecture, weight_bits=None)
        qann.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="weight_bits of the checkpoint is None and cannot become 8"):
            type(qann).from_pretrained(tmp_path, weight_bits=8)
        edit_config(tmp_path, weight_bits=8)
        with pytest.raises(ValueError, match=r"weight_bits of the config is 8, and .* was saved with None"):
            type(qann).from_pretrained(tmp_path)
        write_tensors(tmp_path, tensors_of(tmp_path))  # and where the file does not tell it
        with pytest.raises(ValueError, match=r"holds no scales .*weight_quantizer"):
            type(qann).from_pretrained(tmp_path)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
    def test_a_scale_that_cannot_be_used(self, architecture, bad):
        qann = make_network(architecture)
        quantizer = list(weight_quantizers(qann).values())[-1]
        with torch.no_grad():
            quantizer.scale[1] = bad
        with pytest.raises(ValueError, match=rf"{quantizer.name}.scale is"):
            spiking_twin(qann)

    @pytest.mark.parametrize("bits", [4, 16, 0, 2])
    def test_other_numbers_of_bits(self, architecture, bits):
        with pytest.raises(ValueError, match=f"weight_bits must be one of None, 8; got {bits}"):
            make_uncalibrated(architecture, weight_bits=bits)

    @pytest.mark.parametrize("bits", [True, "8", 8.5])
    def test_bits_that_are_no_integer(self, architecture, bits):
        # The types of fields are looked at by transformers, whose error is not a ValueError.
        with pytest.raises((ValueError, StrictDataclassError), match="weight_bits"):
            make_uncalibrated(architecture, weight_bits=bits)

    @pytest.mark.parametrize(("has", "asked"), [(8, None), (None, 8)])
    def test_other_bits_at_conversion_to_spikes(self, architecture, has, asked):
        qann = make_uncalibrated(architecture, weight_bits=has)
        qann.calibrate([make_batch(qann)])
        with pytest.raises(
            ValueError, match=f"weight_bits of the network to convert is {has} and cannot become {asked}"
        ):
            spiking_twin(qann, weight_bits=asked)


@networks
class TestNewHead:
    def check(self, qann, uninitialized):
        """Only these parts await their scales; calibration gives them those, and leaves the others alone."""
        waiting = {q.name for q in qann.quantizers if not bool(q.initialized)}
        assert waiting == uninitialized
        assert not qann.calibrated
        before = {q.name: q.scale.detach().clone() for q in qann.quantizers}
        qann.calibrate([make_batch(qann)], overwrite=False)
        assert qann.calibrated
        for quantizer in qann.quantizers:
            assert torch.equal(quantizer.scale, before[quantizer.name]) == (quantizer.name not in waiting)
        for path, quantizer in weight_quantizers(qann).items():
            if quantizer.name in waiting:
                assert torch.equal(quantizer.scale, qann.get_submodule(path).weight.abs().amax(1) / 127)
        certificate = verify_equivalence(qann, spiking_twin(qann, time_steps=400), make_batch(qann))
        assert certificate.exact, str(certificate)

    def test_on_a_bare_network(self, architecture, tmp_path):
        bare = make_network(architecture, bare=True)
        bare.save_pretrained(tmp_path)
        head = {
            "vit": {"classifier.weight_quantizer"},
            "swin": {"classifier.weight_quantizer"},
            "bert": {"pooler.dense.weight_quantizer", "pooler.hidden_node", "classifier.weight_quantizer"},
            "roberta": {
                "classifier.dense.weight_quantizer",
                "classifier.hidden_node",
                "classifier.out_proj.weight_quantizer",
            },
        }
        classifier = type(make_uncalibrated(architecture))
        self.check(classifier.from_pretrained(tmp_path, num_labels=4), head[architecture])

    def test_of_another_size(self, architecture, tmp_path):
        qann = make_network(architecture)
        qann.save_pretrained(tmp_path)
        loaded = type(qann).from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
        out = "classifier.out_proj" if architecture == "roberta" else "classifier"
        assert loaded.get_submodule(out).out_features == 7
        self.check(loaded, {f"{out}.weight_quantizer"})

    def test_of_another_size_is_fitted_by_calibration(self, architecture, tmp_path):
        qann = make_network(architecture)
        qann.save_pretrained(tmp_path)
        loaded = type(qann).from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
        loaded.calibrate([make_batch(loaded)])
        out = loaded.get_submodule("classifier.out_proj" if architecture == "roberta" else "classifier")
        assert torch.equal(out.weight_quantizer.scale, out.weight.abs().amax(1) / 127)
        certificate = verify_equivalence(loaded, spiking_twin(loaded, time_steps=400), make_batch(loaded))
        assert certificate.exact, str(certificate)


@networks
def test_quantized_weights_are_not_passed_over_on_loading(architecture, tmp_path):
    make_network(architecture).save_pretrained(tmp_path)
    quant_class = type(make_uncalibrated(architecture))
    with pytest.raises(ValueError, match="weight_bits of the checkpoint is 8 and cannot become None"):
        quant_class.from_pretrained(tmp_path, weight_bits=None)
    edit_config(tmp_path, weight_bits=None)
    with pytest.raises(ValueError, match=r"weight_bits of the config is None, and .* was saved with 8"):
        quant_class.from_pretrained(tmp_path)
    write_tensors(tmp_path, tensors_of(tmp_path))  # and where the file does not tell it
    with pytest.raises(ValueError, match="has quantized weights: load it without changing weight_bits"):
        quant_class.from_pretrained(tmp_path)


def test_a_certificate_looks_at_the_scales_of_weights():
    qann = make_network("vit")
    snn = spiking_twin(qann, time_steps=400)
    snn.classifier.weight_quantizer.scale.data *= 1.01
    certificate = verify_equivalence(qann, snn, make_batch(qann))
    assert not certificate.exact
    assert certificate.threshold_mismatches == ("classifier.weight_quantizer",)

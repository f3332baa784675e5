"""Drop path: which samples lose a branch, at which rate in which layer; and nothing of it outside of training."""

import math
from itertools import pairwise

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from spikezip_hf import QuantViTForImageClassification, verify_equivalence
from spikezip_hf.models.layers import DropPath
from tests.conftest import (
    ARCHITECTURES,
    made_once,
    make_ann,
    make_batch,
    make_text_ann,
    make_texts,
    spiking_twin,
    text_class,
)

networks = pytest.mark.parametrize("architecture", ["vit", *ARCHITECTURES])


def make_uncalibrated(architecture, dtype=torch.float32, ann_fields=None, **fields):
    ann_fields = ann_fields or {}
    if architecture == "vit":
        quant_class, ann = QuantViTForImageClassification, make_ann(dtype=dtype, **ann_fields)
    else:
        quant_class, ann = text_class("Quant", architecture), make_text_ann(architecture, dtype=dtype, **ann_fields)
    return quant_class.from_ann(ann, quantization_levels=16, **fields)


@made_once
def make_network(architecture, dtype=torch.float32, **fields):
    qann = make_uncalibrated(architecture, dtype, **fields)
    return qann.calibrate([make_batch(qann, seed=1)])


def drop_paths(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, DropPath)}


def logits(model, batch, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**batch).logits


class TestModule:
    @pytest.mark.parametrize("shape", [(5, 3), (5, 7, 3), (5, 2, 7, 3)])
    def test_is_the_identity_unless_it_trains_with_a_rate(self, shape):
        x = torch.randn(shape)
        assert DropPath(0.0).train()(x) is x
        assert DropPath(0.9).eval()(x) is x
        assert not torch.equal(DropPath(0.9).train()(x), x)

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
    @pytest.mark.parametrize("shape", [(3,), (7, 3)])
    def test_whole_samples_are_dropped_and_the_others_scaled_up(self, shape, rate):
        x = torch.rand(64, *shape, dtype=torch.float64) + 1
        out = DropPath(rate).train()(x)
        dropped = (out == 0).flatten(1).all(1)
        assert 0 < int(dropped.sum()) < 64
        # x * (1 / (1 - rate)) against x / (1 - rate): rounding in the last digit.
        assert torch.allclose(out[~dropped], x[~dropped] / (1 - rate), rtol=1e-15, atol=0)

    @pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
    def test_share_of_dropped_samples_and_their_mean(self, rate):
        samples = 20_000
        out = DropPath(rate).train()(torch.ones(samples, 1, dtype=torch.float64))
        # Four standard deviations of a binomial share: what a fixed seed stays within.
        error = 4 * math.sqrt(rate * (1 - rate) / samples)
        assert (out == 0).double().mean().item() == pytest.approx(rate, abs=error)
        assert out.mean().item() == pytest.approx(1, abs=error / (1 - rate))

    def test_each_call_draws_anew(self):
        module, x = DropPath(0.5).train(), torch.ones(64, 1)
        assert not torch.equal(module(x), module(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_type_is_kept(self, dtype):
        assert DropPath(0.5).train()(torch.ones(8, 2, dtype=dtype)).dtype == dtype

    def test_gradient_goes_where_the_values_went(self):
        x = torch.ones(64, 2, dtype=torch.float64, requires_grad=True)
        out = DropPath(0.25).train()(x)
        out.sum().backward()
        assert torch.equal(x.grad, out.detach())  # of ones, the values are the factors


@networks
class TestNetworks:
    @pytest.mark.parametrize("layers", [1, 2, 5])
    def test_rates_grow_linearly_to_that_of_the_config(self, architecture, layers):
        qann = make_uncalibrated(architecture, ann_fields={"num_hidden_layers": layers}, drop_path_rate=0.3)
        rates = {name: module.rate for name, module in drop_paths(qann).items()}
        # timm's: torch.linspace(0, drop_path_rate, depth).
        expected = torch.linspace(0, 0.3, layers, dtype=torch.float64).tolist()
        if architecture == "vit":
            where = {f"vit.layers.{layer}.drop_path": rate for layer, rate in enumerate(expected)}
        else:
            where = {
                f"{architecture}.encoder.layer.{layer}.{part}.drop_path": rate
                for layer, rate in enumerate(expected)
                for part in ("attention.output", "output")
            }
        assert rates == pytest.approx(where, rel=1e-12)  # a product and a sum of steps round differently

    def test_is_off_by_default(self, architecture):
        qann = make_uncalibrated(architecture)
        assert qann.config.drop_path_rate == 0
        assert {module.rate for module in drop_paths(qann).values()} == {0}

    def test_evaluates_as_without(self, architecture):
        plain, dropping = make_network(architecture), make_network(architecture, drop_path_rate=0.6)
        batch = make_batch(plain)
        # Calibration looks at the whole network too, though the model trains.
        for ours, theirs in zip(plain.nodes, dropping.nodes, strict=True):
            assert torch.equal(ours.scale, theirs.scale)
        expected = logits(plain.eval(), batch)
        assert torch.equal(logits(dropping.eval(), batch), expected)
        assert not torch.equal(logits(dropping.train(), batch), expected)

    def test_drops_every_branch_and_no_residual(self, architecture):
        """With all branches dropped, a layer hands on what it was given, in post-norm networks normalised twice."""
        qann = make_network(architecture).eval()
        for module in drop_paths(qann).values():
            module.register_forward_hook(lambda module, arguments, output: torch.zeros_like(output))
        with torch.no_grad():
            # Texts of one length: padding, which never fires, would be 0.
            batch = make_batch(qann) if architecture == "vit" else make_texts(qann.config, [9, 9])
            states = qann(**batch, output_hidden_states=True).hidden_states
            assert len(states) == 3
            for index, (before, after) in enumerate(pairwise(states)):
                if architecture != "vit":
                    layer = qann.base_model.encoder.layer[index]
                    for end in (layer.attention.output, layer.output):
                        before = end.norm_node(end.LayerNorm(before))
                assert torch.equal(after, before)

    def test_spikes_are_exact(self, architecture):
        qann = make_network(architecture, drop_path_rate=0.6).train()
        snn, batch = spiking_twin(qann, time_steps=400), make_batch(qann)
        assert max(module.rate for module in drop_paths(snn).values()) == pytest.approx(0.6)
        certificate = verify_equivalence(qann, snn, batch)
        assert certificate.exact, str(certificate)
        assert torch.equal(snn(**batch).logits, logits(qann.eval(), batch))
        assert torch.equal(snn.train()(**batch).logits, logits(qann, batch))

    def test_may_change_at_conversion(self, architecture):
        qann = make_network(architecture, drop_path_rate=0.6)
        snn, batch = spiking_twin(qann, time_steps=400, drop_path_rate=0.0), make_batch(qann)
        assert snn.config.drop_path_rate == 0
        assert {module.rate for module in drop_paths(snn).values()} == {0}
        certificate = verify_equivalence(qann, snn, batch)
        assert certificate.exact, str(certificate)

    def test_rate_is_saved(self, architecture, tmp_path):
        qann = make_network(architecture, drop_path_rate=0.6)
        qann.save_pretrained(tmp_path)
        for rate, fields in ((0.6, {}), (0.2, {"drop_path_rate": 0.2})):
            loaded = type(qann).from_pretrained(tmp_path, **fields)
            assert max(module.rate for module in drop_paths(loaded).values()) == pytest.approx(rate)
            assert torch.equal(logits(loaded.eval(), make_batch(qann)), logits(qann.eval(), make_batch(qann)))

    @pytest.mark.parametrize("rate", [1.0, -0.1, 1.5, float("nan")])
    def test_rates_that_are_none_are_refused(self, architecture, rate):
        with pytest.raises(ValueError, match="drop_path_rate must be at least 0 and below 1, got"):
            make_uncalibrated(architecture, drop_path_rate=rate)

    @pytest.mark.parametrize("rate", ["0.1", None, True])
    def test_rates_that_are_no_numbers_are_refused(self, architecture, rate):
        # The types of fields are looked at by transformers, whose error is not a ValueError.
        with pytest.raises((ValueError, StrictDataclassError), match="drop_path_rate"):
            make_uncalibrated(architecture, drop_path_rate=rate)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_gives_the_same_gradients(self, architecture, reentrant):
        """The pass that is done again for the gradients drops the same branches."""
        plain, checkpointed = (make_network(architecture, torch.float64, drop_path_rate=0.5).train() for _ in range(2))
        # transformers 5.23 renamed it and warns at the old name; older ones have only that
        new = hasattr(checkpointed, "activation_checkpointing_enable")
        name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
        getattr(checkpointed, name)({"use_reentrant": reentrant})
        batch, labels = make_batch(plain), torch.tensor([0, 1, 2, 0, 1, 2])

        def gradients(model, seed):
            model.zero_grad()
            torch.manual_seed(seed)
            model(**batch, labels=labels).loss.backward()
            return {path: parameter.grad for path, parameter in model.named_parameters()}

        ours, theirs = gradients(plain, 3), gradients(checkpointed, 3)
        for path, grad in ours.items():
            assert (grad is None) == (theirs[path] is None), path
            assert grad is None or torch.equal(grad, theirs[path]), path
        other = gradients(plain, 4)
        assert any(grad is not None and not torch.equal(grad, other[path]) for path, grad in ours.items())

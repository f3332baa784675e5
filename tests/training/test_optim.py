"""Parameter groups: who decays, and layer-wise decay against timm's."""

import pytest
import timm
from timm.optim import param_groups_layer_decay

from spikezip_hf import QATTrainer
from spikezip_hf.training.optim import learning_rate_factor, parameter_groups, scale_parameter_names
from tests.conftest import ARCHITECTURES, make_ann, make_qann, make_text_ann, make_text_qann
from tests.training.common import make_args, make_data

LAYERS, DECAY = 3, 0.65


def names_of(model, parameters) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


@pytest.fixture(scope="module")
def timms() -> dict[str, float]:
    """timm's factor of each parameter of its ViT."""
    vit = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=32, depth=LAYERS, num_heads=4, num_classes=5
    )
    factors = {}
    for group in param_groups_layer_decay(vit, 0.05, layer_decay=DECAY):
        factors |= dict.fromkeys(names_of(vit, group["params"]), group["lr_scale"])
    assert set(factors) == {name for name, _ in vit.named_parameters()}
    return factors


def timm_name(ours: str, architecture: str) -> str:
    """The parameter of timm's ViT that stands where `ours` stands in its network."""
    parts = ours.split(".")
    for key in ("layers", "layer"):
        if key in parts:
            return f"blocks.{parts[parts.index(key) + 1]}.attn.qkv.weight"
    if "embeddings" in parts:
        return "pos_embed"
    if architecture == "vit" and parts[1] in ("layernorm", "layernorm_node"):
        return "norm.weight"
    assert parts[0] == "classifier" or "pooler" in parts, ours
    return "head.weight"


@pytest.mark.parametrize("kind", ["ann", "qann"])
@pytest.mark.parametrize("architecture", ["vit", *ARCHITECTURES])
def test_layer_decay_is_timms(timms, architecture, kind):
    make = {("vit", "ann"): make_ann, ("vit", "qann"): make_qann}.get((architecture, kind))
    if make is None:
        make = lambda **fields: {"ann": make_text_ann, "qann": make_text_qann}[kind](architecture, **fields)  # noqa: E731
    model = make(num_hidden_layers=LAYERS)
    for name, _ in model.named_parameters():
        factor = learning_rate_factor(name, LAYERS, DECAY)
        assert factor == pytest.approx(timms[timm_name(name, architecture)], rel=1e-12), name


@pytest.mark.parametrize("bits", [None, 8])
def test_scales_have_their_own_rate_and_never_decay(bits):
    qann = make_qann() if bits is None else make_qann_with_weights_of_8_bits()
    scales = scale_parameter_names(qann)
    assert len(scales) == len(qann.quantizers)
    everything = {name for name, _ in qann.named_parameters()}
    groups = parameter_groups(
        qann, decay_names=everything, learning_rate=1e-3, weight_decay=0.05, scale_learning_rate=1e-4
    )
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.05), (1e-4, 0.0)]
    assert names_of(qann, groups[1]["params"]) == scales
    assert names_of(qann, groups[0]["params"]) == everything - scales


def make_qann_with_weights_of_8_bits():
    from spikezip_hf import QuantViTForImageClassification

    return QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=16, weight_bits=8)


def test_only_named_parameters_decay():
    qann = make_qann()
    weights = {name for name, _ in qann.named_parameters() if name.endswith("weight")}
    groups = parameter_groups(qann, decay_names=weights, learning_rate=1e-3, weight_decay=0.05)
    decayed = {name for group in groups if group["weight_decay"] for name in names_of(qann, group["params"])}
    assert decayed == weights


def test_frozen_parameters_are_in_no_group():
    qann = make_qann()
    qann.classifier.weight.requires_grad_(False)
    groups = parameter_groups(qann, decay_names=[], learning_rate=1e-3, weight_decay=0.05)
    named = {name for group in groups for name in names_of(qann, group["params"])}
    assert named == {name for name, _ in qann.named_parameters()} - {"classifier.weight"}


def test_layer_decay_and_scale_rate_multiply():
    qann = make_qann(num_hidden_layers=LAYERS)
    groups = parameter_groups(
        qann, decay_names=[], learning_rate=1e-3, weight_decay=0.0, scale_learning_rate=1e-4, layer_decay=DECAY
    )
    rates = {name: group["lr"] for group in groups for name in names_of(qann, group["params"])}
    assert rates["vit.layers.1.mlp.fc1.weight"] == pytest.approx(1e-3 * DECAY**2)
    assert rates["vit.layers.1.mlp.hidden_node.scale"] == pytest.approx(1e-4 * DECAY**2)
    assert rates["classifier.weight"] == 1e-3


def test_the_trainer_uses_betas_groups_and_schedule(tmp_path):
    """Table A6's optimizer, on the way from arguments to torch."""
    qann = make_qann(num_hidden_layers=LAYERS)
    args = make_args(
        tmp_path,
        adam_beta1=0.9,
        adam_beta2=0.99,
        weight_decay=0.05,
        layer_decay=DECAY,
        lr_scheduler_type="cosine",
        base_learning_rate=0.032,
        warmup_epochs=1,
        num_train_epochs=4,
        logging_steps=1,
    )
    assert args.learning_rate == 0.032 * 8 / 256
    trainer = QATTrainer(qann, args, train_dataset=make_data(qann.config, 16))
    trainer.train()
    assert all(group["betas"] == (0.9, 0.99) for group in trainer.optimizer.param_groups)
    initial = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert min(initial) == pytest.approx(1e-3 * DECAY ** (LAYERS + 1))
    assert max(initial) == pytest.approx(1e-3)
    # The rate of the first group, embeddings, over the 8 steps: two of warm-up, then half a cosine.
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(rates) == 8
    assert float(rates[0]) == 0.0
    assert float(rates[2]) == pytest.approx(initial[0], rel=1e-6)
    assert float(rates[5]) == pytest.approx(initial[0] / 2, rel=1e-6)


def test_decay_leaves_norms_biases_and_scales_alone(tmp_path):
    qann = make_qann()
    trainer = QATTrainer(qann, make_args(tmp_path, weight_decay=0.05), train_dataset=make_data(qann.config))
    groups = trainer.create_optimizer().param_groups
    decayed = {name for group in groups if group["weight_decay"] for name in names_of(qann, group["params"])}
    assert "vit.layers.0.mlp.fc1.weight" in decayed
    assert not [name for name in decayed if name.endswith(("bias", "scale")) or "layernorm" in name]

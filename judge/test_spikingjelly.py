"""SpikingJelly's neuron and its recipe for SpikeZIP-TF against ours, spike for spike.

Their neuron keeps q = V / V_thr, from 1/2, and adds x / V_thr at each step, the first one too. It fires +1 where
q >= 1 and S < S_max, -1 where q < 0 and S > S_min, once a step: Eq. 1 divided by V_thr, ties included. So the two
coincide at every step wherever nothing is rounded, whatever the currents, and that is tested to the tie. Elsewhere
they add up in another order (theirs the quotients, ours the currents), and could differ at a tie alone. Thresholds of
theirs are float32, and so are these.

Their recipe lets in a bias over as many steps as there are levels. The paper says only that at some step it stops
(A3.1); ours comes whole at the first. With theirs told to do so, networks do the same at every step; as they are, they
end alike. Padding is silent in ours and not in theirs: texts are compared at their tokens.
"""

import re

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import ModuleConverter, SpikeZIPTFQANNRecipe
from spikingjelly.activation_based.neuron import STBIFNode
from transformers import RobertaConfig, RobertaForSequenceClassification, ViTConfig, ViTForImageClassification

from spikezip_hf import (
    QuantRobertaForSequenceClassification,
    QuantViTForImageClassification,
    SpikeRobertaForSequenceClassification,
    SpikeViTForImageClassification,
)
from spikezip_hf.conversion import read_reference, step_inputs, to_spikingjelly
from spikezip_hf.models.engines import EventEngine
from spikezip_hf.models.neurons import fire, fire_reference, track
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.rows import Rows, Timeline

KINDS = [(4, True), (8, False), (16, True), (32, True), (32, False), (128, True), (256, True), (256, False)]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{'signed' if kind[1] else 'unsigned'}")
def kind(request):
    return request.param


def node_of(kind, scale: float, dtype) -> LSQQuantizer:
    node = LSQQuantizer(*kind, num_features=1).to(dtype)
    node.name = "node"
    node.set_scale(torch.tensor([scale]))
    return node


def theirs(node, currents, step_mode) -> torch.Tensor:
    """(T, ...) levels after each step."""
    neuron = STBIFNode(
        node.scale.detach().float(), node.levels, node.signed, node.max_level, node.min_level, step_mode=step_mode
    )
    out = neuron(currents) if step_mode == "m" else torch.stack([neuron(current) for current in currents])
    return (out / node.scale.detach()).round().cumsum(0)


def ours(node, currents) -> dict[str, torch.Tensor]:
    """The same by each of our forms of a neuron."""
    steps, *shape = currents.shape
    sums = currents.cumsum(0)
    timeline = Timeline(torch.ones(steps, shape[0], dtype=torch.bool))
    rest = torch.zeros(shape, dtype=node.level_dtype)
    engine = EventEngine(shape[0], torch.device("cpu"), input_steps=steps)
    tracers = []
    for current in currents:
        engine.advance(1)
        engine.fire(node, current)
        tracers.append(engine.tracers["node"].clone())
    found = {"track": track(node.quantize(sums).to(node.level_dtype), rest), "event": torch.stack(tracers)}
    for run in (fire, fire_reference):
        fired = run(node, Rows(sums.flatten(0, 1), timeline=timeline), rest.clone())
        found[run.__name__] = fired.levels[fired.timeline.index]
    return found


def hold_together(node, currents) -> torch.Tensor:
    expected = theirs(node, currents, "s")
    assert torch.equal(theirs(node, currents, "m"), expected)
    for form, levels in ours(node, currents).items():
        assert torch.equal(levels.to(expected.dtype), expected), form
    return expected


class TestNeurons:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("scale", [0.25, 1.0])
    def test_currents_that_end_on_ties(self, kind, scale, dtype):
        """Multiples of half a threshold: after each step V is 0, V_thr or between, exactly, and never rounded."""
        generator = torch.Generator().manual_seed(0)
        currents = torch.randint(-3, 4, (150, 4, 1, 64), generator=generator) * scale / 2
        currents[:, 1] += scale / 2  # up to the upper bound
        currents[:, 2] -= scale / 2
        currents[75:, 3] = currents[:75, 3].flip(0).neg()  # there and back
        node = node_of(kind, scale, dtype)
        levels = hold_together(node, currents.to(dtype))
        sums = currents.cumsum(0) / scale
        assert (sums % 1 == 0.5).float().mean() > 0.4  # ties
        if node.levels <= 32:
            assert levels.max() == node.max_level
            assert levels.min() == node.min_level

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "pattern",
        [
            (0.5,),
            (-0.5,),
            (0.5, -0.5),
            (-0.5, 0.5),
            (0.5, 0.0, -1.0),
            (1.5, -3.0, 1.5),
            (300.0, -600.0),
            (-300.0, 0.5),
            (0.0,),
        ],
        ids=str,
    )
    def test_adversaries(self, kind, pattern, dtype):
        """Currents, in thresholds, over and over: onto a tie and off it, into saturation and out of it."""
        currents = torch.tensor(pattern).repeat(600 // len(pattern))[:, None, None, None]
        hold_together(node_of(kind, 0.5, dtype), currents.to(dtype) * 0.5)

    def test_any_currents(self, kind):
        """Float64, and a threshold that is no power of two: sums are rounded, and none is as near to a tie as that."""
        generator = torch.Generator().manual_seed(1)
        currents = torch.randn(200, 3, 1, 50, generator=generator, dtype=torch.float64)
        hold_together(node_of(kind, float(torch.tensor(0.3)), torch.float64), currents)


def randomised(ann):
    for name, parameter in ann.named_parameters():
        if name.endswith("bias"):  # transformers starts biases at 0, which would hide one that is counted twice
            torch.nn.init.normal_(parameter, std=0.1)
    return ann.eval()


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "relu",
    "num_labels": 10,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def vit(pixels, initializer_range=0.15):
    ann = ViTForImageClassification(
        ViTConfig(**SIZES, image_size=8, patch_size=4, num_channels=1, initializer_range=initializer_range)
    )
    return randomised(ann) if initializer_range > 0.1 else ann


def quantized_vit(ann, pixels):
    return QuantViTForImageClassification.from_ann(ann.eval(), quantization_levels=16).calibrate(
        [{"pixel_values": pixels}]
    )


def random_vit():
    pixels = torch.randn(32, 1, 8, 8)
    return quantized_vit(vit(pixels), pixels), {"pixel_values": pixels[:6]}


def trained_vit():
    """On scikit-learn's digits, and trained again as a quantized network."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
    ann = vit(pixels, initializer_range=0.02)
    train(ann, pixels[:1400], labels[:1400], 8)
    qann = quantized_vit(ann, pixels[:256])
    train(qann, pixels[:1400], labels[:1400], 2)
    with torch.no_grad():
        assert (qann.eval()(pixels[1400:]).logits.argmax(-1) == labels[1400:]).float().mean() > 0.8
    return qann, {"pixel_values": pixels[1400:1416]}


def train(model, pixels, labels, epochs):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(pixels)).split(50):
            model(pixels[part], labels=labels[part]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def random_roberta(**fields):
    config = RobertaConfig(
        **SIZES, vocab_size=60, max_position_embeddings=24, type_vocab_size=2, initializer_range=0.25
    )
    ann = randomised(RobertaForSequenceClassification(config))
    lengths = torch.tensor([12, 3, 7, 1, 9, 12])
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(2, 60, (6, 12)) * mask + (1 - mask)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids > 30).long() * mask}
    qann = QuantRobertaForSequenceClassification.from_ann(
        ann, quantization_levels=16, scale_granularity="per_tensor", head_act="relu", **fields
    )
    return qann.calibrate([batch]), batch


NETWORKS = {
    "random ViT": random_vit,
    "trained ViT": trained_vit,
    "random RoBERTa": random_roberta,
    "random RoBERTa, the reference's nodes": lambda: random_roberta(node_placement="reference"),
}
STEPS = 64


@torch.no_grad()
def our_levels(snn, batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """{node: (T, B, ...)} and logits (T, B, classes), after each step."""
    found: dict[str, list] = {}

    def keep(node, args, emitted):
        found.setdefault(node.name, []).append(emitted.integers[emitted.timeline.index])

    hooks = [node.register_forward_hook(keep) for node in snn.nodes]
    out = snn(**batch, stop="never", time_steps=STEPS, output_time_steps=True)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(chunks) for name, chunks in found.items()}, out.logits_per_step.transpose(0, 1)


@torch.no_grad()
def their_levels(qann, batch, step_mode, bias_at_once) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    family = "vit" if "pixel_values" in batch else "roberta"
    network = to_spikingjelly(qann)
    network = ModuleConverter(recipe=SpikeZIPTFQANNRecipe(model_family=family)).convert(network).eval()
    if bias_at_once:
        for module in network.modules():
            if hasattr(module, "bias_steps"):
                module.bias_steps = 1
                module.set_reset_value("realize_time", 1)
    functional.set_step_mode(network, step_mode)
    functional.reset_net(network)
    found: dict[str, list] = {}
    for name, module in network.named_modules():
        if isinstance(module, STBIFNode):
            module.register_forward_hook(
                lambda module, args, out, name=name: found.setdefault(name, []).append(
                    (out / module.q_threshold).round()
                )
            )
    first, later, always = step_inputs(qann, batch)
    if step_mode == "m":
        logits = network(*(torch.stack([x, *[y] * (STEPS - 1)]) for x, y in zip(first, later)), **always)
        spikes = {name: chunks[0] for name, chunks in found.items()}
    else:
        logits = torch.stack([network(*(later if step else first), **always) for step in range(STEPS)])
        spikes = {name: torch.stack(steps) for name, steps in found.items()}
    return {name: x.cumsum(0) for name, x in spikes.items()}, logits.cumsum(0)


def names(qann, folder) -> dict[str, str]:
    """{our node: their neuron}. The recipe calls neurons query_if, and quantizers query_quan or quan_q."""
    torch.save(to_spikingjelly(qann).state_dict(), folder / "network.pth")
    _, report = read_reference(folder / "network.pth", num_attention_heads=4)
    found = {}
    for name in qann.node_names:
        source = next(source for ours, source in report.mapped.items() if ours.endswith(f"{name}.scale"))
        found[name] = re.sub(r"(?<=\.)(?:quan_(\w+)|(\w+)_quan)$", r"\1\2_if", source.removesuffix(".s"))
    return found


def as_ours(theirs: torch.Tensor, ours: torch.Tensor, source: str) -> torch.Tensor:
    """Levels (T, B, ...) in the shape that ours have."""
    if source.startswith(("patch_embed", "align")) and theirs.dim() == 5:  # of a convolution
        return theirs.flatten(3).transpose(2, 3)
    if ours.dim() == 4 and theirs.dim() == 5:  # heads
        return theirs.transpose(2, 3).flatten(3)
    if theirs.dim() == ours.dim() + 1:  # the first token
        return theirs[:, :, 0]
    return theirs[:, :, : ours.shape[2]] if theirs.dim() == ours.dim() == 4 else theirs


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """In float64, on scales that are float32."""
    torch.manual_seed(0)
    qann, batch = NETWORKS[request.param]()
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    return qann.double().eval(), batch


@pytest.mark.parametrize("step_mode", ["s", "m"])
class TestNetworks:
    def test_spike_for_spike(self, network, step_mode, tmp_path):
        hold_networks_together(network, step_mode, tmp_path, bias_at_once=True)

    def test_fixed_point_of_the_recipe_as_it_is(self, network, step_mode, tmp_path):
        hold_networks_together(network, step_mode, tmp_path, bias_at_once=False)


def hold_networks_together(network, step_mode, folder, bias_at_once):
    """At every step, or else at the last."""
    qann, batch = network
    spiking = SpikeViTForImageClassification if "pixel_values" in batch else SpikeRobertaForSequenceClassification
    snn = spiking.from_quantized(qann, time_steps=STEPS)
    assert (snn(**batch).equilibrium_step > 0).all()
    ours, our_logits = our_levels(snn, batch)
    theirs, their_logits = their_levels(qann, batch, step_mode, bias_at_once)
    steps = slice(None) if bias_at_once else slice(-1, None)
    # Theirs adds up the changes of 64 steps.
    torch.testing.assert_close(their_logits[steps], our_logits[steps], rtol=1e-9, atol=1e-9)
    tokens = batch.get("attention_mask")
    sources = names(qann, folder)
    assert sorted(sources.values()) == sorted(theirs)
    for name, source in sources.items():
        levels = ours[name].double()
        expected = as_ours(theirs[source], levels, source)
        assert expected[-1].unique().numel() > 3, f"{name} uses too few levels to see a mistake"
        if tokens is not None and levels.dim() > 3:
            keep = tokens[:, None, :, None] if levels.dim() == 5 else tokens[:, :, None]
            expected = expected * keep
        assert torch.equal(levels[steps], expected[steps]), name

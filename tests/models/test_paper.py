"""Whole networks spike for spike against the paper's equations, of random weights and trained ones."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.models.rows import Rows
from tests.conftest import make_batch, make_qann, make_text_qann, make_texts, spiking_twin
from tests.models import paper

STEPS = 40


@torch.no_grad()
def spikes_of(snn, batch, execution="cumulative", steps=STEPS):
    """{node: (steps, B, ...) spikes} as a hook sees them, and potentials (B, steps, classes)."""
    levels: dict[str, list] = {}

    def keep(node, args, emitted):
        if not isinstance(emitted, Rows):  # the event-driven form hands on the spikes of a step
            before = levels[node.name][-1] if node.name in levels else torch.zeros_like(emitted)[None]
            levels.setdefault(node.name, []).append(before[-1:] + (emitted / node.scale).round())
        elif emitted.timeline is not None:
            levels.setdefault(node.name, []).append(emitted.integers[emitted.timeline.index])

    hooks = [node.register_forward_hook(keep) for node in snn.nodes]
    found = snn.trajectory(**batch, execution=execution, time_steps=steps, stop="never", output_time_steps=True)
    for hook in hooks:
        hook.remove()
    whole = {name: torch.cat(parts) for name, parts in levels.items()}
    spikes = {name: x.long().diff(dim=0, prepend=torch.zeros_like(x[:1]).long()) for name, x in whole.items()}
    return spikes, found.per_step


def weights_of(qann) -> dict:
    """State dict as arrays, under names without the prefix of the network in a classifier."""
    prefix = f"{qann.base_model_prefix}."
    return {name.removeprefix(prefix): tensor.double().numpy() for name, tensor in qann.state_dict().items()}


def vit_of_paper(qann, batch, sample, steps):
    config = qann.config
    return paper.run(
        paper.vit,
        weights_of(qann),
        config.quantization_levels,
        steps,
        image=batch["pixel_values"][sample].double().numpy(),
        patch_size=config.patch_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        eps=config.layer_norm_eps,
    )


def text_of_paper(qann, batch, sample, steps):
    config = qann.config
    tokens = batch["attention_mask"][sample].bool()
    return paper.run(
        paper.roberta if config.model_type.endswith("roberta") else paper.bert,
        weights_of(qann),
        config.quantization_levels,
        steps,
        ids=batch["input_ids"][sample][tokens].numpy(),
        types=batch["token_type_ids"][sample][tokens].numpy(),
        first_position=qann.first_position,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        eps=config.layer_norm_eps,
    )


def assert_paper(qann, batch, steps=STEPS, executions=("cumulative", "event")) -> int:
    """Each spike of each neuron of each sample, at each step, in every form of the simulation; how many there are."""
    qann = qann.double().eval()
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    snn = spiking_twin(qann, time_steps=steps)
    of_paper = text_of_paper if "input_ids" in batch else vit_of_paper
    runs = {execution: spikes_of(snn, batch, execution, steps) for execution in executions}
    total = 0
    for sample in range(len(next(iter(batch.values())))):
        expected, potentials = of_paper(qann, batch, sample, steps)
        assert not any(spikes[-1].any() for spikes in expected.values()), "equilibrium takes more steps than these"
        for found, per_step in runs.values():
            assert found.keys() == expected.keys()
            for name, spikes in expected.items():
                ours = found[name][:, sample].numpy()
                if ours.shape != spikes.shape:  # a batch of texts is padded, and padding is silent
                    own = tuple(slice(0, size) for size in spikes.shape)
                    assert np.abs(ours).sum() == np.abs(ours[own]).sum(), name
                    ours = ours[own]
                assert np.array_equal(ours, spikes), name
            # Both add up float64 numbers, in other orders.
            np.testing.assert_allclose(per_step[sample].numpy(), potentials, rtol=1e-9, atol=1e-9)
        total += sum(int(np.abs(spikes).sum()) for spikes in expected.values())
    return total


@pytest.mark.parametrize("fields", [{}, {"granularity": "per_channel"}, {"weight_bits": 8}], ids=str)
class TestRandomNetworks:
    def test_vit(self, fields):
        qann = make_qann(dtype=torch.float64, levels=8, **fields)
        assert assert_paper(qann, make_batch(qann)) > 5000

    @pytest.mark.parametrize("architecture", ["roberta", "bert"])
    def test_texts(self, architecture, fields):
        qann = make_text_qann(architecture, dtype=torch.float64, levels=8, **fields)
        assert assert_paper(qann, make_texts(qann.config, [12, 3, 7, 1])) > 5000


@pytest.fixture(scope="module")
def digits():
    """A ViT that has learned the digits, quantized to 16 levels, with the float32 numbers that training leaves."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act="relu",
        num_labels=10,
    )
    ann = ViTForImageClassification(config)
    train(ann, pixels[:1400], labels[:1400], epochs=8, rate=3e-3)
    qann = QuantViTForImageClassification.from_ann(ann.eval(), quantization_levels=16)
    qann.calibrate([{"pixel_values": pixels[:256]}])
    train(qann, pixels[:1400], labels[:1400], epochs=2, rate=1e-3)
    return qann.eval(), pixels[1400:], labels[1400:]


def train(model, pixels, labels, epochs, rate):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(epochs):
        for part in torch.randperm(len(pixels)).split(50):
            model(pixels[part], labels=labels[part]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def test_a_trained_network(digits):
    qann, pixels, labels = digits
    with torch.no_grad():
        assert (qann(pixels).logits.argmax(-1) == labels).float().mean() > 0.8
    assert assert_paper(qann, {"pixel_values": pixels[:12]}, steps=60) > 20000

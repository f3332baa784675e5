"""The ViT behind a reduction layer: from a pretrained ViT to spikes, per step and static, whole and saved."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from spikezip_hf import QuantViTForImageClassification, SpikeViTForImageClassification
from spikezip_hf.analysis.operations import count_operations
from spikezip_hf.conversion import verify_equivalence
from spikezip_hf.data.event_files import EVENT
from spikezip_hf.models.configuration_event_vit import EventViTConfig
from spikezip_hf.models.image_processing_events import EventImageProcessor
from spikezip_hf.models.modeling_event_vit import EventViTForImageClassification
from spikezip_hf.models.operators import Conv2d, PatchLinear
from tests.conftest import made_once, make_ann

REDUCTION = "vit.embeddings.patch_embeddings.reduction"
PROCESSOR = EventImageProcessor({"height": 12, "width": 12}, {"height": 9, "width": 9}, frames=6)
SIZE = {"image_size": 9, "num_channels": 2}  # two patches of 4 and a pixel that is in none


def make_event_ann(dtype=torch.float32, seed=0, **fields) -> EventViTForImageClassification:
    """A random one with the patches and layers of a ViT of three channels."""
    weights = make_ann(seed, image_size=9).state_dict()
    ann = EventViTForImageClassification(EventViTConfig(**{**make_ann(seed).config.to_dict(), **SIZE, **fields}))
    missing, unexpected = ann.load_state_dict(weights, strict=False)
    assert set(missing) == {f"{REDUCTION}.weight", f"{REDUCTION}.bias"}
    assert not unexpected
    torch.nn.init.normal_(ann.get_submodule(REDUCTION).weight, std=0.5)
    torch.nn.init.normal_(ann.get_submodule(REDUCTION).bias, std=0.1)
    return ann.to(dtype).eval()


def recording(seed: int, events: int = 300, last: int | None = None) -> np.ndarray:
    """Noise within 1000 microseconds, and one more event at `last`."""
    rng = np.random.default_rng(seed)
    made = np.zeros(events + (last is not None), EVENT)
    made["x"], made["y"] = rng.integers(0, 12, (2, len(made)))
    made["p"], made["t"] = rng.integers(0, 2, len(made)), np.sort(rng.integers(0, 1000, len(made)))
    if last is not None:
        made["t"][-1] = last
    return made


def frames_of(count=4, dtype=torch.float32, **changes):
    return PROCESSOR([recording(seed, **changes) for seed in range(count)], return_tensors="pt")["pixel_values"].to(
        dtype
    )


@made_once
def make_event_qann(dtype=torch.float32, **fields):
    qann = QuantViTForImageClassification.from_ann(make_event_ann(dtype), quantization_levels=16, **fields)
    return qann.calibrate([{"pixel_values": frames_of(16, dtype)}]).eval()


KINDS = [
    {},
    {"weight_bits": 8},
    {"scale_granularity": "per_channel"},
    {"scale_granularity": "mixed", "weight_bits": 8},
]


def test_from_a_pretrained_vit(tmp_path):
    vit = make_ann(image_size=9)
    vit.save_pretrained(tmp_path)
    ann, info = EventViTForImageClassification.from_pretrained(
        tmp_path, num_channels=2, reduced_channels=3, output_loading_info=True
    )
    assert info["missing_keys"] == {f"{REDUCTION}.weight", f"{REDUCTION}.bias"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all(torch.equal(weight, ann.state_dict()[name]) for name, weight in vit.state_dict().items())
    images = torch.rand(2, 2, 9, 9)
    reduced = ann.get_submodule(REDUCTION)(images)
    assert reduced.shape == (2, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(ann.eval()(images).logits, vit(reduced).logits)
        assert torch.equal(ann(images[None] / 2).logits, ann(images[:1] / 2 + images[1:] / 2).logits)

    ann.save_pretrained(tmp_path / "events")
    assert AutoConfig.from_pretrained(tmp_path / "events").model_type == "event_vit"
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "events")
    assert type(again) is EventViTForImageClassification
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in ann.state_dict().items())


@pytest.mark.parametrize("value", [0, -3, True])
def test_channels_out_of_range(value):
    with pytest.raises(Exception, match="reduced_channels"):
        EventViTConfig(reduced_channels=value)
    with pytest.raises(Exception, match="reduced_channels"):
        QuantViTForImageClassification.config_class(reduced_channels=value)


def test_a_plain_vit_has_no_reduction():
    with pytest.raises(ValueError, match="reduction"):
        QuantViTForImageClassification.from_ann(make_ann(), reduced_channels=3)


def test_fine_levels_are_the_ordinary_network():
    """With 256 levels the quantized network is the ordinary one but for rounding."""
    ann, images = make_event_ann(), frames_of(16)
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=256, scale_granularity="per_channel")
    with torch.no_grad():
        expected = ann(images).logits
        # Tolerance: each of some 20 nodes rounds to 1/256 of its range.
        assert (qann.calibrate([{"pixel_values": images}]).eval()(images).logits - expected).abs().max() < (
            0.1 * expected.std()
        )


def test_patches_as_a_product_are_the_convolution():
    conv = Conv2d(3, 5, kernel_size=(2, 4), stride=(2, 4)).double()
    linear = PatchLinear(3, 5, (2, 4)).double()
    linear.load_state_dict(conv.state_dict())
    images = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    # Tolerance: the sums are the same ones, in another order.
    torch.testing.assert_close(linear.train()(images), conv(images).flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        linear(images, bias=False), conv(images, bias=False).flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12
    )


def test_a_new_patch_projection_begins_as_the_convolution_does():
    config = make_event_qann().config
    config.initializer_range = 0.5
    projection = QuantViTForImageClassification(config).vit.embeddings.patch_embeddings.projection
    assert type(projection) is PatchLinear
    assert 0.45 < float(projection.weight.detach().std()) < 0.55
    assert not projection.bias.detach().any()


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_per_step_and_static_are_one_answer(fields):
    qann = make_event_qann(**fields)
    snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=300)
    frames = frames_of()
    static = frames.sum(1)
    with torch.no_grad():
        expected = qann(static).logits
        assert torch.equal(qann(frames).logits, expected)
        for shown in (frames, static):
            simulated = snn(shown)
            assert (simulated.equilibrium_step > 0).all()
            assert torch.equal(simulated.logits, expected)
            assert verify_equivalence(qann, snn, {"pixel_values": shown}).exact
        for chunk in (1, 7):
            assert torch.equal(snn(frames, chunk_steps=chunk).logits, expected)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_event_driven_form(fields):
    """Cumulative and event-driven form are equal spike for spike in float64."""
    snn = SpikeViTForImageClassification.from_quantized(make_event_qann(torch.float64, **fields), time_steps=80)
    frames = frames_of(dtype=torch.float64)
    with torch.no_grad():
        cumulative, event = snn(frames), snn(frames, execution="event")
    assert torch.equal(cumulative.spike_counts, event.spike_counts)
    assert torch.equal(cumulative.equilibrium_step, event.equilibrium_step)


def test_equilibrium_is_after_the_last_event():
    """An event that comes late has its own frame, and nothing is said before it has come."""
    snn = SpikeViTForImageClassification.from_quantized(make_event_qann(), time_steps=400)
    processor = EventImageProcessor(PROCESSOR.sensor_size, PROCESSOR.size, frames=100)
    late = processor([recording(0, last=100_000)], return_tensors="pt")["pixel_values"]
    assert late[0, 1:-1].sum() == 0
    assert late[0, -1].sum() == processor.rescale_factor
    early = torch.cat([late[:, :1] + late[:, -1:], torch.zeros_like(late[:, 1:])], dim=1)
    with torch.no_grad():
        settled = snn(early.sum(1))
        simulated = snn(late)
        assert torch.equal(simulated.logits, settled.logits)
        assert int(settled.equilibrium_step) < 100 <= int(simulated.equilibrium_step)
        # Not even where all that has come is nothing: the input is over after its last step.
        assert int(snn(early).equilibrium_step) >= 100
        with pytest.raises(ValueError, match="input has 100 steps"):
            snn(late, time_steps=90)


@pytest.mark.parametrize("fields", [{}, {"weight_bits": 8}], ids=str)
def test_products_and_operations(fields):
    snn = SpikeViTForImageClassification.from_quantized(make_event_qann(**fields), time_steps=60)
    products = snn.product_inputs()
    assert products.analog == ["embeddings.patch_embeddings.reduction"]
    assert products.products["embeddings.patch_embeddings.projection"] == ("spikes", "weights")
    frames = frames_of(2)
    counted = count_operations(snn, {"pixel_values": frames}, time_steps=60)
    entries = {(entry.module, entry.kind): entry for entry in counted.entries}
    where = "embeddings.patch_embeddings"
    spikes = entries[f"{where}.reduction_node", "spike"].count
    # Of 9 x 9 pixels the last row and column are in no patch; the image of 3 channels meets 32 features.
    product = entries[f"{where}.projection", "weights"]
    assert (product.count > 0).all()
    assert (product.count <= spikes * 32).all()
    assert product.dense.tolist() == [8 * 8 * 3 * 32] * 2
    assert product.integer == (fields.get("weight_bits") == 8)
    assert entries[f"{where}.reduction", "input product"].count.tolist() == [6 * 9 * 9 * 3 * 2 * 9] * 2


def test_schedule_from_the_network():
    snn = SpikeViTForImageClassification.from_quantized(make_event_qann(), time_steps=400)
    snn.calibrate_schedule()
    assert verify_equivalence(snn.to_quantized(), snn, {"pixel_values": frames_of()}).exact


def test_saved_with_its_processor(tmp_path):
    snn = SpikeViTForImageClassification.from_quantized(make_event_qann(), time_steps=300)
    snn.save_pretrained(tmp_path, processing_class=PROCESSOR)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is EventImageProcessor
    assert processor.to_dict() == AutoImageProcessor.from_pretrained(tmp_path).to_dict()
    rows = [recording(seed) for seed in range(3)]
    shown = processor(rows, return_tensors="pt")["pixel_values"]
    assert torch.equal(shown, frames_of(3))
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(shown).logits, snn(shown).logits)
    with pytest.raises(ValueError, match="reduced_channels of the checkpoint is 3"):
        AutoModelForImageClassification.from_pretrained(tmp_path, reduced_channels=2)
    assert AutoImageProcessor.from_pretrained(tmp_path, frames=2).frames == 2

"""Small networks of every architecture, for export: one layer, as making ONNX files takes seconds a layer."""

import torch

from spikezip_hf import QuantViTForImageClassification
from tests.conftest import make_ann, make_images, make_swin_qann, make_text_qann, spiking_twin, tie_distances
from tests.models.test_event_vit import make_event_qann
from tests.models.test_vit_variants import VARIANTS, make_variant

# ViTs with another head, or other tokens and positions, each field in one of them.
VITS = ("mean, norm behind", "no class token", "distilled, positions of patches")
# 7 pixels are 4 by 4 patches of 2 with a margin, 2 by 2 windows of 3 with one, shifted in the second layer; the second
# stage has 2 by 2 positions, and one window.
SWIN = {"image_size": 7, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 3}
# Rounding of currents in units of levels, for networks as narrow as these.
ROUNDING = 1e-5


def make_quantized(network: str, weight_bits: int | None = None, **fields):
    """ViT, or one of VITS, that of event cameras, Swin and RoBERTa with one scale a node; BERT with one for each
    channel of wide nodes."""
    if network == "swin":
        return make_swin_qann(ann_fields={**SWIN, **fields}, weight_bits=weight_bits).eval()
    if network == "events":
        return make_event_qann(weight_bits=weight_bits)
    fields = {"num_hidden_layers": 1, **fields}
    if network in VARIANTS:
        return make_variant(network, weight_bits=weight_bits, **fields)
    if network == "vit":
        ann = make_ann(**fields)
        qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=16, weight_bits=weight_bits)
        return qann.calibrate([{"pixel_values": make_images(qann.config, 32, seed=1)}]).eval()
    granularity = "mixed" if network == "bert" else "per_tensor"
    return make_text_qann(network, granularity=granularity, **fields).eval()


def make_step(network: str, weight_bits: int | None = None, **fields):
    return spiking_twin(make_quantized(network, weight_bits), **fields)


def clear_samples(qann, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B,) bool: samples without a current so near a threshold that another rounding may move its level."""
    distances = [x.flatten(1).amin(1) for x in tie_distances(qann, **inputs).values()]
    return torch.stack(distances).amin(0) > ROUNDING

"""Small networks of every architecture, for export: one layer, as making ONNX files takes seconds a layer."""

import torch

from spikezip_hf import QuantViTForImageClassification
from tests.conftest import make_ann, make_images, make_text_qann, spiking_twin, tie_distances

NETWORKS = ("vit", "bert", "roberta")
# Rounding of currents in units of levels, for networks as narrow as these.
ROUNDING = 1e-5


def make_quantized(network: str, weight_bits: int | None = None, **fields):
    """ViT with one scale a node, BERT with one for each channel of wide nodes, RoBERTa with one scale a node."""
    fields = {"num_hidden_layers": 1, **fields}
    if network == "vit":
        ann = make_ann(**fields)
        qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=16, weight_bits=weight_bits)
        return qann.calibrate([{"pixel_values": make_images(qann.config, 32, seed=1)}]).eval()
    granularity = "mixed" if network == "bert" else "per_tensor"
    return make_text_qann(network, granularity=granularity, **fields).eval()


def make_step(network: str, **fields):
    return spiking_twin(make_quantized(network), **fields)


def clear_samples(qann, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B,) bool: samples without a current so near a threshold that another rounding may move its level."""
    distances = [x.flatten(1).amin(1) for x in tie_distances(qann, **inputs).values()]
    return torch.stack(distances).amin(0) > ROUNDING

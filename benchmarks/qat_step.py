"""What quantization-aware training costs: a step of the Quant model against a fine-tuning step of the same network.

    python benchmarks/qat_step.py

Both networks get the same batches in turn, forward, backward and AdamW in bfloat16 autocast, without a teacher; the
ratio is that of the medians. Memory is weights, gradients, the two moments, and what autograd saves for the backward
pass (each storage once). Prints JSON.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from spikezip_hf import QuantBertForSequenceClassification, QuantViTForImageClassification

SHAPES = {
    # The offline encoder on texts of 32 tokens; ViT-S/16 on images of 224 x 224.
    "bert_6x384": (
        QuantBertForSequenceClassification,
        lambda: BertForSequenceClassification(
            BertConfig(
                hidden_size=384,
                num_hidden_layers=6,
                num_attention_heads=12,
                intermediate_size=1536,
                hidden_act="relu",
            )
        ),
        lambda batch: {
            "input_ids": torch.randint(5, 30000, (batch, 32)),
            "attention_mask": torch.ones(batch, 32).long(),
        },
        32,
    ),
    "vit_s_16": (
        QuantViTForImageClassification,
        lambda: ViTForImageClassification(
            ViTConfig(
                hidden_size=384,
                num_hidden_layers=12,
                num_attention_heads=6,
                intermediate_size=1536,
                hidden_act="relu",
            )
        ),
        lambda batch: {"pixel_values": torch.randn(batch, 3, 224, 224)},
        8,
    ),
}


def make(shape: str, kind: str, attention: str):
    """The network, ready to train, and a batch for it."""
    quant_class, make_ann, make_batch, batch_size = SHAPES[shape]
    torch.manual_seed(0)
    ann, batch = make_ann(), make_batch(batch_size)
    if kind != "ann":
        network = quant_class.from_ann(ann, quantization_levels=32, weight_bits=8 if kind == "qann_w8" else None)
        network.calibrate([batch], method="lsq")
    else:
        network = ann
        network.set_attn_implementation(attention)
    batch["labels"] = torch.zeros(batch_size, dtype=torch.long)
    return network.train(), batch


def step(network, optimizer, batch, device: str) -> None:
    with torch.autocast(device, torch.bfloat16):
        loss = network(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def seconds(networks: dict, repeats: int, device: str) -> dict[str, float]:
    """Median seconds of a step, the networks in turn."""
    times: dict[str, list[float]] = {name: [] for name in networks}
    optimizers = {name: torch.optim.AdamW(network.parameters(), lr=1e-6) for name, (network, _) in networks.items()}
    for turn in range(repeats + 2):
        for name, (network, batch) in networks.items():
            start = time.perf_counter()
            step(network, optimizers[name], batch, device)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def saved_for_backward(network, batch, device: str) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}  # alive until counted, or their memory would be used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast(device, torch.bfloat16):
        network(**batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def memory(network, batch, device: str) -> int:
    """Bytes of a training step: weights, gradients, two moments, and what is saved for the backward pass."""
    state = 4 * sum(parameter.nbytes for parameter in network.parameters())
    return state + saved_for_backward(network, batch, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict = {"threads": torch.get_num_threads(), "device": device, "torch": torch.__version__}
    if device == "cuda":
        results["gpu"] = torch.cuda.get_device_name()
    # Quantized attention needs the probabilities, so the fine-tuning step is timed with both kernels that there are.
    kinds = {
        "ann (sdpa)": ("ann", "sdpa"),
        "ann (eager)": ("ann", "eager"),
        "qann": ("qann", ""),
        "qann_w8": ("qann_w8", ""),
    }
    for shape in options.shapes:
        networks = {}
        for name, (kind, attention) in kinds.items():
            network, batch = make(shape, kind, attention)
            networks[name] = (network.to(device), {key: value.to(device) for key, value in batch.items()})
        times = seconds(networks, options.repeats, device)
        sizes = {name: memory(network, batch, device) for name, (network, batch) in networks.items()}
        results[shape] = {
            name: {
                "seconds": round(times[name], 4),
                "time over ann (sdpa)": round(times[name] / times["ann (sdpa)"], 3),
                "time over ann (eager)": round(times[name] / times["ann (eager)"], 3),
                "MiB": round(sizes[name] / 2**20),
                "memory over ann (sdpa)": round(sizes[name] / sizes["ann (sdpa)"], 3),
                "memory over ann (eager)": round(sizes[name] / sizes["ann (eager)"], 3),
            }
            for name in kinds
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

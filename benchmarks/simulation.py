"""How long a simulation takes: ours and peers', on the same network with the same weights, in one process.

    python benchmarks/simulation.py --levels 16 --time-steps 32                       # ViT-S/16 at 224 x 224
    python benchmarks/simulation.py --network roberta_base --levels 32 --time-steps 64
    python benchmarks/simulation.py --reference ../SpikeZIP-TF                        # the paper's code, too (ViT)

Runs of all rows take turns; a figure is a median, a ratio one of medians. Weights are random: what is measured does
not depend on what a network has learned, but for T_eq, which is stated. "8 bits" rows have quantized weights, the
peers' among them (as floats of the same values). Prints JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification, ViTConfig, ViTForImageClassification
from transformers.utils import logging

from spikezip_hf import (
    QuantRobertaForSequenceClassification,
    QuantViTForImageClassification,
    SpikeRobertaForSequenceClassification,
    SpikeViTForImageClassification,
)
from spikezip_hf.models import operators
from spikezip_hf.models.engines import CumulativeEngine
from spikezip_hf.models.kernels import float_linear

logging.disable_progress_bar()


def vit(width: int, layers: int = 12):
    """An ordinary ViT with patches of 16, random weights; heads are 64 wide."""
    return ViTForImageClassification(ViTConfig(**sizes(width, layers), hidden_act="relu", num_labels=1000))


def roberta(width: int, layers: int = 12):
    """An ordinary RoBERTa, random weights, with few tokens, as a table of them costs nothing but memory."""
    config = RobertaConfig(
        **sizes(width, layers), hidden_act="relu", vocab_size=5000, hidden_dropout_prob=0.0, num_labels=2
    )
    return RobertaForSequenceClassification(config)


def sizes(width: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }


def images(batch: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 224, 224)}


def texts(batch: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(4, 5000, (batch, 64)), "attention_mask": torch.ones(batch, 64).long()}


VIT = vit, QuantViTForImageClassification, SpikeViTForImageClassification, images
ROBERTA = roberta, QuantRobertaForSequenceClassification, SpikeRobertaForSequenceClassification, texts
SMALL = "vit_4_layers"
NETWORKS = {
    SMALL: (*VIT, 64, 4),
    "vit_s_16": (*VIT, 384, 12),
    "vit_b_16": (*VIT, 768, 12),
    "vit_l_16": (*VIT, 1024, 24),
    "roberta_base": (*ROBERTA, 768, 12),
    "roberta_large": (*ROBERTA, 1024, 24),
}


def make(network: str, levels: int, weight_bits: int | None, batch: int, device: str = "cpu"):
    """Both twins, and inputs."""
    make_ann, quant_class, spike_class, make_inputs, width, layers = NETWORKS[network]
    torch.manual_seed(0)
    ann = make_ann(width, layers).to(device)
    qann = quant_class.from_ann(
        ann, quantization_levels=levels, weight_bits=weight_bits, scale_granularity="per_tensor"
    )
    qann.calibrate([on(device, make_inputs(4))])
    return qann.eval(), spike_class.from_quantized(qann), on(device, make_inputs(batch))


def on(device: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.to(device) for name, x in inputs.items()}


def peers_of(qann, spikingjelly: bool, reference: str | None) -> list:
    """Peers that are there to be run."""
    peers = []
    if spikingjelly:
        from peers.spikingjelly import spikingjelly_modes

        peers += spikingjelly_modes(qann)
    if reference is not None:
        from peers.reference import reference_modes

        peers += reference_modes(qann, reference)
    return peers


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run, in turns, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def work(snn, inputs, **arguments) -> dict[str, float]:
    """Multiply-adds of a simulation, in 10^9: those done, and those of T times the QANN's forward."""
    done = [0]

    def count(module, args, output):
        shape = args[0].shape
        width = output.shape[-1]
        done[0] += shape.numel() * width

    class Counting(CumulativeEngine):
        def rest(self, node, current):
            """A product that was still to be done is not."""
            product = current.pending or current.product
            product = getattr(product, "product", product)  # that of attention
            if product is not None:
                operand = product.left if hasattr(product, "left") else product.levels
                done[0] -= product.shape.numel() * operand.shape[-1]
            return super().rest(node, current)

    hooks = [
        module.register_forward_hook(count)
        for module in snn.modules()
        if isinstance(module, operators.Linear | operators.MatMul)
    ]
    snn(**inputs, execution="equilibrium")
    dense, done[0] = done[0], 0
    steps = snn.trajectory(**inputs, **arguments, engine_class=Counting).equilibrium_step
    for hook in hooks:
        hook.remove()
    return {
        "T_eq": int(steps.max()),
        "done": done[0] / 1e9,
        "dense": dense * arguments["time_steps"] / 1e9,
        "passes of the network that were done": round(done[0] / dense, 2),
    }


def rates() -> dict[str, float]:
    """10^9 multiply-adds a second of large products here: in float32, as ours and as torch's, and in bytes."""
    x, w = torch.randn(4096, 1536), torch.randn(1536, 1536)
    a, b = (torch.randint(-8, 8, shape, dtype=torch.int8) for shape in ((4096, 1536), (1536, 1536)))
    found = medians(
        {
            "float32": lambda: float_linear(x, w, None),
            "float32, torch.nn.functional.linear": lambda: torch.nn.functional.linear(x, w),
            "int8": lambda: torch._int_mm(a, b),
        },
        9,
    )
    return {name: 4096 * 1536 * 1536 / seconds / 1e9 for name, seconds in found.items()}


@torch.no_grad()
def measure(args: argparse.Namespace, weight_bits: int | None) -> dict:
    qann, snn, inputs = make(args.network, args.levels, weight_bits, args.batch)
    expected = qann(**inputs).logits
    steps = args.time_steps
    runs: dict[str, Callable[[], object]] = {
        "QANN forward": lambda: qann(**inputs),
        "ours, equilibrium in closed form": lambda: snn(**inputs, execution="equilibrium"),
        "ours, all T steps": lambda: snn(**inputs, time_steps=steps, stop="never").logits,
        "ours, to proven equilibrium": lambda: snn(**inputs, time_steps=steps, stop="equilibrium").logits,
    }
    peers = peers_of(qann, not args.no_spikingjelly, args.reference if weight_bits is None else None)
    for peer in peers:
        runs[f"{peer.name}, all T steps"] = lambda peer=peer: peer.simulate(inputs, steps)
        runs[f"{peer.name}, QANN forward"] = lambda peer=peer: peer.quantized(inputs)
    seconds = medians(runs, args.repeats)
    rivals = [value for name, value in seconds.items() if name.startswith("SpikingJelly") and "all T" in name]
    report = {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "difference to the QANN": {
            name: float((runs[name]() - expected).abs().max()) for name in runs if "steps" in name or "proven" in name
        },
        "closed form / QANN forward": seconds["ours, equilibrium in closed form"] / seconds["QANN forward"],
        "work": {stop: work(snn, inputs, time_steps=steps, stop=stop) for stop in ("never", "equilibrium")},
        "profile": profile(lambda: snn(**inputs, time_steps=steps)),
    }
    if rivals:
        report["times faster than the better mode of SpikingJelly"] = {
            name: round(min(rivals) / seconds[name], 2)
            for name in ("ours, all T steps", "ours, to proven equilibrium")
        }
    return report


def profile(run: Callable[[], object]) -> dict[str, float]:
    """Seconds in each kind of work of one run."""
    from spikezip_hf.kernels import native

    spent: dict[str, float] = {}
    places = [
        (operators, "float_linear", "products with weights"),
        (operators, "integer_linear", "products with weights"),
        (operators.Softmax, "forward", "softmax"),
        (operators.LayerNorm, "forward", "LayerNorm"),
    ]
    if native.library() is not None:
        kinds = {
            "products": "products of attention",
            "fire": "neurons, with the integer products and the softmax ahead of them",
            "sum": "residual additions, levels to values",
        }
        places += [(native.Library, name, kind) for name, kind in kinds.items()]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]

    def timed(function, kind):
        def inner(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[kind] = spent.get(kind, 0.0) + time.perf_counter() - begin

        return inner

    for owner, name, kind in places:
        setattr(owner, name, timed(getattr(owner, name), kind))
    start = time.perf_counter()
    try:
        run()
        whole = time.perf_counter() - start
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
    spent["bookkeeping, Python"] = whole - sum(spent.values())
    return {kind: round(value, 4) for kind, value in sorted(spent.items(), key=lambda item: -item[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="vit_s_16")
    parser.add_argument("--levels", type=int, default=16)
    parser.add_argument("--time-steps", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", nargs="+", choices=["float32", "8 bits"], default=["float32", "8 bits"])
    parser.add_argument("--no-spikingjelly", action="store_true", help="Leave SpikingJelly out.")
    parser.add_argument("--reference", metavar="PATH", help="A checkout of the paper's code, to run it too (ViT).")
    args = parser.parse_args()
    bits = {"float32": None, "8 bits": 8}
    answer = {
        "network": args.network,
        "levels": args.levels,
        "T": args.time_steps,
        "batch": args.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rates, 10^9 multiply-adds a second": {name: round(value, 1) for name, value in rates().items()},
        "weights": {name: measure(args, bits[name]) for name in args.weights},
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()

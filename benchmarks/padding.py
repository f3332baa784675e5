"""What padding costs: the same texts one by one, padded to the longest of them, and to 128 tokens, as with
`padding="max_length"`.

    python benchmarks/padding.py
    python benchmarks/padding.py --weight-bits 8 --no-spikingjelly

16 texts as long as the first ones of SST-2's test set, a network of random weights in the shape of a small encoder (6
layers, 384 wide). Ours runs to proven equilibrium, SpikingJelly 2.0.0's recipe all T steps. Runs take turns; a figure
is a median, a ratio one of medians. Prints JSON.
"""

import argparse
import json
from collections.abc import Callable

import torch
from simulation import medians, peers_of
from transformers import RobertaConfig, RobertaForSequenceClassification

from spikezip_hf import QuantRobertaForSequenceClassification, SpikeRobertaForSequenceClassification

LENGTHS = [14, 41, 29, 23, 14, 17, 41, 14, 21, 43, 35, 14, 38, 35, 44, 48]
PADDED_TO = {"the longest": max(LENGTHS), "128 tokens": 128}


def texts(padded_to: int) -> dict[str, torch.Tensor]:
    """The same texts, with padding at their ends."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.ones(len(LENGTHS), padded_to, dtype=torch.int64)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[:length] = torch.randint(4, 5000, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def twins(levels: int, weight_bits: int | None):
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=5000,
        hidden_size=384,
        num_hidden_layers=6,
        intermediate_size=1536,
        hidden_act="relu",
        num_labels=2,
    )
    qann = QuantRobertaForSequenceClassification.from_ann(
        RobertaForSequenceClassification(config),
        quantization_levels=levels,
        weight_bits=weight_bits,
        scale_granularity="per_tensor",
    )
    qann.calibrate([texts(max(LENGTHS))])
    return qann.eval(), SpikeRobertaForSequenceClassification.from_quantized(qann)


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict:
    qann, snn = twins(args.levels, args.weight_bits)
    batches = {name: texts(length) for name, length in PADDED_TO.items()}
    whole = batches["the longest"]
    alone = [{name: x[i : i + 1, :length] for name, x in whole.items()} for i, length in enumerate(LENGTHS)]
    steps = {"time_steps": args.time_steps}
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "QANN, one by one": lambda: torch.cat([qann(**text).logits for text in alone]),
        "ours, one by one": lambda: torch.cat([snn(**text, **steps).logits for text in alone]),
    }
    for name, batch in batches.items():
        runs[f"QANN, padded to {name}"] = lambda batch=batch: qann(**batch).logits
        runs[f"ours, padded to {name}"] = lambda batch=batch: snn(**batch, **steps).logits
    for peer in peers_of(qann, not args.no_spikingjelly, None):
        for name, batch in batches.items():
            runs[f"{peer.name}, padded to {name}"] = lambda peer=peer, batch=batch: peer.simulate(
                batch, args.time_steps
            )
    seconds = medians(runs, args.repeats)
    expected = runs["QANN, one by one"]()
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "difference to the QANN, text by text": {
            name: float((run() - expected).abs().max()) for name, run in runs.items()
        },
        "times slower than padded to the longest, when padded to 128 tokens": {
            who: round(seconds[f"{who}, padded to 128 tokens"] / seconds[f"{who}, padded to the longest"], 2)
            for who in dict.fromkeys(name.split(", padded")[0] for name in seconds if "padded" in name)
        },
        "T_eq": snn(**whole, **steps).equilibrium_step.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=32)
    parser.add_argument("--time-steps", type=int, default=48)
    parser.add_argument("--weight-bits", type=int, choices=[8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-spikingjelly", action="store_true", help="Leave SpikingJelly out.")
    args = parser.parse_args()
    print(
        json.dumps(
            {**vars(args), "threads": torch.get_num_threads(), "torch": torch.__version__} | measure(args), indent=2
        )
    )


if __name__ == "__main__":
    main()

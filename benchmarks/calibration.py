"""Which calibration to use by default: accuracy of the digits ViT right after it, with no training.

    .venv/bin/python benchmarks/calibration.py          # 2 minutes on two cores; prints JSON

For three seeds (split, weights, training), each number of levels, granularity of scales and method: accuracy on the
held-out fifth, and the mean over seeds. 256 training images calibrate.
"""

import contextlib
import json
import sys
import tempfile
from itertools import product

import torch
from transformers import ViTImageProcessor, set_seed

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.analysis import accuracy
from spikezip_hf.conversion.calibration import METHODS
from spikezip_hf.data import load_digits
from spikezip_hf.demo import Digits, train_ann, training_arguments

SEEDS = (0, 1, 2)
LEVELS = (4, 8, 16, 32)


@torch.no_grad()
def calibrated_accuracy(ann, train: Digits, test: Digits, **fields) -> float:
    method = fields.pop("method")
    qann = QuantViTForImageClassification.from_ann(ann, **fields)
    qann.calibrate([{"pixel_values": train.pixel_values[:256]}], method)
    return accuracy(qann(test.pixel_values).logits, test.labels)


def main() -> None:
    settings = [
        {"quantization_levels": levels, "scale_granularity": granularity, "method": method}
        for levels, granularity, method in product(LEVELS, ("per_tensor", "per_channel"), METHODS)
    ]
    rows = [{**setting, "accuracy": []} for setting in settings]
    anns = []
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    for seed in SEEDS:
        set_seed(seed)
        digits = load_digits(seed)
        train, test = Digits(digits["train"], processor), Digits(digits["test"], processor)
        # Trainer prints; stdout is for the JSON.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            # As when results were written down; the demo has trained in larger batches since.
            names = digits["train"].features["label"].names
            ann = train_ann(train, names, training_arguments(folder, seed, batch_size=32), learning_rate=1e-3)
        with torch.no_grad():
            anns.append(accuracy(ann(test.pixel_values).logits, test.labels))
        for row, setting in zip(rows, settings, strict=True):
            row["accuracy"].append(calibrated_accuracy(ann, train, test, **setting))
    for row in rows:
        row["mean"] = sum(row["accuracy"]) / len(row["accuracy"])
    print(json.dumps({"torch": torch.__version__, "seeds": SEEDS, "ann": anns, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

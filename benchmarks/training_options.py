"""Which options of quantization-aware training help: accuracy of the digits ViT after it, with few levels.

    .venv/bin/python benchmarks/training_options.py          # 10 minutes on one core; prints JSON

For three seeds (split, weights, order) and 4 levels: 15 epochs with the ReLU network as teacher, each option
by itself against none. A difference below the spread over seeds says nothing.
"""

import argparse
import contextlib
import json
import sys
import tempfile

import torch
from transformers import ViTImageProcessor, set_seed

from spikezip_hf import QATTrainer, QATTrainingArguments, QuantViTForImageClassification
from spikezip_hf.analysis import accuracy
from spikezip_hf.data import load_digits
from spikezip_hf.demo import Digits, collate_shaken, train_ann, training_arguments


def options_for(levels: int) -> dict[str, dict]:
    """Arguments of each variant, by name; "bits" and "granularity" are the network's."""
    return {
        "none": {},
        "level_schedule, three parts": {"level_schedule": [4 * levels, 2 * levels, levels]},
        "freeze_scales_after 0.5": {"freeze_scales_after": 0.5},
        "freeze_scales_after 0 (as calibrated)": {"freeze_scales_after": 0.0},
        "scale_learning_rate x 0.1": {"scale_learning_rate": 3e-5},
        "scale_learning_rate x 10": {"scale_learning_rate": 3e-3},
        "no teacher": {"distillation_weight": 0.0},
        "focal soft labels": {"distillation_form": "focal"},
        "hidden states of the teacher": {"hidden_state_weight": 1.0},
        "attention of the teacher": {"attention_weight": 1.0},
        "lsq calibration": {"calibration_method": "lsq"},
        "weights of 8 bits": {"weight_bits": 8},
        "one scale a channel": {"scale_granularity": "per_channel"},
    }


def trained_accuracy(ann, train: Digits, test: Digits, levels: int, arguments: dict, **option) -> float:
    fields = {name: option.pop(name) for name in ("weight_bits", "scale_granularity") if name in option}
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=levels, **fields)
    args = QATTrainingArguments(**arguments, num_train_epochs=15, learning_rate=3e-4, disable_tqdm=True, **option)
    QATTrainer(qann, args, teacher_model=ann, train_dataset=train, data_collator=collate_shaken).train()
    with torch.no_grad():
        return accuracy(qann.eval()(test.pixel_values).logits, test.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--levels", type=int, nargs="*", default=[4])
    parser.add_argument("--only", nargs="*", help="names of options, beside none")
    options = parser.parse_args()
    seeds = options.seeds
    torch.set_num_threads(1)
    rows = [
        {"levels": levels, "option": name, "accuracy": []}
        for levels in options.levels
        for name in options_for(levels)
        if options.only is None or name in ("none", *options.only)
    ]
    anns = []
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    for seed in seeds:
        set_seed(seed)
        digits = load_digits(seed)
        train, test = Digits(digits["train"], processor), Digits(digits["test"], processor)
        # Trainer prints; stdout is for the JSON.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            # As when results were written down; the demo has trained in larger batches since.
            arguments = training_arguments(folder, seed, batch_size=32)
            names = digits["train"].features["label"].names
            ann = train_ann(train, names, arguments, learning_rate=1e-3)
            with torch.no_grad():
                anns.append(accuracy(ann(test.pixel_values).logits, test.labels))
            for row in rows:
                option = options_for(row["levels"])[row["option"]]
                set_seed(seed)
                row["accuracy"].append(trained_accuracy(ann, train, test, row["levels"], arguments, **option))
                print(seed, row, file=sys.stderr, flush=True)
    for row in rows:
        plain = next(r for r in rows if r["levels"] == row["levels"] and r["option"] == "none")
        row["mean"] = sum(row["accuracy"]) / len(seeds)
        row["mean difference to none"] = row["mean"] - sum(plain["accuracy"]) / len(seeds)
    print(json.dumps({"torch": torch.__version__, "seeds": seeds, "ann": anns, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

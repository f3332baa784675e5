"""A text classifier from an encoder to spikes: ReLU fine-tuning, quantization-aware training, conversion, evaluation.

    python training/text_classification.py --data sst2 --architecture roberta

Data: a folder with train.tsv, dev.tsv and test.tsv (`sentence` and `label`), or the name of one inside the folder that
the environment variable SPIKEZIP_DATA names. Networks are kept in --output; a stage whose network is there already is
not trained again, so an interrupted run goes on where it stopped. Figures are written to --results.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import spikezip_hf
from encoders import (
    OFFLINE_ENCODER,
    character_tokenizer,
    check_encoder,
    load_encoder,
    offline_encoder,
    small_encoder,
)
from spikezip_hf import QATTrainer, QATTrainingArguments
from spikezip_hf.analysis import compare_twins, table
from spikezip_hf.data.text import load_text

REPORTED_STEPS = (16, 32, 64, 128)
QUANT = {
    "bert": spikezip_hf.QuantBertForSequenceClassification,
    "roberta": spikezip_hf.QuantRobertaForSequenceClassification,
}
SPIKE = {
    "bert": spikezip_hf.SpikeBertForSequenceClassification,
    "roberta": spikezip_hf.SpikeRobertaForSequenceClassification,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of the data, or its name inside SPIKEZIP_DATA")
    parser.add_argument("--architecture", choices=list(QUANT), default="bert", help="network to train")
    parser.add_argument("--model", help="folder or Hub id of the encoder (default: the one in the offline package)")
    parser.add_argument(
        "--from-scratch", action="store_true", help="no encoder: a small BERT and a character vocabulary"
    )
    parser.add_argument("--max-length", type=int, default=128, help="most tokens of a text; the rest is cut off")
    parser.add_argument("--epochs", type=float, default=4, help="of ReLU fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of ReLU fine-tuning")
    parser.add_argument("--qat-epochs", type=float, default=3, help="of quantization-aware training")
    parser.add_argument("--qat-learning-rate", type=float, default=5e-5, help="of quantization-aware training")
    parser.add_argument("--levels", type=int, default=32, help="quantization levels")
    parser.add_argument("--scale-granularity", default="mixed", help="per_tensor, per_channel or mixed")
    parser.add_argument("--head-act", default="relu", help="activation of the head's hidden layer: relu or tanh")
    parser.add_argument("--time-steps", type=int, default=512, help="most steps that a text is simulated for")
    parser.add_argument("--simulate", type=int, help="test texts to simulate, evenly spread (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of head, order and dropout")
    parser.add_argument("--output", type=Path, help="folder of the networks (default: outputs/DATA_ARCHITECTURE)")
    parser.add_argument("--results", type=Path, help="JSON file for the figures (default: results.json in --output)")
    options = parser.parse_args()
    options.output = options.output or Path("outputs") / f"{Path(options.data).name}_{options.architecture}"
    options.results = options.results or options.output / "results.json"
    return options


def common_arguments(options: argparse.Namespace, folder: Path) -> dict:
    """Arguments that both trainings share."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "train_sampling_strategy": "group_by_length",
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "eval_strategy": "epoch",
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": "none",
        "seed": options.seed,
    }


def finished(folder: Path, settings: dict) -> dict | None:
    """The record of a stage that an earlier run has brought to its end; None if there is none.

    Raises:
        ValueError: it was trained with other settings; names them.
    """
    path = folder / "training.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    other = [
        f"{key} {record.get(key)!r}, now {value!r}" for key, value in settings.items() if record.get(key) != value
    ]
    if other:
        raise ValueError(f"{folder} was trained with {'; '.join(other)}. Name another folder with --output.")
    return record


def ann_settings(options: argparse.Namespace) -> dict:
    """All that decides what ReLU fine-tuning gives."""
    return {
        "data": options.data,
        "encoder": "from scratch" if options.from_scratch else options.model or OFFLINE_ENCODER,
        "max length": options.max_length,
        "epochs": options.epochs,
        "learning rate": options.learning_rate,
        "seed": options.seed,
    }


def qann_settings(options: argparse.Namespace) -> dict:
    """All that decides what quantization-aware training gives, beside the network it starts from."""
    return {"epochs": options.qat_epochs, "learning rate": options.qat_learning_rate, "seed": options.seed}


def qann_folder(options: argparse.Namespace) -> Path:
    return options.output / f"qann_{options.levels}_{options.head_act}_{options.scale_granularity}"


def train(trainer: Trainer, folder: Path, settings: dict) -> dict:
    """Train and save; returns duration and development accuracy by epoch."""
    start = time.perf_counter()
    trainer.train()
    record = {
        **settings,
        "seconds": round(time.perf_counter() - start, 1),
        "dev accuracy by epoch": [
            round(entry["eval_accuracy"], 4) for entry in trainer.state.log_history if "eval_accuracy" in entry
        ],
    }
    trainer.save_model(str(folder))
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def share_correct(predictions) -> dict:
    return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}


def finetune(options: argparse.Namespace, data, names: list[str]):
    """The ordinary network with ReLU, and its tokenizer."""
    folder = options.output / "ann"
    settings = ann_settings(options)
    if record := finished(folder, settings):
        return (
            AutoModelForSequenceClassification.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            record,
        )
    fields = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if options.from_scratch:
        tokenizer = character_tokenizer(data["train"]["sentence"], options.max_length)
        ann = small_encoder(options.architecture, tokenizer, options.max_length, fields)
    else:
        ann, tokenizer = load_encoder(options.model or str(offline_encoder()), options.architecture, fields)
    data = tokenize(data, tokenizer, options.max_length)
    args = TrainingArguments(
        **common_arguments(options, folder), num_train_epochs=options.epochs, learning_rate=options.learning_rate
    )
    trainer = Trainer(
        ann,
        args,
        train_dataset=data["train"],
        eval_dataset=data["dev"],
        processing_class=tokenizer,
        compute_metrics=share_correct,
    )
    record = train(trainer, folder, settings)
    return AutoModelForSequenceClassification.from_pretrained(folder), tokenizer, record


def quantize(options: argparse.Namespace, ann, tokenizer, data):
    """Its quantized twin, trained with it as teacher."""
    quant_class = QUANT[options.architecture]
    folder, settings = qann_folder(options), qann_settings(options)
    if record := finished(folder, settings):
        return quant_class.from_pretrained(folder), record
    qann = quant_class.from_ann(
        ann,
        quantization_levels=options.levels,
        scale_granularity=options.scale_granularity,
        head_act=options.head_act,
    )
    args = QATTrainingArguments(
        **common_arguments(options, folder),
        num_train_epochs=options.qat_epochs,
        learning_rate=options.qat_learning_rate,
    )
    trainer = QATTrainer(
        qann,
        args,
        teacher_model=ann,
        train_dataset=data["train"],
        eval_dataset=data["dev"],
        processing_class=tokenizer,
        compute_metrics=share_correct,
    )
    record = train(trainer, folder, settings)
    return quant_class.from_pretrained(folder), record


def tokenize(data, tokenizer, max_length: int):
    """Token ids of a data set, without the text."""
    return data.map(
        lambda batch: tokenizer(batch["sentence"], truncation=True, max_length=max_length),
        batched=True,
        remove_columns="sentence",
    )


def batches(split, tokenizer, size: int = 16) -> list[dict]:
    """A split as batches of texts of like length."""
    collate = DataCollatorWithPadding(tokenizer)
    order = sorted(range(len(split)), key=lambda row: len(split[row]["input_ids"]))
    return [collate([split[row] for row in order[start : start + size]]) for start in range(0, len(order), size)]


def main() -> None:
    options = parse()
    try:
        SPIKE[options.architecture].config_class(  # refuses bad values now, and not after the training
            quantization_levels=options.levels,
            scale_granularity=options.scale_granularity,
            head_act=options.head_act,
            time_steps=options.time_steps,
        )
        if options.time_steps < max(REPORTED_STEPS):
            raise ValueError(f"--time-steps must be at least {max(REPORTED_STEPS)}, got {options.time_steps}.")
        if options.simulate is not None and options.simulate < 1:
            raise ValueError(f"--simulate must be at least 1, got {options.simulate}.")
        data = load_text(options.data)
        ready = finished(options.output / "ann", ann_settings(options))
        finished(qann_folder(options), qann_settings(options))
        if not ready and not options.from_scratch:
            check_encoder(options.model or str(offline_encoder()), options.architecture)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    set_seed(options.seed)
    ann, tokenizer, ann_record = finetune(options, data, data["train"].features["label"].names)
    data = tokenize(data, tokenizer, options.max_length)
    set_seed(options.seed)
    qann, qann_record = quantize(options, ann, tokenizer, data)

    snn = SPIKE[options.architecture].from_quantized(qann, time_steps=options.time_steps)
    snn.save_pretrained(options.output / "snn")
    tokenizer.save_pretrained(options.output / "snn")
    test = data["test"]
    if options.simulate and options.simulate < len(test):
        test = test.select([row * len(test) // options.simulate for row in range(options.simulate)])
    figures = compare_twins(ann, qann, snn, batches(test, tokenizer), REPORTED_STEPS, options.time_steps)
    for key in ("logits per step", "T_eq per sample"):
        del figures[key]
    results = {
        "command": shlex.join(["python", "training/text_classification.py", *sys.argv[1:]]),
        "data": Path(options.data).name,
        "architecture": options.architecture,
        "parameters": sum(parameter.numel() for parameter in ann.parameters()),
        "levels": options.levels,
        "scale_granularity": options.scale_granularity,
        "head_act": options.head_act,
        "seed": options.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "spikezip_hf": spikezip_hf.__version__,
        },
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "ReLU fine-tuning": ann_record,
        "quantization-aware training": qann_record,
        "products": str(snn.product_inputs()).split("\n"),
        "test": figures,
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(table(figures))
    print(
        f"\nIn {options.output}: ann/, the quantized network and snn/ with its tokenizer. Figures: {options.results}"
    )


if __name__ == "__main__":
    main()

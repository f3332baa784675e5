"""The main job on real images: train a ViT, quantize it, make it spike, prove that nothing was lost.

A ReLU ViT learns scikit-learn's digits; its quantized twin is trained with the ViT as teacher; the spiking twin is
converted from that, verified, saved, loaded through the Auto classes, and used in a pipeline.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
import typer

try:
    from transformers import (
        AutoModelForImageClassification,
        Trainer,
        TrainingArguments,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
        default_data_collator,
        pipeline,
        set_seed,
    )

    from spikezip_hf.analysis.plots import plot_accuracy_over_time
    from spikezip_hf.data import load_digits
    from spikezip_hf.training.trainer import QATTrainer
except ImportError as error:
    sys.exit(f"The demo needs more than the models do ({error}): pip install 'spikezip-hf[demo]'")

from spikezip_hf import (
    QATTrainingArguments,
    QuantViTConfig,
    QuantViTForImageClassification,
    SpikeViTForImageClassification,
)
from spikezip_hf.analysis import compare_twins, table
from spikezip_hf.files import write_json, write_text
from spikezip_hf.hub import network_digest, write_card

REPORTED_STEPS = (8, 16, 32, 64)


class Digits(torch.utils.data.Dataset):
    """A split of the digits as model inputs."""

    def __init__(self, split, processor):
        self.pixel_values = processor(images=list(split["image"]), return_tensors="pt")["pixel_values"]
        self.labels = torch.tensor(split["label"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}

    def batch(self) -> dict[str, torch.Tensor]:
        """The whole split as one batch."""
        return {"pixel_values": self.pixel_values, "labels": self.labels}


def collate_shaken(examples: list[dict]) -> dict[str, torch.Tensor]:
    """A batch with each image turned, scaled and shifted a little at random.

    By fractions of a pixel: torchvision's RandomAffine shifts by whole ones, too coarse for images of 8x8.
    """
    batch = default_data_collator(examples)
    images = batch["pixel_values"]
    angle = torch.empty(len(images)).uniform_(-0.18, 0.18)  # radians: 10 degrees
    size = torch.empty(len(images)).uniform_(0.93, 1.07)
    shift = torch.empty(len(images), 2).uniform_(-0.1, 0.1)  # of half the image: 0.4 pixels
    turned = torch.stack([angle.cos(), -angle.sin(), shift[:, 0], angle.sin(), angle.cos(), shift[:, 1]], dim=1)
    transform = turned.view(-1, 2, 3) * size[:, None, None]
    grid = torch.nn.functional.affine_grid(transform, list(images.shape), align_corners=False)
    # grid_sample fills with 0 what comes in from outside; the digits' background is -1.
    batch["pixel_values"] = torch.nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1
    return batch


def training_arguments(folder: str, seed: int, batch_size: int = 64) -> dict:
    """Arguments that both trainings share. `folder` stays empty: nothing is saved on the way."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.05,
        "seed": seed,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
    }


def train_ann(
    data: Digits, names: list[str], arguments: dict, epochs: int = 40, learning_rate: float = 2e-3
) -> ViTForImageClassification:
    """A small ViT with ReLU, trained from scratch."""
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_act="relu",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    ann = ViTForImageClassification(config)
    args = TrainingArguments(**arguments, num_train_epochs=epochs, learning_rate=learning_rate)
    Trainer(ann, args, train_dataset=data, data_collator=collate_shaken).train()
    return ann.eval()


def train_qann(ann, data: Digits, levels: int, arguments: dict, epochs: int = 12) -> QuantViTForImageClassification:
    """Its quantized twin, trained with the ViT as teacher."""
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=levels)
    args = QATTrainingArguments(**arguments, num_train_epochs=epochs, learning_rate=5e-4)
    QATTrainer(qann, args, teacher_model=ann, train_dataset=data, data_collator=collate_shaken).train()
    return qann.eval()


def check_pipeline(path: Path, images: list, expected: list[str]) -> None:
    """Load the saved network by its path alone and classify plain images; the answers have to be the same."""
    classify = pipeline("image-classification", model=str(path))
    answers = [answer[0]["label"] for answer in classify(images, batch_size=len(images), top_k=1)]
    if answers != expected:
        raise RuntimeError("The pipeline does not answer what the network does.")


def run(output: Path, seed: int = 0, levels: int = 32) -> dict:
    """Do it all; returns what `results.json` in `output` holds.

    Raises:
        ValueError: `levels` is not an even integer from 4 to 256.
    """
    QuantViTConfig(quantization_levels=levels)  # refuses bad levels now, and not after a minute of training
    start = time.perf_counter()
    # One thread is as fast as two for a network this small, and sums, so the table, do not depend on the cores.
    torch.set_num_threads(1)
    set_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    max_steps = max(16 * levels, *REPORTED_STEPS)  # more than equilibrium needs
    digits = load_digits(seed)
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    train, test = Digits(digits["train"], processor), Digits(digits["test"], processor)

    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, seed)
        announce(f"1/5  Training a ReLU ViT on {len(train)} digits")
        ann = train_ann(train, digits["train"].features["label"].names, arguments)
        announce(f"2/5  Quantizing it to {levels} levels and training that, with the ViT as teacher")
        qann = train_qann(ann, train, levels, arguments)
    announce("3/5  Converting it to a spiking network and saving both")
    qann.save_pretrained(output / "qann", processing_class=processor)
    snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=max_steps)
    snn.save_pretrained(output / "snn", processing_class=processor)
    announce(f"4/5  Loading it and simulating {len(test)} held-out digits")
    snn = AutoModelForImageClassification.from_pretrained(output / "snn")
    figures = compare_twins(ann, qann, snn, [test.batch()], REPORTED_STEPS, max_steps)
    del figures["seconds"]  # the results are the same on every run
    announce("5/5  Classifying them again through pipeline('image-classification')")
    with torch.no_grad():
        expected = [qann.config.id2label[index] for index in qann(test.pixel_values).logits.argmax(-1).tolist()]
    check_pipeline(output / "snn", list(digits["test"]["image"]), expected)

    results = {"data": "digits", "split": "test", "network_digest": network_digest(snn), "simulated": figures}
    write_json(output / "results.json", results)
    write_text(output / "results.md", table(figures) + "\n")
    title = f"Digits, ViT with {levels} levels: accuracy against time-steps"
    plot_accuracy_over_time(output / "accuracy_over_time.png", figures, title)
    write_card(snn, output / "snn", results=results, name=f"spike-vit-digits-{levels}")
    announce(f"Done in {time.perf_counter() - start:.0f} s")
    return results


def announce(line: str) -> None:
    typer.echo(f"\n{line}")


def written(output: Path) -> str:
    """What `run` has left in a folder."""
    return f"In {output}: results.md, results.json, accuracy_over_time.png, and the networks qann/ and snn/ with cards"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m spikezip_hf.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/digits"), help="folder for results and the SNN")
    parser.add_argument("--seed", type=int, default=0, help="of data split, weights and training (default: 0)")
    parser.add_argument("--levels", type=int, default=32, help="quantization levels, even, 4 to 256 (default: 32)")
    options = parser.parse_args()
    try:
        results = run(options.output, options.seed, options.levels)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; nothing was written but what the steps above had finished.")
    announce(table(results["simulated"]))
    announce(written(options.output))


if __name__ == "__main__":
    main()

"""Evaluation of the spiking twin in the course of training."""

from collections.abc import Callable, Sequence

import numpy
import torch
from torch.utils.data import Subset
from transformers import EvalPrediction

from spikezip_hf.analysis import accuracy


def evenly_spread_rows(length: int, count: int) -> list[int]:
    """Rows of a data set of this length, at even distances; all if it has no more than `count`."""
    return [row * length // count for row in range(count)] if count < length else list(range(length))


def evenly_spread(dataset, count: int):
    """`count` samples of a data set, at even distances; all if it has no more.

    Raises:
        ValueError: the data set is a stream, which has no length.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError("snn_eval_every needs an evaluation set with a length, and this one is a stream.")
    if len(dataset) <= count:
        return dataset
    chosen = evenly_spread_rows(len(dataset), count)
    return dataset.select(chosen) if hasattr(dataset, "select") else Subset(dataset, chosen)


def share_correct(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, for trainers that have no `compute_metrics`; label -100 is no item."""
    logits, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    labelled = labels != -100
    return {"accuracy": accuracy(logits[labelled], labels[labelled])}


def joined(batches: list[numpy.ndarray], axis: int | None, filler: int) -> numpy.ndarray:
    """Batches one after the other, filled up along `axis` to the longest where they differ in length there."""
    if axis is not None:
        longest = max(batch.shape[axis] for batch in batches)
        widths = [[(0, longest - b.shape[axis] if a == axis else 0) for a in range(b.ndim)] for b in batches]
        batches = [numpy.pad(b, width, constant_values=filler) for b, width in zip(batches, widths, strict=True)]
    return numpy.concatenate(batches)


@torch.no_grad()
def evaluate_snn(
    snn, batches, steps: Sequence[int], accelerator, compute_metrics: Callable | None = None
) -> dict[str, float]:
    """Metrics of a spiking classifier after some numbers of steps.

    Args:
        batches: dicts of model inputs with "labels", as accelerate's data loader gives them.
        steps: numbers of steps T; the largest is how long it runs.
        accelerator: gathers the answers of all processes.
        compute_metrics: of Trainer.

    Returns:
        {"T32_accuracy": ..., "at_equilibrium": share of samples settled by the largest T}.
    """
    compute_metrics = compute_metrics or share_correct
    of_tokens = False
    logits: list[numpy.ndarray] = []
    labels: list[numpy.ndarray] = []
    settled: list[numpy.ndarray] = []
    for batch in batches:
        features = {key: value for key, value in batch.items() if key != "labels"}
        out = snn(**features, time_steps=max(steps), output_time_steps=True, stop="equilibrium")
        at_steps = out.logits_per_step[:, [count - 1 for count in steps]]
        truth = batch["labels"]
        of_tokens = at_steps.dim() == 4  # (B, T, N, classes): texts of several lengths
        if of_tokens:
            at_steps = accelerator.pad_across_processes(at_steps, dim=2)
            truth = accelerator.pad_across_processes(truth, dim=1, pad_index=-100)
        gathered = accelerator.gather_for_metrics((at_steps.float(), truth, out.equilibrium_step))
        for kept, value in zip((logits, labels, settled), gathered, strict=True):
            kept.append(value.cpu().numpy())
    all_logits = joined(logits, 2 if of_tokens else None, 0)
    all_labels = joined(labels, 1 if of_tokens else None, -100)
    metrics: dict[str, float] = {}
    for index, count in enumerate(steps):
        found = compute_metrics(EvalPrediction(predictions=all_logits[:, index], label_ids=all_labels))
        metrics.update({f"T{count}_{name}": value for name, value in found.items()})
    metrics["at_equilibrium"] = float((numpy.concatenate(settled) > 0).mean())
    return metrics

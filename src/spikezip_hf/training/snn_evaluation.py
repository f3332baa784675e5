"""Evaluation of the spiking twin in the course of training."""

from collections.abc import Callable, Sequence

import numpy
import torch
from torch.utils.data import Subset
from transformers import EvalPrediction


def evenly_spread(dataset, count: int):
    """`count` samples of a data set, at even distances; all if it has no more.

    Raises:
        ValueError: the data set is a stream, which has no length.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError("snn_eval_every needs an evaluation set with a length, and this one is a stream.")
    if len(dataset) <= count:
        return dataset
    chosen = [row * len(dataset) // count for row in range(count)]
    return dataset.select(chosen) if hasattr(dataset, "select") else Subset(dataset, chosen)


def share_correct(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, for trainers that have no `compute_metrics`."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


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
    logits: list[numpy.ndarray] = []
    labels: list[numpy.ndarray] = []
    settled: list[numpy.ndarray] = []
    for batch in batches:
        features = {key: value for key, value in batch.items() if key != "labels"}
        out = snn(**features, time_steps=max(steps), output_time_steps=True)
        at_steps = out.logits_per_step[:, [count - 1 for count in steps]]
        truth = batch["labels"]
        if at_steps.dim() == 4:  # of tokens: those that have a label
            at_steps, truth = at_steps.transpose(1, 2)[truth != -100], truth[truth != -100]
            at_steps, truth = (accelerator.pad_across_processes(x, pad_index=-100) for x in (at_steps, truth))
        gathered = accelerator.gather_for_metrics((at_steps.float(), truth, out.equilibrium_step))
        for kept, value in zip((logits, labels, settled), gathered, strict=True):
            kept.append(value.cpu().numpy())
    all_logits, all_labels = numpy.concatenate(logits), numpy.concatenate(labels)
    metrics: dict[str, float] = {}
    for index, count in enumerate(steps):
        found = compute_metrics(EvalPrediction(predictions=all_logits[:, index], label_ids=all_labels))
        metrics.update({f"T{count}_{name}": value for name, value in found.items()})
    metrics["at_equilibrium"] = float((numpy.concatenate(settled) > 0).mean())
    return metrics

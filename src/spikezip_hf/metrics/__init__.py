"""Metrics of classification, as modules of `evaluate` that load from this folder, without the Hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import evaluate
except ImportError as error:
    raise ImportError(f"Metrics need more than the models do ({error}): pip install 'spikezip-hf[train]'.") from error

__all__ = ["classification_metrics", "load_metric"]

HOME = Path(__file__).parent
OVER_TIME = "accuracy_over_time"
METRICS = ("accuracy", "f1", OVER_TIME)
IGNORED = -100  # label of a position that does not count, as in torch.nn.CrossEntropyLoss


def load_metric(name: str) -> "evaluate.EvaluationModule":
    """A metric, for `compute(predictions=, references=)` with classes as whole numbers; it gives {name: value}.

    Args:
        name: "accuracy"; "f1", its mean over the classes; or "accuracy_over_time", whose predictions are the classes
            after every time-step of a spiking network, and which also takes `equilibrium_steps` and `time_steps`.

    Raises:
        ValueError: there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"No metric {name!r}: there are {', '.join(METRICS)}.")
    # In memory, or each of several processes would look for a file of its own in one folder.
    return evaluate.load(str(HOME / name), module_type="metric", keep_in_memory=True)


def classification_metrics(names: Sequence[str] = ("accuracy",)) -> Callable[[Any], dict[str, float]]:
    """A `compute_metrics` for transformers' Trainer.

    It takes an EvalPrediction: logits (..., classes), alone or first in a tuple, and labels (...), of which -100 does
    not count.

    Raises:
        ValueError: there is no such metric, or it needs more than a Trainer has.
    """
    if OVER_TIME in names:
        raise ValueError(
            f"{OVER_TIME!r} is not for a Trainer, which has one prediction for each sample, not one for each "
            "time-step: set snn_eval_every, or give the metric the table of spikezip_hf.analysis.predictions.predict."
        )
    metrics = [load_metric(name) for name in names]

    def compute(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, np.asarray(prediction.label_ids)
        classes = np.asarray(logits[0] if isinstance(logits, tuple) else logits).argmax(axis=-1)
        counted = labels != IGNORED
        if not counted.any():
            raise ValueError(f"There is nothing to measure: no label is other than {IGNORED}.")
        results: dict[str, float] = {}
        for metric in metrics:
            results |= metric.compute(predictions=classes[counted], references=labels[counted])
        return results

    return compute

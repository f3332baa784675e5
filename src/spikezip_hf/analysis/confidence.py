"""What stopping early costs: from held-out samples, a `confidence_threshold` for `stop="confidence"`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from spikezip_hf.models.simulation import margin


@dataclass(frozen=True)
class StoppingPoint:
    """What becomes of a set of samples with one threshold.

    Attributes:
        confidence_threshold: lead of the largest logit at which a sample stops; None: none stops early.
        mean_steps: time-steps a sample takes: until it is confident, or until equilibrium.
        agreement: share of samples with the class that they have in the end.
        accuracy: share with the class of their label; None without labels.
    """

    confidence_threshold: float | None
    mean_steps: float
    agreement: float
    accuracy: float | None


class Courses:
    """How sure a spiking classifier is of samples, step by step.

    Args:
        margins, predictions: (N, T) lead of the largest logit, and its class, after each step.
        last: (N,) step that a sample runs to if it does not stop early: of equilibrium, or T where that is not proven.
        labels: (N,) or None.
    """

    def __init__(self, margins, predictions, last, labels=None):
        self.margins, self.predictions, self.last, self.labels = margins, predictions, last, labels

    @classmethod
    def of(
        cls, model: SpikePreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], time_steps: int | None = None
    ) -> "Courses":
        """Simulate batches (dicts of inputs, with "labels" (B,) or without) for at most `time_steps` steps.

        Raises:
            ValueError: no batches, or a model that is no classifier of samples.
        """
        if why := model.no_confidence():
            raise ValueError(why)
        time_steps = model.config.time_steps if time_steps is None else time_steps
        found: dict[str, list[torch.Tensor]] = {"margins": [], "predictions": [], "last": [], "labels": []}
        for batch in tqdm(batches, desc="simulating", unit="batch"):
            labels = batch.get("labels")
            run = model.trajectory(
                **model.inputs_of(batch), time_steps=time_steps, output_time_steps=True, stop="equilibrium"
            )
            assert run.equilibrium_step is not None
            found["margins"].append(margin(run.per_step).cpu())
            found["predictions"].append(run.per_step.argmax(-1).cpu())
            found["last"].append(torch.where(run.equilibrium_step > 0, run.equilibrium_step, time_steps).cpu())
            if labels is not None:
                found["labels"].append(labels.cpu())
        if not found["last"]:
            raise ValueError("batches is empty.")
        whole = {name: torch.cat(parts) if parts else None for name, parts in found.items()}
        return cls(**whole)

    def stopped_at(self, threshold: float | None) -> StoppingPoint:
        """What becomes of the samples with this threshold."""
        steps = self.last
        if threshold is not None:
            clear = self.margins >= threshold
            first = torch.where(clear.any(1), clear.int().argmax(1) + 1, self.last)
            steps = torch.minimum(first, self.last)
        said = self.predictions.gather(1, steps[:, None] - 1)[:, 0]
        return StoppingPoint(
            threshold,
            float(steps.double().mean()),
            share(said == self.predictions[:, -1]),
            None if self.labels is None else share(said == self.labels),
        )

    def candidates(self, count: int = 64) -> list[float]:
        """Thresholds to try, from small to large: quantiles of all margins above 0."""
        margins = self.margins[self.margins > 0].double()
        if not len(margins):
            return []
        some = margins[torch.linspace(0, len(margins) - 1, min(len(margins), 2**20)).long()]
        return sorted(set(some.quantile(torch.linspace(0, 1, count, dtype=torch.float64)).tolist()))


def share(is_so: torch.Tensor) -> float:
    return float(is_so.double().mean())


def calibrate_confidence(
    model: SpikePreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    tolerance: float = 0.005,
    time_steps: int | None = None,
) -> dict[str, Any]:
    """The smallest threshold that, on held-out samples, costs at most `tolerance`.

    What it costs is accuracy where there are labels, else agreement with the answer at the end. It was chosen on these
    samples, so measure what it costs on others: `Courses.of(model, others).stopped_at(threshold)`.

    Args:
        model: spiking classifier of texts or images.
        batches: dicts of its inputs with "labels" (B,), or without; some hundred samples.
        tolerance: share of samples, 0 to 1.
        time_steps: most steps a sample is simulated for; the config's by default.

    Returns:
        dict, ready for JSON: "confidence_threshold" (None if none is within the tolerance), "chosen" and "to the end",
        each with the fields of `StoppingPoint`, "curve", the same for all thresholds tried, and "samples".

    Raises:
        ValueError: `tolerance` is out of range, there are no batches, or the model is no classifier of samples.
    """
    if not 0.0 <= tolerance <= 1.0:
        raise ValueError(f"tolerance must be from 0 to 1, got {tolerance!r}.")
    courses = Courses.of(model, batches, time_steps)
    end = courses.stopped_at(None)
    curve = [courses.stopped_at(threshold) for threshold in courses.candidates()]

    def cost(point: StoppingPoint) -> float:
        return 1 - point.agreement if point.accuracy is None else end.accuracy - point.accuracy  # type: ignore[operator]

    # A threshold counts only if all larger ones are as good: an early dip below the tolerance is luck.
    chosen = None
    for point in reversed(curve):
        if cost(point) > tolerance + 1e-12:
            break
        chosen = point
    return {
        "samples": len(courses.last),
        "tolerance": tolerance,
        "confidence_threshold": None if chosen is None else chosen.confidence_threshold,
        "chosen": None if chosen is None else asdict(chosen),
        "to the end": asdict(end),
        "curve": [asdict(point) for point in curve],
    }

"""Macro F1, as a module of `evaluate`, which copies this file elsewhere and reads its imports line by line."""

import datasets
import evaluate
import sklearn.metrics


class F1(evaluate.Metric):
    """The mean over the classes of each one's F1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The mean of the classes' F1, the harmonic mean of precision and recall.",
            citation="",
            inputs_description="predictions, references: classes, whole numbers, one for each example.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        # A class that is never predicted has no precision: its F1 is 0, without a warning.
        score = sklearn.metrics.f1_score(references, predictions, average="macro", zero_division=0)
        return {"f1": float(score)}

"""Accuracy, as a module of `evaluate`, which copies this file elsewhere and reads its imports line by line."""

import datasets
import evaluate
import numpy


class Accuracy(evaluate.Metric):
    """The share of predictions that are right."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The share of predictions that equal their reference.",
            citation="",
            inputs_description="predictions, references: classes, whole numbers, one for each example.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(numpy.mean(numpy.equal(predictions, references)))}

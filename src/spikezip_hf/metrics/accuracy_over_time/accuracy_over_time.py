"""Accuracy over time-steps, as a module of `evaluate`, which copies this file elsewhere and reads its imports."""

import datasets
import evaluate
import numpy


class AccuracyOverTime(evaluate.Metric):
    """The share of predictions of a spiking network that are right after some time-steps, and at equilibrium."""

    def _info(self) -> evaluate.MetricInfo:
        whole = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="The share of predictions that equal their reference after some time-steps, and of those "
            "samples that had provably settled.",
            citation="",
            inputs_description="predictions: for each example, the classes predicted after time-steps 1 to T; "
            "references: classes; equilibrium_steps: for each example, the first step, counted from 1, after which "
            "nothing moves, or -1 if that was not proven; time_steps: the steps to report, by default the last.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(whole), "references": whole, "equilibrium_steps": whole}
            ),
        )

    def _compute(
        self,
        predictions: list[list[int]],
        references: list[int],
        equilibrium_steps: list[int],
        time_steps: list[int] | None = None,
    ) -> dict[str, float]:
        lengths = sorted({len(classes) for classes in predictions})
        if not lengths or lengths[0] == 0:
            raise ValueError("predictions: there are none; give each sample the classes of time-steps 1 to T.")
        if len(lengths) > 1:
            raise ValueError(
                f"predictions: samples have between {lengths[0]} and {lengths[-1]} time-steps; give all the same T, "
                "by repeating the last class of those that stopped early."
            )
        last = lengths[0]
        asked = [last] if time_steps is None else time_steps
        for step in asked:
            if not 1 <= step <= last:
                raise ValueError(f"time_steps: {step} is not between 1 and T={last}, for which there are predictions.")
        settled = numpy.asarray(equilibrium_steps)
        for step in settled[settled != -1]:
            if not 1 <= step <= last:
                raise ValueError(
                    f"equilibrium_steps: {step} is not between 1 and T={last}; -1 is for samples not proven to settle."
                )
        proven = settled != -1
        right = numpy.equal(predictions, numpy.asarray(references)[:, None])
        result = {"accuracy": float(right[:, -1].mean())}
        result |= {f"accuracy_T{step}": float(right[:, step - 1].mean()) for step in asked}
        result["equilibrium_share"] = float(proven.mean())
        if proven.any():
            # The last prediction is theirs from the equilibrium step on: nothing moves after it.
            result["accuracy_at_equilibrium"] = float(right[proven, -1].mean())
        return result

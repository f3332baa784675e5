"""The certificate that a spiking network equals its quantized twin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from spikezip_hf.errors import memory_advice
from spikezip_hf.models.engines import RecordingEngine
from spikezip_hf.models.modeling_quantization import eval_mode
from spikezip_hf.models.simulation import Trajectory, plain


@dataclass(frozen=True, eq=False)
class Certificate:
    """What `verify_equivalence` found.

    Attributes:
        exact: every sample reached equilibrium, with every level, every threshold and every logit equal.
        mismatches: {node name: neurons whose final level differs}, nodes without a difference left out, in network
            order: the first name is where the difference begins.
        threshold_mismatches: names of nodes, and of quantizers of weights, whose scale is not that of the twin.
        equilibrium_step: (B,) int64, -1 where equilibrium was not reached.
        exact_samples: (B,) bool, the same of each sample: at equilibrium, with equal levels and logits.
        logits_equal: `torch.equal` of the two outputs.
        max_logit_difference: largest absolute difference of the two outputs.
        time_steps: most steps the simulation was given.
    """

    exact: bool
    mismatches: dict[str, int]
    threshold_mismatches: tuple[str, ...]
    equilibrium_step: torch.Tensor
    exact_samples: torch.Tensor
    logits_equal: bool
    max_logit_difference: float
    time_steps: int

    @classmethod
    def joined(cls, certificates: Sequence["Certificate"]) -> "Certificate":
        """One certificate of all samples, from those of the batches they were simulated in."""
        mismatches: dict[str, int] = {}
        for certificate in certificates:
            for name, count in certificate.mismatches.items():
                mismatches[name] = mismatches.get(name, 0) + count
        return cls(
            exact=all(certificate.exact for certificate in certificates),
            mismatches=mismatches,
            threshold_mismatches=certificates[0].threshold_mismatches,
            equilibrium_step=torch.cat([certificate.equilibrium_step for certificate in certificates]),
            exact_samples=torch.cat([certificate.exact_samples for certificate in certificates]),
            logits_equal=all(certificate.logits_equal for certificate in certificates),
            max_logit_difference=max(certificate.max_logit_difference for certificate in certificates),
            time_steps=max(certificate.time_steps for certificate in certificates),
        )

    def __str__(self) -> str:
        if self.exact:
            return exact_text(self.equilibrium_step)
        reasons = []
        if self.threshold_mismatches:
            reasons.append(f"thresholds differ at {', '.join(self.threshold_mismatches)}")
        reasons += missed_text(self.equilibrium_step, self.time_steps)
        if self.mismatches:
            node, count = next(iter(self.mismatches.items()))
            reasons.append(f"levels differ at {len(self.mismatches)} nodes, first at {node} ({count} neurons)")
        if not self.logits_equal:
            reasons.append(f"logits differ by up to {self.max_logit_difference:.3g}")
        return "not exact: " + "; ".join(reasons)


def exact_text(equilibrium_step: torch.Tensor) -> str:
    """What is said of samples that are all exact."""
    samples, last = len(equilibrium_step), int(equilibrium_step.max())
    return f"exact: {samples} of {samples} samples at equilibrium by step {last}, all levels and logits equal"


def missed_text(equilibrium_step: torch.Tensor, time_steps: int) -> list[str]:
    """What is said of samples that did not reach equilibrium, if there are any."""
    samples, missed = len(equilibrium_step), int((equilibrium_step < 0).sum())
    if not missed:
        return []
    return [
        f"{missed} of {samples} samples not at equilibrium after {time_steps} steps (they may need more: raise "
        "time_steps)"
    ]


@memory_advice("verify smaller batches (batch_size), or fewer steps at once: lower chunk_steps of the spiking config.")
def verify_equivalence(qann, snn, batch: Mapping[str, torch.Tensor], time_steps: int | None = None) -> Certificate:
    """Run both twins on a batch and hold them against each other, neuron by neuron.

    Args:
        qann: the quantized model, or any model of its class.
        snn: the spiking model, on the same device and in the same types.
        batch: dict of model inputs; labels are ignored.
        time_steps: most steps to simulate; the spiking config's by default.

    Raises:
        TypeError: the models are not twins.
        ValueError: they have different sizes or types.
    """
    check_twins(qann, snn)
    inputs = snn.inputs_of(batch)
    run = snn.trajectory(**inputs, time_steps=time_steps, stop="equilibrium")  # whatever its config says
    return certify(qann, snn, inputs, run, snn.config.time_steps if time_steps is None else time_steps)


def check_twins(qann, snn) -> None:
    """Raise unless the two models are a Quant model and a Spike model of the same shape; see `verify_equivalence`."""
    if getattr(snn, "quant_class", None) is None or type(qann).__name__ != snn.quant_class.__name__:
        raise TypeError(f"{type(qann).__name__} and {type(snn).__name__} are not a Quant model and its Spike twin.")
    shapes = [{key: (value.shape, value.dtype) for key, value in m.state_dict().items()} for m in (qann, snn)]
    if shapes[0] != shapes[1] or qann.config.quantization_levels != snn.config.quantization_levels:
        raise ValueError("The two models differ in the sizes, types or quantization_levels of their parts.")


@torch.no_grad()
def certify(qann, snn, inputs: Mapping[str, torch.Tensor], run: Trajectory, time_steps: int) -> Certificate:
    """The certificate of a simulation that was run already.

    Args:
        inputs: what was simulated.
        run: what `snn.trajectory(**inputs)` returned.
        time_steps: most steps that it was given.
    """
    recorder = RecordingEngine()
    with eval_mode(qann):
        expected = plain(qann(**inputs, engine=recorder))[snn.readout]

    differ = {name: run.levels[name] != levels for name, levels in recorder.levels.items()}
    mismatches = {name: int(where.sum()) for name, where in differ.items() if bool(where.any())}
    thresholds = tuple(
        ours.name
        for ours, theirs in zip(snn.quantizers, qann.quantizers, strict=True)
        if not torch.equal(ours.scale, theirs.scale)
    )
    assert run.equilibrium_step is not None
    exact_samples = (run.equilibrium_step > 0) & (run.readout == expected).flatten(1).all(1)
    for where in differ.values():
        exact_samples &= ~where.flatten(1).any(1)
    if thresholds:
        exact_samples[:] = False
    return Certificate(
        exact=bool(exact_samples.all()),
        mismatches=mismatches,
        threshold_mismatches=thresholds,
        equilibrium_step=run.equilibrium_step,
        exact_samples=exact_samples,
        logits_equal=torch.equal(run.readout, expected),
        max_logit_difference=float((run.readout.double() - expected.double()).abs().max()),
        time_steps=time_steps,
    )

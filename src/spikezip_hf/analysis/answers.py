"""What a classifier says of a batch, sample by sample."""

from collections.abc import Mapping
from typing import Any

import torch

from spikezip_hf.conversion.certificate import certify


@torch.no_grad()
def answers(model, batch: Mapping[str, torch.Tensor], time_steps: int | None = None, twin=None) -> dict[str, list]:
    """Columns with an entry for each sample of a batch.

    Args:
        model: an ordinary, Quant or Spike classifier, in eval mode.
        batch: its inputs, with "labels" (B,) or without.
        time_steps: T, of a Spike model; None for any other.
        twin: of a Spike model, the Quant model to hold it against, or None.

    Returns:
        "label" (if there are labels), "prediction" (class), "score" (its softmax probability). Of a Spike model also
        "prediction_per_step" (classes after steps 1 to T), "equilibrium_step" (-1: not proven), "spikes" and "neurons"
        (of the sample, over all nodes), and "exact" if there is a twin.

    Raises:
        ValueError: the model gives no logits (B, classes).
    """
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    found: dict[str, Any] = {"label": inputs.pop("labels")} if "labels" in inputs else {}
    if time_steps is None:
        logits = model(**inputs, return_dict=True).get("logits")
    else:
        run = model.trajectory(**inputs, time_steps=time_steps, output_time_steps=True, stop="equilibrium")
        logits = run.readout if model.readout == "logits" else None
    if logits is None or logits.dim() != 2:
        raise ValueError(
            f"model: {type(model).__name__} gives no logits (B, classes): it is no classifier of samples."
        )
    found["score"], found["prediction"] = logits.float().softmax(-1).max(-1)
    if time_steps is not None:
        found["prediction_per_step"] = run.per_step.argmax(-1)
        found["equilibrium_step"] = run.equilibrium_step
        found["spikes"], found["neurons"] = run.spike_counts.sum(-1), run.neuron_counts.sum(-1)
        if twin is not None:
            found["exact"] = certify(twin, model, inputs, run, time_steps).exact_samples
    return {name: value.tolist() for name, value in found.items()}

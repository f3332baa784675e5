"""Accuracy, at the end and after every time-step."""

import torch


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of samples, 0 to 1, whose largest logit is the label's. Logits (B, classes), labels (B,)."""
    return float((logits.argmax(-1) == labels).double().mean())


def accuracy_over_time(logits_per_step: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Accuracy after each time-step (paper Fig. 5): (B, T, classes) and (B,) to (T,) float64, 0 to 1."""
    return (logits_per_step.argmax(-1) == labels[:, None]).double().mean(0)

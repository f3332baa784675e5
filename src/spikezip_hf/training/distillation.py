"""Distillation losses: pure functions of logits."""

import torch
from torch.nn import functional as F


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 2.0
) -> torch.Tensor:
    """Kullback-Leibler distance of softened predictions, T^2 * KL(teacher / T || student / T).

    Args:
        student_logits, teacher_logits: (B, classes).
        temperature: T; the paper's is 2.0 (tables A3 to A12). T^2 keeps the size of gradients independent of it
            (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2).

    Returns:
        Mean over the batch, a scalar.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

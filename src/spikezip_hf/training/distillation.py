"""Losses of a batch, each as one value for each item: pure functions of logits, hidden states and attention.

An item is a sample, or for classifiers of tokens a token with a label. A value for each item, and not a mean over the
batch, is what lets the trainer weigh micro-batches of different sizes rightly.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

FORMS = ("kl", "focal")


def hard_label_loss(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of hard labels, smoothed (Szegedy et al. 2016, section 7).

    Args:
        logits: (items, classes).
        targets: (items,) class indices, or (items, classes) probabilities as mixup makes them.

    Returns:
        (items,).
    """
    return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 2.0
) -> torch.Tensor:
    """Kullback-Leibler distance of softened predictions, T^2 * KL(teacher / T || student / T).

    Args:
        student_logits, teacher_logits: (items, classes).
        temperature: T; the paper's is 2.0 (tables A3 to A12). T^2 keeps the size of gradients independent of it
            (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2).

    Returns:
        (items,).
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def focal_weight(student_logits: torch.Tensor, teacher_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - exp(-CE(student) / CE(teacher)): near 0 where the student knows the label better than the teacher does.

    The paper's code weighs soft labels by this. There it multiplies a cross-entropy, whose gradient is that of the
    divergence above; and the code has it for mixed labels only, whereas here any labels do.

    Args:
        student_logits, teacher_logits: (items, classes).
        targets: as for `hard_label_loss`.

    Returns:
        (items,) from 0 to 1, without gradient.
    """
    student = hard_label_loss(student_logits.detach(), targets)
    teacher = hard_label_loss(teacher_logits.detach(), targets)
    return 1 - torch.exp(-student / (teacher + 1e-7))


def hidden_state_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared difference of hidden states, mean over layers and features.

    Args:
        student, teacher: for each layer (B, N, hidden), embeddings first, as transformers' `hidden_states`.

    Returns:
        (B, N), for each token.
    """
    distances = [(s.float() - t.float()).square().mean(-1) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(distances).mean(0)


def attention_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared difference of attention probabilities, summed over keys, mean over layers and heads.

    Not a divergence: quantized probabilities are often 0, where that is infinite.

    Args:
        student, teacher: for each layer (B, heads, N, N), as transformers' `attentions`.

    Returns:
        (B, N), for each query token.
    """
    distances = [(s.float() - t.float()).square().sum(-1).mean(1) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(distances).mean(0)

"""Mixup and CutMix of a batch of images and their labels."""

from collections.abc import Callable

import torch


def image_mixer(mixup_alpha: float, cutmix_alpha: float, num_labels: int) -> Callable:
    """A function (images (B, channels, H, W), labels (B,)) to mixed images and label probabilities (B, num_labels);
    images may be frames that add up, (B, F, channels, H, W).

    Mixup (Zhang et al. 2017) with lambda ~ Beta(mixup_alpha, mixup_alpha), CutMix (Yun et al. 2019) likewise; where
    both are asked for, each batch gets one of them, drawn evenly. All draws are torch's, so that a run can be resumed.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError(
            "mixup_alpha and cutmix_alpha need torchvision: pip install 'spikezip-hf[vision]'."
        ) from error
    kinds: list[torch.nn.Module] = []
    if mixup_alpha:
        kinds.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_labels))
    if cutmix_alpha:
        kinds.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_labels))
    mix = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)

    def mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if images.dim() == 4:
            return mix(images, labels)
        planes, probabilities = mix(images.flatten(1, 2), labels)  # all frames of a recording alike
        return planes.unflatten(1, images.shape[1:3]), probabilities

    return mixed

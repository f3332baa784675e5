"""Images to the inputs of a model, with timm's augmentation for training."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

try:
    from PIL import Image, ImageOps
    from timm.data.auto_augment import (
        AugmentOp,
        AutoAugment,
        augment_and_mix_transform,
        auto_augment_transform,
        rand_augment_transform,
    )
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms
except ImportError as error:
    raise ImportError(
        f"Transforms of images need more than the models do ({error}): pip install 'spikezip-hf[timm]'."
    ) from error

# timm passes over what it does not know in such a string, so what it knows is spelt out here.
AUTO_AUGMENT = {
    rand_augment_transform: r"rand(-((m|n|p|mstd|mmax|inc)[0-9.]+|t(weights|3aw|3a)))*",
    augment_and_mix_transform: r"augmix(-(m|w|d|a|b|mstd)[0-9.]+)*",
    auto_augment_transform: r"(original|originalr|v0|v0r|3a)(-mstd[0-9.]+)?",
}
ROTATABLE = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)  # what PIL can rotate with, of what processors use


def image_transforms(
    image_processor: Any,
    *,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
    crop_scale: tuple[float, float] | None = None,
    random_crop: bool = False,
    horizontal_flip: float = 0.0,
    num_channels: int = 3,
) -> tuple["TrainTransform", "EvalTransform"]:
    """Transforms for training and for evaluation, for `Dataset.with_transform` and `map(batched=True)` on a stream.

    Each takes {"image": [PIL images], "label": [class, ...]} and gives {"pixel_values": [float32 (channels, H, W)],
    "labels": [class, ...]}. In training, an image is converted to RGB, resized or cropped, flipped, augmented,
    normalized and erased in parts, in this order; for evaluation it goes through the processor.

    Args:
        image_processor: of the model, with `size` {"height", "width"}, `resample`, `image_mean` and `image_std`; or
            with `do_center_crop`, `crop_size` {"height", "width"} and a `size` that may be {"shortest_edge"}.
        auto_augment: timm's description of RandAugment ("rand-m9-mstd0.5-inc1"), AugMix or AutoAugment; None: none.
        random_erasing: probability that a rectangle of the image becomes the mean color.
        crop_scale: least and greatest share of the image's area in a crop, which is then resized; None: no such crop.
        random_crop: a crop of the resized image, of the same size, after reflecting an eighth of it at each edge: the
            usual for small images. Not with `crop_scale`.
        horizontal_flip: its probability.
        num_channels: of the model: 3, or 1 for gray; the processor's mean and standard deviation have as many values.

    Raises:
        ValueError: an argument is out of range, or the processor has not what is needed; names it.
    """
    for argument, probability in (("random_erasing", random_erasing), ("horizontal_flip", horizontal_flip)):
        if not 0 <= probability <= 1:
            raise ValueError(f"{argument} is {probability}: a probability lies between 0 and 1.")
    if crop_scale is not None and not (len(crop_scale) == 2 and 0 < crop_scale[0] <= crop_scale[1] <= 1):
        raise ValueError(
            f"crop_scale is {crop_scale}: it should be two shares of the area, 0 < least <= greatest <= 1."
        )
    if crop_scale is not None and random_crop:
        raise ValueError("crop_scale and random_crop are two ways to crop: choose one.")
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels is {num_channels}: images are gray (1) or RGB (3).")
    resized = dict(getattr(image_processor, "size", None) or {})
    cropped = getattr(image_processor, "do_center_crop", None)
    size = dict(image_processor.crop_size) if cropped else resized
    if not {"height", "width"} <= set(size):
        raise ValueError(
            f"The image processor's {'crop_size' if cropped else 'size'} is {size}: it should have height and width."
        )
    height, width = size["height"], size["width"]
    mean, std = statistics(image_processor, num_channels)

    resample = Image.Resampling(int(getattr(image_processor, "resample", None) or Image.Resampling.BILINEAR))
    steps: list[Callable] = []
    if crop_scale is not None:
        steps.append(
            RandomResizedCropAndInterpolation((height, width), crop_scale, interpolation=resample.name.lower())
        )
    elif cropped and resized.get("shortest_edge"):
        steps.append(transforms.Resize(resized["shortest_edge"], transforms.InterpolationMode(resample.name.lower())))
        steps.append(transforms.CenterCrop((height, width)))
    elif cropped:
        steps.append(Resize((resized["width"], resized["height"]), resample))
        steps.append(transforms.CenterCrop((height, width)))
    else:
        steps.append(Resize((width, height), resample))
    if random_crop:
        padding = [width // 8, height // 8]  # left and right, top and bottom
        steps.append(transforms.RandomCrop((height, width), padding=padding, padding_mode="reflect"))
    if horizontal_flip:
        steps.append(transforms.RandomHorizontalFlip(horizontal_flip))
    if auto_augment is not None:
        # Where a shift or a rotation leaves nothing, timm puts the mean color: gray too is augmented as RGB.
        color = [round(float(value)) for value in mean.clamp(0, 255)] * (3 // num_channels)
        steps.append(augmentation(auto_augment, min(height, width), tuple(color), resample))
    erasing = RandomErasing(random_erasing, device="cpu") if random_erasing else None
    mode = "RGB" if num_channels == 3 else "L"
    return TrainTransform(steps, mode, mean, std, erasing), EvalTransform(image_processor, mode)


def statistics(image_processor: Any, num_channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the bytes 0..255 that amount to the processor's rescaling and normalization."""
    factor = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    mean, std = [0.0] * num_channels, [1.0] * num_channels
    if image_processor.do_normalize:
        mean, std = list(image_processor.image_mean), list(image_processor.image_std)
    for field, values in (("image_mean", mean), ("image_std", std)):
        if len(values) != num_channels:
            raise ValueError(f"The image processor's {field} is {values}, for num_channels={num_channels}.")
    return torch.tensor(mean) * (1 / factor), torch.tensor(std) * (1 / factor)


def augmentation(description: str, side: int, color: tuple[int, ...], resample: Image.Resampling) -> Callable:
    """timm's augmentation of PIL images.

    Args:
        side: the shorter one, in pixels: shifts go up to 45 % of it, timm's own choice.
        color: (R, G, B) of what comes in from outside the image.
    """
    known = [make for make, pattern in AUTO_AUGMENT.items() if re.fullmatch(pattern, description)]
    if not known:
        raise ValueError(
            f"auto_augment is {description!r}: timm knows 'rand-m9-mstd0.5-inc1', 'augmix-m3', 'original'."
        )
    options = {"translate_const": int(side * 0.45), "img_mean": color}
    if resample in ROTATABLE:
        options["interpolation"] = resample
    try:
        augment = known[0](description, options)
    except (AssertionError, ValueError) as error:  # such as "m1.2.3"
        raise ValueError(f"auto_augment is {description!r}, which timm cannot read: {error}.") from error
    for operation in operations(augment):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = posterize
    return augment


def operations(augment: Any) -> list[AugmentOp]:
    """Those among which timm's augmentation draws."""
    if isinstance(augment, AutoAugment):
        return [operation for policy in augment.policy for operation in policy]
    return list(augment.ops)


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The first bits of each byte. At its greatest magnitude timm asks for none: black, which Pillow 13 refuses."""
    return image.point([0] * 256 * len(image.getbands())) if bits < 1 else ImageOps.posterize(image, min(bits, 8))


class Resize:
    """A PIL image at a size (width, height); one that has it stays as it is."""

    def __init__(self, size: tuple[int, int], resample: Image.Resampling):
        self.size, self.resample = size, resample

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.size == self.size else image.resize(self.size, self.resample)


class TrainTransform:
    """See `image_transforms`.

    Args:
        steps: of an RGB image to one of the final size, both PIL.
        mode: of the result: "RGB", or "L" for gray.
        mean, std: (channels,), of bytes.
        erasing: of a batch (B, channels, H, W), in place.
    """

    def __init__(
        self,
        steps: list[Callable],
        mode: str,
        mean: torch.Tensor,
        std: torch.Tensor,
        erasing: Callable[[torch.Tensor], torch.Tensor] | None,
    ):
        self.steps, self.mode, self.erasing = steps, mode, erasing
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        pixels = np.stack([np.asarray(self.augment(image)) for image in batch["image"]])
        tensor = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2)
        # The whole batch at once, which for small images is most of the work.
        tensor = tensor.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).div_(self.std)
        return with_labels(tensor if self.erasing is None else self.erasing(tensor), batch)

    def augment(self, image: Image.Image) -> Image.Image:
        image = image.convert("RGB")
        for step in self.steps:
            image = step(image)
        return image.convert(self.mode)


class EvalTransform:
    """See `image_transforms`."""

    def __init__(self, image_processor: Any, mode: str):
        self.image_processor, self.mode = image_processor, mode

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        images = [image.convert("RGB").convert(self.mode) for image in batch["image"]]
        return with_labels(self.image_processor(images=images, return_tensors="pt")["pixel_values"], batch)


def with_labels(pixels: torch.Tensor, batch: dict[str, list]) -> dict[str, list]:
    """The columns of a batch; without labels if it has none."""
    return {"pixel_values": list(pixels), **({"labels": list(batch["label"])} if "label" in batch else {})}

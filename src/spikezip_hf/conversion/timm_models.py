"""What is the same for all of timm's networks: which can be converted, their labels, their image processor."""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import PreTrainedConfig
from transformers.image_utils import PILImageResampling
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from spikezip_hf.conversion.timm_swin import read_swin
from spikezip_hf.conversion.timm_vit import read_vit
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.modeling_spike_swin import QuantSwinForImageClassification, QuantSwinModel
from spikezip_hf.models.modeling_spike_vit import QuantViTForImageClassification, QuantViTModel

# What reads a timm network of a class, and the Quant classes that it becomes: with its head, and without one.
Reader = Callable[[nn.Module], tuple[PreTrainedConfig, dict[str, torch.Tensor]]]
READERS: dict[type[nn.Module], tuple[Reader, type[TwinPreTrainedModel], type[TwinPreTrainedModel]]] = {
    VisionTransformer: (read_vit, QuantViTForImageClassification, QuantViTModel),
    VisionTransformerDistilled: (read_vit, QuantViTForImageClassification, QuantViTModel),
    SwinTransformer: (read_swin, QuantSwinForImageClassification, QuantSwinModel),
}


def network_of(model: Any) -> Any:
    """timm's own module: `model` itself, or the one inside transformers' TimmWrapper."""
    return model.timm_model if isinstance(model, TimmWrapperPreTrainedModel) else model


def reader_of(model: Any) -> tuple[Reader, type[TwinPreTrainedModel], type[TwinPreTrainedModel]]:
    """The entry of `READERS` for a timm network.

    Raises:
        ValueError: there is none; a subclass has none either, since its forward may do something else.
    """
    network = network_of(model)
    if type(network) not in READERS:
        raise ValueError(
            f"timm's {type(network).__name__} cannot be converted, only {', '.join(c.__name__ for c in READERS)}."
        )
    return READERS[type(network)]


def read_timm(quant_class: type[TwinPreTrainedModel], model: Any) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Config and weights of a model of `quant_class` that computes what a timm network does.

    Args:
        model: timm's own module, or transformers' TimmWrapper around one.

    Raises:
        ValueError: it is of another family, has a head where none is wanted or the other way round, or has a part
            that is not converted; names it.
    """
    read, with_head, without_head = reader_of(model)
    network = network_of(model)
    wanted = with_head if network.num_classes else without_head
    if quant_class is not wanted:
        raise ValueError(
            f"timm's {type(network).__name__} with num_classes={network.num_classes} becomes a {wanted.__name__}, "
            f"not a {quant_class.__name__}: call {wanted.__name__}.from_ann."
        )
    config, weights = read(network)
    if network.num_classes and isinstance(model, TimmWrapperPreTrainedModel):
        config.id2label, config.label2id = model.config.id2label, model.config.label2id
    if quant_class is without_head:
        prefix = f"{with_head.base_model_prefix}."
        weights = {key.removeprefix(prefix): weight for key, weight in weights.items() if key.startswith(prefix)}
    return config, weights


def image_processor_of(model: Any) -> ViTImageProcessorPil | None:
    """The image processor whose pixels are those of timm's own transform for evaluation.

    timm's transform is `create_transform(**resolve_data_config(model=model))`, for images of the network's own size.
    Pixels are equal to rounding, but for one case: where a side of the resized image is 3, 7, 11, ... pixels longer
    than the crop, timm cuts one pixel further on. On disk it is a ViTImageProcessor, which AutoImageProcessor loads to
    resize with torchvision where that is installed: some pixels are then 1 of 255 levels away. Load it with
    `backend="pil"` to have timm's.

    Args:
        model: timm's own module, or transformers' TimmWrapper around one, whose config then decides.

    Returns:
        The processor; None if the model does not say how its images were prepared (it has no pretrained_cfg).

    Raises:
        ValueError: its images are prepared in a way that transformers' processor has not; names it.
    """
    network = network_of(model)
    pretrained = getattr(getattr(model, "config", None), "pretrained_cfg", None) or getattr(
        network, "pretrained_cfg", None
    )
    if not pretrained:
        return None
    height, width = network.patch_embed.img_size
    size = (network.patch_embed.proj.in_channels, height, width)
    data = resolve_data_config({"input_size": size}, pretrained_cfg=dict(pretrained))
    if len(data["mean"]) != size[0] or len(data["std"]) != size[0]:
        raise ValueError(f"mean and std of timm's data config are {data['mean']}, {data['std']}: not of {size[0]}.")
    scaled = [math.floor(side / data["crop_pct"]) for side in (height, width)]
    if data["crop_mode"] == "squash":
        resized = {"height": scaled[0], "width": scaled[1]}
    elif data["crop_mode"] == "center" and height == width:
        resized = {"shortest_edge": scaled[0]}
    else:
        raise ValueError(
            f"crop_mode {data['crop_mode']!r} for images of {height} x {width}: transformers' image processor has no "
            "such thing. Prepare images with timm's create_transform, or set processing_class."
        )
    return ViTImageProcessorPil(
        size=resized,
        resample=PILImageResampling[data["interpolation"].upper()],
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
    )

# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The ordinary ViT for recordings of event cameras, which Quant and Spike models are made from.

It is transformers' ViT behind one more layer, the paper's "additional reduction layer to reduce the channel dimension
of neuromorphic data to 3" (section 4.2), so that it can begin from a pretrained one. Which layer that is, the paper
does not say; in its code it is a convolution of 3 x 3 with a bias and without norm or activation, and so it is here.
"""

import copy

import torch
from torch import nn
from transformers import ViTForImageClassification, initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTPatchEmbeddings

from .configuration_event_vit import EventViTConfig
from .engines import accumulate
from .inputs import check_pixels


class ChannelReduction(nn.Conv2d):
    """The convolution of 3 x 3 that the paper reduces channels with."""

    def __init__(self, config: EventViTConfig):
        super().__init__(config.num_channels, config.reduced_channels, kernel_size=3, padding=1)


class EventPatchEmbeddings(ViTPatchEmbeddings):
    """Reduction of the channels, then the patches: (B, num_channels, H, W) to (B, patches, hidden)."""

    def __init__(self, config: EventViTConfig):
        reduced = copy.deepcopy(config)
        reduced.num_channels = config.reduced_channels
        super().__init__(reduced)
        self.reduction = ChannelReduction(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(self.reduction(pixel_values))


class EventViTForImageClassification(ViTForImageClassification):
    """ViTForImageClassification with a reduction layer.

    Example:
        >>> vit = "WinKawaks/vit-small-patch16-224"  # of three channels; only reduction and head begin anew
        >>> EventViTForImageClassification.from_pretrained(
        ...     vit, num_channels=2, reduced_channels=3, num_labels=10, hidden_act="relu", ignore_mismatched_sizes=True
        ... )
    """

    _auto_class = "AutoModelForImageClassification"
    config: EventViTConfig
    config_class = EventViTConfig

    def __init__(self, config: EventViTConfig):
        super().__init__(config)
        self.vit.embeddings.patch_embeddings = EventPatchEmbeddings(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, ChannelReduction):
            # So that it hands on its input's size: by ViT's own small weights it would be lost behind the positions.
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def forward(
        self, pixel_values: torch.Tensor | None = None, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutput:
        """transformers' forward.

        Args:
            pixel_values: (B, channels, H, W), or (B, F, channels, H, W), frames that add up.

        Raises:
            ValueError: pixels that the network cannot take; the message names the sizes.
        """
        check_pixels(
            pixel_values, self.config, takes_any_size=True, interpolate=bool(kwargs.get("interpolate_pos_encoding"))
        )
        assert pixel_values is not None
        if pixel_values.dim() == 5:
            pixel_values = accumulate(pixel_values)[:, -1].contiguous()
        return super().forward(pixel_values, labels, **kwargs)

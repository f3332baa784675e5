"""Our Quant models for SpikingJelly 2.0's recipe for SpikeZIP-TF, which makes it an independent simulator of them.

    from spikingjelly.activation_based.ann2snn import ModuleConverter, SpikeZIPTFQANNRecipe
    network = to_spikingjelly(qann)
    snn = ModuleConverter(recipe=SpikeZIPTFQANNRecipe(model_family="vit")).convert(network)

Nothing of SpikingJelly is needed to make the network: the recipe looks at the names of attributes. `read_reference`
reads such a network's state dict back.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from spikezip_hf.conversion.reference.plain_roberta import RobertaClassifier
from spikezip_hf.conversion.reference.plain_vit import VisionTransformer
from spikezip_hf.models.engines import padding_bias
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel
from spikezip_hf.models.modeling_spike_roberta import QuantRobertaForSequenceClassification
from spikezip_hf.models.modeling_spike_vit import QuantViTForImageClassification


def to_spikingjelly(qann: QuantPreTrainedModel) -> nn.Module:
    """`qann` as a plain torch network with the attributes that SpikingJelly's recipe reads, in eval mode.

    It computes what `qann` computes, up to the rounding of floating point. Weights of 8 bits become the values that
    they stand for. Its parameters are copies, on the device and in the type of those of `qann`. SpikingJelly's neurons
    round thresholds to float32, which ours are but in a float64 network that was calibrated as such.

    Args:
        qann: QuantViTForImageClassification (family "vit") or QuantRobertaForSequenceClassification ("roberta").

    Raises:
        TypeError: it is of another class.
        ValueError: it has what the layout cannot express, more than one scale a node for example, or a scale that was
            never set; the message names the field or the node.
    """
    if isinstance(qann, QuantViTForImageClassification):
        return VisionTransformer(qann).to(qann.device).eval()
    if isinstance(qann, QuantRobertaForSequenceClassification):
        return RobertaClassifier(qann).to(qann.device).eval()
    raise TypeError(
        "to_spikingjelly takes a QuantViTForImageClassification or a QuantRobertaForSequenceClassification, got "
        f"{type(qann).__name__}: SpikingJelly's recipe knows no other."
    )


class StepInputs(NamedTuple):
    """What a converted network is given.

    Attributes:
        first: positional arguments of the first step.
        later: those of each later step.
        always: keyword arguments of all of them.
    """

    first: tuple[torch.Tensor, ...]
    later: tuple[torch.Tensor, ...]
    always: dict[str, torch.Tensor | None]


def step_inputs(qann: QuantPreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> StepInputs:
    """How SpikingJelly's form of `qann` takes in `inputs`, those of `qann` itself.

    An image is the current of the first step, with zeros behind it. Ids are given at every step, of which
    SpikingJelly's embeddings look at the first.

    Raises:
        ValueError: input per step, embeddings in place of ids, or padding ahead of a text.
    """
    prepared = qann.prepare(**inputs)
    if isinstance(prepared, torch.Tensor):
        if prepared.dim() != 4:
            raise ValueError("pixel_values must be (batch, channels, height, width) there, and no input per step.")
        return StepInputs((prepared,), (torch.zeros_like(prepared),), {})
    tokens = prepared.attention_mask
    if prepared.input_ids is None or not bool(tokens[:, 0].all()):
        raise ValueError("input_ids must be given there, padded on the right.")
    ids = (prepared.input_ids, prepared.token_type_ids, prepared.position_ids)
    bias = None if bool(tokens.all()) else padding_bias(tokens, qann.dtype)
    return StepInputs(ids, ids, {"attention_mask": bias})

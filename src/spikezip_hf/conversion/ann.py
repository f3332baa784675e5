"""transformers' and timm's models to Quant models."""

import copy
import os
import re
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DeiTForImageClassificationWithTeacher,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    SwinForImageClassification,
    SwinModel,
    ViTForImageClassification,
    ViTModel,
)
from transformers.utils import logging

from spikezip_hf.models.configuration_quantization import VIT_FIELDS, derive_config
from spikezip_hf.models.configuration_spike_vit import ViTFields
from spikezip_hf.models.modeling_event_vit import EventViTForImageClassification
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.modeling_spike_bert import (
    QuantBertForSequenceClassification,
    QuantBertForTokenClassification,
    QuantBertModel,
)
from spikezip_hf.models.modeling_spike_roberta import (
    QuantRobertaForSequenceClassification,
    QuantRobertaForTokenClassification,
    QuantRobertaModel,
)
from spikezip_hf.models.modeling_spike_swin import QuantSwinForImageClassification, QuantSwinModel
from spikezip_hf.models.modeling_spike_vit import QuantViTForImageClassification, QuantViTModel

logger = logging.get_logger(__name__)

# Which of transformers' classes each Quant class is made from, and our own for event cameras;
# timm's are in `timm_models.READERS`.
SOURCES: dict[type[TwinPreTrainedModel], tuple[type[PreTrainedModel], ...]] = {
    QuantViTForImageClassification: (
        ViTForImageClassification,
        DeiTForImageClassificationWithTeacher,
        EventViTForImageClassification,
    ),
    QuantViTModel: (ViTModel,),
    QuantSwinForImageClassification: (SwinForImageClassification,),
    QuantSwinModel: (SwinModel,),
    QuantBertForSequenceClassification: (BertForSequenceClassification,),
    QuantBertForTokenClassification: (BertForTokenClassification,),
    QuantBertModel: (BertModel,),
    QuantRobertaForSequenceClassification: (RobertaForSequenceClassification,),
    QuantRobertaForTokenClassification: (RobertaForTokenClassification,),
    QuantRobertaModel: (RobertaModel,),
}
# Attributes that hold an activation between two linear maps in transformers' models, and in timm's.
ACTIVATIONS = ("activation_fn", "intermediate_act_fn", "mlp.act")


def quantize_ann(
    quant_class: type[TwinPreTrainedModel],
    ann: nn.Module,
    *,
    replace_activations: bool = False,
    **config_fields,
) -> TwinPreTrainedModel:
    """The model behind `QuantPreTrainedModel.from_ann`; see there."""
    if quant_class not in SOURCES:
        raise ValueError(f"{quant_class.__name__} has no ordinary counterpart to be made from.")
    if hasattr(ann, "merge_and_unload"):
        raise ValueError("from_ann takes the plain model: call merge_and_unload() on the PEFT model first.")
    source_config, weights = read_timm(quant_class, ann) if is_timm(ann) else read_transformers(quant_class, ann)
    check_activations(ann, replace_activations)

    source_config.hidden_act = "relu"  # as checked, or replaced
    name = str(getattr(getattr(ann, "config", None), "_name_or_path", ""))
    if is_hub_id(name):
        config_fields.setdefault("source_model", name)
    config = derive_config(quant_class.config_class, source_config, **config_fields)
    parameter = next(ann.parameters())
    qann = quant_class(config).to(dtype=parameter.dtype, device=parameter.device)
    missing, unexpected = qann.load_state_dict(weights, strict=False)
    if unexpected:
        raise ValueError(f"{', '.join(unexpected[:5])}: weights of a part that {quant_class.__name__} does not have.")
    if left_out := [key for key in missing if not key.endswith((".scale", ".initialized"))]:
        raise ValueError(f"{', '.join(left_out[:5])}: the model to convert has no such weights.")
    qann.fit_weights()
    if getattr(config, "head_act", None) == "relu" and "ForSequenceClassification" in quant_class.__name__:
        logger.warning(
            f"The tanh in the head of {type(ann).__name__} became ReLU (head_act='relu'): train the quantized model "
            "before you judge it, or keep the tanh with head_act='tanh'."
        )
    give_processor(qann, ann)
    return qann.train(ann.training)


def read_transformers(
    quant_class: type[TwinPreTrainedModel], ann: nn.Module
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Config and weights of a model of `quant_class` that computes what one of transformers' models does.

    Raises:
        ValueError: it is of another class, or has a pooler, or no head.
    """
    sources = SOURCES[quant_class]
    if type(ann) not in sources:
        raise ValueError(
            f"{quant_class.__name__}.from_ann converts transformers' {' or '.join(c.__name__ for c in sources)}, "
            f"got {type(ann).__name__}. A subclass is refused too, since its forward may do something else."
        )
    assert isinstance(ann, PreTrainedModel)
    if getattr(ann, "pooler", None) is not None:
        raise ValueError(
            f"pooler: the pooler of a bare {type(ann).__name__} is not converted. Load it with "
            "add_pooling_layer=False, or convert the model with its classification head."
        )
    if ann.config.num_labels < 1:
        raise ValueError("num_labels is 0: the model has no head. Convert its base model instead.")
    config, weights = copy.deepcopy(ann.config), ann.state_dict()
    if issubclass(quant_class.config_class, ViTFields):
        for field in VIT_FIELDS:
            setattr(config, field, getattr(ViTFields, field))
    if type(ann) is DeiTForImageClassificationWithTeacher:
        config.use_distillation_token = True
        weights = {deit_key(key): weight for key, weight in weights.items()}
    return config, weights


def deit_key(key: str) -> str:
    """The name that a weight of DeiT has in the Quant ViT."""
    return re.sub(r"^cls_classifier\.", "classifier.", re.sub(r"^deit\.", "vit.", key))


def is_timm(model: object) -> bool:
    """Whether a model is one of timm's, its own module or transformers' TimmWrapper around it."""
    return type(model).__module__.startswith(("timm.", "transformers.models.timm_wrapper."))


def read_timm(quant_class: type[TwinPreTrainedModel], model: nn.Module):
    """`spikezip_hf.conversion.timm_models.read_timm`, imported where there is a model of timm's."""
    from spikezip_hf.conversion import timm_models

    return timm_models.read_timm(quant_class, model)


def give_processor(qann: TwinPreTrainedModel, ann: nn.Module) -> None:
    """Have the quantized model keep the processor of the network that it is made from: the one beside it, or for a
    timm network the one that its data config describes."""
    if isinstance(ann, PreTrainedModel):
        qann.inherit_processor(ann)
    if is_timm(ann) and qann.processing_class is None:
        from spikezip_hf.conversion import timm_models

        try:
            qann.processing_class = timm_models.image_processor_of(ann)
        except ValueError as error:
            logger.warning(f"No image processor is kept with the model: {error}")


def is_hub_id(name: str) -> bool:
    """Whether a model's `_name_or_path` is surely an id on the Hub, by the cache, and not somebody's folder."""
    if os.path.isdir(name) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return False
    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").is_dir()


def check_activations(ann: nn.Module, replace: bool) -> None:
    """Refuse, by name, activations that an unsigned neuron cannot stand for; unless they are to be replaced."""
    others = [
        f"{path} is {type(module).__name__}"
        for path, module in ann.named_modules()
        if path.endswith(ACTIVATIONS) and type(module) is not nn.ReLU
    ]
    hidden_act = getattr(getattr(ann, "config", None), "hidden_act", "relu")  # timm's networks have none
    if hidden_act != "relu":
        others.append(f"hidden_act is {hidden_act!r}")
    remedy = "act_layer='relu' (Swin: mlp.act = nn.ReLU())" if is_timm(ann) else "config.hidden_act='relu'"
    if others and not replace:
        raise ValueError(
            f"{others[0]}; only ReLU becomes spikes. Fine-tune the model with {remedy} first, which keeps its "
            "accuracy, or pass replace_activations=True and train the quantized model."
        )


def quantized_class(ann: nn.Module) -> type[TwinPreTrainedModel]:
    """The Quant class that is made from an ordinary model.

    Raises:
        ValueError: there is none.
    """
    if is_timm(ann):
        from spikezip_hf.conversion import timm_models

        _, with_head, without_head = timm_models.reader_of(ann)
        return with_head if timm_models.network_of(ann).num_classes else without_head
    for quantized, sources in SOURCES.items():
        if type(ann) in sources:
            return quantized
    names = [source.__name__ for sources in SOURCES.values() for source in sources]
    raise ValueError(f"{type(ann).__name__} cannot be quantized here, only {', '.join(names)}.")

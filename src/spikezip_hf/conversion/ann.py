"""transformers' models to Quant models."""

import copy
import os
import re
from pathlib import Path

from huggingface_hub import constants
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    ViTForImageClassification,
    ViTModel,
)
from transformers.utils import logging

from spikezip_hf.models.configuration_quantization import derive_config
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
from spikezip_hf.models.modeling_spike_vit import QuantViTForImageClassification, QuantViTModel

logger = logging.get_logger(__name__)

# Which ordinary classes each Quant class is made from.
SOURCES: dict[type[TwinPreTrainedModel], tuple[type[PreTrainedModel], ...]] = {
    QuantViTForImageClassification: (ViTForImageClassification, EventViTForImageClassification),
    QuantViTModel: (ViTModel,),
    QuantBertForSequenceClassification: (BertForSequenceClassification,),
    QuantBertForTokenClassification: (BertForTokenClassification,),
    QuantBertModel: (BertModel,),
    QuantRobertaForSequenceClassification: (RobertaForSequenceClassification,),
    QuantRobertaForTokenClassification: (RobertaForTokenClassification,),
    QuantRobertaModel: (RobertaModel,),
}
# Attributes that hold an activation between two linear maps in transformers' models.
ACTIVATIONS = ("activation_fn", "intermediate_act_fn")


def quantize_ann(
    quant_class: type[TwinPreTrainedModel],
    ann: PreTrainedModel,
    *,
    replace_activations: bool = False,
    **config_fields,
) -> TwinPreTrainedModel:
    """The model behind `QuantPreTrainedModel.from_ann`; see there."""
    if quant_class not in SOURCES:
        raise ValueError(f"{quant_class.__name__} has no ordinary counterpart to be made from.")
    if hasattr(ann, "merge_and_unload"):
        raise ValueError("from_ann takes the plain model: call merge_and_unload() on the PEFT model first.")
    if type(ann) not in SOURCES[quant_class]:
        names = " or ".join(source.__name__ for source in SOURCES[quant_class])
        raise ValueError(
            f"{quant_class.__name__}.from_ann converts {names}, got {type(ann).__name__}. A subclass is refused too, "
            "since its forward may do something else."
        )
    if getattr(ann, "pooler", None) is not None:
        raise ValueError(
            f"pooler: the pooler of a bare {type(ann).__name__} is not converted. Load it with "
            "add_pooling_layer=False, or convert the model with its classification head."
        )
    if ann.config.num_labels < 1:
        raise ValueError("num_labels is 0: the model has no head. Convert its base model instead.")
    check_activations(ann, replace_activations)

    source_config = copy.deepcopy(ann.config)
    source_config.hidden_act = "relu"  # as checked, or replaced
    if is_hub_id(ann.config._name_or_path):
        config_fields.setdefault("source_model", ann.config._name_or_path)
    config = derive_config(quant_class.config_class, source_config, **config_fields)
    qann = quant_class(config).to(dtype=ann.dtype, device=ann.device)
    missing, unexpected = qann.load_state_dict(ann.state_dict(), strict=False)
    left_over = [key for key in missing if not key.endswith((".scale", ".initialized"))] + unexpected
    if left_over:
        raise ValueError(f"{', '.join(left_over[:5])}: weights of a part that {quant_class.__name__} does not have.")
    qann.fit_weights()
    if getattr(config, "head_act", None) == "relu" and "ForSequenceClassification" in quant_class.__name__:
        logger.warning(
            f"The tanh in the head of {type(ann).__name__} became ReLU (head_act='relu'): train the quantized model "
            "before you judge it, or keep the tanh with head_act='tanh'."
        )
    return qann.train(ann.training)


def is_hub_id(name: str) -> bool:
    """Whether a model's `_name_or_path` is surely an id on the Hub, by the cache, and not somebody's folder."""
    if os.path.isdir(name) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return False
    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").is_dir()


def check_activations(ann: PreTrainedModel, replace: bool) -> None:
    """Refuse, by name, activations that an unsigned neuron cannot stand for; unless they are to be replaced."""
    others = [
        f"{path} is {type(module).__name__}"
        for path, module in ann.named_modules()
        if path.endswith(ACTIVATIONS) and type(module) is not nn.ReLU
    ]
    if ann.config.hidden_act != "relu":
        others.append(f"hidden_act is {ann.config.hidden_act!r}")
    if others and not replace:
        raise ValueError(
            f"{others[0]}; only ReLU becomes spikes. Fine-tune the model with config.hidden_act='relu' first, which "
            "keeps its accuracy, or pass replace_activations=True and train the quantized model."
        )


def quantized_class(ann_class: type[PreTrainedModel]) -> type[TwinPreTrainedModel]:
    """The Quant class that is made from models of an ordinary class.

    Raises:
        ValueError: there is none.
    """
    for quantized, sources in SOURCES.items():
        if ann_class in sources:
            return quantized
    names = ", ".join(source.__name__ for sources in SOURCES.values() for source in sources)
    raise ValueError(f"{ann_class.__name__} cannot be quantized here, only {names}.")

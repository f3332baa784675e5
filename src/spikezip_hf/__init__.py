"""Exact spiking Transformers as ordinary citizens of the HuggingFace ecosystem (SpikeZIP-TF, ICML 2024).

Importing this package registers its architectures with transformers' Auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spikezip_hf.auto import register
from spikezip_hf.conversion import Certificate, verify_equivalence
from spikezip_hf.models.configuration_event_vit import EventViTConfig
from spikezip_hf.models.configuration_spike_bert import QuantBertConfig, SpikeBertConfig
from spikezip_hf.models.configuration_spike_roberta import QuantRobertaConfig, SpikeRobertaConfig
from spikezip_hf.models.configuration_spike_swin import QuantSwinConfig, SpikeSwinConfig
from spikezip_hf.models.configuration_spike_vit import QuantViTConfig, SpikeViTConfig
from spikezip_hf.models.image_processing_events import EventImageProcessor
from spikezip_hf.models.modeling_event_vit import EventViTForImageClassification
from spikezip_hf.models.modeling_spike_bert import (
    QuantBertForSequenceClassification,
    QuantBertForTokenClassification,
    QuantBertModel,
    SpikeBertForSequenceClassification,
    SpikeBertForTokenClassification,
    SpikeBertModel,
)
from spikezip_hf.models.modeling_spike_roberta import (
    QuantRobertaForSequenceClassification,
    QuantRobertaForTokenClassification,
    QuantRobertaModel,
    SpikeRobertaForSequenceClassification,
    SpikeRobertaForTokenClassification,
    SpikeRobertaModel,
)
from spikezip_hf.models.modeling_spike_swin import (
    QuantSwinForImageClassification,
    QuantSwinModel,
    SpikeSwinForImageClassification,
    SpikeSwinModel,
)
from spikezip_hf.models.modeling_spike_vit import (
    QuantViTForImageClassification,
    QuantViTModel,
    SpikeViTForImageClassification,
    SpikeViTModel,
)
from spikezip_hf.models.version import __version__

if TYPE_CHECKING:
    from spikezip_hf.training import (
        DistillationTrainer,
        DistillationTrainingArguments,
        QATTrainer,
        QATTrainingArguments,
        scale_modules,
    )

__all__ = [
    "Certificate",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "EventImageProcessor",
    "EventViTConfig",
    "EventViTForImageClassification",
    "QATTrainer",
    "QATTrainingArguments",
    "QuantBertConfig",
    "QuantBertForSequenceClassification",
    "QuantBertForTokenClassification",
    "QuantBertModel",
    "QuantRobertaConfig",
    "QuantRobertaForSequenceClassification",
    "QuantRobertaForTokenClassification",
    "QuantRobertaModel",
    "QuantSwinConfig",
    "QuantSwinForImageClassification",
    "QuantSwinModel",
    "QuantViTConfig",
    "QuantViTForImageClassification",
    "QuantViTModel",
    "SpikeBertConfig",
    "SpikeBertForSequenceClassification",
    "SpikeBertForTokenClassification",
    "SpikeBertModel",
    "SpikeRobertaConfig",
    "SpikeRobertaForSequenceClassification",
    "SpikeRobertaForTokenClassification",
    "SpikeRobertaModel",
    "SpikeSwinConfig",
    "SpikeSwinForImageClassification",
    "SpikeSwinModel",
    "SpikeViTConfig",
    "SpikeViTForImageClassification",
    "SpikeViTModel",
    "__version__",
    "scale_modules",
    "verify_equivalence",
]

if not TYPE_CHECKING:  # a type checker sees the imports above, and misspelt names as errors

    def __getattr__(name: str) -> Any:
        """What trains, once it is asked for: it brings datasets and peft along, which inference does without."""
        if name in __all__:  # all others are here already
            return getattr(import_module("spikezip_hf.training"), name)
        if name in {"analysis", "hub", "training"}:
            return import_module(f"spikezip_hf.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


register()

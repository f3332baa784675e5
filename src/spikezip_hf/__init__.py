"""Exact spiking Transformers as ordinary citizens of the HuggingFace ecosystem (SpikeZIP-TF, ICML 2024).

Importing this package registers its architectures with transformers' Auto classes.
"""

from spikezip_hf.auto import register
from spikezip_hf.conversion import Certificate, verify_equivalence
from spikezip_hf.models.configuration_spike_vit import QuantViTConfig, SpikeViTConfig
from spikezip_hf.models.modeling_spike_vit import (
    QuantViTForImageClassification,
    QuantViTModel,
    SpikeViTForImageClassification,
    SpikeViTModel,
)
from spikezip_hf.trainer import QATTrainer
from spikezip_hf.training_args import QATTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "QATTrainer",
    "QATTrainingArguments",
    "QuantViTConfig",
    "QuantViTForImageClassification",
    "QuantViTModel",
    "SpikeViTConfig",
    "SpikeViTForImageClassification",
    "SpikeViTModel",
    "verify_equivalence",
]

register()

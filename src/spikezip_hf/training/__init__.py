"""Training: with a teacher, and quantization-aware."""

from spikezip_hf.training.adapters import scale_modules
from spikezip_hf.training.arguments import DistillationTrainingArguments, QATTrainingArguments
from spikezip_hf.training.distillation_trainer import DistillationTrainer
from spikezip_hf.training.trainer import QATTrainer

__all__ = [
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "QATTrainer",
    "QATTrainingArguments",
    "scale_modules",
]

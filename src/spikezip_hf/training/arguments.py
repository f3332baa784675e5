"""Arguments of quantization-aware training."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from spikezip_hf.conversion.calibration import METHODS as CALIBRATION_METHODS


@dataclass
class QATTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments and those of quantization-aware training with distillation.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    distillation_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the teacher's soft labels beside the loss of the hard ones (paper: 1.0)."},
    )
    distillation_temperature: float = field(
        default=2.0, metadata={"help": "Temperature that softens the logits of both networks (paper: 2.0)."}
    )
    scale_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the quantizer scales. Default: the one of the weights."}
    )
    calibration_batches: int = field(
        default=8, metadata={"help": "Training batches that set the scales before the first step, where none are set."}
    )
    calibration_method: str = field(
        default="mse", metadata={"help": "How they set them: 'mse' (least error) or 'lsq' (2 E|x| / sqrt(S_max))."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.distillation_weight < 0:
            raise ValueError(f"distillation_weight must not be negative, got {self.distillation_weight}.")
        if not self.distillation_temperature > 0:
            raise ValueError(f"distillation_temperature must be positive, got {self.distillation_temperature}.")
        if self.scale_learning_rate is not None and not self.scale_learning_rate > 0:
            raise ValueError(f"scale_learning_rate must be positive, got {self.scale_learning_rate}.")
        if self.calibration_batches < 1:
            raise ValueError(f"calibration_batches must be at least 1, got {self.calibration_batches}.")
        if self.calibration_method not in CALIBRATION_METHODS:
            raise ValueError(
                f"calibration_method must be one of {CALIBRATION_METHODS}, got {self.calibration_method!r}."
            )
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is not supported by QATTrainer yet: set it to 0.")

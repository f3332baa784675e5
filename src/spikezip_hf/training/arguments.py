"""Arguments of training with a teacher, and of quantization-aware training."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from spikezip_hf.conversion.calibration import METHODS as CALIBRATION_METHODS, PERCENTILE, check_percentile
from spikezip_hf.models.configuration_quantization import check_choice, check_positive_integer
from spikezip_hf.models.quantization import level_bounds
from spikezip_hf.training.distillation import FORMS

# A base learning rate is that of a batch of this size (Goyal et al. 2017).
BASE_BATCH = 256


def check_range(name: str, value: float, low: float, high: float | None = None, open_low: bool = False) -> None:
    """Raises ValueError, naming the field, unless low <= value < high."""
    if not (value > low if open_low else value >= low) or (high is not None and not value < high):
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + ("" if high is None else f" and below {high:g}")
        raise ValueError(f"{name} must be {bounds}, got {value!r}.")


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, and what the paper's tables A3 to A12 have beyond them.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    teacher_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of the network to learn from; a model can be given to the trainer itself."
        },
    )
    distillation_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the teacher's soft labels beside the loss of the hard ones (paper: 1.0)."},
    )
    distillation_temperature: float = field(
        default=2.0, metadata={"help": "Temperature that softens the logits of both networks (paper: 2.0)."}
    )
    distillation_form: str = field(
        default="kl",
        metadata={
            "help": "'kl', the divergence from the teacher, or 'focal', the same weighed down where the student knows "
            "the label better than the teacher does, as in the paper's code."
        },
    )
    hidden_state_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared distance from the teacher's hidden states."}
    )
    attention_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared distance from the teacher's attention probabilities."}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Parameter of mixup, for images; 0 for none (paper: 0.8)."}
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Parameter of CutMix, for images; 0 for none (paper: 1.0)."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from each layer to the one below (paper: 0.65)."}
    )
    base_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": f"Sets learning_rate to this, times the total batch over {BASE_BATCH}, as the paper's code."
        },
    )
    total_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Sets gradient_accumulation_steps so that a step sees this many samples, whatever the devices."
        },
    )
    warmup_epochs: float | None = field(
        default=None, metadata={"help": "Sets warmup_steps to this share of num_train_epochs."}
    )

    def __post_init__(self):
        for name in ("distillation_weight", "hidden_state_weight", "attention_weight", "mixup_alpha", "cutmix_alpha"):
            check_range(name, getattr(self, name), 0)
        check_range("distillation_temperature", self.distillation_temperature, 0, open_low=True)
        check_range("layer_decay", self.layer_decay, 0, open_low=True)
        check_range("label_smoothing_factor", self.label_smoothing_factor, 0, 1)
        check_choice("distillation_form", self.distillation_form, FORMS)
        if self.layer_decay > 1:
            raise ValueError(f"layer_decay must be at most 1, got {self.layer_decay!r}.")
        if self.warmup_epochs is not None:
            check_range("warmup_epochs", self.warmup_epochs, 0, self.num_train_epochs)
            self.warmup_steps = self.warmup_epochs / self.num_train_epochs  # below 1: a share of all steps
        super().__post_init__()
        at_once = self.train_batch_size * self.world_size
        if self.total_train_batch_size is not None:
            check_positive_integer("total_train_batch_size", self.total_train_batch_size)
            if self.total_train_batch_size % at_once:
                raise ValueError(
                    f"total_train_batch_size ({self.total_train_batch_size}) is not a multiple of the {at_once} "
                    "samples that the devices take at once: change per_device_train_batch_size."
                )
            self.gradient_accumulation_steps = self.total_train_batch_size // at_once
        if self.base_learning_rate is not None:
            check_range("base_learning_rate", self.base_learning_rate, 0, open_low=True)
            self.learning_rate = self.base_learning_rate * at_once * self.gradient_accumulation_steps / BASE_BATCH


@dataclass
class QATTrainingArguments(DistillationTrainingArguments):
    """Arguments of quantization-aware training, beside those of training with a teacher.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    scale_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the quantizer scales. Default: the one of the weights."}
    )
    calibration_samples: int = field(
        default=256,
        metadata={"help": "Training samples that set the scales before the first step, where none are set."},
    )
    calibration_method: str = field(
        default="mse",
        metadata={
            "help": "How they set them: 'mse' (least error), 'percentile' (all but the largest activations fit) or "
            "'lsq' (2 E|x| / sqrt(S_max))."
        },
    )
    calibration_percentile: float = field(
        default=PERCENTILE, metadata={"help": "Of the method 'percentile': so many percent of the activations fit."}
    )
    level_schedule: list[int] | None = field(
        default=None,
        metadata={"help": "Levels to train with, one after the other for equal parts of the steps, e.g. 64 32 16."},
    )
    freeze_scales_after: float = field(
        default=1.0, metadata={"help": "Share of the steps after which scales no longer move; 1 for never."}
    )
    snn_eval_every: int = field(
        default=0,
        metadata={"help": "Convert and simulate the spiking network at every n-th evaluation too; 0 for never."},
    )
    snn_eval_time_steps: list[int] = field(
        default_factory=lambda: [32, 64], metadata={"help": "Numbers of time-steps T to evaluate it at."}
    )
    snn_eval_samples: int = field(
        default=128, metadata={"help": "Samples of the evaluation set, evenly spread, to simulate."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.scale_learning_rate is not None:
            check_range("scale_learning_rate", self.scale_learning_rate, 0, open_low=True)
        check_positive_integer("calibration_samples", self.calibration_samples)
        check_choice("calibration_method", self.calibration_method, CALIBRATION_METHODS)
        check_percentile("calibration_percentile", self.calibration_percentile)
        if not 0 <= self.freeze_scales_after <= 1:
            raise ValueError(f"freeze_scales_after must be from 0 to 1, got {self.freeze_scales_after!r}.")
        check_range("snn_eval_every", self.snn_eval_every, 0)
        check_positive_integer("snn_eval_samples", self.snn_eval_samples)
        if not self.snn_eval_time_steps:
            raise ValueError("snn_eval_time_steps is empty.")
        for steps in self.snn_eval_time_steps:
            check_positive_integer("snn_eval_time_steps", steps)
        if self.level_schedule is not None:
            if not self.level_schedule:
                raise ValueError("level_schedule is empty.")
            for levels in self.level_schedule:
                try:
                    level_bounds(levels, signed=True)
                except ValueError as error:
                    raise ValueError(f"level_schedule: {error}") from error
            if self.load_best_model_at_end:
                raise ValueError(
                    "level_schedule cannot go with load_best_model_at_end: the best network may have other levels "
                    "than the last one."
                )

"""Quantization-aware training with distillation, as a transformers Trainer."""

from itertools import islice

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from spikezip_hf.training.distillation import soft_label_loss
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel
from spikezip_hf.models.quantization import MIN_SCALE, LSQQuantizer
from spikezip_hf.training.optim import parameter_groups
from spikezip_hf.training.arguments import QATTrainingArguments


class KeepScalesPositive(TrainerCallback):
    """Puts a scale that a step has pushed through zero back at the smallest one, before it is used."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        for module in model.modules():
            if isinstance(module, LSQQuantizer):
                module.scale.data.clamp_(min=MIN_SCALE)


def check_soft_labels(config) -> None:
    """Raise ValueError if the task of a model with this config is another than choosing one label."""
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            "Soft labels are for single-label classification, problem_type says "
            f"{config.problem_type!r} with {config.num_labels} labels: leave teacher_model out."
        )


class QATTrainer(Trainer):
    """Trainer of a Quant model: calibrates scales first, then trains weights and scales, with a teacher if given.

    Args:
        model: a Quant model, for example `QuantViTForImageClassification.from_ann(ann)`.
        args: `QATTrainingArguments`.
        teacher_model: the ordinary network to learn from, with the same labels; put in eval mode. Loss:
            hard labels + distillation_weight * soft labels.
        others: as for transformers' Trainer.

    Raises:
        TypeError: the model is not a Quant model, or args are of another class.
        ValueError: the teacher has another number of labels, or the task has no soft labels.
    """

    args: QATTrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(self, model, args: QATTrainingArguments, *, teacher_model: PreTrainedModel | None = None, **kwargs):
        if not isinstance(model, QuantPreTrainedModel):
            raise TypeError(
                f"QATTrainer trains Quant models, got {type(model).__name__}. Make one with Quant....from_ann(ann); a "
                "Spike model is trained as its Quant twin and converted again."
            )
        if not isinstance(args, QATTrainingArguments):
            raise TypeError(f"args must be QATTrainingArguments, got {type(args).__name__}.")
        if teacher_model is not None:
            check_soft_labels(model.config)
        if teacher_model is not None and teacher_model.config.num_labels != model.config.num_labels:
            raise ValueError(
                f"The teacher has {teacher_model.config.num_labels} labels, the model {model.config.num_labels}."
            )
        super().__init__(model, args, **kwargs)
        # Our loss is a mean over the batch: Trainer has to divide it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.teacher = None
        if teacher_model is not None:
            self.teacher = teacher_model.to(self.args.device).eval()
        self.add_callback(KeepScalesPositive())

    def train(self, *args, **kwargs):
        """Trainer.train, after setting from training data the scales that are not set yet."""
        if not all(bool(node.initialized) for node in self.model.nodes):
            batches = islice(self.get_train_dataloader(), self.args.calibration_batches)
            self.model.calibrate(batches, self.args.calibration_method, overwrite=False)
        try:
            return super().train(*args, **kwargs)
        finally:
            # accelerate leaves autocast wrapped around forward: a QANN that rounds differently from its spiking twin.
            # Not by its unwrap_model, which takes our own decorator off too.
            for name in ("forward", "_original_forward"):
                self.model.__dict__.pop(name, None)

    def create_optimizer(self, model=None):
        """Trainer's optimizer over our parameter groups."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(
                model,
                decay_names=set(self.get_decay_parameter_names(model)),
                weight_decay=self.args.weight_decay,
                scale_learning_rate=self.args.scale_learning_rate,
            )
            self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Hard-label loss of the model, and while training the teacher's soft labels."""
        outputs = model(**inputs)
        if outputs.loss is None:
            raise ValueError("The batch has no labels, so there is no loss to train on.")
        loss = outputs.loss
        if self.teacher is not None and self.args.distillation_weight and model.training:
            # Known for sure only now: transformers reads the problem type off the first labels.
            check_soft_labels(self.model.config)
            with torch.no_grad(), self.accelerator.autocast():  # the teacher as fast as the model
                teacher_logits = self.teacher(**{key: x for key, x in inputs.items() if key != "labels"}).logits
            student_logits = outputs.logits
            if student_logits.dim() == 3:  # of tokens: those that have a label, so none of padding
                labelled = inputs["labels"] != -100
                student_logits, teacher_logits = student_logits[labelled], teacher_logits[labelled]
            soft = soft_label_loss(student_logits, teacher_logits, self.args.distillation_temperature)
            loss = loss + self.args.distillation_weight * soft
        return (loss, outputs) if return_outputs else loss

"""A Trainer of classifiers with what the paper's tables ask for: a teacher, mixed images, layer-wise decay."""

from typing import Any

import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_pt_utils import LengthGroupedSampler

from spikezip_hf.conversion.ann import is_timm
from spikezip_hf.training.adapters import without_adapters
from spikezip_hf.training.arguments import DistillationTrainingArguments
from spikezip_hf.training.data_checks import check_batch
from spikezip_hf.training.distillation import (
    attention_loss,
    focal_weight,
    hard_label_loss,
    hidden_state_loss,
    soft_label_loss,
)
from spikezip_hf.training.guarded_trainer import GuardedTrainer
from spikezip_hf.training.mixing import image_mixer
from spikezip_hf.training.optim import parameter_groups
from spikezip_hf.training.sampling import SeededByEpoch

# What loads a teacher from a folder or id, by the end of the student's class name.
AUTO_CLASSES = {
    "ForImageClassification": AutoModelForImageClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}


def load_teacher(source: str, student: PreTrainedModel) -> PreTrainedModel:
    """The network at `source`, a folder or Hub id, with the head that `student` has.

    Raises:
        ValueError: the student is no classifier.
    """
    for task, auto_class in AUTO_CLASSES.items():
        if type(student).__name__.endswith(task):
            return auto_class.from_pretrained(source)
    raise ValueError(
        f"teacher_model is a name ({source!r}), and {type(student).__name__} does not say which head to load it with: "
        "give the loaded model to the trainer."
    )


class TimmTeacher(torch.nn.Module):
    """A bare timm classifier as a teacher.

    Args:
        network: timm's module.
        student: config of the model that learns; the labels of `network` are taken to be those, in order.

    Raises:
        ValueError: it has no head.
    """

    network: torch.nn.Module

    def __init__(self, network, student):
        super().__init__()
        if not network.num_classes:
            raise ValueError("The teacher has num_classes=0, no head: make it with the labels of the model.")
        self.network = network
        labels = {"id2label": student.id2label, "label2id": student.label2id}
        self.config = TimmWrapperConfig(num_labels=network.num_classes)
        if network.num_classes == student.num_labels:
            self.config.update(labels)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.network(pixel_values))


def check_soft_labels(config) -> None:
    """Raise ValueError if the task of a model with this config is another than choosing one label."""
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            "Soft labels are for single-label classification, problem_type says "
            f"{config.problem_type!r} with {config.num_labels} labels: leave teacher_model out."
        )


def mean(values: torch.Tensor) -> torch.Tensor:
    """Mean, and 0 of nothing: a micro-batch of tokens may have no label at all."""
    return values.sum() / max(values.numel(), 1)


class DistillationTrainer(GuardedTrainer):
    """transformers' Trainer of a classifier, with a teacher if given, mixed images and layer-wise decay.

    The loss of a step is the mean over its samples (or labelled tokens) of

        hard labels + distillation_weight * soft labels
        + hidden_state_weight * hidden states + attention_weight * attention

    however the samples are spread over micro-batches and processes. Its parts are logged one by one.

    Args:
        model: a classifier of transformers or of this library.
        args: `DistillationTrainingArguments`.
        teacher_model: the network to learn from, with the same labels, or its folder or Hub id; put in eval mode.
            Instead of `args.teacher_model`. timm's are taken too, wrapped by transformers or bare. A bare one does
            not name its labels: it must have as many as the model, in the same order.
        others: as for transformers' Trainer.

    Raises:
        TypeError: args are of another class.
        ValueError: the teacher has other labels or, where these are compared, other layers than the model; the task
            has no soft labels; images are to be mixed for a model of text.
    """

    args: DistillationTrainingArguments
    args_class: type[DistillationTrainingArguments] = DistillationTrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationTrainingArguments,
        *,
        teacher_model: torch.nn.Module | str | None = None,
        **kwargs,
    ):
        if not isinstance(args, self.args_class):
            raise TypeError(f"args must be {self.args_class.__name__}, got {type(args).__name__}.")
        source = args.teacher_model if teacher_model is None else teacher_model
        teacher: Any = load_teacher(source, without_adapters(model)) if isinstance(source, str) else source
        if teacher is not None and is_timm(teacher) and not isinstance(teacher, PreTrainedModel):
            teacher = TimmTeacher(teacher, model.config)
        if teacher is not None:
            self.check_teacher(model.config, teacher.config, args)
        self.mixer = None
        if args.mixup_alpha or args.cutmix_alpha:
            if getattr(model, "main_input_name", None) != "pixel_values":
                raise ValueError("mixup_alpha and cutmix_alpha are for images: set them to 0.")
            self.mixer = image_mixer(args.mixup_alpha, args.cutmix_alpha, model.config.num_labels)
        super().__init__(model, args, **kwargs)
        # compute_loss divides by the number of items in the step: Trainer has to count them, and not to divide again.
        self.model_accepts_loss_kwargs = True
        self.teacher = None
        if teacher is not None:
            self.teacher = teacher.to(self.args.device).eval()
            if args.attention_weight:
                teacher.set_attn_implementation("eager")  # other kernels do not return attention probabilities
        self.loss_parts: dict[str, torch.Tensor] = {}
        self.parts_logged_at = 0

    @staticmethod
    def check_teacher(student, teacher, args: DistillationTrainingArguments) -> None:
        """Raise ValueError if the config `teacher` is of no teacher for the config `student`."""
        if args.distillation_weight:
            check_soft_labels(student)
        if teacher.num_labels != student.num_labels:
            raise ValueError(f"The teacher has {teacher.num_labels} labels, the model {student.num_labels}.")
        names = set(teacher.label2id or ())  # transformers' wrapper of timm has none where two labels are alike
        if student.label2id != teacher.label2id and set(student.label2id) == names:
            raise ValueError("The teacher has the labels of the model in another order (label2id of the configs).")
        if (args.hidden_state_weight or args.attention_weight) and hasattr(student, "depths"):
            raise ValueError(
                "hidden_state_weight and attention_weight are for networks whose layers all have one size: set them "
                "to 0 for Swin."
            )
        if teacher.model_type == TimmWrapperConfig.model_type and (args.hidden_state_weight or args.attention_weight):
            raise ValueError(
                "A timm teacher has no hidden states and attention to compare: set hidden_state_weight and "
                "attention_weight to 0."
            )
        fields = {"num_hidden_layers"} if args.hidden_state_weight or args.attention_weight else set()
        fields |= {"hidden_size"} if args.hidden_state_weight else set()
        fields |= {"num_attention_heads"} if args.attention_weight else set()
        for field in sorted(fields):
            if getattr(teacher, field) != getattr(student, field):
                raise ValueError(
                    f"{field} of the teacher is {getattr(teacher, field)}, of the model {getattr(student, field)}: "
                    "set hidden_state_weight and attention_weight to 0."
                )

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return SeededByEpoch(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        return sampler

    def create_optimizer(self, model=None):
        """Trainer's optimizer over our parameter groups."""
        if self.optimizer is None:
            model = self.model if model is None else model
            given = self.optimizer_cls_and_kwargs
            optimizer_class, arguments = given or self.get_optimizer_cls_and_kwargs(self.args, model)
            if not {"params", "model", "optimizer_dict"}.isdisjoint(arguments):
                raise ValueError(
                    f"optim={self.args.optim}: it makes its own groups of parameters, and scales need theirs."
                )
            groups = parameter_groups(
                model,
                decay_names=self.get_decay_parameter_names(model),
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                scale_learning_rate=getattr(self.args, "scale_learning_rate", None),
                layer_decay=self.args.layer_decay,
            )
            self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """While training, the loss of the class docstring; in evaluation, the model's own."""
        labels = inputs.get("labels")
        if labels is None:
            raise ValueError("The batch has no labels, so there is no loss to train on.")
        if not self.labels_seen:
            check_batch(labels, self.model.config)
        if not model.training:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

        parts, outputs = self.parts_of(model, inputs)
        share = self.share_of_step(labels, num_items_in_batch)
        parts = {name: part * share for name, part in parts.items()}
        loss = torch.stack(list(self.weighed(parts).values())).sum()
        if len(parts) > 1:
            if not self.loss_parts:
                self.parts_logged_at = self.state.global_step
            for name, part in parts.items():
                self.loss_parts[name] = self.loss_parts.get(name, 0) + part.detach()
        return (loss, outputs) if return_outputs else loss

    def weighed(self, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parts of the loss with their weights in its sum."""
        weights = {
            "soft_label_loss": self.args.distillation_weight,
            "hidden_state_loss": self.args.hidden_state_weight,
            "attention_loss": self.args.attention_weight,
        }
        return {name: weights.get(name, 1.0) * part for name, part in parts.items()}

    def loss_terms(self, inputs):
        return self.weighed(self.parts_of(self.model, inputs)[0])

    def other_networks(self):
        return {} if self.teacher is None else {"the teacher's": self.teacher}

    def share_of_step(self, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor | float:
        """What a mean over the items of this micro-batch weighs in the mean over those of the whole step.

        Args:
            num_items: of the step, as Trainer counts them; None if it could not: then it divides by micro-batches.
        """
        if num_items is None:
            return 1.0
        share = labels.ne(-100).sum() / torch.as_tensor(num_items, device=labels.device).reshape(-1)[0]
        # Trainer has counted the items of all processes, whose gradients are averaged, or those of one device.
        return (
            share * self.accelerator.num_processes
            if self.args.average_tokens_across_devices
            else share / max(self.args.n_gpu, 1)
        )

    def parts_of(self, model, inputs: dict) -> tuple[dict[str, torch.Tensor], object]:
        """The parts of the loss, each a mean over the items of this batch, and what the model returned."""
        labels = inputs["labels"]
        single_label = not labels.is_floating_point() and self.model.config.num_labels > 1
        if self.mixer is not None:
            if not single_label or labels.dim() != 1:
                raise ValueError("mixup_alpha and cutmix_alpha need one label for each image.")
            images, labels = self.mixer(inputs["pixel_values"], labels)
            inputs = {**inputs, "pixel_values": images}
        features = {key: value for key, value in inputs.items() if key != "labels"}
        weights = {
            "output_hidden_states": self.args.hidden_state_weight,
            "output_attentions": self.args.attention_weight,
        }
        wanted = {output: True for output, weight in weights.items() if weight and self.teacher is not None}
        outputs = model(**(features if single_label else inputs), **wanted)
        of_tokens = outputs.logits.dim() == 3
        chosen = inputs["labels"] != -100 if of_tokens else slice(None)
        logits, targets = outputs.logits[chosen], labels[chosen]
        parts = {}
        if single_label:
            parts["hard_label_loss"] = mean(hard_label_loss(logits, targets, self.args.label_smoothing_factor))
        else:
            parts["hard_label_loss"] = outputs.loss.mean()  # under DataParallel there is one for each device
        if self.teacher is None:
            return parts, outputs

        with torch.no_grad(), self.accelerator.autocast():  # the teacher as fast as the model
            taught = self.teacher(**features, **wanted)
        if self.args.distillation_weight:
            if not single_label:
                check_soft_labels(self.model.config)
            teacher_logits = taught.logits[chosen]
            soft = soft_label_loss(logits, teacher_logits, self.args.distillation_temperature)
            if self.args.distillation_form == "focal":
                soft = soft * focal_weight(logits, teacher_logits, targets)
            parts["soft_label_loss"] = mean(soft)

        def over_tokens(values: torch.Tensor) -> torch.Tensor:
            if of_tokens:
                return mean(values[chosen])
            mask = inputs.get("attention_mask")
            mask = torch.ones_like(values) if mask is None else mask.to(values.dtype)
            return ((values * mask).sum(1) / mask.sum(1)).mean()

        if self.args.hidden_state_weight:
            distances = hidden_state_loss(outputs.hidden_states, taught.hidden_states)
            parts["hidden_state_loss"] = over_tokens(distances)
        if self.args.attention_weight:
            parts["attention_loss"] = over_tokens(attention_loss(outputs.attentions, taught.attentions))
        return parts, outputs

    def log(self, logs, *args, **kwargs):
        """Trainer.log, with the parts of the loss, means over the steps since they were last logged."""
        if "loss" in logs and self.loss_parts:
            steps = max(self.state.global_step - self.parts_logged_at, 1)
            for name, total in sorted(self.loss_parts.items()):
                logs[name] = self.accelerator.reduce(total, "mean").item() / steps
            self.loss_parts = {}
        super().log(logs, *args, **kwargs)

"""Quantization-aware training, as a transformers Trainer."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader
from transformers.modelcard import TrainingSummary

from spikezip_hf.auto import spiking_class
from spikezip_hf.errors import memory_advice
from spikezip_hf.hub import write_card
from spikezip_hf.hub.card_data import pipeline_of
from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel
from spikezip_hf.training.adapters import without_adapters
from spikezip_hf.training.arguments import QATTrainingArguments
from spikezip_hf.training.callbacks import FreezeScales, KeepScalesPositive, LevelSchedule, set_levels
from spikezip_hf.training.cards import card_fields
from spikezip_hf.training.distillation_trainer import DistillationTrainer
from spikezip_hf.training.random_state import random_state_kept
from spikezip_hf.training.sampling import calibration_batches
from spikezip_hf.training.snn_evaluation import evaluate_snn, evenly_spread


def underlying_qann(model) -> QuantPreTrainedModel:
    """`model` itself, or the Quant model that PEFT has put its adapters in.

    Raises:
        TypeError: it is neither.
        ValueError: adapters would not be what is trained; says why.
    """
    qann = without_adapters(model)
    adapted = qann is not model
    if not isinstance(qann, QuantPreTrainedModel):
        raise TypeError(
            f"QATTrainer trains Quant models, got {type(qann).__name__}. Make one with Quant....from_ann(ann); a "
            "Spike model is trained as its Quant twin and converted again."
        )
    if adapted and qann.config.weight_bits is not None:
        raise ValueError(
            "weight_bits is set: an adapter is added outside of the quantized weight, and merging it would give "
            "another network. Train the adapter with weight_bits=None, merge it, and quantize the result's weights."
        )
    if adapted and not qann.calibrated:
        raise ValueError("Call calibrate(batches) on the Quant model before get_peft_model: adapters hold its scales.")
    return qann


class QATTrainer(DistillationTrainer):
    """Trainer of a Quant model: calibrates scales first, then trains weights and scales, with a teacher if given.

    Args:
        model: a Quant model, for example `QuantViTForImageClassification.from_ann(ann)`; or one with PEFT's adapters
            in it, for which see `training.adapters`.
        args: `QATTrainingArguments`.
        teacher_model: the ordinary network to learn from; see `DistillationTrainer`, also for the loss.
        others: as for transformers' Trainer.

    Raises:
        TypeError: the model is not a Quant model, or args are of another class.
        ValueError: what `DistillationTrainer` refuses; a level schedule that does not end with the model's levels; an
            adapter on quantized weights.
    """

    args: QATTrainingArguments
    args_class = QATTrainingArguments

    def __init__(self, model, args: QATTrainingArguments, **kwargs):
        self.qann = underlying_qann(model)
        super().__init__(model, args, **kwargs)
        if self.processing_class is not None:
            self.qann.processing_class = self.processing_class
        self.add_callback(KeepScalesPositive())
        if args.freeze_scales_after < 1:
            self.add_callback(FreezeScales(args.freeze_scales_after))
        if args.level_schedule:
            if args.level_schedule[-1] != self.qann.config.quantization_levels:
                raise ValueError(
                    f"level_schedule ends with {args.level_schedule[-1]} levels, and quantization_levels of the model "
                    f"is {self.qann.config.quantization_levels}: make them equal."
                )
            self.add_callback(LevelSchedule(self.qann, args.level_schedule))
        if args.snn_eval_every:
            if self.is_sharded:
                raise ValueError("snn_eval_every: a network in shards cannot be converted while it is trained.")
            if self.qann is not model:
                raise ValueError("snn_eval_every: a network with adapters cannot be converted before they are merged.")
            datasets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
            for dataset in datasets:
                if dataset is not None:
                    evenly_spread(dataset, args.snn_eval_samples)  # refuses a stream now, and not after an epoch

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Trainer.train, after setting from training data the scales that are not set yet.

        A checkpoint holds scales, so nothing is set when a run is resumed. For the arguments and errors see
        `DistillationTrainer.train`.
        """
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.take_autocast_off()

    def before_first_step(self) -> None:
        if self.args.level_schedule:
            set_levels(self.qann, self.args.level_schedule[0], rescale=True)
        if not self.qann.calibrated:
            with random_state_kept():
                batches = self.calibration_batches()
                method, percentile = self.args.calibration_method, self.args.calibration_percentile
                self.qann.calibrate(batches, method, overwrite=False, percentile=percentile)

    def calibration_batches(self) -> DataLoader | list:
        """Batches of training samples drawn at random, the same in every process."""
        collate = self._get_collator_with_removed_columns(self.data_collator)
        return calibration_batches(self.train_dataset, self.args.calibration_samples, self.args.seed, collate)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Trainer.evaluate, and of the spiking network too where `snn_eval_every` asks for it.

        Its metrics are named `eval_snn_T32_accuracy` and the like, those of `compute_metrics` or else accuracy, beside
        `eval_snn_at_equilibrium`, the share of samples that had settled by the largest T.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.own_precision():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if not isinstance(dataset, dict) and self.snn_evaluation_is_due(metric_key_prefix):
            dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
            with random_state_kept(), memory_advice(self.evaluation_advice()):
                batches = self.get_eval_dataloader(evenly_spread(dataset, self.args.snn_eval_samples))
                snn = spiking_class(type(self.qann)).from_quantized(
                    self.qann, time_steps=max(self.args.snn_eval_time_steps)
                )
                of_snn = evaluate_snn(
                    snn, batches, self.args.snn_eval_time_steps, self.accelerator, self.compute_metrics
                )
            of_snn = {f"{metric_key_prefix}_snn_{name}": value for name, value in of_snn.items()}
            self.log(dict(of_snn))
            metrics.update(of_snn)
        return metrics

    def snn_evaluation_is_due(self, prefix: str) -> bool:
        """Whether the evaluation just logged is an n-th one."""
        if not self.args.snn_eval_every:
            return False
        evaluations = sum(f"{prefix}_runtime" in entry for entry in self.state.log_history)
        return evaluations % self.args.snn_eval_every == 0

    def predict(self, *args, **kwargs):
        """Trainer.predict."""
        with self.own_precision():
            return super().predict(*args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        """Trainer.create_model_card, with the card of this library: what the model is, and how it was trained.

        Takes the same arguments. A README.md that somebody wrote is kept. Adapters have PEFT's card.
        """
        if self.qann is not self.accelerator.unwrap_model(self.model, keep_torch_compile=False):
            return super().create_model_card(*args, **kwargs)
        if not self.is_world_process_zero():
            return
        names = inspect.signature(super().create_model_card).bind(*args, **kwargs).arguments
        names.setdefault("tasks", pipeline_of(self.qann))
        fields = card_fields(TrainingSummary.from_trainer(self, **names))
        write_card(self.qann, self.args.output_dir, repo_id=self.hub_model_id, **fields)

    @contextmanager
    def own_precision(self) -> Iterator[None]:
        """Outside of training, no autocast: what is evaluated is then what the spiking twin equals, each time."""
        if self.is_in_train:
            yield
            return
        mixed, self.accelerator.native_amp = self.accelerator.native_amp, False
        try:
            yield
        finally:
            self.accelerator.native_amp = mixed
            self.take_autocast_off()

    def take_autocast_off(self) -> None:
        """Undo what accelerate does to forward in mixed precision: such a QANN rounds differently from its twin.

        Not by its unwrap_model, which takes our own decorator off too.
        """
        for name in ("forward", "_original_forward"):
            self.model.__dict__.pop(name, None)

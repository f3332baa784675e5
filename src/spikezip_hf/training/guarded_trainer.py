"""A Trainer that looks before it works, and stops before it spoils anything."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from spikezip_hf.errors import memory_advice
from spikezip_hf.models.checkpoint_files import check_seal
from spikezip_hf.training.adapters import without_adapters
from spikezip_hf.training.data_checks import check_data
from spikezip_hf.training.non_finite import broken_gradients, broken_inputs, broken_outputs, broken_parameters
from spikezip_hf.training.resuming import check_whole, newest_whole, weights_of


class GuardedTrainer(Trainer):
    """transformers' Trainer, which knows what it is given before the first step, and what it leaves behind.

    Data sets are looked at before any work, a training goes on from whole checkpoints only and leaves no half of one,
    ends where a loss or gradient is not finite, and says what to lower where memory does not suffice.
    """

    labels_seen = False  # all of them, before the batch that they are in

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Trainer.train, going on from whole checkpoints only.

        Args:
            resume_from_checkpoint: True for the newest whole checkpoint in `output_dir`, with a warning for each newer
                one that is not whole; or the path of one.

        Raises:
            OSError: the checkpoint that was named is not whole, or for True there is none that is.
            ValueError: a data set is empty, lacks a column, or has a label that is none for this model; names it.
        """
        evaluated = self.eval_datasets(None) if self.args.eval_strategy != IntervalStrategy.NO else {}
        self.check_data({"train_dataset": self.train_dataset, **evaluated})
        kind = {"sharded": self.is_sharded, "weights_alone": self.args.save_only_model}
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_whole(str(self.args.output_dir), **kind)
            if resume_from_checkpoint is None:
                raise FileNotFoundError(
                    f"resume_from_checkpoint=True: {self.args.output_dir} has no whole checkpoint. Begin anew without "
                    "it, or name the folder of the checkpoint."
                )
        elif resume_from_checkpoint:
            try:
                check_whole(resume_from_checkpoint, **kind)
            except OSError as error:
                raise OSError(
                    f"{error} resume_from_checkpoint=True goes on from the newest whole checkpoint in output_dir."
                ) from error
        with memory_advice(self.training_advice()):
            if not resume_from_checkpoint:
                self.before_first_step()
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def before_first_step(self) -> None:
        """Called where a training begins, and not where it goes on."""

    def check_data(self, datasets: dict[str, Any]) -> None:
        """Look at data sets before any work; see `training.data_checks`."""
        model, dropping = without_adapters(self.model), self.args.remove_unused_columns
        own_collator = not getattr(self.data_collator, "__module__", "").startswith("transformers.")
        seen = [check_data(dataset, name, model, dropping, own_collator) for name, dataset in datasets.items()]
        self.labels_seen = all(seen)

    def eval_datasets(self, chosen: Any) -> dict[str, Any]:
        """{how it is given: data set} of what `evaluate` is to look at."""
        if isinstance(chosen, str):
            return {f"eval_dataset[{chosen!r}]": self.eval_dataset[chosen]}
        given = self.eval_dataset if chosen is None else chosen
        if isinstance(given, dict):
            return {f"eval_dataset[{name!r}]": dataset for name, dataset in given.items()}
        return {"eval_dataset": given}

    def training_advice(self) -> str:
        """What to do where memory does not suffice for training."""
        args = self.args
        # transformers 5.23 has a new name for it.
        names = ("activation_checkpointing", "gradient_checkpointing")
        name, enabled = next((name, getattr(args, name)) for name in names if hasattr(args, name))
        steps = (
            "gradient_accumulation_steps follows from total_train_batch_size"
            if args.total_train_batch_size is not None
            else f"raise gradient_accumulation_steps (now {args.gradient_accumulation_steps}) by the same factor"
        )
        possible = getattr(self.model, "supports_gradient_checkpointing", False) and not enabled
        more = f" {name}=True keeps less for the backward pass, and takes longer." if possible else ""
        return (
            f"lower per_device_train_batch_size (now {args.per_device_train_batch_size}); {steps}, and the training "
            f"stays the same.{more} auto_find_batch_size=True looks for a size that fits."
        )

    def evaluation_advice(self) -> str:
        """What to do where memory does not suffice for evaluation."""
        advice = f"lower per_device_eval_batch_size (now {self.args.per_device_eval_batch_size})"
        if self.args.eval_accumulation_steps is None:
            advice += ", or set eval_accumulation_steps, so that outputs leave the device before the end"
        return f"{advice}."

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        """Trainer.evaluate.

        Raises:
            ValueError: as for `train`.
        """
        if not self.is_in_train:
            self.check_data(self.eval_datasets(eval_dataset))
        with memory_advice(self.evaluation_advice()):
            return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, *args, **kwargs):
        """Trainer.predict.

        Raises:
            ValueError: a batch has a label that is none for this model.
        """
        self.labels_seen = False  # of other data; these may have none
        with memory_advice(self.evaluation_advice()):
            return super().predict(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Trainer.training_step, which ends the training before a loss or gradient that is not finite is put to use.

        The loss is looked at after the backward pass: there Trainer waits for it anyway, and the gradients, which are
        then known, have not moved any weight. Gradients are looked at once a step, ahead of clipping, which would
        spread one NaN to all of them; not those of a fp16 scaler, which skips such steps by itself, and not shards.

        Raises:
            FloatingPointError: names the step, and where the first value that is not finite appears.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(loss.isfinite()):
            raise self.stopped(f"the loss is {loss.item()}", self.broken_at(inputs))
        scaled = getattr(self.accelerator, "scaler", None) is not None
        looked_at = self.accelerator.sync_gradients and not scaled and not self.is_sharded
        if looked_at and (problem := broken_gradients(model)):
            raise self.stopped("the loss is finite, its gradients are not", problem)
        return loss

    def broken_at(self, inputs: dict[str, Any]) -> str:
        """Where the loss of a batch stops being finite, in words."""
        inputs = self._prepare_inputs(inputs)
        if problem := broken_inputs(inputs):
            return problem
        if self.is_sharded:
            return "a network in shards cannot be searched for it"
        if problem := broken_parameters(self.model.named_parameters()):
            return problem
        networks = {"": self.model, **self.other_networks()}

        def forward() -> Mapping[str, torch.Tensor]:
            with self.compute_loss_context_manager():
                return self.loss_terms(inputs)

        return broken_outputs(networks, forward)

    def other_networks(self) -> dict[str, torch.nn.Module]:
        """Those that the loss asks beside the model, by what to call them."""
        raise NotImplementedError

    def loss_terms(self, inputs: dict[str, Any]) -> Mapping[str, torch.Tensor]:
        """The terms whose sum is the loss, by their names."""
        raise NotImplementedError

    def stopped(self, what: str, problem: str) -> FloatingPointError:
        """The error that ends a training."""
        return FloatingPointError(
            f"Step {self.state.global_step + 1}: {what}; {problem}. The step was not made, and nothing of it is "
            "saved. If the data is sound, a lower learning_rate (of scales: scale_learning_rate), a longer warm-up "
            "(warmup_steps) or clipping (max_grad_norm) may help."
        )

    def save_model(self, *args, **kwargs):
        """Trainer.save_model, of finite parameters only: the last step before may have been one too many.

        Raises:
            FloatingPointError: a parameter is not finite; names it.
        """
        if not self.is_sharded and (problem := broken_parameters(self.model.named_parameters())):
            raise FloatingPointError(f"After step {self.state.global_step}, {problem}. Nothing is saved.")
        return super().save_model(*args, **kwargs)

    @property
    def is_sharded(self) -> bool:
        """Whether no process has all of the model."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _save_checkpoint(self, model, trial):
        """Trainer's, which leaves no half of one after an error or Ctrl-C.

        Nor, after a kill, a mixture with one of that step that is there already, cut off or of an earlier training:
        the file that marks a whole one goes first.
        """
        folder = Path(str(self._get_output_dir(trial))) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.is_dir():
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            for left_over in folder.glob("_partial-*"):  # weights that were not moved in when the training was killed
                shutil.rmtree(left_over, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:  # Ctrl-C, too
            if self.args.should_save and not (folder / TRAINER_STATE_NAME).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_renamed(resume_from_checkpoint, self.model if model is None else model)

    def _load_best_model(self):
        for path, digest in weights_of(Path(str(self.state.best_model_checkpoint)), sharded=True):
            check_seal(path, digest)
        super()._load_best_model()
        self.load_renamed(self.state.best_model_checkpoint, self.model)

    def load_renamed(self, folder: str, model: torch.nn.Module) -> None:
        """Load a checkpoint of transformers' own models by their from_pretrained.

        transformers renames keys of some, ViT's among them, as it saves; Trainer, which loads files as they are, would
        take none of those, and say no word.
        """
        if self.is_sharded:
            return  # these load by themselves, and save under the names that the model has
        model = self.accelerator.unwrap_model(model)
        if isinstance(model, PreTrainedModel) and type(model).__module__.startswith("transformers."):
            model.load_state_dict(type(model).from_pretrained(folder).state_dict())

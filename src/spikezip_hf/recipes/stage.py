"""What every stage does beside its work: skip what is finished, go on with what was cut off, keep a record."""

import dataclasses
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

import spikezip_hf
from spikezip_hf.files import write_json
from spikezip_hf.metrics import classification_metrics
from spikezip_hf.recipes.inputs import DataArguments, model_inputs
from spikezip_hf.training import DistillationTrainer, DistillationTrainingArguments
from spikezip_hf.training.resuming import checkpoints, newest_whole

logger = logging.get_logger(__name__)

RECORD, SETTINGS = "training.json", "settings.json"
# Arguments that do not decide what a training gives.
INCIDENTAL = {
    "accelerator_config",  # as are the next two, filled in by transformers
    "debug",
    "do_eval",
    "dataloader_pin_memory",
    "use_cpu",
    "per_device_train_batch_size",  # their product counts, below
    "gradient_accumulation_steps",
    "output_dir",
    "logging_dir",
    "disable_tqdm",
    "logging_steps",
    "logging_strategy",
    "logging_first_step",
    "report_to",
    "run_name",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "resume_from_checkpoint",
    "save_total_limit",
    "dataloader_num_workers",
    "per_device_eval_batch_size",
}


def settings_of(*arguments: Any) -> dict[str, Any]:
    """The arguments that are not at their defaults and decide what a training gives, ready for JSON."""
    settings: dict[str, Any] = {}
    for one in arguments:
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if field.init and field.name not in INCIDENTAL and value != default:
                settings[field.name] = value
        if isinstance(one, TrainingArguments):
            settings["total_train_batch_size"] = total_batch(one)
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def total_batch(args: TrainingArguments) -> int:
    """Samples of one step, over all devices and micro-batches."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint was written there to its end, of which trainer_state.json is the last file."""
    return any((path / TRAINER_STATE_NAME).is_file() for path in checkpoints(folder))


SECRET = re.compile(r"token|secret|password|key", re.IGNORECASE)


def shareable(value: Any) -> Any:
    """A value of a record that others will see: of a path outside of the working directory, the name alone."""
    if isinstance(value, Mapping):
        return {key: "***" if SECRET.search(str(key)) else shareable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shareable(one) for one in value]
    if isinstance(value, str) and (os.path.isabs(value) or ".." in Path(value).parts):
        return Path(value).name
    return value


def shareable_flags(flags: Sequence[str]) -> list[str]:
    """Flags of a command line, likewise; of a token, nothing."""
    shown: list[str] = []
    secret = False
    for flag in flags:
        name, equals, value = flag.rpartition("=")
        if secret and not flag.startswith("-"):
            shown.append("***")
        elif equals and SECRET.search(name):
            shown.append(f"{name}=***")
        else:
            shown.append(f"{name}{equals}{shareable(value)}")
        secret = flag.startswith("-") and not equals and SECRET.search(flag) is not None
    return shown


def provenance() -> dict[str, Any]:
    """Command, versions and hardware of this run."""
    program = Path(sys.argv[0]).name
    return {
        "command": shlex.join(
            [*(["python"] if program.endswith(".py") else []), program, *shareable_flags(sys.argv[1:])]
        ),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "spikezip_hf": spikezip_hf.__version__,
        },
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether an earlier run with these settings has brought the training in `folder` to its end.

    Raises:
        ValueError: the folder holds a training with other settings, finished or with a checkpoint; names one.
    """
    finished = (folder / RECORD).is_file()
    if finished:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))["settings"]
    elif not has_checkpoint(folder):
        return False
    elif (folder / SETTINGS).is_file():
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    else:
        raise ValueError(
            f"{folder} holds checkpoints of a training that was not started here ({SETTINGS} is missing). Name "
            "another folder with --output_dir."
        )
    for key in sorted({*found, *settings}):
        if found.get(key) != settings.get(key):
            there, asked = (repr(one[key]) if key in one else "as by default" for one in (found, settings))
            raise ValueError(
                f"{folder} holds a training with {key} {there}, not {asked}. Name another folder with --output_dir, "
                "or remove that one."
            )
    if finished:
        logger.warning(f"{folder} is finished; nothing to do.")
    return finished


def trainer_for(
    trainer_class: type[DistillationTrainer],
    network: PreTrainedModel,
    args: DistillationTrainingArguments,
    splits: Any,
    processor: Any,
    data: DataArguments,
    is_text: bool,
    **kwargs: Any,
) -> DistillationTrainer:
    """The trainer of a stage, on the data as the network takes it in.

    Args:
        processor: tokenizer or image processor.
        kwargs: what the class takes beside these.
    """
    inputs, collate = model_inputs(splits, processor, data, is_text)
    args.remove_unused_columns = is_text  # pixels are made of the column of images, at the last moment
    return trainer_class(
        network,
        args,
        train_dataset=inputs["train"],
        eval_dataset=inputs["validation"],
        data_collator=collate,
        processing_class=processor,
        compute_metrics=classification_metrics(),
        **kwargs,
    )


def train(
    trainer: DistillationTrainer, folder: Path, settings: dict[str, Any], about: dict[str, Any]
) -> dict[str, Any]:
    """Train to the end, from the newest whole checkpoint if an earlier run was cut off, and save network and record.

    Args:
        settings: what `is_finished` was asked with.
        about: more to put on record.
    """
    if trainer.is_world_process_zero():
        write_json(folder / SETTINGS, settings)
    checkpoint = newest_whole(folder, trainer.is_sharded, trainer.args.save_only_model)
    if checkpoint is not None:
        logger.warning(f"Going on from {checkpoint}.")
    elif checkpoints(folder):
        logger.warning(f"{folder} has no whole checkpoint: the training begins anew.")
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    evaluations = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in entry.items()}
        for entry in trainer.state.log_history
        if any(key.startswith("eval_") and not key.endswith(("_runtime", "_second")) for key in entry)
    ]
    record = {
        **provenance(),
        "resumed": checkpoint is not None,
        "seconds": round(time.perf_counter() - start, 1),
        "seed": trainer.args.seed,
        "processes": trainer.args.world_size,
        **about,
        "settings": settings,
        "evaluations": evaluations,
    }
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        write_json(folder / RECORD, record)
    return record

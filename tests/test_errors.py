"""Memory that is used up, really: the error says which settings to lower, through trainers and commands."""

import re
import subprocess
import sys

import pytest
import torch
from transformers import ViTImageProcessorPil
from typer.testing import CliRunner

from spikezip_hf import (
    DistillationTrainer,
    DistillationTrainingArguments,
    QATTrainer,
    SpikeViTForImageClassification,
    verify_equivalence,
)
from spikezip_hf.cli.app import app
from spikezip_hf.errors import is_out_of_memory, memory_advice, one_line
from spikezip_hf.recipes.parsing import main
from tests.conftest import make_ann, make_images, make_qann
from tests.training.common import make_args, make_data

TOO_MUCH = 1 << 50  # bytes; no machine has them, and the allocator says so at once


def use_up(*args, **kwargs):
    torch.empty(TOO_MUCH, dtype=torch.uint8)


def note_of(error) -> str:
    (note,) = error.value.__notes__
    return note


def trainer_of(kind, tmp_path, **fields):
    qat = kind == "qat"
    model = make_qann() if qat else make_ann()
    args = make_args(tmp_path, **fields) if qat else make_args(tmp_path, DistillationTrainingArguments, **fields)
    data = make_data(model.config, 8)
    trainer = (QATTrainer if qat else DistillationTrainer)(model, args, train_dataset=data, eval_dataset=data)
    model.classifier.register_forward_pre_hook(use_up)
    return trainer


@pytest.mark.parametrize("kind", ["qat", "distillation"])
class TestTrainers:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({}, "raise gradient_accumulation_steps (now 1) by the same factor, and the training stays the same. "),
            ({"total_train_batch_size": 16}, "gradient_accumulation_steps follows from total_train_batch_size"),
        ],
        ids=["by steps", "by total"],
    )
    def test_training(self, kind, fields, words, tmp_path):
        trainer = trainer_of(kind, tmp_path, **fields)
        with pytest.raises(RuntimeError, match="allocate memory") as error:
            trainer.train()
        assert "lower per_device_train_batch_size (now 8); " in note_of(error)
        assert words in note_of(error)
        assert "_checkpointing=True" in note_of(error)

    @pytest.mark.parametrize("method", ["evaluate", "predict"])
    def test_evaluation(self, kind, method, tmp_path):
        trainer = trainer_of(kind, tmp_path, per_device_eval_batch_size=4)
        with pytest.raises(RuntimeError, match="allocate memory") as error:
            getattr(trainer, method)(trainer.eval_dataset)
        assert "lower per_device_eval_batch_size (now 4), or set eval_accumulation_steps" in note_of(error)

    def test_evaluation_in_the_course_of_training_has_its_own_advice_alone(self, kind, tmp_path):
        trainer = trainer_of(kind, tmp_path, per_device_eval_batch_size=4, eval_strategy="epoch")
        trainer.model.classifier._forward_pre_hooks.clear()
        trainer.compute_metrics = use_up
        with pytest.raises(RuntimeError, match="allocate memory") as error:
            trainer.train()
        assert "per_device_eval_batch_size" in note_of(error)

    def test_other_errors_have_no_note(self, kind, tmp_path):
        trainer = trainer_of(kind, tmp_path)
        trainer.model.classifier.register_forward_pre_hook(lambda *args: torch.ones(2) @ torch.ones(3), prepend=True)
        with pytest.raises(RuntimeError, match="inconsistent tensor size") as error:
            trainer.train()
        assert not hasattr(error.value, "__notes__")


def test_arguments_named_exist(tmp_path):
    """Whoever follows the advice is not told that there is no such argument."""
    trainer = trainer_of("distillation", tmp_path)
    named = re.findall(r"[a-z]+(?:_[a-z]+)+", trainer.training_advice() + trainer.evaluation_advice())
    assert len(set(named)) > 4
    assert set(named) <= set(DistillationTrainingArguments.__dataclass_fields__)
    assert hasattr(SpikeViTForImageClassification.from_quantized(make_qann()).config, "chunk_steps")


def test_calibration():
    qann = make_qann()
    qann.vit.register_forward_pre_hook(use_up)
    with pytest.raises(RuntimeError, match="allocate memory") as error:
        qann.calibrate([{"pixel_values": make_images(qann.config, 2)}])
    assert "smaller batches, or method='lsq'" in note_of(error)


def test_certificate():
    qann = make_qann()
    snn = SpikeViTForImageClassification.from_quantized(qann)
    snn.vit.layers[0].register_forward_pre_hook(use_up)
    with pytest.raises(RuntimeError, match="allocate memory") as error:
        verify_equivalence(qann, snn, {"pixel_values": make_images(qann.config, 2)})
    assert "lower chunk_steps" in note_of(error)


def test_command_says_it_in_one_line(tmp_path, monkeypatch):
    """`spikezip verify`, from a checkpoint, with as much memory as there is."""
    qann = make_qann()
    SpikeViTForImageClassification.from_quantized(qann).save_pretrained(
        tmp_path, processing_class=ViTImageProcessorPil(size={"height": 8, "width": 8})
    )
    monkeypatch.setattr("spikezip_hf.conversion.certificate.RecordingEngine", use_up)
    run = CliRunner().invoke(app, ["verify", str(tmp_path), "--samples", "2"])
    assert run.exit_code == 1
    (line,) = [line for line in run.stderr.splitlines() if "error: " in line]  # behind a bar of progress
    assert "allocate memory" in line
    assert "Out of memory: verify smaller batches (batch_size)" in line


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_scripts_say_it_in_one_line(error):
    def run(argv):
        with memory_advice("buy more."):
            raise error

    with pytest.raises(SystemExit) as stop:
        main(run)
    assert stop.value.code.startswith("error: ")
    assert stop.value.code.endswith("Out of memory: buy more.")
    assert "\n" not in stop.value.code


def test_scripts_hide_no_other_runtime_error():
    def run(argv):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(run)


@pytest.mark.parametrize("words", ["MPS backend out of memory (MPS allocated: 1 GB)", "CUDA error: out of memory"])
def test_memory_of_an_accelerator_without_a_class_of_its_own(words):
    assert is_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("can't allocate memory"), KeyError("x")])
def test_what_is_not_memory(error):
    assert not is_out_of_memory(error)


def test_one_line_has_the_notes():
    error = ValueError("several\n  lines")
    error.add_note("a note")
    assert one_line(error) == "several lines a note"
    assert one_line(KeyError()) == "KeyError"


LIMITED = """
import resource, torch
from spikezip_hf import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import make_ann
from tests.training.common import make_args

class Endless(torch.utils.data.Dataset):
    def __len__(self):
        return 1 << 14
    def __getitem__(self, index):
        return {"pixel_values": torch.ones(3, 8, 8), "labels": 0}

args = make_args("unused", DistillationTrainingArguments, per_device_train_batch_size=1 << 14, max_steps=1)
trainer = DistillationTrainer(make_ann(), args, train_dataset=Endless())
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))
try:
    trainer.train()
except RuntimeError as error:
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print(error, *error.__notes__)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
def test_batch_that_does_not_fit():
    """A process that may have 200 MB more, and a batch that takes more than those."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert "allocate memory" in done.stdout, done.stderr[-2000:]
    assert "lower per_device_train_batch_size (now 16384)" in done.stdout

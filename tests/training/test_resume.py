"""A run killed with -9 and resumed ends with the weights of one that was never interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from spikezip_hf import QATTrainer, QuantViTForImageClassification
from spikezip_hf.training.resuming import newest_whole
from tests.conftest import make_ann
from tests.training.common import make_args, make_data

STEPS = 12


class Speaking(TrainerCallback):
    """Says on stdout when a step has ended, and that a checkpoint is now written if that is due."""

    def on_step_end(self, args, state, control, **kwargs):
        sys.stdout.write(f"step {state.global_step}\n")
        sys.stdout.flush()


class Slow(TrainerCallback):
    def __init__(self, pause: float):
        self.pause = pause

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(self.pause)


def life(folder: Path, pause: float = 0.0, speaking: bool = False, **fields) -> None:
    """Train from the newest whole checkpoint, if there is one, with everything that draws random numbers."""

    ann = make_ann(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=8, weight_bits=8, drop_path_rate=0.2)
    settings = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "label_smoothing_factor": 0.1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "scale_learning_rate": 1e-3,
        "snn_eval_every": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "snn_eval_time_steps": [8],
        "snn_eval_samples": 4,
    }
    args = make_args(folder, **{**settings, **fields})
    data = make_data(ann.config)
    trainer = QATTrainer(
        qann,
        args,
        teacher_model=make_ann(seed=5),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[Slow(pause), *([Speaking()] if speaking else [])],
    )
    trainer.train(resume_from_checkpoint=newest_whole(folder) is not None)
    trainer.save_model(str(folder / "end"))


def test_killed_and_resumed(tmp_path):
    life(tmp_path / "whole")
    folder = tmp_path / "killed"
    code = f"from tests.training.test_resume import life; from pathlib import Path; life(Path({str(folder)!r}), 0.3)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-4" / "trainer_state.json").exists():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "end").exists()
    life(folder)
    one, other = (load_file(tmp_path / name / "end" / "model.safetensors") for name in ("whole", "killed"))
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_calibration_is_not_repeated_on_resume(tmp_path, monkeypatch):
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
    data = make_data(qann.config)
    fields = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    QATTrainer(qann, make_args(tmp_path, **fields), train_dataset=data).train()
    again = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
    monkeypatch.setattr(type(again), "calibrate", lambda *args, **kwargs: pytest.fail("calibrated again"))
    trainer = QATTrainer(again, make_args(tmp_path, **fields), train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again.calibrated
    assert all(torch.equal(a.scale, b.scale) for a, b in zip(again.nodes, qann.nodes, strict=True))


def test_calibration_draws_no_random_numbers_of_the_training(tmp_path):
    """With scales set beforehand from the same samples, the training that follows is the same."""
    weights = []
    for beforehand in (False, True):
        qann = QuantViTForImageClassification.from_ann(
            make_ann(hidden_dropout_prob=0.1), quantization_levels=8, scale_granularity="per_tensor"
        )
        trainer = QATTrainer(qann, make_args(tmp_path), train_dataset=make_data(qann.config))
        if beforehand:
            qann.calibrate(list(trainer.calibration_batches()))
        torch.manual_seed(0)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in qann.parameters()]))
    assert torch.equal(*weights)

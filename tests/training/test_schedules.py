"""Levels that fall and scales that freeze in the course of a training."""

import pytest
import torch
from transformers import TrainerCallback

from spikezip_hf import QATTrainer, QuantViTForImageClassification, verify_equivalence
from spikezip_hf.training.callbacks import LevelSchedule
from tests.conftest import make_ann, make_images, make_qann, spiking_twin
from tests.training.common import make_args, make_data


class Watch(TrainerCallback):
    """Notes levels, largest values and scales before each step."""

    def __init__(self):
        self.levels, self.scales, self.means = [], [], []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.levels.append(model.config.quantization_levels)
        self.scales.append(torch.cat([node.scale.detach().clone() for node in model.nodes]))
        self.means.append(torch.cat([node.scale.detach() * node.max_level**0.5 / 2 for node in model.nodes]))


def train(tmp_path, qann, **fields):
    watch = Watch()
    trainer = QATTrainer(
        qann, make_args(tmp_path, **fields), train_dataset=make_data(qann.config, 48), callbacks=[watch]
    )
    trainer.callback_handler.callbacks.append(
        trainer.callback_handler.callbacks.pop(trainer.callback_handler.callbacks.index(watch))
    )  # looks last
    trainer.train()
    return watch


def test_levels_fall_in_equal_parts_and_scales_follow(tmp_path):
    qann = make_qann(levels=16)
    watch = train(tmp_path, qann, level_schedule=[64, 32, 16], learning_rate=0.0)
    assert watch.levels == [64, 64, 32, 32, 16, 16]
    assert {node.levels for node in qann.nodes} == {16}
    for means in watch.means:  # the E|x| of LSQ's rule that the scales stand for
        assert torch.allclose(means, watch.means[0], rtol=1e-6)
    certificate = verify_equivalence(
        qann, spiking_twin(qann, time_steps=400), {"pixel_values": make_images(qann.config, 4)}
    )
    assert certificate.exact, str(certificate)


def test_calibration_is_for_the_first_levels(tmp_path):
    qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
    watch = train(tmp_path, qann, level_schedule=[64, 8], learning_rate=0.0)
    other = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=64)
    plain = train(tmp_path, other, learning_rate=0.0)
    assert torch.equal(watch.scales[0], plain.scales[0])


def test_a_checkpoint_of_the_schedule_goes_on_with_its_levels(tmp_path):
    fields = {"level_schedule": [64, 32, 16], "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
    qann = make_qann(levels=16)
    train(tmp_path / "whole", qann, **fields)
    whole = torch.cat([p.detach().flatten() for p in qann.parameters()])
    for step in (1, 2, 3, 4, 5):
        again = make_qann(seed=3, levels=16)
        trainer = QATTrainer(again, make_args(tmp_path / "whole", **fields), train_dataset=make_data(again.config, 48))
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert torch.equal(torch.cat([p.detach().flatten() for p in again.parameters()]), whole), step


def test_schedule_has_to_end_with_the_levels_of_the_model(tmp_path):
    with pytest.raises(
        ValueError, match="level_schedule ends with 16 levels, and quantization_levels of the model is 8"
    ):
        QATTrainer(make_qann(levels=8), make_args(tmp_path, level_schedule=[64, 16]))


def test_parts_of_a_schedule():
    schedule = LevelSchedule(None, [64, 32, 16])
    assert [schedule.levels(step, 10) for step in range(10)] == [64] * 4 + [32] * 3 + [16] * 3
    assert schedule.levels(10, 10) == 16


def test_scales_freeze(tmp_path):
    qann = make_qann()
    watch = train(tmp_path, qann, freeze_scales_after=0.5, learning_rate=1e-2)
    final = torch.cat([node.scale.detach() for node in qann.nodes])
    moved = [not torch.equal(a, b) for a, b in zip(watch.scales, [*watch.scales[1:], final], strict=True)]
    assert moved == [True, True, True, False, False, False]

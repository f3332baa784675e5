"""QATTrainer: calibration first, the loss it says, groups, positive scales."""

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

from spikezip_hf import (
    QATTrainer,
    QATTrainingArguments,
    QuantViTForImageClassification,
    SpikeViTForImageClassification,
    verify_equivalence,
)
from spikezip_hf.conversion.calibration import PERCENTILE
from spikezip_hf.models.quantization import MIN_SCALE
from tests.conftest import (
    ARCHITECTURES,
    make_ann,
    make_images,
    make_qann,
    make_text_ann,
    make_text_qann,
    make_texts,
    spiking_twin,
    text_class,
)
from tests.training.common import make_args, make_data, make_text_data, text_collator


def test_training_calibrates_learns_and_converts(tmp_path):
    ann = make_ann()
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=8)
    data = make_data(ann.config)
    trainer = QATTrainer(
        qann, make_args(tmp_path, num_train_epochs=20), teacher_model=ann, train_dataset=data, eval_dataset=data
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.3
    assert all(node.problem() is None for node in qann.nodes)
    snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=500)
    assert verify_equivalence(qann, snn, {"pixel_values": make_images(ann.config, 4)}).exact


def test_scales_and_weights_both_move(tmp_path):
    qann = make_qann()
    before = {name: value.detach().clone() for name, value in qann.named_parameters()}
    QATTrainer(qann, make_args(tmp_path), train_dataset=make_data(qann.config)).train()
    still = [name for name, value in qann.named_parameters() if torch.equal(value, before[name])]
    assert still == []


def test_scales_already_set_are_kept(tmp_path):
    qann = make_qann()
    before = [node.scale.detach().clone() for node in qann.nodes]
    trainer = QATTrainer(qann, make_args(tmp_path, learning_rate=0.0), train_dataset=make_data(qann.config))
    trainer.train()
    assert all(torch.equal(node.scale, scale) for node, scale in zip(qann.nodes, before, strict=True))


class TestCalibrationBeforeTraining:
    def train(self, tmp_path, monkeypatch, qann, **fields):
        """Train one step; returns (batches, method, overwrite, percentile) of each call of calibrate."""
        calls, calibrate = [], type(qann).calibrate

        def spy(self, batches, method="mse", overwrite=True, percentile=None):
            batches = list(batches)
            calls.append((len(batches), method, overwrite, percentile))
            return calibrate(self, batches, method, overwrite, percentile)

        monkeypatch.setattr(type(qann), "calibrate", spy)
        args = make_args(tmp_path, learning_rate=0.0, max_steps=1, **fields)
        QATTrainer(qann, args, train_dataset=make_data(qann.config)).train()
        return calls

    def test_as_the_arguments_say(self, tmp_path, monkeypatch):
        qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
        calls = self.train(tmp_path, monkeypatch, qann, calibration_samples=10, calibration_method="lsq")
        assert calls == [(1, "lsq", False, PERCENTILE)]

    def test_percentile_of_the_arguments(self, tmp_path):
        scales = {}
        for percentile in (100.0, 60.0):
            qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
            args = make_args(
                tmp_path,
                learning_rate=0.0,
                max_steps=1,
                calibration_method="percentile",
                calibration_percentile=percentile,
            )
            QATTrainer(qann, args, train_dataset=make_data(qann.config)).train()
            scales[percentile] = torch.cat([node.scale.detach() for node in qann.nodes])
        assert bool((scales[60.0] < scales[100.0]).all())

    def test_scales_that_are_set_are_kept(self, tmp_path, monkeypatch):
        qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
        qann.nodes[3].set_scale(torch.tensor([123.0]))
        self.train(tmp_path, monkeypatch, qann)
        assert qann.nodes[3].scale.item() == 123.0
        assert all(bool(node.initialized) for node in qann.nodes)

    def test_not_repeated(self, tmp_path, monkeypatch):
        assert self.train(tmp_path, monkeypatch, make_qann()) == []


def test_teacher_is_in_eval_mode_and_left_alone(tmp_path):
    qann, teacher = make_qann(), make_ann(seed=5).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = QATTrainer(qann, make_args(tmp_path), teacher_model=teacher, train_dataset=make_data(qann.config))
    trainer.train()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_training_in_bfloat16_leaves_an_exact_pair(tmp_path):
    qann = make_qann(levels=32)
    QATTrainer(qann, make_args(tmp_path, bf16=True), train_dataset=make_data(qann.config)).train()
    snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=500)
    images = make_images(qann.config, 4)
    certificate = verify_equivalence(qann, snn, {"pixel_values": images})
    assert certificate.exact, str(certificate)
    assert torch.equal(qann(images, return_dict=False)[0], qann(images).logits)


def test_scales_stay_positive(tmp_path):
    qann = make_qann()
    # One step this long sends a good part of all scales below zero.
    args = make_args(tmp_path, scale_learning_rate=10.0, max_steps=2, optim="sgd", max_grad_norm=0.0)
    trainer = QATTrainer(qann, args, train_dataset=make_data(qann.config))
    trainer.train()
    assert min(float(node.scale.detach().min()) for node in qann.nodes) >= MIN_SCALE
    assert any(float(node.scale.detach().min()) == pytest.approx(MIN_SCALE) for node in qann.nodes)


def test_predictions_are_plain_logits_for_both_twins(tmp_path):
    qann = make_qann()
    snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=300)
    data = make_data(qann.config, 8)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    outputs = [Trainer(model, args).predict(data) for model in (qann, snn)]
    assert outputs[0].predictions.shape == (8, 5)
    assert (outputs[0].predictions == outputs[1].predictions).all()
    assert outputs[0].metrics["test_loss"] == outputs[1].metrics["test_loss"]


class TestText:
    """The same trainer on padded texts, as a tokenizer and its collator give them."""

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_training_with_a_teacher_learns_and_converts(self, tmp_path, architecture):
        ann = make_text_ann(architecture)
        qann = text_class("Quant", architecture).from_ann(ann, quantization_levels=8)
        data, collate = make_text_data(ann.config), text_collator(ann.config)
        args = make_args(tmp_path, num_train_epochs=15, bf16=True)
        trainer = QATTrainer(
            qann, args, teacher_model=ann, train_dataset=data, eval_dataset=data, data_collator=collate
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < before - 0.3
        snn = spiking_twin(qann, time_steps=500)
        certificate = verify_equivalence(qann, snn, collate(data[:6]))
        assert certificate.exact, str(certificate)

    @pytest.mark.parametrize("task", ["ForSequenceClassification", "ForTokenClassification"])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_padding_changes_neither_loss_nor_gradients(self, tmp_path, architecture, task):
        losses, gradients = [], []
        for extra in (0, 8):
            qann = make_text_qann(architecture, task, dtype=torch.float64)
            batch = make_texts(qann.config, [9, 4, 6], extra=extra)
            batch["labels"] = torch.tensor([0, 1, 2])
            if task == "ForTokenClassification":
                batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"] % 3, -100)
            teacher = make_text_ann(architecture, task, seed=5, dtype=torch.float64)
            trainer = QATTrainer(qann.train(), make_args(tmp_path), teacher_model=teacher, train_dataset=[batch])
            loss = trainer.compute_loss(qann, batch)
            loss.backward()
            losses.append(loss.item())
            gradients.append([p.grad for p in qann.parameters() if p.grad is not None])
        # The soft loss is in float32, whatever the model's type.
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))

    def test_soft_labels_of_several_labels_at_once(self, tmp_path):
        qann, teacher = make_text_qann("bert"), make_text_ann("bert", seed=5)
        batch = {**make_texts(qann.config, [4, 4]), "labels": torch.ones(2, 3)}
        trainer = QATTrainer(qann.train(), make_args(tmp_path), teacher_model=teacher, train_dataset=[batch])
        with pytest.raises(ValueError, match="problem_type says 'multi_label_classification'"):
            trainer.compute_loss(qann, batch)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_predictions_are_plain_logits_for_both_twins(self, tmp_path, architecture):
        qann = make_text_qann(architecture)
        snn = spiking_twin(qann, time_steps=400)
        data, collate = make_text_data(qann.config, 8), text_collator(qann.config)
        args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
        outputs = [Trainer(model, args, data_collator=collate).predict(data) for model in (qann, snn)]
        assert outputs[0].predictions.shape == (8, 3)
        assert (outputs[0].predictions == outputs[1].predictions).all()
        assert outputs[0].metrics["test_loss"] == outputs[1].metrics["test_loss"]


class TestRefusals:
    def test_training_a_spiking_model(self, tmp_path):
        snn = SpikeViTForImageClassification.from_quantized(make_qann())
        with pytest.raises(TypeError, match="QATTrainer trains Quant models, got SpikeViTForImageClassification"):
            QATTrainer(snn, make_args(tmp_path))

    def test_teacher_with_other_labels(self, tmp_path):
        with pytest.raises(ValueError, match="The teacher has 3 labels, the model 5"):
            QATTrainer(make_qann(), make_args(tmp_path), teacher_model=make_ann(num_labels=3))

    def test_plain_training_arguments(self, tmp_path):
        with pytest.raises(TypeError, match="args must be QATTrainingArguments, got TrainingArguments"):
            QATTrainer(make_qann(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))

    def test_soft_labels_of_a_regression(self, tmp_path):
        with pytest.raises(ValueError, match="Soft labels are for single-label classification"):
            QATTrainer(make_qann(num_labels=1), make_args(tmp_path), teacher_model=make_ann(num_labels=1))

    @pytest.mark.parametrize(
        "field",
        [
            {"distillation_weight": -1.0},
            {"distillation_temperature": 0.0},
            {"scale_learning_rate": 0.0},
            {"calibration_samples": 0},
            {"calibration_method": "max"},
            {"calibration_percentile": 0.0},
            {"calibration_percentile": 100.5},
            {"label_smoothing_factor": 1.0},
            {"distillation_form": "mse"},
            {"hidden_state_weight": -0.5},
            {"attention_weight": -0.5},
            {"mixup_alpha": -0.1},
            {"cutmix_alpha": -0.1},
            {"layer_decay": 0.0},
            {"layer_decay": 1.5},
            {"base_learning_rate": 0.0},
            {"total_train_batch_size": 12},
            {"total_train_batch_size": 0},
            {"warmup_epochs": 1.0},
            {"level_schedule": []},
            {"level_schedule": [64, 7]},
            {
                "level_schedule": [16],
                "load_best_model_at_end": True,
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
            },
            {"freeze_scales_after": 1.1},
            {"snn_eval_every": -1},
            {"snn_eval_samples": 0},
            {"snn_eval_time_steps": []},
            {"snn_eval_time_steps": [8, 0]},
        ],
    )
    def test_arguments(self, tmp_path, field):
        with pytest.raises(ValueError, match=next(iter(field))):
            make_args(tmp_path, **field)


def test_arguments_parse_from_the_command_line(tmp_path):
    (args,) = HfArgumentParser(QATTrainingArguments).parse_args_into_dataclasses(
        f"--output_dir {tmp_path} --distillation_temperature 4 --scale_learning_rate 1e-4 --level_schedule 64 32 "
        "--teacher_model org/teacher --snn_eval_time_steps 8".split()
    )
    assert (args.distillation_temperature, args.scale_learning_rate) == (4.0, 1e-4)
    assert (args.level_schedule, args.teacher_model, args.snn_eval_time_steps) == ([64, 32], "org/teacher", [8])


def test_every_argument_has_help():
    own = set(QATTrainingArguments.__dataclass_fields__) - set(TrainingArguments.__dataclass_fields__)
    assert len(own) > 15
    for name in own:
        assert len(QATTrainingArguments.__dataclass_fields__[name].metadata["help"]) > 20, name

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
from spikezip_hf.training.distillation import soft_label_loss
from spikezip_hf.models.quantization import MIN_SCALE
from spikezip_hf.training.optim import parameter_groups, scale_parameter_names
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


def make_data(config, count=24):
    images = make_images(config, count)
    return [{"pixel_values": image, "labels": torch.tensor(i % 5)} for i, image in enumerate(images)]


def make_args(tmp_path, **fields):
    defaults = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return QATTrainingArguments(**{**defaults, **fields})


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
        """Train one step; returns (batches, method, overwrite) of each call of calibrate."""
        calls, calibrate = [], type(qann).calibrate

        def spy(self, batches, method="mse", overwrite=True):
            batches = list(batches)
            calls.append((len(batches), method, overwrite))
            return calibrate(self, batches, method, overwrite)

        monkeypatch.setattr(type(qann), "calibrate", spy)
        args = make_args(tmp_path, learning_rate=0.0, max_steps=1, **fields)
        QATTrainer(qann, args, train_dataset=make_data(qann.config)).train()
        return calls

    def test_as_the_arguments_say(self, tmp_path, monkeypatch):
        qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
        calls = self.train(tmp_path, monkeypatch, qann, calibration_batches=2, calibration_method="lsq")
        assert calls == [(2, "lsq", False)]

    def test_scales_that_are_set_are_kept(self, tmp_path, monkeypatch):
        qann = QuantViTForImageClassification.from_ann(make_ann(), quantization_levels=8)
        qann.nodes[3].set_scale(torch.tensor([123.0]))
        self.train(tmp_path, monkeypatch, qann)
        assert qann.nodes[3].scale.item() == 123.0
        assert all(bool(node.initialized) for node in qann.nodes)

    def test_not_repeated(self, tmp_path, monkeypatch):
        assert self.train(tmp_path, monkeypatch, make_qann()) == []


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.25])
def test_loss_is_hard_labels_and_weighted_soft_labels(tmp_path, weight):
    qann, teacher = make_qann(), make_ann(seed=5)
    args = make_args(tmp_path, distillation_weight=weight, distillation_temperature=3.0)
    trainer = QATTrainer(qann, args, teacher_model=teacher, train_dataset=make_data(qann.config))
    images, labels = make_images(qann.config, 6), torch.arange(6) % 5
    logits = qann.train()(images).logits
    with torch.no_grad():
        soft = teacher(images).logits
    expected = torch.nn.functional.cross_entropy(logits, labels)
    p, q = (soft / 3).softmax(-1), (logits / 3).softmax(-1)
    expected = expected + weight * 9 * (p * (p / q).log()).sum(-1).mean()
    loss = trainer.compute_loss(qann, {"pixel_values": images, "labels": labels})
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # Evaluation is of the model alone.
    hard = trainer.compute_loss(qann.eval(), {"pixel_values": images, "labels": labels})
    assert hard.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_soft_label_loss_of_equal_logits_is_zero():
    logits = torch.randn(4, 7)
    assert soft_label_loss(logits, logits).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_gradient_accumulation_changes_nothing(tmp_path, accumulation):
    def losses_and_scales(steps):
        qann = make_qann()
        args = make_args(
            tmp_path,
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            max_grad_norm=0.0,
            optim="sgd",
            learning_rate=0.1,
            logging_steps=1,
            seed=3,
        )
        trainer = QATTrainer(qann, args, teacher_model=make_ann(seed=5), train_dataset=make_data(qann.config))
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return [float(loss) for loss in losses], torch.cat([p.detach().flatten() for p in qann.parameters()])

    (one, weights), (other, others) = losses_and_scales(1), losses_and_scales(accumulation)
    assert one == pytest.approx(other, rel=1e-3)  # Trainer logs rounded numbers
    # Steps of plain SGD on sums added up in another order (float32).
    assert torch.allclose(weights, others, rtol=0, atol=1e-5)


def test_parameter_groups():
    qann = make_qann()
    names = {name for name, _ in qann.named_parameters()}
    scales = scale_parameter_names(qann)
    assert scales == {name for name in names if name.endswith(".scale")}
    assert len(scales) == len(qann.nodes)
    decayed, of_scales = parameter_groups(qann, names, 0.05, scale_learning_rate=1e-4)
    assert decayed["weight_decay"] == 0.05
    assert (of_scales["weight_decay"], of_scales["lr"]) == (0.0, 1e-4)
    assert len(of_scales["params"]) == len(scales)
    assert len(decayed["params"]) + len(of_scales["params"]) == len(names)


def test_only_named_parameters_decay():
    qann = make_qann()
    weights = {name for name, _ in qann.named_parameters() if name.endswith("weight")}
    groups = parameter_groups(qann, weights | scale_parameter_names(qann), 0.05, scale_learning_rate=1e-4)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.0]
    assert ["lr" in group for group in groups] == [False, False, True]
    assert len(groups[0]["params"]) == len(weights)


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

    def make_data(self, config, count=24):
        texts = []
        for i in range(count):
            one = make_texts(config, [3 + i % 9], seed=i)
            texts.append({**{key: value[0] for key, value in one.items()}, "labels": i % 3})
        return texts

    def collate(self, config):
        def pad(examples):
            longest = max(len(example["input_ids"]) for example in examples)
            filler = {"input_ids": config.pad_token_id, "token_type_ids": 0, "attention_mask": 0}
            batch = {
                key: torch.stack(
                    [torch.nn.functional.pad(e[key], (0, longest - len(e[key])), value=value) for e in examples]
                )
                for key, value in filler.items()
            }
            return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}

        return pad

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_training_with_a_teacher_learns_and_converts(self, tmp_path, architecture):
        ann = make_text_ann(architecture)
        qann = text_class("Quant", architecture).from_ann(ann, quantization_levels=8)
        data, collate = self.make_data(ann.config), self.collate(ann.config)
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
        data, collate = self.make_data(qann.config, 8), self.collate(qann.config)
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
            {"calibration_batches": 0},
            {"calibration_method": "max"},
            {"label_smoothing_factor": 0.1},
        ],
    )
    def test_arguments(self, tmp_path, field):
        with pytest.raises(ValueError, match=next(iter(field))):
            make_args(tmp_path, **field)


def test_arguments_parse_from_the_command_line(tmp_path):
    (args,) = HfArgumentParser(QATTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--distillation_temperature", "4", "--scale_learning_rate", "1e-4"]
    )
    assert (args.distillation_temperature, args.scale_learning_rate) == (4.0, 1e-4)

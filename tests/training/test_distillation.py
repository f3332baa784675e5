"""The losses as functions, and the trainer's loss of one batch against them written out."""

import pytest
import torch
from torch.nn import functional as F

from spikezip_hf import DistillationTrainer, DistillationTrainingArguments, QATTrainer
from spikezip_hf.conversion.calibration import FloatEngine
from spikezip_hf.training.distillation import (
    attention_loss,
    focal_weight,
    hard_label_loss,
    hidden_state_loss,
    soft_label_loss,
)
from tests.conftest import ARCHITECTURES, make_ann, make_images, make_qann, make_text_ann, make_text_qann, make_texts
from tests.training.common import make_args, make_data


def test_soft_labels_of_equal_logits_cost_nothing():
    logits = torch.randn(4, 7, dtype=torch.float64)
    assert soft_label_loss(logits, logits).abs().max().item() == 0.0


def test_soft_labels_are_a_divergence_times_the_square_of_the_temperature():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    p, q = (teacher / 3).softmax(-1), (student / 3).softmax(-1)
    assert torch.allclose(soft_label_loss(student, teacher, 3.0), 9 * (p * (p / q).log()).sum(-1), atol=1e-5)


def test_hard_labels_are_smoothed():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    smooth = F.one_hot(labels, 5) * 0.9 + 0.1 / 5
    expected = -(smooth * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(hard_label_loss(logits, labels, 0.1), expected, atol=1e-6)
    assert torch.allclose(hard_label_loss(logits, smooth), expected, atol=1e-6)  # as probabilities, too


def test_focal_weight_is_small_where_the_student_knows_better():
    knows, guesses = torch.tensor([[6.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    label = torch.tensor([0])
    assert focal_weight(knows, guesses, label).item() < 0.01
    assert focal_weight(guesses, knows, label).item() > 0.99
    weight = focal_weight(guesses.requires_grad_(), guesses, label)
    assert weight.item() == pytest.approx(1 - 1 / torch.e, rel=1e-4)
    assert not weight.requires_grad


def test_the_focal_form_has_the_gradient_of_the_weighted_cross_entropy():
    """The paper's code weighs a cross-entropy, we a divergence: they differ by what the student cannot change."""
    teacher, labels = torch.randn(6, 5), torch.arange(6) % 5
    gradients = []
    for form in ("ours", "cross-entropy"):
        torch.manual_seed(1)
        student = torch.randn(6, 5, requires_grad=True)
        weight = focal_weight(student, teacher, labels)
        soft = soft_label_loss(student, teacher, 2.0)
        cross_entropy = -4 * ((teacher / 2).softmax(-1) * (student / 2).log_softmax(-1)).sum(-1)
        (weight * (soft if form == "ours" else cross_entropy)).mean().backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_hidden_states_and_attention_are_compared_token_by_token():
    student = [torch.zeros(2, 3, 4), torch.ones(2, 3, 4)]
    teacher = [torch.zeros(2, 3, 4), torch.ones(2, 3, 4)]
    teacher[1][1, 2] = 3.0
    expected = torch.zeros(2, 3)
    expected[1, 2] = 4.0 / 2  # squared difference 4, mean of two layers
    assert torch.equal(hidden_state_loss(student, teacher), expected)
    uniform, sure = torch.full((1, 2, 3, 4), 0.25), torch.zeros(1, 2, 3, 4)
    sure[..., 0] = 1.0
    assert torch.allclose(attention_loss([uniform], [sure]), torch.full((1, 3), 0.75**2 + 3 * 0.25**2))


@pytest.mark.parametrize("architecture", ["vit", *ARCHITECTURES])
def test_layers_of_a_student_line_up_with_its_teachers(architecture):
    """Without quantizers the two networks are one, so hidden states and attention are the same, each in place."""
    if architecture == "vit":
        ann, qann = make_ann(), make_qann()
        batch = {"pixel_values": make_images(ann.config, 3)}
    else:
        ann, qann = make_text_ann(architecture), make_text_qann(architecture)
        batch = make_texts(ann.config, [5, 5, 5])
    ann.set_attn_implementation("eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    teacher, student = ann(**batch, **wanted), qann.eval()(**batch, **wanted, engine=FloatEngine())
    assert len(student.hidden_states) == len(teacher.hidden_states) == 3
    # Float32 sums in another order.
    assert hidden_state_loss(student.hidden_states, teacher.hidden_states).max() < 1e-9
    assert attention_loss(student.attentions, teacher.attentions).max() < 1e-9


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_hard_labels_and_weighted_soft_labels(tmp_path, weight, smoothing):
    qann, teacher = make_qann(), make_ann(seed=5)
    args = make_args(
        tmp_path, distillation_weight=weight, distillation_temperature=3.0, label_smoothing_factor=smoothing
    )
    trainer = QATTrainer(qann, args, teacher_model=teacher, train_dataset=make_data(qann.config))
    images, labels = make_images(qann.config, 6), torch.arange(6) % 5
    logits = qann.train()(images).logits
    with torch.no_grad():
        soft = teacher(images).logits
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    p, q = (soft / 3).softmax(-1), (logits / 3).softmax(-1)
    expected = expected + weight * 9 * (p * (p / q).log()).sum(-1).mean()
    loss = trainer.compute_loss(qann, {"pixel_values": images, "labels": labels})
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # Evaluation is of the model alone, and of labels as they are.
    hard = trainer.compute_loss(qann.eval(), {"pixel_values": images, "labels": labels})
    assert hard.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["vit", "bert"])
def test_all_parts_are_weighed_and_logged(tmp_path, architecture):
    if architecture == "vit":
        qann, teacher, data, collate = make_qann(), make_ann(seed=5), make_data(make_ann().config, 8), None
    else:
        from tests.training.common import make_text_data, text_collator

        qann, teacher = make_text_qann("bert"), make_text_ann("bert", seed=5)
        data, collate = make_text_data(qann.config, 8), text_collator(qann.config)
    args = make_args(
        tmp_path,
        distillation_form="focal",
        distillation_weight=0.5,
        hidden_state_weight=0.25,
        attention_weight=2.0,
        logging_steps=1,
        learning_rate=0.0,
    )
    trainer = QATTrainer(qann, args, teacher_model=teacher, train_dataset=data, data_collator=collate)
    trainer.train()
    entry = trainer.state.log_history[0]
    hard, soft, hidden, attention = (
        float(entry[f"{name}_loss"]) for name in ("hard_label", "soft_label", "hidden_state", "attention")
    )
    assert min(hard, soft, hidden, attention) > 0
    assert float(entry["loss"]) == pytest.approx(hard + 0.5 * soft + 0.25 * hidden + 2 * attention, rel=1e-3)


def test_padding_moves_no_part(tmp_path):
    qann, teacher = make_text_qann("bert"), make_text_ann("bert", seed=5)
    args = make_args(tmp_path, hidden_state_weight=1.0, attention_weight=1.0)
    trainer = QATTrainer(qann.train(), args, teacher_model=teacher, train_dataset=[None])
    labels = torch.tensor([0, 1, 2])
    parts = [
        trainer.parts_of(qann, {**make_texts(qann.config, [4, 9, 6], extra=extra), "labels": labels})[0]
        for extra in (0, 7)
    ]
    for name, part in parts[0].items():
        assert part.item() == pytest.approx(parts[1][name].item(), rel=1e-5), name


class TestMixing:
    def loss(self, tmp_path, **fields):
        qann = make_qann().train()
        trainer = QATTrainer(qann, make_args(tmp_path, **fields), train_dataset=make_data(qann.config))
        seen = []
        qann.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
        images, labels = make_images(qann.config, 6), torch.arange(6) % 5
        loss = trainer.compute_loss(qann, {"pixel_values": images, "labels": labels})
        return loss, images, seen[0], qann

    def test_mixup_blends_images_and_labels(self, tmp_path):
        loss, images, seen, qann = self.loss(tmp_path, mixup_alpha=0.8)
        mixed = seen["pixel_values"]
        share = ((mixed[0] - images[5]) / (images[0] - images[5])).mean()  # torchvision blends with the sample before
        assert 0 < share < 1
        assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-4)
        labels = F.one_hot(torch.arange(6) % 5, 5).float()
        soft = share * labels + (1 - share) * labels.roll(1, 0)
        expected = -(soft * qann(mixed).logits.log_softmax(-1)).sum(-1).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_cutmix_pastes_a_rectangle(self, tmp_path):
        torch.manual_seed(3)
        _, images, seen, _ = self.loss(tmp_path, cutmix_alpha=1.0)
        own, pasted = seen["pixel_values"] == images, seen["pixel_values"] == images.roll(1, 0)
        assert bool((own | pasted).all())
        assert bool(pasted.any())

    def test_evaluation_is_not_mixed(self, tmp_path):
        qann = make_qann().eval()
        args = make_args(tmp_path, mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing_factor=0.1)
        trainer = QATTrainer(qann, args, train_dataset=make_data(qann.config))
        images, labels = make_images(qann.config, 6), torch.arange(6) % 5
        loss = trainer.compute_loss(qann, {"pixel_values": images, "labels": labels})
        assert loss.item() == pytest.approx(F.cross_entropy(qann(images).logits, labels).item(), rel=1e-6)

    def test_text_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="mixup_alpha and cutmix_alpha are for images"):
            QATTrainer(make_text_qann("bert"), make_args(tmp_path, mixup_alpha=0.8))


class TestTeacher:
    def test_by_folder(self, tmp_path):
        make_ann(seed=5).save_pretrained(tmp_path / "teacher")
        args = make_args(tmp_path, teacher_model=str(tmp_path / "teacher"))
        trainer = QATTrainer(make_qann(), args, train_dataset=make_data(make_ann().config))
        images = make_images(make_ann().config, 2)
        assert torch.equal(trainer.teacher(images).logits, make_ann(seed=5)(images).logits)

    def test_of_another_depth(self, tmp_path):
        for field in ("hidden_state_weight", "attention_weight"):
            with pytest.raises(ValueError, match="num_hidden_layers of the teacher is 3, of the model 2"):
                QATTrainer(
                    make_qann(), make_args(tmp_path, **{field: 1.0}), teacher_model=make_ann(num_hidden_layers=3)
                )

    def test_of_another_depth_is_fine_for_soft_labels(self, tmp_path):
        qann = make_qann()
        trainer = QATTrainer(qann, make_args(tmp_path), teacher_model=make_ann(num_hidden_layers=3))
        batch = {"pixel_values": make_images(qann.config, 2), "labels": torch.tensor([0, 1])}
        assert trainer.compute_loss(qann.train(), batch).isfinite()

    def test_with_labels_in_another_order(self, tmp_path):
        names = {"id2label": dict(enumerate("abcde")), "label2id": {x: i for i, x in enumerate("abcde")}}
        other = {"id2label": dict(enumerate("edcba")), "label2id": {x: i for i, x in enumerate("edcba")}}
        with pytest.raises(ValueError, match="labels of the model in another order"):
            QATTrainer(make_qann(**names), make_args(tmp_path), teacher_model=make_ann(**other))

    def test_for_regression_without_soft_labels(self, tmp_path):
        """Hidden states can be learned from whatever the task."""
        qann, teacher = make_qann(num_labels=1), make_ann(num_labels=1, seed=5)
        args = make_args(tmp_path, distillation_weight=0.0, hidden_state_weight=1.0)
        trainer = QATTrainer(qann.train(), args, teacher_model=teacher)
        batch = {"pixel_values": make_images(qann.config, 4), "labels": torch.randn(4)}
        parts, _ = trainer.parts_of(qann, batch)
        assert set(parts) == {"hard_label_loss", "hidden_state_loss"}


def test_an_ordinary_network_learns_from_a_teacher_too(tmp_path):
    ann, teacher = make_ann(), make_ann(seed=5)
    args = make_args(tmp_path, DistillationTrainingArguments, num_train_epochs=20, layer_decay=0.8, mixup_alpha=0.2)
    data = make_data(ann.config)
    trainer = DistillationTrainer(ann, args, teacher_model=teacher, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.3

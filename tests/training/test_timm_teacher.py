"""timm's networks as teachers: bare, wrapped by transformers, and in a folder."""

import pytest
import torch
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

timm = pytest.importorskip("timm", reason="timm is not installed")

from spikezip_hf import DistillationTrainer, DistillationTrainingArguments, QATTrainer  # noqa: E402
from spikezip_hf.training.optim import layer_id, parameter_groups  # noqa: E402
from tests.conftest import make_ann, make_qann  # noqa: E402
from tests.training.common import make_args, make_data  # noqa: E402

SHAPE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


def bare(num_classes=5):
    torch.manual_seed(1)
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **SHAPE)


def wrapped(**fields):
    torch.manual_seed(1)
    config = TimmWrapperConfig(
        **{"architecture": "vit_tiny_patch16_224", "num_labels": 5, "model_args": SHAPE, **fields}
    )
    return TimmWrapperForImageClassification(config)


def teacher_of(kind, tmp_path):
    if kind == "bare":
        return bare()
    if kind == "wrapped":
        return wrapped()
    wrapped().save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.mark.parametrize("kind", ["bare", "wrapped", "folder"])
def test_one_step(kind, tmp_path):
    qann = make_qann()
    before = qann.classifier.weight.detach().clone()
    data = make_data(qann.config, 8)
    teacher = teacher_of(kind, tmp_path)
    args = make_args(tmp_path, distillation_weight=2.0, distillation_temperature=3.0, logging_steps=1)
    trainer = QATTrainer(qann, args, train_dataset=data, teacher_model=teacher)
    assert not trainer.teacher.training
    images = torch.stack([one["pixel_values"] for one in data])
    with torch.no_grad():
        expected = (bare() if kind == "bare" else wrapped().timm_model).eval()(images)
        assert torch.equal(trainer.teacher(pixel_values=images).logits, expected)
    trainer.train()
    assert not torch.equal(qann.classifier.weight, before)
    assert trainer.state.log_history[0]["soft_label_loss"] > 0


def test_a_student_that_is_no_quant_model(tmp_path):
    args = make_args(tmp_path, DistillationTrainingArguments)
    student = make_ann()
    trainer = DistillationTrainer(student, args, train_dataset=make_data(student.config, 8), teacher_model=bare())
    trainer.train()
    assert trainer.state.global_step == 1


class TestErrors:
    def test_other_number_of_labels(self, tmp_path):
        for teacher in (bare(3), wrapped(num_labels=3)):
            with pytest.raises(ValueError, match="The teacher has 3 labels, the model 5"):
                QATTrainer(make_qann(), make_args(tmp_path), teacher_model=teacher)

    def test_no_head(self, tmp_path):
        with pytest.raises(ValueError, match="num_classes=0, no head"):
            QATTrainer(make_qann(), make_args(tmp_path), teacher_model=bare(0))

    @pytest.mark.parametrize("weight", ["hidden_state_weight", "attention_weight"])
    def test_nothing_inside_to_compare(self, weight, tmp_path):
        for teacher in (bare(), wrapped()):
            with pytest.raises(ValueError, match="A timm teacher has no hidden states"):
                QATTrainer(make_qann(), make_args(tmp_path, **{weight: 1.0}), teacher_model=teacher)

    def test_labels_in_another_order(self, tmp_path):
        names = [f"LABEL_{index}" for index in (1, 0, 2, 3, 4)]
        teacher = wrapped(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
        with pytest.raises(ValueError, match="labels of the model in another order"):
            QATTrainer(make_qann(), make_args(tmp_path), teacher_model=teacher)


class TestLayers:
    def test_depth_is_that_of_transformers_names(self):
        names = {
            "timm_model.cls_token": 0,
            "timm_model.pos_embed": 0,
            "timm_model.patch_embed.proj.weight": 0,
            "timm_model.blocks.0.norm1.weight": 1,
            "timm_model.blocks.2.attn.qkv.weight": 3,
            "timm_model.norm.weight": 3,
            "timm_model.fc_norm.weight": 4,
            "timm_model.head.weight": 4,
        }
        assert {name: layer_id(name, 3) for name in names} == names

    def test_layers_are_counted_where_the_config_does_not_say(self):
        model = wrapped(model_args={**SHAPE, "depth": 3})
        groups = parameter_groups(
            model, decay_names=[], learning_rate=1.0, weight_decay=0.0, scale_learning_rate=None, layer_decay=0.5
        )
        assert sorted(group["lr"] for group in groups) == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]

"""A training ends where something stops being finite, with its step and place, and nothing of it is saved."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from spikezip_hf import DistillationTrainer, DistillationTrainingArguments, QATTrainer, QATTrainingArguments
from spikezip_hf.training.non_finite import broken_gradients
from tests.conftest import make_ann, make_qann
from tests.training.common import make_args, make_data

KINDS = {
    "distillation": (DistillationTrainer, DistillationTrainingArguments, make_ann),
    "qat": (QATTrainer, QATTrainingArguments, make_qann),
}
NAN = float("nan")


class At(TrainerCallback):
    """Does something to the model as a step, from 1, begins."""

    def __init__(self, step, harm):
        self.step, self.harm = step, harm

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                self.harm(model)


def make_trainer(folder, kind, harm=None, data=None, step=3, **fields):
    trainer_class, args_class, make = KINDS[kind]
    model = make()
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
    teacher = fields.pop("teacher_model", None)
    return trainer_class(
        model,
        make_args(folder, args_class, **{**settings, **fields}),
        teacher_model=teacher,
        train_dataset=make_data(model.config) if data is None else data,
        callbacks=[At(step, harm)] if harm else None,
    )


def finite(model):
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def saved(folder):
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("accumulated", [1, 2])
def test_poisoned_weight(tmp_path, kind, accumulated):
    def poison(model):
        model.vit.layers[1].mlp.fc1.weight[3, 2] = NAN

    trainer = make_trainer(tmp_path, kind, poison, gradient_accumulation_steps=accumulated)
    with pytest.raises(FloatingPointError, match=r"Step 3: the loss is nan; the parameter vit\.\S+fc1\.weight is"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert saved(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_poisoned_sample(tmp_path, kind):
    """One NaN pixel, in a micro-batch that is not the first of its step: the weights stay."""
    data = make_data(make_ann().config)
    data[5]["pixel_values"] = data[5]["pixel_values"].clone()
    data[5]["pixel_values"][0, 2, 2] = NAN
    trainer = make_trainer(tmp_path, kind, data=data, gradient_accumulation_steps=3, logging_nan_inf_filter=False)
    with pytest.raises(FloatingPointError, match=r"pixel_values of the batch is not finite in row \d \(from 0\)"):
        trainer.train()
    assert finite(trainer.model)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_huge_learning_rate(tmp_path, kind, optim):
    """Without a word from Trainer, which would log a loss of 0 to the end."""
    trainer = make_trainer(tmp_path, kind, learning_rate=1e30, optim=optim, max_grad_norm=0.0)
    with pytest.raises(FloatingPointError, match=r"(Step|After step) \d"):
        trainer.train()
    for path in tmp_path.glob("checkpoint-*"):
        assert finite(KINDS[kind][2]().from_pretrained(path))


def test_module_is_named(tmp_path):
    """Finite weights whose products are not."""

    def overflow(model):
        model.vit.layers[0].mlp.fc2.weight.mul_(3e38)

    trainer = make_trainer(tmp_path, "distillation", overflow)
    with pytest.raises(FloatingPointError, match=r"output that is not finite is that of vit\.layers\.0\.mlp\.fc2"):
        trainer.train()


def test_node_is_named(tmp_path):
    """Behind a product that overflows a node clips, unless its scale does, too; NaN goes through all nodes."""

    def overflow(model):
        model.vit.layers[0].mlp.fc2.weight.mul_(3e38)
        model.vit.layers[0].mlp.output_node.scale.fill_(3e38)

    with pytest.raises(FloatingPointError) as stopped:
        make_trainer(tmp_path, "qat", overflow).train()
    assert "is that of vit.layers.0.mlp.fc2 (" in str(stopped.value)
    assert "and the first node it reaches is vit.layers.0.mlp.output_node." in str(stopped.value)


def test_gradient_of_a_scale_is_named(tmp_path):
    """A node clips what is infinite ahead of it: the loss is finite, and what its scale learns is not."""

    def overflow(model):
        norm = model.vit.layers[0].layernorm_before
        norm.weight.fill_(3e38)
        norm.bias.fill_(-3e38)

    with pytest.raises(FloatingPointError, match=r"Step 3: .*the gradient of \S+layernorm_before_node\.scale is"):
        make_trainer(tmp_path, "qat", overflow).train()


def test_teacher_is_named(tmp_path, kind):
    teacher = make_ann(seed=5)
    with torch.no_grad():
        teacher.classifier.weight[0, 0] = NAN
    trainer = make_trainer(tmp_path, kind, teacher_model=teacher)
    with pytest.raises(FloatingPointError, match=r"Step 1: .*is that of the teacher's classifier \(Linear\)"):
        trainer.train()
    assert finite(trainer.model)


def test_the_loss_itself(tmp_path, kind):
    """All values are finite, and a weight of the loss makes it overflow."""
    trainer = make_trainer(tmp_path, kind, teacher_model=make_ann(seed=5), distillation_weight=1e39)
    with pytest.raises(FloatingPointError, match=r"the loss is inf; all .* of the loss itself soft_label_loss"):
        trainer.train()


@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_gradient_alone(tmp_path, kind, clipping):
    trainer = make_trainer(tmp_path, kind, max_grad_norm=clipping)
    trainer.model.classifier.bias.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"Step 1: .*the gradient of classifier\.bias is not finite \(1 of"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_scaler_of_fp16_skips_such_steps_by_itself(tmp_path, kind):
    """As it finds its scale, which begins too high."""
    trainer = make_trainer(tmp_path, kind, max_steps=4)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, backoff_factor=2.0**-50)
    calls = []

    def in_half_precision(gradient):
        calls.append(1)
        return gradient.half().to(gradient.dtype)

    trainer.model.classifier.bias.register_hook(in_half_precision)
    before = trainer.model.classifier.bias.detach().clone()
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() < 2.0**100  # steps were skipped
    assert not torch.equal(trainer.model.classifier.bias, before)  # and others not
    assert finite(trainer.model)


def test_gradient_too_large_for_its_norm(tmp_path):
    """Its square overflows: Trainer would clip all gradients to 0, and learn nothing for ever."""
    trainer = make_trainer(tmp_path, "distillation")
    with torch.no_grad():
        trainer.model.vit.layernorm.weight.mul_(1e-38)
        trainer.model.classifier.weight.mul_(1e38)
    with pytest.raises(FloatingPointError, match=r"gradient of vit\.layernorm\.weight is too large for its norm"):
        trainer.train()


def test_what_is_finite_is_left_alone():
    model = torch.nn.Linear(2, 2)
    assert broken_gradients(model) is None  # none yet
    model(torch.ones(1, 2)).sum().backward()
    assert broken_gradients(model) is None


def test_last_step_too_many(tmp_path, kind):
    """Nobody looks at the loss after it."""

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.classifier.bias[0] = NAN

    trainer = make_trainer(tmp_path, kind, max_steps=1, save_strategy="no")
    trainer.add_callback(Spoil())
    trainer.train()
    with pytest.raises(FloatingPointError, match=r"After step 1, the parameter classifier\.bias is not finite"):
        trainer.save_model(str(tmp_path / "end"))
    assert not (tmp_path / "end").exists()

"""Loss and gradients do not depend on how a step's samples are spread over micro-batches, or padded."""

import pytest
import torch
from torch.utils.data import Dataset

from spikezip_hf import QATTrainer
from tests.conftest import ARCHITECTURES, make_ann, make_qann, make_text_ann, make_text_qann
from tests.training.common import make_args, make_data, make_text_data, text_collator


class Gradients(QATTrainer):
    """Notes the gradients of each step instead of taking it."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        self.gradients: list[dict[str, torch.Tensor]] = []

        def note(optimizer, args, kwargs):
            named = self.model.named_parameters()
            self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

        optimizer.register_step_pre_hook(note)
        return optimizer


def run(tmp_path, qann, teacher, data: Dataset, steps: int, total: int, collate=None, **fields):
    """Losses of an epoch and gradients of its steps, `total` samples a step, in `steps` micro-batches."""
    args = make_args(
        tmp_path,
        per_device_train_batch_size=total // steps,
        gradient_accumulation_steps=steps,
        max_grad_norm=0.0,
        learning_rate=0.0,
        logging_steps=1,
        seed=3,
        hidden_state_weight=0.5,
        attention_weight=0.5,
        label_smoothing_factor=0.1,
        distillation_form="focal",
        **fields,
    )
    trainer = Gradients(qann, args, teacher_model=teacher, train_dataset=data, data_collator=collate)
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.gradients


def assert_same(one, other) -> None:
    (losses, gradients), (other_losses, other_gradients) = one, other
    assert len(gradients) == len(other_gradients) == len(losses) > 1
    assert losses == pytest.approx(other_losses, rel=1e-5)
    for step, other_step in zip(gradients, other_gradients, strict=True):
        assert set(step) == set(other_step)
        assert any(name.endswith(".scale") for name in step)
        for name, gradient in step.items():
            # Float64 sums in another order; soft losses are computed in float32.
            assert torch.allclose(gradient, other_step[name], rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("steps", [2, 4])
def test_images(tmp_path, steps):
    """22 samples, 8 to a step: the last step has 6, in micro-batches of 4 and 2, or 2, 2 and 2."""
    data = [{**x, "pixel_values": x["pixel_values"].double()} for x in make_data(make_ann().config, 22)]

    def one(steps):
        qann, teacher = make_qann(dtype=torch.float64), make_ann(seed=5, dtype=torch.float64)
        return run(tmp_path, qann, teacher, data, steps, 8)

    assert_same(one(1), one(steps))


@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_however_padded(tmp_path, architecture, steps, extra):
    if (steps, extra) == (1, 0):
        pytest.skip("what the others are compared with")
    config = make_text_ann(architecture).config
    data = make_text_data(config, 22)

    def one(steps, extra):
        qann = make_text_qann(architecture, dtype=torch.float64)
        teacher = make_text_ann(architecture, seed=5, dtype=torch.float64)
        return run(tmp_path, qann, teacher, data, steps, 8, text_collator(config, extra))

    assert_same(one(1, 0), one(steps, extra))


def test_tokens_with_uneven_labels(tmp_path):
    """Micro-batches with many and with few labelled tokens: each token counts the same."""
    config = make_text_ann("bert", "ForTokenClassification").config
    data = make_text_data(config, 22)
    for index, example in enumerate(data):
        labels = example["input_ids"] % 3
        labels[index % 3 :] = -100 if index % 2 else labels[index % 3 :]
        example["labels"] = labels

    def collate(examples):
        batch = text_collator(config)([{**example, "labels": 0} for example in examples])
        width = batch["input_ids"].shape[1]
        labels = [
            torch.nn.functional.pad(example["labels"], (0, width - len(example["labels"])), value=-100)
            for example in examples
        ]
        return {**batch, "labels": torch.stack(labels)}

    def one(steps):
        qann = make_text_qann("bert", "ForTokenClassification", dtype=torch.float64)
        teacher = make_text_ann("bert", "ForTokenClassification", seed=5, dtype=torch.float64)
        return run(tmp_path, qann, teacher, data, steps, 8, collate)

    assert_same(one(1), one(4))


def test_a_micro_batch_without_any_label(tmp_path):
    config = make_text_ann("bert", "ForTokenClassification").config
    batch = text_collator(config)(make_text_data(config, 2))
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    qann = make_text_qann("bert", "ForTokenClassification").train()
    teacher = make_text_ann("bert", "ForTokenClassification", seed=5)
    args = make_args(tmp_path, hidden_state_weight=1.0)
    trainer = QATTrainer(qann, args, teacher_model=teacher, train_dataset=[batch])
    loss = trainer.compute_loss(qann, batch, num_items_in_batch=torch.tensor(7))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in qann.parameters())

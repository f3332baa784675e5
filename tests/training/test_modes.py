"""The ways to run a training that Trainer offers give what the plain one gives, or nearly so in lower precision."""

import shutil

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from spikezip_hf import DistillationTrainer, DistillationTrainingArguments, QATTrainer, verify_equivalence
from spikezip_hf.training.snn_evaluation import evenly_spread
from tests.conftest import make_ann, make_images, make_qann, make_text_ann, make_text_qann, spiking_twin
from tests.training.common import make_args, make_data, make_text_data, text_collator

# transformers 5.23 has a new name for it, and warns at the old one.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def train(tmp_path, text: bool = False, **fields):
    """Ten steps with a teacher; (the model, losses)."""
    fields = {"max_steps": 10, "logging_steps": 1, "optim": "sgd", "learning_rate": 0.05, **fields}
    if text:
        qann, teacher = make_text_qann("bert"), make_text_ann("bert", seed=5)
        data, collate = make_text_data(qann.config, 32), text_collator(qann.config)
    else:
        qann, teacher, data, collate = make_qann(), make_ann(seed=5), make_data(make_ann().config, 32), None
    args = make_args(tmp_path, **fields)
    trainer = QATTrainer(qann, args, teacher_model=teacher, train_dataset=data, data_collator=collate)
    trainer.train()
    return qann, [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def batch_for(qann):
    if hasattr(qann, "vit"):
        return {"pixel_values": make_images(qann.config, 4)}
    return text_collator(qann.config)(make_text_data(qann.config, 4))


@pytest.mark.parametrize("text", [False, True], ids=["images", "texts"])
def test_gradient_checkpointing_changes_nothing(tmp_path, text):
    plain, losses = train(tmp_path, text)
    checkpointed, others = train(tmp_path, text, **{CHECKPOINTING: True})
    assert losses == others
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("text", [False, True], ids=["images", "texts"])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_mixed_precision_learns_alike_and_leaves_an_exact_pair(tmp_path, kind, text):
    if kind == "fp16" and not torch.cuda.is_available():
        # Trainer's scaler for fp16 is CUDA's; on a CPU the autocast alone is tried, below.
        pytest.skip("fp16 training needs a GPU")
    _, losses = train(tmp_path, text)
    qann, others = train(tmp_path, text, **{kind: True})
    # Levels jump where bfloat16 rounds, so the losses are alike and not equal.
    assert sum(losses) / 10 == pytest.approx(sum(others) / 10, abs=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in qann.parameters())
    certificate = verify_equivalence(qann, spiking_twin(qann, time_steps=500), batch_for(qann))
    assert certificate.exact, str(certificate)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast_reach_every_parameter(dtype):
    qann = make_qann()
    with torch.autocast("cpu", dtype):
        loss = qann(make_images(qann.config, 8), labels=torch.arange(8) % 5).loss
    loss.backward()
    for name, parameter in qann.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_group_by_length(tmp_path):
    _, losses = train(tmp_path, text=True, train_sampling_strategy="group_by_length")
    assert len(losses) == 10
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("text", [False, True], ids=["images", "texts"])
def test_compiled(tmp_path, text):
    """Compiled code may round differently, and a level may then jump: losses are alike and not equal."""
    _, losses = train(tmp_path, text)
    qann, others = train(tmp_path, text, torch_compile=True)
    assert losses == pytest.approx(others, abs=0.05)
    assert not any("_orig_mod" in name for name in qann.state_dict())


class TestEvaluationOfTheSpikingNetwork:
    def trainer(self, tmp_path, **fields):
        qann = make_qann()
        data = make_data(qann.config, 16)
        args = make_args(
            tmp_path,
            num_train_epochs=4,
            eval_strategy="epoch",
            snn_eval_every=2,
            snn_eval_samples=8,
            snn_eval_time_steps=[4, 200],
            **fields,
        )
        return QATTrainer(qann, args, train_dataset=data, eval_dataset=data)

    def test_every_second_time(self, tmp_path):
        trainer = self.trainer(tmp_path)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "eval_snn_T4_accuracy" in entry]
        assert [entry["epoch"] for entry in logged] == [2.0, 4.0]
        assert all(entry["eval_snn_at_equilibrium"] == 1.0 for entry in logged)

    def test_its_answers_are_those_of_the_network_trained(self, tmp_path):
        trainer = self.trainer(tmp_path, learning_rate=0.0)
        metrics = trainer.evaluate()
        assert "eval_snn_T200_accuracy" not in metrics  # the first evaluation of two
        metrics = trainer.evaluate()
        chosen = evenly_spread(trainer.eval_dataset, 8)
        images = torch.stack([example["pixel_values"] for example in chosen])
        labels = torch.stack([example["labels"] for example in chosen])
        expected = (trainer.qann.eval()(images).logits.argmax(-1) == labels).double().mean().item()
        assert metrics["eval_snn_T200_accuracy"] == pytest.approx(expected)

    def test_training_is_the_same_with_and_without(self, tmp_path):
        weights = []
        for every in (0, 1):
            trainer = self.trainer(tmp_path)
            trainer.args.snn_eval_every = every
            trainer.train()
            weights.append(torch.cat([p.detach().flatten() for p in trainer.qann.parameters()]))
        assert torch.equal(*weights)

    def test_the_best_model_can_be_chosen_by_it(self, tmp_path):
        trainer = self.trainer(
            tmp_path, save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="snn_T200_accuracy"
        )
        trainer.args.snn_eval_every = 1
        trainer.train()
        best = max(
            entry["eval_snn_T200_accuracy"] for entry in trainer.state.log_history if "eval_snn_T200_accuracy" in entry
        )
        assert trainer.state.best_metric == best

    def test_of_tokens(self, tmp_path):
        qann = make_text_qann("bert", "ForTokenClassification")
        data = make_text_data(qann.config, 6)
        for example in data:
            example["labels"] = [int(x) % 3 for x in example["input_ids"]]

        def collate(examples):
            batch = text_collator(qann.config)([{**example, "labels": 0} for example in examples])
            width = batch["input_ids"].shape[1]
            batch["labels"] = torch.tensor([e["labels"] + [-100] * (width - len(e["labels"])) for e in examples])
            return batch

        shapes = []

        def compute_metrics(prediction):
            shapes.append((prediction.predictions.shape, int((prediction.label_ids != -100).sum())))
            labelled = prediction.label_ids != -100
            return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids)[labelled].mean()}

        args = make_args(tmp_path, snn_eval_every=1, snn_eval_time_steps=[300], per_device_eval_batch_size=4)
        trainer = QATTrainer(qann, args, train_dataset=data, eval_dataset=data, data_collator=collate)
        trainer.compute_metrics = compute_metrics
        metrics = trainer.evaluate()
        batch = collate(data)
        labelled = batch["labels"] != -100
        answers = qann.eval()(**{key: x for key, x in batch.items() if key != "labels"}).logits.argmax(-1)
        tokens = int(labelled.sum())
        assert shapes == [((6, batch["labels"].shape[1], 3), tokens)] * 2  # of the quantized network, then of its twin
        expected = (answers == batch["labels"])[labelled].double().mean().item()
        assert metrics["eval_snn_T300_accuracy"] == pytest.approx(expected)

    def test_a_stream_is_refused(self):
        with pytest.raises(ValueError, match="this one is a stream"):
            evenly_spread(iter([]), 3)


def test_early_stopping(tmp_path):
    qann = make_qann()
    data = make_data(qann.config, 16)
    args = make_args(
        tmp_path,
        num_train_epochs=50,
        learning_rate=0.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer = QATTrainer(
        qann, args, train_dataset=data, eval_dataset=data, callbacks=[EarlyStoppingCallback(early_stopping_patience=2)]
    )
    trainer.train()
    assert trainer.state.epoch == 3.0


def test_reports_get_the_parts_of_the_loss(tmp_path):
    """What report_to integrations see is what callbacks are given."""

    class Report(TrainerCallback):
        seen: list[dict] = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    qann = make_qann()
    args = make_args(tmp_path, logging_steps=1, max_steps=2)
    report = Report()
    QATTrainer(
        qann, args, teacher_model=make_ann(seed=5), train_dataset=make_data(qann.config), callbacks=[report]
    ).train()
    assert {"loss", "hard_label_loss", "soft_label_loss"} <= set(report.seen[0])


def test_evaluating_in_mixed_precision_leaves_the_model_exact(tmp_path):
    """accelerate wraps forward in autocast; evaluate and predict without a training take it off again, too."""
    qann = make_qann(levels=32)
    data = make_data(qann.config, 8)
    images = make_images(qann.config, 4)
    expected = qann.eval()(images).logits
    trainer = QATTrainer(qann, make_args(tmp_path, bf16=True), train_dataset=data, eval_dataset=data)
    trainer.evaluate()
    assert torch.equal(qann(images).logits, expected)
    trainer.predict(data)
    assert torch.equal(qann(images).logits, expected)


def test_the_best_of_transformers_own_vit_is_loaded_whole(tmp_path):
    """transformers saves its ViT under other names than it has; Trainer alone would load nothing, without a word."""
    ann = make_ann()
    data = make_data(ann.config, 16)
    args = make_args(
        tmp_path,
        DistillationTrainingArguments,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        greater_is_better=True,  # of the loss: the first epoch's, not what is in memory at the end
    )
    trainer = DistillationTrainer(ann, args, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.state.best_model_checkpoint != str(tmp_path / "checkpoint-6")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_parts_of_the_loss_are_right_after_resuming_and_training_again(tmp_path):
    qann = make_qann()
    fields = {"max_steps": 8, "logging_steps": 8, "save_strategy": "steps", "save_steps": 6, "learning_rate": 0.0}
    data = make_data(qann.config, 8)
    trainer = QATTrainer(qann, make_args(tmp_path, **fields), teacher_model=make_ann(seed=5), train_dataset=data)
    for resume in (None, str(tmp_path / "checkpoint-6"), None):
        trainer.train(resume_from_checkpoint=resume)
        entry = [entry for entry in trainer.state.log_history if "hard_label_loss" in entry][-1]
        total = float(entry["hard_label_loss"]) + float(entry["soft_label_loss"])
        if resume is None:
            whole = total
            assert float(entry["loss"]) == pytest.approx(total, rel=1e-3)
        assert total == pytest.approx(whole, rel=1e-3)


def test_an_optimizer_of_ones_own_gets_our_groups(tmp_path):
    qann = make_qann()
    args = make_args(tmp_path, scale_learning_rate=1e-5)
    trainer = QATTrainer(
        qann, args, train_dataset=make_data(qann.config), optimizer_cls_and_kwargs=(torch.optim.SGD, {"momentum": 0.5})
    )
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-5}

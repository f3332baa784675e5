"""A newest checkpoint that is not whole is passed over with a warning; one that was named is an error."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers.utils import logging

from spikezip_hf import DistillationTrainer, DistillationTrainingArguments, QATTrainer, QATTrainingArguments
from spikezip_hf.recipes import stage
from spikezip_hf.training.resuming import check_whole, newest_whole
from tests.conftest import make_ann, make_qann
from tests.training.common import make_args, make_data

KINDS = {
    "distillation": (DistillationTrainer, DistillationTrainingArguments, make_ann),
    "qat": (QATTrainer, QATTrainingArguments, make_qann),
}
STEPS = 3


def make_trainer(folder, kind, **fields):
    trainer_class, args_class, make = KINDS[kind]
    model = make()
    args = make_args(folder, args_class, **{"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, **fields})
    data = make_data(model.config)
    return trainer_class(model, args, train_dataset=data, eval_dataset=data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{kind: the folder of a finished training with a checkpoint after each step}."""
    folders = {}
    for kind in KINDS:
        torch.manual_seed(0)
        folders[kind] = tmp_path_factory.mktemp(kind)
        make_trainer(folders[kind], kind).train()
    return folders


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(trained, kind, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(trained[kind], tmp_path / "run"))


@pytest.fixture
def said(caplog):
    """What the library warns of."""
    logger = logging.get_logger("spikezip_hf")
    logger.addHandler(caplog.handler)
    yield lambda: caplog.text
    logger.removeHandler(caplog.handler)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    """In the middle of the largest thing in the file, which is data and no name or length."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES = {
    "weights cut off": ("model.safetensors", cut_off, "cut off"),
    "weights missing": ("model.safetensors", Path.unlink, "is missing"),
    "no state": ("trainer_state.json", Path.unlink, "is missing"),
    "half a state": ("trainer_state.json", cut_off, "cannot be read as the state"),
    "another JSON": ("trainer_state.json", lambda path: path.write_text("[]"), "cannot be read as the state"),
    "optimizer cut off": ("optimizer.pt", cut_off, "cut off or damaged"),
    "optimizer empty": ("optimizer.pt", lambda path: path.write_bytes(b""), "cut off or damaged"),
    "optimizer missing": ("optimizer.pt", Path.unlink, "is missing"),
    "bit of the optimizer": ("optimizer.pt", flip_a_bit, "damaged"),
    "scheduler missing": ("scheduler.pt", Path.unlink, "is missing"),
    "random numbers cut off": ("rng_state.pth", cut_off, "cut off or damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["qat"], indirect=True)
def test_newest_is_passed_over(folder, damage, said):
    name, harm, problem = DAMAGES[damage]
    path = folder / f"checkpoint-{STEPS}" / name
    harm(path)
    assert newest_whole(folder) == str(folder / f"checkpoint-{STEPS - 1}")
    assert f"checkpoint-{STEPS} is passed over" in said()
    assert str(path) in said()
    assert problem in said()


@pytest.mark.parametrize("damage", ["weights cut off", "optimizer missing"])
def test_one_that_was_named_is_an_error(folder, kind, damage):
    name, harm, problem = DAMAGES[damage]
    path = folder / f"checkpoint-{STEPS}" / name
    harm(path)
    trainer = make_trainer(folder, kind)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(OSError, match=problem) as refused:
        trainer.train(resume_from_checkpoint=str(path.parent))
    assert str(path) in str(refused.value)
    assert "resume_from_checkpoint=True goes on" in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("kind", ["qat"], indirect=True)
def test_flipped_bit_of_the_weights(folder, said):
    """Trainer, which reads no digest, would go on with another network."""
    flip_a_bit(folder / f"checkpoint-{STEPS}" / "model.safetensors")
    assert newest_whole(folder) == str(folder / f"checkpoint-{STEPS - 1}")
    assert "is not what was written" in said()


def test_ends_as_if_nothing_had_been(folder, kind, trained, said):
    """It goes on from the checkpoint before, and what it writes in place of the broken one is whole."""
    torch.manual_seed(1)  # of no consequence: the checkpoint has the state
    newest = folder / f"checkpoint-{STEPS}"
    cut_off(newest / "optimizer.pt")
    (newest / "_partial-left").mkdir()  # as a kill leaves it
    (newest / "_partial-left" / "model.safetensors").write_bytes(b"half")
    trainer = make_trainer(folder, kind)
    loaded = []
    load = trainer._load_from_checkpoint
    trainer._load_from_checkpoint = lambda path, *rest: (loaded.append(path), load(path, *rest))
    trainer.train(resume_from_checkpoint=True)
    assert loaded == [str(folder / f"checkpoint-{STEPS - 1}")]
    assert newest_whole(folder) == str(newest)
    assert {path.name for path in newest.iterdir()} == {path.name for path in (trained[kind] / newest.name).iterdir()}
    one, other = (load_file(path / newest.name / "model.safetensors") for path in (folder, trained[kind]))
    assert all(torch.equal(one[name], other[name]) for name in {*one, *other})


def test_none_is_whole(folder, kind, said):
    for step in range(1, STEPS + 1):
        cut_off(folder / f"checkpoint-{step}" / "model.safetensors")
    trainer = make_trainer(folder, kind)
    with pytest.raises(FileNotFoundError, match=r"has no whole checkpoint\. Begin anew"):
        trainer.train(resume_from_checkpoint=True)
    assert all(f"checkpoint-{step} is passed over" in said() for step in range(1, STEPS + 1))


def test_there_is_none(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match="has no whole checkpoint"):
        make_trainer(tmp_path / "new", kind).train(resume_from_checkpoint=True)
    with pytest.raises(OSError, match=r"trainer_state\.json is missing"):
        make_trainer(tmp_path / "new", kind).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_the_tenth_comes_after_the_ninth(folder):
    shutil.copytree(folder / f"checkpoint-{STEPS}", folder / "checkpoint-10")
    (folder / "checkpoint-best").mkdir()
    (folder / "checkpoint-11").write_text("a file")
    assert newest_whole(folder) == str(folder / "checkpoint-10")


@pytest.mark.parametrize("kind", ["qat"], indirect=True)
def test_weights_in_several_files(folder):
    """An index names them; each has to be there, whole, and the one that was written with it."""
    newest = folder / f"checkpoint-{STEPS}"
    (newest / "model.safetensors").unlink()
    make_qann().save_pretrained(newest, max_shard_size="30KB")
    first, second, *_ = sorted(newest.glob("model-*.safetensors"))
    check_whole(newest)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(OSError, match=f"{first.name} is a shard of another checkpoint"):
        check_whole(newest)
    first.unlink()
    with pytest.raises(OSError, match=f"{first.name} is missing"):
        check_whole(newest)
    first.write_bytes(data)
    (newest / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(OSError, match=r"index\.json is no index of shards that can be read"):
        check_whole(newest)


@pytest.mark.parametrize("kind", ["qat"], indirect=True)
def test_weights_alone_where_they_are_asked_for(folder, kind):
    newest = folder / f"checkpoint-{STEPS - 1}"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (newest / name).unlink()
    make_trainer(folder, kind, save_only_model=True).train(resume_from_checkpoint=str(newest))
    with pytest.raises(OSError, match=r"optimizer\.pt is missing\. A checkpoint of save_only_model=True needs that"):
        make_trainer(folder, kind).train(resume_from_checkpoint=str(newest))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's
def test_an_adapter_with_a_name_of_its_own(tmp_path, said):
    """PEFT keeps it in a folder of that name."""

    def trainer(steps):
        adapted = get_peft_model(make_qann(), LoraConfig(target_modules=["q_proj", "v_proj"]), adapter_name="mine")
        args = make_args(tmp_path, max_steps=steps, save_strategy="steps", save_steps=1)
        return QATTrainer(adapted, args, train_dataset=make_data(adapted.config))

    trainer(2).train()
    assert trainer(3).train(resume_from_checkpoint=True).global_step == 3
    cut_off(tmp_path / "checkpoint-3" / "mine" / "adapter_model.safetensors")
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-2")
    assert "adapter_model.safetensors is cut off" in said()


@pytest.mark.parametrize("kind", ["distillation"], indirect=True)
def test_a_trial_of_a_search_leaves_other_checkpoints_alone(folder, kind):
    """It has a folder of its own, where its half of a checkpoint is removed."""
    trainer = make_trainer(folder, kind)
    trainer._get_output_dir = lambda trial: str(folder / "run-7")  # what Trainer gives in a hyperparameter search

    def cut_off(*args, **kwargs):
        raise KeyboardInterrupt

    trainer._save_optimizer_and_scheduler = cut_off
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (folder / "run-7" / "checkpoint-1").exists()
    check_whole(folder / "checkpoint-1")


@pytest.mark.parametrize("kind", ["qat"], indirect=True)
def test_cut_off_while_an_old_checkpoint_is_written_over(folder, kind, monkeypatch):
    """The mark of a whole one is not left beside the half of another."""
    trainer = make_trainer(folder, kind)

    marks = []

    def cut_off(*args, **kwargs):
        marks.append((folder / "checkpoint-1" / "trainer_state.json").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", cut_off)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()  # anew, in the same folder
    assert marks == [False]  # what a kill would have left
    assert not (folder / "checkpoint-1").exists()  # what Ctrl-C leaves
    check_whole(folder / "checkpoint-2")


@pytest.mark.parametrize("kind", ["qat"], indirect=True)
def test_the_best_is_not_loaded_if_it_is_broken(folder, kind, tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    trainer = make_trainer(tmp_path / "best", kind, **fields)
    save = trainer._save_checkpoint

    def save_and_break(*args):
        save(*args)
        flip_a_bit(tmp_path / "best" / f"checkpoint-{trainer.state.global_step}" / "model.safetensors")

    trainer._save_checkpoint = save_and_break
    with pytest.raises(OSError, match="is not what was written"):
        trainer.train()


@pytest.mark.parametrize("kind", ["qat"], indirect=True)
class TestStage:
    """Recipes go on by themselves."""

    def run(self, folder):
        trainer = make_trainer(folder, "qat")
        record = stage.train(trainer, folder, {}, {})
        return record["resumed"]

    def test_from_the_one_before(self, folder, trained, said):
        cut_off(folder / f"checkpoint-{STEPS}" / "model.safetensors")
        assert self.run(folder) is True
        assert f"Going on from {folder / f'checkpoint-{STEPS - 1}'}." in said()
        one, other = (
            load_file(path / "model.safetensors") for path in (folder, trained["qat"] / f"checkpoint-{STEPS}")
        )
        assert all(torch.equal(one[name], other[name]) for name in {*one, *other})

    def test_anew_where_none_is_whole(self, folder, said):
        for step in range(1, STEPS + 1):
            (folder / f"checkpoint-{step}" / "trainer_state.json").unlink()
        assert self.run(folder) is False
        assert "has no whole checkpoint: the training begins anew." in said()

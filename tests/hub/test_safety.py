"""What must not travel, what must not be lost, and what must not be believed."""

import json
import pickle
import sys

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForImageClassification, ViTForImageClassification, ViTImageProcessorPil

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.cli import checkpoints
from spikezip_hf.hub import results_of_metrics, write_card
from spikezip_hf.models.checkpoints import CheckpointModel
from spikezip_hf.recipes.stage import provenance, shareable
from tests.conftest import make_ann, make_images, make_qann, spiking_twin

REPO = "org/name"
METRICS = {"data": "words", "split": "test", "samples": 10}


def folders(tmp_path):
    return [path.name for path in tmp_path.iterdir()]


# What travels


def test_only_what_a_checkpoint_is_made_of(hub, tmp_path):
    make_qann().save_pretrained(tmp_path / "q")
    left = ["x.ckpt", "x.pickle", "x.npy", "training.json", "trainer_state.json", "training_args.bin", ".hidden", "_x"]
    for name in left:
        (tmp_path / "q" / name).write_text("/somewhere/on/this/machine")
    for name in ("runs", "_predictions", "checkpoint-3"):
        (tmp_path / "q" / name).mkdir()
        (tmp_path / "q" / name / "config.json").write_text("{}")
    checkpoints.push(tmp_path / "q", REPO)
    pushed = set(hub.files(REPO))
    assert {name for name in pushed if not name.endswith(".py")} == {"README.md", "config.json", "model.safetensors"}


def test_no_secret_and_no_path_in_records(monkeypatch, tmp_path):
    flags = [
        "--hub_token",
        "hf_SECRET",
        "--api-key=SECRET",
        "--data_dir",
        str(tmp_path / "words"),
        "../../a/secret/set",
    ]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "spikezip"), "train", "r.yaml", *flags, "--seed", "3"])
    command = provenance()["command"]
    assert command == "spikezip train r.yaml --hub_token '***' '--api-key=***' --data_dir words set --seed 3"
    record = {"settings": {"ann": str(tmp_path / "ann"), "hub_token": "hf_SECRET", "levels": [8, "a/b"]}}
    assert shareable(record) == {"settings": {"ann": "ann", "hub_token": "***", "levels": [8, "a/b"]}}


def test_no_token_in_a_pickle(hub):
    make_qann().push_to_hub(REPO)
    model = AutoModelForImageClassification.from_pretrained(REPO, token=hub.token)
    assert hub.token.encode() not in pickle.dumps(model)
    model.save_pretrained(hub.home / "again")  # which still knows it


# What stays


def test_a_card_of_metadata_alone(hub):
    """As the Hub makes it where somebody chooses a licence for a new repository."""
    hub.seed(REPO, {"README.md": b"---\nlicense: apache-2.0\nlanguage: en\n---\n"})
    make_qann().push_to_hub(REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "language: en" in card
    assert "QuantViTForImageClassification" in card


def test_metadata_of_somebody_that_is_not_quite_right(hub):
    index = "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    metrics: [{type: accuracy, value: 0.5}]\n"
    hub.seed(REPO, {"README.md": f"---\nlicense: mit\n{index}---\nMy words\n".encode()})
    make_qann().push_to_hub(REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert "model-index" in card
    assert "My words" in card
    assert "spikezip-tf" in card


def test_a_card_that_cannot_be_read(hub):
    hub.seed(REPO, {"README.md": b"---\nlicense: [mit\n---\nMy words\n"})
    make_qann().push_to_hub(REPO)
    assert hub.files(REPO)["README.md"] == b"---\nlicense: [mit\n---\nMy words\n"
    assert "model.safetensors" in hub.files(REPO)


def test_results_of_somebody_else(hub, tmp_path):
    hub.seed(REPO, {"results.json": b'{"mine": 1}'})
    qann = make_qann()
    qann.push_to_hub(REPO)
    assert hub.files(REPO)["results.json"] == b'{"mine": 1}'
    qann.save_pretrained(tmp_path / "q")
    (tmp_path / "q" / "results.json").write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=r"results\.json holds something else"):
        qann.save_pretrained(tmp_path / "q", results=results_of_metrics({"accuracy": 0.5}, **METRICS))
    qann.save_pretrained(tmp_path / "q")
    assert (tmp_path / "q" / "results.json").read_text() == '{"mine": 1}'


def test_results_without_a_digest_are_stamped(tmp_path):
    qann = make_qann()
    qann.save_pretrained(tmp_path / "q", results=results_of_metrics({"accuracy": 0.5}, **METRICS))
    qann.save_pretrained(tmp_path / "q")  # found beside it, and believed
    assert "| QANN | - | 50.00 % |" in (tmp_path / "q" / "README.md").read_text()
    make_qann(seed=3).save_pretrained(tmp_path / "q")
    assert "| QANN |" not in (tmp_path / "q" / "README.md").read_text()


def test_what_a_card_says_of_training(hub, tmp_path):
    qann = make_qann()
    qann.save_pretrained(tmp_path / "q")
    write_card(qann, tmp_path / "q", training="With a learning rate of 3.")
    write_card(qann, tmp_path / "q", license="mit")
    before = (tmp_path / "q" / "README.md").read_text()
    assert "## Training\n\nWith a learning rate of 3.\n" in before
    checkpoints.push(tmp_path / "q", REPO)
    assert "With a learning rate of 3." in hub.files(REPO)["README.md"].decode()
    assert (tmp_path / "q" / "README.md").read_text() == before  # pushing changes nothing here
    make_qann(seed=3).save_pretrained(tmp_path / "q")
    assert "learning rate" not in (tmp_path / "q" / "README.md").read_text()  # it was another network's


def test_another_push_in_between(hub, monkeypatch):
    qann = make_qann()
    qann.push_to_hub(REPO)
    commit = HfApi.create_commit

    def late(self, *args, **kwargs):
        monkeypatch.setattr(HfApi, "create_commit", commit)
        make_qann(seed=9).push_to_hub(REPO, max_shard_size="20KB")
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(HfHubHTTPError):
        qann.push_to_hub(REPO)
    assert "model.safetensors" not in hub.files(REPO)  # that of the other push, whole and alone
    AutoModelForImageClassification.from_pretrained(REPO)


# Whose processor


def test_the_processor_of_the_revision_that_was_loaded(hub, tmp_path):
    api, where = HfApi(), tmp_path / "ann"
    make_ann().save_pretrained(where)
    for branch, mean in (("main", 0.1), ("v2", 0.9)):
        ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[mean] * 3).save_pretrained(where)
        api.create_repo(REPO, exist_ok=True)
        api.create_branch(REPO, branch=branch, exist_ok=True)
        api.upload_folder(folder_path=where, repo_id=REPO, revision=branch)
    ann = ViTForImageClassification.from_pretrained(REPO, revision="v2")
    assert QuantViTForImageClassification.from_ann(ann).processing_class.image_mean == (0.9,) * 3
    ViTForImageClassification.from_pretrained(REPO)
    # Of two revisions in the cache nobody can tell which the network is from.
    assert QuantViTForImageClassification.from_ann(ann).processing_class is None


def test_a_broken_tokenizer_keeps_no_weights_from_being_saved(tmp_path, monkeypatch):
    snn = spiking_twin(make_qann(), time_steps=8)
    snn.save_pretrained(tmp_path / "a", processing_class=ViTImageProcessorPil(size={"height": 8, "width": 8}))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / "preprocessor_config.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    loaded.save_pretrained("b")
    assert "model.safetensors" in folders(tmp_path / "b")
    assert "preprocessor_config.json" not in folders(tmp_path / "b")


# Several processes


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    """By transformers' own judgement of the rank, whatever the caller says."""
    monkeypatch.setattr(CheckpointModel, "should_save_on_this_rank", lambda self, is_main_process: False)
    make_qann().save_pretrained(tmp_path / "q")
    assert folders(tmp_path / "q") in ([], ["model.safetensors"])  # transformers' part, which gathers


def test_the_class_that_fsdp_made(tmp_path):
    """FSDP 2 gives a model a class of its own, FSDP<name>, from a module of torch."""
    qann = make_qann()
    plain = type(qann)
    qann.__class__ = type(f"FSDP{plain.__name__}", (plain,), {"__module__": "torch.nn"})
    qann.save_pretrained(tmp_path / "q")
    assert {"modeling_spike_vit.py", "configuration_spike_vit.py", "engines.py"} <= set(folders(tmp_path / "q"))
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert config["auto_map"] == type(qann.config).make_auto_map()
    card = (tmp_path / "q" / "README.md").read_text()
    assert "FSDP" not in card
    assert "17.0k parameters" in card
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "q")
    assert type(loaded) is plain
    with torch.no_grad():
        images = make_images(loaded.config, 3)
        assert torch.equal(loaded(images).logits, qann.eval()(images).logits)


def test_weights_without_a_digest_are_not_called_whole(tmp_path):
    from safetensors.torch import load_file, save_file

    make_qann().save_pretrained(tmp_path / "q")
    assert checkpoints.describe(str(tmp_path / "q"))[0]["weights"] == "whole, as they were written"
    path = tmp_path / "q" / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})
    assert "unknown" in checkpoints.describe(str(tmp_path / "q"))[0]["weights"]


def test_a_local_card_of_somebody_is_pushed_as_it_is(hub, tmp_path):
    make_qann().save_pretrained(tmp_path / "q")
    index = "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    metrics: [{type: accuracy, value: 0.5}]\n"
    (tmp_path / "q" / "README.md").write_text(f"---\nlicense: mit\n{index}---\nMy words\n")
    checkpoints.push(tmp_path / "q", REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert "model-index" in card
    assert card.endswith("My words\n")
    assert "spikezip-tf" in card


def test_what_is_told_for_the_card(hub, tmp_path):
    qann = make_qann()
    qann.save_pretrained(tmp_path / "q", card={"license": "mit", "name": "a-name"})
    assert "license: mit" in (tmp_path / "q" / "README.md").read_text()
    assert "# a-name\n" in (tmp_path / "q" / "README.md").read_text()
    qann.save_pretrained(tmp_path / "q", push_to_hub=True, repo_id=REPO, card={"language": "en"})
    card = hub.files(REPO)["README.md"].decode()
    assert "language: en" in card
    assert "# name\n" in card  # that of the repository
    qann.push_to_hub("org/other", card={"license": "mit"})
    assert "license: mit" in hub.files("org/other")["README.md"].decode()

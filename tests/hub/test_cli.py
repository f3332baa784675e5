"""Commands that talk to a Hub."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from spikezip_hf.hub.cards import NOTICE
from tests.cli.test_commands import answer, complaint, contents, labels, run, write_texts
from tests.conftest import make_text_qann, spiking_twin
from tests.hub.routes import front_matter
from tests.hub.test_push_and_load import OWN, REPO, answers, names, nudge
from tests.test_auto_text import make_tokenizer


@pytest.fixture
def work(hub, tmp_path, monkeypatch):
    """A folder with a Quant and a Spike checkpoint, as the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    qann = make_text_qann("bert", **labels("bert"))
    qann.save_pretrained("qann", processing_class=make_tokenizer("bert"))
    spiking_twin(qann, time_steps=300).save_pretrained("snn", processing_class=make_tokenizer("bert"))
    return tmp_path / "work"


def load(folder: str):
    return AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["qann", "snn"])
def test_push(hub, work, kind):
    result = run("push", kind, REPO)
    assert result.stdout == f"Pushed: {hub.endpoint}/{REPO}\n"
    assert len(hub.commits(REPO)) == 2  # beside the empty one that the repository starts with
    assert names(hub) == {path.name for path in Path(kind).iterdir()}
    card = hub.files(REPO)["README.md"].decode()
    assert NOTICE in card
    assert f'from_pretrained("{REPO}")' in card
    assert "\n# name\n" in card
    assert torch.equal(answers(load(REPO)), answers(load(kind)))


def test_push_with_options(hub, work):
    flags = ["--private", "--revision", "dev", "--message", "first", "--tag", "mine", "--tag", "more"]
    said = answer("push", "snn", REPO, *flags)
    commit = hub.commits(REPO, "dev")[-1]
    assert said == {"url": f"{hub.endpoint}/{REPO}/tree/dev", "commit": commit.sha, "pull_request": None}
    assert commit.title == "first"
    assert hub.repos[REPO].private
    assert names(hub) == set()
    assert {"mine", "more", "snn"} <= set(front_matter(hub.files(REPO, "dev")["README.md"].decode())["tags"])


@pytest.mark.usefixtures("anonymous")
def test_push_with_a_token(hub, work):
    complaint(run("push", "snn", REPO, status=1))
    complaint(run("push", "snn", REPO, "--token", hub.read_token, status=1))
    assert hub.repos == {}
    run("push", "snn", REPO, "--token", hub.token)
    assert "model.safetensors" in names(hub)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


BROKEN = {
    "no folder": (shutil.rmtree, "is no folder with a checkpoint"),
    "no config": (lambda folder: os.remove(folder / "config.json"), "snn"),
    "no weights": (lambda folder: os.remove(folder / "model.safetensors"), "safetensors"),
    "damaged": (lambda folder: damage(folder / "model.safetensors"), "is not what was written"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_nobody_could_load_is_not_pushed(hub, work, case):
    spoil, words = BROKEN[case]
    spoil(work / "snn")
    before = contents(work)
    assert words in complaint(run("push", "snn", REPO, status=1))
    assert hub.repos == {}
    assert contents(work) == before


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", ""])
def test_names_that_no_repository_has(hub, work, name):
    complaint(run("push", "snn", name, status=1))
    assert hub.repos == {}


def test_a_hub_that_fails(hub, work):
    hub.fail("POST", "/commit/", "cut", times=None)
    said = complaint(run("push", "snn", REPO, status=1))
    assert REPO in said
    assert names(hub) == set()


def test_the_words_of_somebody_are_pushed(hub, work):
    Path("snn/README.md").write_text(OWN)
    run("push", "snn", REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert card.endswith(OWN.partition("---\n\n")[2])
    assert "mine" in front_matter(card)["tags"]
    assert Path("snn/README.md").read_text() == OWN


def evaluated() -> None:
    write_texts(Path("texts"), {"test": 6})
    run("evaluate", "snn", "--data-dir", "texts", "--time-steps", 64)


def test_results_are_pushed_and_the_table_of_predictions_is_not(hub, work):
    evaluated()
    assert list(Path("snn/_predictions").rglob("*.parquet"))
    run("push", "snn", REPO)
    assert {"results.json", "accuracy_over_time.png"} <= names(hub)
    assert not [name for name in names(hub) if "_predictions" in name or name.endswith(".parquet")]
    card = hub.files(REPO)["README.md"].decode()
    assert "**texts**, test split, 6 samples:" in card
    assert "model-index" in front_matter(card)
    (told,) = answer("info", REPO)["evaluations"]
    assert (told["data"], told["samples"]) == ("texts", 6)


def test_no_path_of_this_machine_is_pushed(hub, work, monkeypatch):
    write_texts(work / "texts", {"test": 6})
    command = ["evaluate", str(work / "snn"), "--data-dir", str(work / "texts"), "--time-steps", "64"]
    monkeypatch.setattr("sys.argv", [str(work / "bin" / "spikezip"), *command])  # which goes on record
    run(*command)
    run("push", work / "snn", REPO)
    for name, data in hub.files(REPO).items():
        assert str(work).encode() not in data, name


def test_results_and_pictures_of_other_weights_are_not_pushed(hub, work):
    evaluated()
    nudge(load("snn")).save_pretrained("snn")
    run("push", "snn", REPO)
    assert "No evaluation on a test set is on record" in hub.files(REPO)["README.md"].decode()
    assert "results.json" not in names(hub)
    assert "accuracy_over_time.png" not in names(hub)


# Checkpoints by their id


def test_info_of_an_id(hub, work):
    run("push", "snn", REPO)
    hub.requests.clear()
    there, here = answer("info", REPO), answer("info", "snn")
    assert not [path for _, path, _ in hub.requests if "safetensors" in path]  # only small files
    assert (there.pop("checkpoint"), there.pop("weights")) == (REPO, "not downloaded")
    assert (here.pop("checkpoint"), here.pop("weights")) == ("snn", "whole, as they were written")
    assert there == here
    text = run("info", REPO).stdout
    assert "class: SpikeBertForSequenceClassification\n" in text
    assert "weights: not downloaded\n" in text


def test_info_of_a_revision(hub, work):
    run("push", "snn", REPO)
    evaluated()
    spiking_twin(load("qann"), time_steps=77).save_pretrained("short")
    run("push", "short", REPO, "--revision", "dev")
    run("push", "snn", REPO, "--revision", "measured")
    told = {name: answer("info", REPO, "--revision", name) for name in ("main", "dev", "measured")}
    assert [found["time_steps"] for found in told.values()] == [300, 77, 300]
    assert [len(found["evaluations"]) for found in told.values()] == [0, 0, 1]
    assert "time_steps: 77" in run("info", REPO, "--revision", "dev").stdout
    complaint(run("info", REPO, "--revision", "nowhere", status=1))


def test_commands_take_ids(hub, work):
    run("push", "qann", "org/qann")
    run("push", "snn", "org/snn")
    assert answer("convert", "org/qann", "made", "--time-steps", 300)["time_steps"] == 300
    assert Path("made/model.safetensors").read_bytes() == Path("snn/model.safetensors").read_bytes()
    assert Path("made/tokenizer.json").is_file()
    assert answer("verify", "org/snn", "--qann", "org/qann", "--samples", 4)["exact"] is True
    write_texts(Path("texts"), {"test": 6})
    found = answer("evaluate", "org/snn", "--data-dir", "texts", "--time-steps", 64)
    assert found["written to"] == "outputs/org--snn/results.json"
    assert json.loads(Path("outputs/org--snn/results.json").read_text())["simulated"] == found["simulated"]


@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
@pytest.mark.parametrize("command", ["info", "convert", "verify", "evaluate"])
def test_a_name_that_is_neither_folder_nor_id(hub, work, go_offline, command, offline):
    """outputs/snn could be either."""
    if offline:
        go_offline()
    before = contents(work)
    more = {"convert": ["out"], "evaluate": ["--data-dir", "texts"]}.get(command, [])
    assert "outputs/snn" in complaint(run(command, "outputs/snn", *more, status=1))
    assert contents(work) == before

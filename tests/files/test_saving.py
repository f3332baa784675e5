"""Saving where it cannot be done, and where two do it at once: what was there stays, or what is there is whole."""

import builtins
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.files import write_json
from tests.conftest import make_qann

from .common import answers, contents
from .conftest import SHARDED
from .writers import LIMITS, make, which

ROOT = Path(__file__).parents[2]


def start(*arguments) -> subprocess.Popen:
    """Its errors and progress go to a file: a pipe that nobody empties stops it, with the lock in hand."""
    command = [sys.executable, "-m", "tests.files.writers", *map(str, arguments)]
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`printed` closes it)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True)
    process.said = said
    return process


def printed(process: subprocess.Popen):
    """What it said in its last line."""
    out, _ = process.communicate(timeout=120)
    with process.said as said:
        said.seek(0)
        assert process.returncode == 0, said.read()[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of the size of files is POSIX's")
def test_a_full_disk(tmp_path):
    """Writes that really fail, in the code, in the weights, in shards, in sealing them."""
    said = printed(start("full_disk", tmp_path))
    assert [entry["limit"] for entry in said] == [limit for limit in LIMITS for _ in range(2)]
    for entry in said:
        assert entry["problem"].startswith("OSError: "), entry
        assert str(tmp_path) in entry["problem"]
        assert "File too large" in entry["problem"]
        assert entry["as it was"], entry
    assert which(QuantViTForImageClassification.from_pretrained(tmp_path / "model"), [None, answers(make(1))]) == 1


def forbid_replacing(monkeypatch, folder):
    """Moving over what is there. Putting back is what comes next, and must be possible."""
    real, refusals = os.replace, []

    def replace(source, target):
        if Path(target).parent == folder and not refusals and Path(target).name == "model.safetensors":
            refusals.append(target)
            raise PermissionError(13, "Permission denied", str(target))
        return real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def forbid_writing(monkeypatch, folder):
    """As in a folder that is read-only: no folder aside can be made there. (Root may write there: it is played.)"""
    real = os.mkdir

    def mkdir(path, *args, **kwargs):
        if folder in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)


def forbid_opening(monkeypatch, folder):
    """Files can be made, and not written."""
    real = builtins.open

    def open_(path, mode="r", *args, **kwargs):
        if "w" in mode and folder in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", open_)


@pytest.mark.parametrize("forbid", [forbid_writing, forbid_opening, forbid_replacing], ids=lambda f: f.__name__)
def test_a_folder_that_is_read_only(folder, model, monkeypatch, forbid):
    before = contents(folder)
    with monkeypatch.context() as patch:
        forbid(patch, folder)
        other = make_qann(seed=3)
        with pytest.raises(PermissionError, match=str(folder)):
            other.save_pretrained(folder)
    assert contents(folder) == before
    assert torch.equal(answers(type(model).from_pretrained(folder)), answers(model))
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_a_link_to_nowhere(tmp_path):
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="model"):
        make_qann().save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_two_that_write_one_record(tmp_path, monkeypatch):
    """While one has written it aside, the other writes it whole; the first must not lose its own file by that."""
    path, real, other = tmp_path / "a.json", Path.replace, []

    def replace(self, target):
        if not other:
            other.append(1)
            write_json(path, {"by": "the other"})
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_json(path, {"by": "the first"})
    assert json.loads(path.read_text()) == {"by": "the first"}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_opened_is_loaded_from(folder, model, monkeypatch):
    """Its files can be read by their names, and so they could before there was a lock on it."""
    opened, refused = os.open, []

    def refuse(path, *args, **kwargs):
        if Path(path) == folder:
            refused.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    loaded = type(model).from_pretrained(folder)
    assert refused or sys.platform == "win32"
    assert torch.equal(answers(loaded), answers(model))


def check_left(tmp_path):
    """One of the two, whole, and nothing beside it."""
    home = tmp_path / "model"
    which(QuantViTForImageClassification.from_pretrained(home), [answers(make(seed)) for seed in (0, 1)])
    assert not [path for path in home.iterdir() if path.is_dir() or "partial" in path.name]
    assert json.loads((tmp_path / "record.json").read_text())["seed"] in (0, 1)
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def wait_for(processes, paths):
    while not all(path.exists() for path in paths):
        if any(process.poll() for process in processes):
            break  # `printed` says of what
        time.sleep(0.05)


@pytest.mark.slow
def test_another_process_saves_to_the_same_folder(tmp_path):
    """What is loaded in between is one of the two, and both come to be there."""
    home = tmp_path / "model"
    mine, expected, found = make(0), [answers(make(seed)) for seed in (0, 1)], set()
    other = start("save", home, 1, 2)
    wait_for([other], [tmp_path / "ready-1"])
    (tmp_path / "go").touch()
    while other.poll() is None:
        mine.save_pretrained(home, **(SHARDED if len(found) % 2 else {}))
        write_json(tmp_path / "record.json", {"seed": 0})
        found.update(which(QuantViTForImageClassification.from_pretrained(home), expected) for _ in range(3))
    assert printed(other) > 1
    assert found == {0, 1}
    check_left(tmp_path)


@pytest.mark.slow
def test_two_processes_save_to_one_folder_while_a_third_reads(tmp_path):
    home, seconds = tmp_path / "model", 60
    make(0).save_pretrained(home)
    write_json(tmp_path / "record.json", {})
    processes = [start("save", home, 0, seconds), start("save", home, 1, seconds), start("read", home, seconds)]
    wait_for(processes, [tmp_path / f"ready-{name}" for name in (0, 1, "reader")])
    (tmp_path / "go").touch()
    *saves, found = map(printed, processes)
    assert min(saves) > 1
    assert min(found) > 0, found
    check_left(tmp_path)

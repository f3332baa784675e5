"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from spikezip_hf.files import write_json, write_text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_text_is_written_as_it_is_into_new_folders(tmp_path):
    write_text(tmp_path / "new" / "deeper" / "a.md", "Größe: 3 µV\n")
    assert (tmp_path / "new" / "deeper" / "a.md").read_bytes() == "Größe: 3 µV\n".encode()
    assert names(tmp_path / "new" / "deeper") == {"a.md"}


def test_json_is_readable_by_people_and_machines(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Größe", "values": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "Größe", "values": [1, 2.5, None]}
    assert "Größe" in text
    assert text.endswith("}\n")


def test_an_old_file_is_replaced(tmp_path):
    (tmp_path / "a.md").write_text("old and longer")
    write_text(tmp_path / "a.md", "new")
    assert (tmp_path / "a.md").read_text() == "new"
    assert names(tmp_path) == {"a.md"}


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"good": 1, "bad": object()})
    assert (tmp_path / "a.json").read_text() == "old"
    assert names(tmp_path) == {"a.json"}


def test_what_is_no_json_creates_no_folder(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "a.json", {1, 2})
    assert names(tmp_path) == set()


def test_text_that_cannot_be_encoded_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a.md").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.md", "half of a pair: \ud800")
    assert (tmp_path / "a.md").read_text() == "old"
    assert names(tmp_path) == {"a.md"}


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()], ids=["disk", "interrupted"])
@pytest.mark.parametrize("when", ["writing", "moving"])
def test_a_write_that_is_cut_off_leaves_the_old_file_alone(tmp_path, monkeypatch, when, error):
    (tmp_path / "a.md").write_text("old")
    write = Path.write_text

    def cut(path, *args, **kwargs):
        if when == "writing":
            write(path, "ne", encoding="utf-8")
        raise error

    monkeypatch.setattr(*((Path, "write_text") if when == "writing" else (os, "replace")), cut)
    with pytest.raises(type(error)):
        write_text(tmp_path / "a.md", "new")
    assert (tmp_path / "a.md").read_text() == "old"
    assert names(tmp_path) == {"a.md"}


def test_a_folder_in_the_way_is_refused(tmp_path):
    (tmp_path / "a.md").mkdir()
    with pytest.raises(OSError, match=r"a\.md"):
        write_text(tmp_path / "a.md", "new")
    assert names(tmp_path) == {"a.md"}

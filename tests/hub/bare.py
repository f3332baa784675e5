"""A Python that has torch, transformers and what they require, and nothing else: as on a stranger's machine."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest


def required(roots: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions that the roots need, extras left out; by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = list(roots)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        needs = found[name].requires or []
        todo += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return make_site(tmp_path_factory.mktemp("bare") / "site")


def make_site(folder: Path, *more: str) -> Path:
    """A folder for PYTHONPATH with these distributions, and `more`, alone; `python -S` then sees no other."""
    folder.mkdir()
    for distribution in required(["torch", "transformers", *more]).values():
        for top in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def run_bare(program: str, site: Path | str, environment: dict[str, str]) -> str:
    """What a program prints that runs there; its last words are shown if it fails."""
    result = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={**environment, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout

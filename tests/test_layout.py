"""The models folder travels to the Hub: flat siblings that import only one another, torch and transformers."""

import ast
import sys
from pathlib import Path

import pytest

import spikezip_hf.models

FILES = sorted(Path(spikezip_hf.models.__file__).parent.glob("*.py"))
# Besides torch and transformers, what comes with them.
ALLOWED = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "packaging"} | sys.stdlib_module_names


def test_folder_is_flat():
    assert len(FILES) > 5
    assert not any(path.is_dir() and path.name != "__pycache__" for path in FILES[0].parent.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports(path):
    tree = ast.parse(path.read_text())
    guarded = {child for node in ast.walk(tree) if isinstance(node, ast.Try) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{path.name}: only siblings travel"
            assert node.module is not None, f"{path.name}: `from . import x` is not found by the copier"
            assert (path.parent / f"{node.module}.py").exists(), f"{path.name}: no sibling {node.module}"
        elif isinstance(node, ast.Import | ast.ImportFrom) and node not in guarded:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.split(".")[0] for name in names} <= ALLOWED, path.name

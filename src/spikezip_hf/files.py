"""Files that are written whole or not at all."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path aside to write a file to, which takes the place of `path` at the end; after an error nothing has changed.

    The name is one's own: another process may write the same file.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield aside
        aside.replace(path)
    except BaseException:  # Ctrl-C, too
        aside.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file; until it is complete, what was there before stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON, likewise."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

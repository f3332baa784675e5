"""Deprecations that libraries log instead of warning: transformers says most of its own this way.

Those that are warnings are made errors in pyproject.toml.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "timm", "torch", "transformers")
WORDS = re.compile(r"deprecat|(will|to) be removed", re.IGNORECASE)


class Deprecations(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        for name in LIBRARIES:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if WORDS.search(message := record.getMessage()):
            self.said.append(f"{record.pathname}:{record.lineno}: {message}")


deprecations = Deprecations()


@contextmanager
def no_deprecations() -> Iterator[None]:
    """Fail if a library has logged a deprecation, in here or, as while modules were imported, since the last time.

    One that transformers says once is said once in a process: other tests may do the same, unseen.
    """
    yield
    said, deprecations.said = deprecations.said, []
    if said:
        pytest.fail("Deprecated: " + "\n".join(said), pytrace=False)

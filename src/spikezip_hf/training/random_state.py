"""Random numbers that something beside the training draws."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn inside does not show outside: python, numpy and torch go on where they were."""
    python, of_numpy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(of_numpy)

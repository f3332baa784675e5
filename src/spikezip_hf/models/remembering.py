# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What is made of parameters, kept for the length of one simulation.

Not from one simulation to the next: no way to notice that a parameter has changed is sure (fused optimizers and
`.data` leave torch's own counter of changes alone).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

_run = threading.local()


@contextmanager
def parameters_remembered() -> Iterator[None]:
    """Inside, what is made of a parameter is made once. For one simulation, in which none may change, not by hooks."""
    outer = getattr(_run, "made", None)
    _run.made = {}
    try:
        yield
    finally:
        _run.made = outer


def remembered(module: nn.Module, what, make: Callable):
    """What `make` makes of the module's parameters: inside `parameters_remembered`, once."""
    made = getattr(_run, "made", None)
    if made is None:
        return make()
    if (module, what) not in made:
        made[module, what] = make()
    return made[module, what]

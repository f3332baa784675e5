"""Work on one data set shared by several processes, on one machine or more, that a launcher started together."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from accelerate.utils import gather_object

from accelerate import PartialState

ENDED = (
    "A process of this run has ended before its time: killed, out of memory, or by an error of its own, which then "
    "stands above. What all of them had finished is kept: give the same command again, and it goes on from there."
)


class ProcessEndedError(OSError):
    """Another process of the run is gone."""


def my_share(count: int, state: PartialState | None) -> range:
    """Numbers below `count` that this process is to work on: every one with the same remainder, so that parts in order
    of length are dealt out evenly. All of them without other processes."""
    return range(count) if state is None else range(state.process_index, count, state.num_processes)


def gathered(items: list[Any], state: PartialState | None) -> list[Any]:
    """The items of all processes, on each of them.

    Raises:
        ProcessEndedError: a process is gone.
    """
    if state is None or state.num_processes == 1:
        return items
    try:
        return gather_object(items)
    except RuntimeError as error:  # how torch says that a connection was closed
        raise ProcessEndedError(ENDED) from error


@contextlib.contextmanager
def told_to_end(state: PartialState | None) -> Iterator[None]:
    """Make an error of the signal with which a launcher ends the processes that are left when one is gone."""
    alone = state is None or state.num_processes == 1
    if alone or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise ProcessEndedError(ENDED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

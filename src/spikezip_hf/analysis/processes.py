"""Work on one data set shared by several processes, on one machine or more, that a launcher started together."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

try:
    from accelerate.utils import gather_object
    from torch.distributed import DistError

    from accelerate import PartialState
except ImportError as error:
    raise ImportError(
        f"Evaluating on a data set needs more than the models do ({error}): pip install 'spikezip-hf[train]'."
    ) from error

ENDED = (
    "A process of this run has ended before its time: killed, out of memory, or by an error of its own, which then "
    "stands above. What all of them had finished is kept: give the same command again, and it goes on from there."
)


class ProcessEndedError(OSError):
    """Another process of the run is gone."""


class _ToldToEnd(BaseException):
    """As KeyboardInterrupt: nobody on the way takes it for an error of its own."""


def processes(use_cpu: bool) -> PartialState:
    """The processes among which a launcher has this one share the work, and its device.

    They wait for one another as long as it takes: one may have finished parts to read where another has hours to go.
    """
    return PartialState(cpu=use_cpu, timeout=timedelta(days=30))


def my_share(numbers: Sequence[int], state: PartialState | None) -> Sequence[int]:
    """Those of the numbers that this process is to work on, dealt out one by one. All without other processes."""
    return numbers if state is None else numbers[state.process_index :: state.num_processes]


def gathered(items: list[Any], state: PartialState | None) -> list[Any]:
    """The items of all processes, on each of them.

    Raises:
        ProcessEndedError: a process is gone.
    """
    if state is None or state.num_processes == 1:
        return items
    try:
        return gather_object(items)
    except (DistError, RuntimeError) as error:
        if not isinstance(error, DistError) and "onnection" not in str(error):  # gloo's are plain RuntimeErrors
            raise
        raise ProcessEndedError(ENDED) from error


@contextlib.contextmanager
def told_to_end(state: PartialState | None) -> Iterator[None]:
    """Make an error of the signal with which a launcher ends the processes that are left when one is gone."""
    alone = state is None or state.num_processes == 1
    if alone or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise _ToldToEnd

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _ToldToEnd as signalled:
        raise ProcessEndedError(ENDED) from signalled
    finally:
        signal.signal(signal.SIGTERM, before)

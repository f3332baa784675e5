"""Several processes, as one of them sees it; those of real launches are in `tests/cli/test_evaluate_processes.py`."""

import signal
from types import SimpleNamespace

import pytest
from torch.distributed import DistError

from spikezip_hf.analysis import processes
from spikezip_hf.analysis.processes import ProcessEndedError, gathered, my_share, told_to_end

ALONE = SimpleNamespace(process_index=0, num_processes=1)
SECOND_OF_THREE = SimpleNamespace(process_index=1, num_processes=3)


def test_shares_are_everything_once():
    shares = [my_share(range(8), SimpleNamespace(process_index=index, num_processes=3)) for index in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert my_share(range(8), None) == my_share(range(8), ALONE) == range(8)


@pytest.mark.parametrize("state", [None, ALONE])
def test_alone_nothing_is_sent(monkeypatch, state):
    monkeypatch.setattr(processes, "gather_object", None)
    assert gathered([1, 2], state) == [1, 2]


@pytest.mark.parametrize("error", [DistError("timed out"), RuntimeError("[gloo] Connection closed by peer")])
def test_a_process_that_is_gone(monkeypatch, error):
    def gone(items):
        raise error

    monkeypatch.setattr(processes, "gather_object", gone)
    with pytest.raises(ProcessEndedError, match="give the same command again") as caught:
        gathered([1], SECOND_OF_THREE)
    assert caught.value.__cause__ is error


def test_other_errors_stay_what_they_are(monkeypatch):
    def broken(items):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(processes, "gather_object", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        gathered([1], SECOND_OF_THREE)


def test_the_launchers_signal_is_an_error_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        assert signal.getsignal(signal.SIGTERM) is not before
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:  # what a loop over batches may have, and which is not to take it
            pytest.fail("taken for an error of its own")

    with pytest.raises(ProcessEndedError), told_to_end(SECOND_OF_THREE):
        work()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("state", [None, ALONE])
def test_alone_the_signal_is_the_systems(state):
    before = signal.getsignal(signal.SIGTERM)
    with told_to_end(state):
        assert signal.getsignal(signal.SIGTERM) is before

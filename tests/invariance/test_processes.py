"""Networks in worker processes, forked and spawned, after their parent has used the kernels.

One process of each kind runs a few of every kind of network. What it found is compared bit for bit, as fingerprints.
"""

import multiprocessing
import threading
from contextlib import contextmanager

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.invariance.architectures import fingerprint, quantized, run, twins
from tests.invariance.conftest import QUICK

SECONDS = 240  # after which a process counts as stuck


def findings(everything) -> dict[str, str]:
    """{architecture: fingerprint of the spiking run, and bits of the quantized answer}."""
    return {
        name: fingerprint(run(snn, batch)) + str(quantized(qann, batch).view(torch.int32).tolist())
        for name, qann, snn, batch in everything
    }


def answer(connection, everything) -> None:
    """A worker's main: with one thread, as a DataLoader's. In a fork torch itself hangs with more, since the threads
    of OpenMP did not come along."""
    torch.set_num_threads(1)
    connection.send(findings(everything))


def from_process(method: str, everything, seconds: int = SECONDS) -> dict:
    """What a process that was started by this method finds, or an error if it is stuck or dies."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(there, everything))
    process.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise TimeoutError(f"A {method} worker was stuck for {seconds} s.")
        return here.recv()
    finally:
        process.join(10)
        process.kill()


@contextmanager
def busy_thread(work):
    """Another thread that works all along."""
    begun, stop = threading.Event(), threading.Event()

    def keep_on():
        while not stop.is_set():
            work()
            begun.set()

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def everything():
    return [twins(name, torch.float32) for name in QUICK]


@pytest.fixture(scope="module")
def expected(everything):
    """What the parent finds; so it has used its kernels."""
    return findings(everything)


class Answers(Dataset):
    """Samples that a network has a part in, as where it gives features for another."""

    def __init__(self, everything):
        self.everything = everything

    def __len__(self):
        return len(self.everything)

    def __getitem__(self, index):
        return findings(self.everything[index : index + 1])


def from_data_loader(method: str, everything) -> dict:
    loader = DataLoader(
        Answers(everything), batch_size=None, num_workers=1, multiprocessing_context=method, timeout=SECONDS
    )
    return {name: found for part in loader for name, found in part.items()}


def from_fork_beside_a_thread(everything) -> dict:
    """The fork takes no thread along, and whatever locks they held stay shut. Torch has such: of 851 forks beside a
    thread that did nothing but nn.Linear, one got stuck in it. So a worker may be stuck, and another must not be.
    """
    _, _, snn, batch = twins("vit, 8 bits", torch.float32)
    with busy_thread(lambda: run(snn, batch)):
        try:
            return from_process("fork", everything, seconds=60)
        except TimeoutError:
            return from_process("fork", everything, seconds=60)


WAYS = {
    "fork": lambda everything: from_process("fork", everything),
    "spawn": lambda everything: from_process("spawn", everything),
    "fork beside a thread": from_fork_beside_a_thread,
    "data loader": lambda everything: from_data_loader("fork", everything),
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.slow if way == "spawn" else ()) for way in WAYS],  # it imports everything
)
def test_workers_find_what_their_parent_finds(way, everything, expected):
    found = WAYS[way](everything)
    assert found == expected
    assert findings(everything) == expected  # and the parent still does, whatever became of its memory
    assert len(set(expected.values())) == len(everything)

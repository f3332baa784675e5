"""One model, several threads at once: each gets the answers that it would get alone."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from spikezip_hf.analysis.recording import Watch
from tests.invariance.architectures import fingerprint, quantized, reference, run, select

THREADS = 4


@pytest.fixture(params=[1, pytest.param(4, marks=pytest.mark.slow)], autouse=True)
def kernel_threads(request):
    """Threads that each of these threads' kernels have."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def at_once(functions) -> list:
    """What each gives, all begun together."""
    together = threading.Barrier(len(functions))

    def wait_for_all(function):
        together.wait(timeout=60)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(wait_for_all, functions))


def rotated(batch, by: int) -> dict:
    """Another batch for each thread, of another size too."""
    return select(batch, torch.arange(by, by + 6 - by) % 6)


def test_simulations(plain):
    batches = [rotated(plain.batch, by) for by in range(THREADS)]
    alone = [fingerprint(run(plain.snn, batch)) for batch in batches]
    assert len(set(alone)) == THREADS
    together = at_once(
        [lambda batch=batch: [fingerprint(run(plain.snn, batch)) for _ in range(3)] for batch in batches]
    )
    assert together == [[expected] * 3 for expected in alone]


def trained(qann, batch):
    """A loss and its gradients, which are not left in the shared model."""
    outputs = qann(**batch)
    parameters = [parameter for parameter in qann.parameters() if parameter.is_floating_point()]
    gradients = torch.autograd.grad(outputs[0].square().sum(), parameters, allow_unused=True)
    return [outputs[0].detach(), *(gradient for gradient in gradients if gradient is not None)]


def inferred(model, batch):
    with torch.inference_mode():
        return [model(**batch)[0]]


def test_gradients_beside_inference(plain):
    """Modes of autograd are a thread's own, and what a simulation remembers of parameters is, too."""
    training = copy.deepcopy(plain.qann).train()
    work = [
        lambda: trained(plain.qann, plain.batch),
        lambda: trained(training, plain.batch),
        lambda: [quantized(plain.qann, plain.batch)],
        lambda: inferred(plain.qann, plain.batch),
        lambda: inferred(plain.snn, plain.batch),
        lambda: [plain.snn(**plain.batch)[0].detach()],
    ]
    alone = [function() for function in work]
    for found, expected in zip(at_once([lambda f=f: [f() for _ in range(3)] for f in work]), alone):
        for again in found:
            assert all(map(torch.equal, again, expected))
            assert len(again) == len(expected)


def test_what_is_watched_is_the_run_of_the_watching_thread(plain):
    """Hooks are the model's, and so are called by everybody's passes."""
    if plain.snn.base_model is plain.snn:
        pytest.skip("recordings are of classifiers")
    half = select(plain.batch, [4, 1])
    running, stop = threading.Event(), threading.Event()

    def disturb():
        while not stop.is_set():
            run(plain.snn, half)
            running.set()

    other = threading.Thread(target=disturb)
    other.start()
    try:
        assert running.wait(60)
        for _ in range(5):
            watch = Watch()
            with watch.of(plain.snn):
                found = run(plain.snn, plain.batch)
            steps = int(found.equilibrium_step.max())
            assert torch.equal(watch.spikes(steps).sum(1), found.spike_counts)
    finally:
        stop.set()
        other.join()
    assert fingerprint(run(plain.snn, plain.batch, output_time_steps=True)) == fingerprint(
        reference(plain.name, torch.float32)
    )

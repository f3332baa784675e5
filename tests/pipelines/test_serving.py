"""benchmarks/serving.py: it finds cross-talk and growth, and finds none where there is none."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.conftest import make_text_qann, spiking_twin
from tests.test_auto_text import make_tokenizer

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def serving():
    found = importlib.util.spec_from_file_location("serving", SCRIPT)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Echo:
    """Stands for a pipeline: a text's score is its length. With cross-talk, texts pass through a shared place."""

    def __init__(self, cross_talk: bool = False):
        self.place, self.cross_talk, self.meeting = None, cross_talk, threading.Barrier(2)

    def __call__(self, what, batch_size=None):
        if isinstance(what, list):
            return [self(one) for one in what]
        if not isinstance(what, str):
            raise TypeError("no text")
        if self.cross_talk:
            self.place = what
            try:
                self.meeting.wait(0.05)
            except threading.BrokenBarrierError:
                self.meeting.reset()
            what = self.place
        return [{"label": "length", "score": float(len(what))}]


INPUTS = ["a", "bb", "ccc", "dddd", None]


def served(serving, pipe, mode):
    expected = [serving.ask(Echo(), one) for one in INPUTS]
    return serving.run(pipe, INPUTS, expected, mode, minutes=0.02, clients=2, batch_size=3)


@pytest.mark.parametrize("mode", ["shared", "queue"])
def test_right_answers_and_expected_errors_are_no_fault(serving, mode):
    found = served(serving, Echo(), mode)
    assert found["wrong"] == 0
    assert 0 < found["errors, as expected"] < found["requests"]
    assert serving.problems(found, allowed=8) == []


def test_cross_talk_is_found(serving):
    found = served(serving, Echo(cross_talk=True), "shared")
    assert found["wrong"] > 0
    assert found["first wrong answers"][0]["answer"] != found["first wrong answers"][0]["expected"]
    assert "not those of the serial run" in serving.problems(found, allowed=8)[0]


def test_growth_is_told_from_noise(serving):
    seconds = [float(second) for second in range(100)]
    noise = [(-1) ** second * 5.0 for second in range(100)]
    found = served(serving, Echo(), "shared")

    def faults(values):
        found["memory, MiB"]["growth behind the warm-up"] = serving.growth(seconds, values)
        return serving.problems(found, allowed=8)

    assert faults([500 + wave for wave in noise]) == []
    # What is taken at the start is not growth; only the last 80 % are looked at.
    assert faults([500 + 20 * min(second, 15) for second in seconds]) == []
    (fault,) = faults([500 + 0.2 * second + wave for second, wave in zip(seconds, noise, strict=True)])
    assert fault.startswith("memory grew by 15.")


def test_latencies_are_within_a_percent(serving):
    latencies = serving.Latencies()
    for milliseconds in range(1, 1001):
        latencies.add(milliseconds / 1000)
    for share in (50, 95, 99):
        assert latencies.percentile(share) == pytest.approx(share / 100, rel=0.02)


@pytest.fixture
def folder(tmp_path):
    qann = make_text_qann("bert", max_position_embeddings=64)
    spiking_twin(qann, time_steps=400).save_pretrained(tmp_path / "snn")
    make_tokenizer("bert").save_pretrained(tmp_path / "snn")
    return tmp_path / "snn"


def script(*arguments: str, timeout: int = 300):
    bounded = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "16"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=bounded,
    )


@pytest.mark.slow
def test_a_small_network_is_served(folder):
    done = script(str(folder), "--minutes", "0.2", "--clients", "3", "--allowed-growth", "32")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert [run["mode"] for run in found["runs"]] == ["shared", "queue"]
    for run in found["runs"]:
        assert run["wrong"] == 0
        assert 0 < run["errors, as expected"] < run["requests"]
        assert run["latency, ms"]["p50"] <= run["latency, ms"]["p99"]
    assert "serving, shared" in done.stderr  # the progress bar


@pytest.mark.slow
def test_what_cannot_be_served_is_said_in_a_line(tmp_path):
    done = script(str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr.splitlines()[-1]

"""`spikezip evaluate` by several processes: the figures of one, whoever is killed on the way."""

import os
import signal
import subprocess
import sys
import time

import pytest

from spikezip_hf.hub import read_results
from tests.cli.test_commands import make_tokenizer, write_texts
from tests.conftest import make_text_qann, spiking_twin

LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ARGUMENTS = ["--data-dir", "texts", "--time-steps", "64", "--batch-size", "3", "--report-time-steps", "8"]


@pytest.fixture
def workplace(tmp_path):
    """A text network for two classes, and forty texts in four parts."""
    write_texts(tmp_path / "texts", {"train": 4, "test": 40})
    qann = make_text_qann("bert", levels=8, num_labels=2, max_position_embeddings=64)
    snn = spiking_twin(qann, time_steps=64)
    snn.save_pretrained(tmp_path / "snn")
    make_tokenizer("bert").save_pretrained(tmp_path / "snn")
    return tmp_path


def start(folder, *before):
    """`spikezip evaluate` in `folder`, its processes in a group of their own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SPIKEZIP_DATA": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *(before or ["-m"]), "spikezip_hf", "evaluate", "snn", *ARGUMENTS]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def figures(folder):
    """What was measured, without when and where."""
    (results,) = read_results(folder / "snn" / "results.json")
    return {key: results[key] for key in ("accuracy on the whole split", "simulated", "network_digest")}


def parts(folder):
    return sorted((folder / "snn").glob("_predictions/*/snn/part-*.parquet"))


@pytest.mark.slow
def test_two_processes_find_what_one_does(workplace):
    code, out, err = finished(start(workplace))
    assert code == 0, err[-2000:]
    alone = figures(workplace)
    tables = [path.read_bytes() for path in parts(workplace)]
    subprocess.run(["rm", "-r", workplace / "snn" / "_predictions", workplace / "snn" / "results.json"], check=True)

    code, shared, err = finished(start(workplace, *LAUNCH, "-m"))
    assert code == 0, err[-2000:]
    assert figures(workplace) == alone
    assert [path.read_bytes() for path in parts(workplace)] == tables
    assert shared == out  # once, by the first process


@pytest.mark.slow
def test_a_killed_process_is_told_of_and_its_work_taken_up(workplace):
    process = start(workplace, *LAUNCH, "-m")
    deadline = time.monotonic() + 200
    while not parts(workplace):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (victim, *_) = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(victim), signal.SIGKILL)
    code, _, err = finished(process)
    if code == 0:
        pytest.skip("It was finished before it could be killed.")
    assert "A process of this run has ended before its time" in err
    assert "give the same command again" in err
    assert not (workplace / "snn" / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in parts(workplace)}

    code, out, err = finished(start(workplace, *LAUNCH, "-m"))
    assert code == 0, err[-2000:]
    assert "exact: 40 of 40 samples" in out
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())

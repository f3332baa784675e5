"""One training, killed ten times with -9 at random moments, ends with the weights of one that was left alone."""

import logging
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from spikezip_hf.training.resuming import check_whole, checkpoints
from tests.training.test_resume import life

KILLS, MOST_STEPS = 10, 5
# A checkpoint after each step, so that about half of the time is spent on writing them.
FIELDS = {"max_steps": KILLS * MOST_STEPS + 4, "save_steps": 1, "save_total_limit": 3, "eval_steps": 10}
CODE = """
import sys
from pathlib import Path
from tests.training.test_resume import life
life(Path(sys.argv[1]), speaking=True, **{fields})
"""


def start(folder):
    code = CODE.format(fields=FIELDS)
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def kill_at_random(folder, generator, period):
    """Start a life, and end it some steps later, at any moment of a step; the state it leaves.

    Args:
        period: seconds from a step's end to the next, with the checkpoint that is written in between.
    """
    process = start(folder)
    steps = (line for line in process.stdout if line.startswith("step "))
    for _ in range(generator.randint(1, MOST_STEPS)):
        line = next(steps, None)
        assert line is not None, "it ended by itself"
    time.sleep(generator.uniform(0, period))
    process.kill()  # SIGKILL
    process.wait()
    process.stdout.close()
    return line.strip()


def broken(folder):
    """What is wrong with each checkpoint that is not whole."""
    problems = {}
    for path in checkpoints(folder):
        try:
            check_whole(path)
        except OSError as error:
            problems[path.name] = str(error).replace(str(folder), "")
    return problems


@pytest.mark.slow
def test_killed_ten_times(tmp_path):
    generator = random.Random(0)
    begun = time.perf_counter()
    life(tmp_path / "whole", **FIELDS)
    period = (time.perf_counter() - begun) / FIELDS["max_steps"]
    folder = tmp_path / "killed"
    half_written = 0
    for kill in range(KILLS):
        line = kill_at_random(folder, generator, period)
        problems = broken(folder)
        half_written += bool(problems)
        logging.info("kill %s after %s: %s", kill + 1, line, problems or "all whole")
        assert not (folder / "end").exists()
    assert half_written, "no kill came while a checkpoint was written: raise KILLS"
    life(folder, **FIELDS)
    assert not broken(folder)
    assert not list(folder.glob("checkpoint-*/_partial-*"))
    one, other = (load_file(tmp_path / name / "end" / "model.safetensors") for name in ("whole", "killed"))
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    shutil.rmtree(tmp_path / "whole")

"""Ctrl-C, as a terminal sends it, in the middle of a stage: nothing is lost, and the words say how to go on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from spikezip_hf.training.resuming import check_whole, newest_whole
from tests.conftest import heed_sigint
from tests.recipes.test_stages import TEXT_RECIPE, make_texts, record, same, weights

FLAGS = ["--stage", "finetune", "--save_strategy", "steps", "--save_steps", "1", "--train_sampling_strategy", "random"]
COMMAND = [sys.executable, "-m", "spikezip_hf", "train", "recipe.yaml", *FLAGS]


@pytest.mark.slow
def test_once_and_again(tmp_path):
    make_texts(tmp_path / "texts")
    (tmp_path / "recipe.yaml").write_text(TEXT_RECIPE)
    folder = tmp_path / "out" / "ann"
    process = subprocess.Popen(
        COMMAND,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=heed_sigint,
    )
    deadline = time.monotonic() + 120
    while newest_whole(folder) is None:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted; nothing is left half-written. The same command again goes on where it can." in said
    assert "Traceback" not in said
    assert not (folder / "training.json").exists()
    for checkpoint in folder.glob("checkpoint-*"):
        check_whole(checkpoint)

    def run(*flags):
        done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]

    run()
    assert record(folder)["resumed"] is True
    run("--output_dir", "whole")
    assert same(weights(folder), weights(tmp_path / "whole"))

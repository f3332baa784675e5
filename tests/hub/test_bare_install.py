"""The package without its extras: what needs torch and transformers only works where there is nothing else."""

import json
import os
from pathlib import Path

import spikezip_hf
from tests.conftest import make_text_qann
from tests.hub.bare import run_bare
from tests.test_auto_text import make_tokenizer

SOURCE = Path(spikezip_hf.__file__).parents[1]
PROGRAM = """
import importlib.util, json, sys
assert all(importlib.util.find_spec(absent) is None for absent in ("accelerate", "datasets", "evaluate", "PIL"))
from typer.testing import CliRunner
from spikezip_hf.cli.app import app

def spikezip(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    print(json.dumps([result.exit_code, result.stdout, result.stderr.splitlines()[-1:]]))

qann, snn = {qann!r}, {snn!r}
spikezip("convert", qann, snn, "--time-steps", "300", "--json")
spikezip("info", snn, "--json")
spikezip("verify", snn, "--samples", "3", "--json")
spikezip("card", snn, "--license", "mit")
spikezip("evaluate", snn, "--data-dir", "nowhere")
"""


def test_command_line(site, tmp_path):
    qann = make_text_qann("bert", max_position_embeddings=64)
    qann.save_pretrained(tmp_path / "qann", processing_class=make_tokenizer("bert"))
    program = PROGRAM.format(qann=str(tmp_path / "qann"), snn=str(tmp_path / "snn"))
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    lines = run_bare(program, f"{SOURCE}{os.pathsep}{site}", environment).splitlines()
    converted, info, verified, card, evaluated = [json.loads(line) for line in lines]
    assert [answer[0] for answer in (converted, info, verified, card)] == [0] * 4, lines
    assert json.loads(converted[1]) == json.loads(info[1])
    assert json.loads(info[1])["time_steps"] == 300
    assert json.loads(verified[1])["exact"] is True
    assert "license: mit" in (tmp_path / "snn" / "README.md").read_text()
    assert (tmp_path / "snn" / "tokenizer.json").is_file()
    assert evaluated[0] == 1
    assert "pip install 'spikezip-hf[train]'" in evaluated[2][0]

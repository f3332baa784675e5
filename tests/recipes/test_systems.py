"""training/SYSTEMS.md, the table of systems: what it names is there, and what is there it names."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spikezip_hf.cli.app import app
from spikezip_hf.conversion.calibration import PERCENTILE
from spikezip_hf.recipes.parsing import parse_known
from spikezip_hf.recipes.stages import KINDS, stages_of

TRAINING = Path(__file__).parents[2] / "training"
TEXT = (TRAINING / "SYSTEMS.md").read_text()
ROWS = [line for line in TEXT.splitlines() if line.startswith("|")]
RECIPES = sorted((TRAINING / "recipes").glob("*/*.yaml"))
COMMANDS = sorted(set(re.findall(r"`spikezip train ([^`]+)`", TEXT)))


def links(folder: str, text: str = TEXT) -> set[Path]:
    return {TRAINING / path for path in re.findall(rf"\]\(({folder}/[^)]+)\)", text)}


def test_every_recipe_is_in_the_table_and_no_other():
    assert links("recipes") == set(RECIPES)


def test_every_result_is_in_the_table_and_no_other():
    assert links("results") == set((TRAINING / "results").glob("*.json"))


def test_a_row_has_either_a_result_or_was_not_run():
    systems = [row for row in ROWS if "`spikezip train" in row or "](results/" in row]
    assert len(systems) > 40
    for row in systems:
        assert row.endswith("| parses here, not run |") != bool(links("results", row)), row


@pytest.mark.parametrize("path", sorted(links("results")), ids=lambda path: path.stem)
def test_figures_are_those_of_the_result(path):
    (row,) = (row for row in ROWS if path in links("results", row))
    results = json.loads(path.read_text())
    figures = results["test"] if "test" in results else results["simulated"]
    accuracy = {entry["network"]: entry["accuracy"] for entry in figures["rows"]}  # of the SNN, the last row's
    whole = results.get("accuracy on the whole split", accuracy)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    expected = [f"{100 * whole[name]:.2f}" for name in ("ANN", "QANN")]
    expected.append(f"{100 * accuracy['SNN']:.2f} ({100 * accuracy['QANN']:.2f})")
    assert cells[4:7] == expected
    assert cells[8] == f"{figures['at equilibrium']} of {figures['samples']}"
    assert figures["exact"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_parsed(command):
    """Each flag is of one of the stages of its recipe."""
    path, *flags = shlex.split(command)
    recipe = TRAINING.parent / path
    unknown = []
    for stage in stages_of(recipe):
        kinds, description, _ = KINDS[stage]
        _, left_over = parse_known(stage, kinds, description, [str(recipe), "--use_cpu", "true", *flags])
        unknown.append({flag for flag in left_over if flag.startswith("--")})
    assert not set.intersection(*unknown)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_without_data_it_ends_in_one_line(path, tmp_path, monkeypatch):
    """Of each recipe, the first stage as a user gives it: what is missing is data, network or package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPIKEZIP_DATA", raising=False)
    for where in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{where}.HF_HUB_OFFLINE", True)
    for where in ("huggingface_hub.constants.HF_HUB_CACHE", "datasets.config.HF_DATASETS_CACHE"):
        monkeypatch.setattr(where, str(tmp_path / "cache"))
    result = CliRunner().invoke(app, ["train", str(path), "--use_cpu", "true", "--bf16", "false"])
    assert result.exit_code == 1, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert re.search("No data set|No network at|No data folder|encoder is not installed|cannot be loaded", line), line


def test_figures_of_calibration_are_those_of_the_benchmark():
    seen = 0
    for row in ROWS:
        for path in re.findall(r"\]\(\.\./(benchmarks/results/[^)]+)\)", row):
            results = json.loads((TRAINING.parent / path).read_text())
            _, ann, levels, *found = [cell.strip() for cell in row.strip("|").split("|")][:6]
            accuracy = {one["rule"]: one["accuracy"] for one in results["rows"] if one["levels"] == int(levels)}
            assert ann == f"{100 * results['ann']:.2f}"
            assert found == [f"{100 * accuracy[rule]:.2f}" for rule in ("mse", f"percentile ({PERCENTILE})", "lsq")]
            seen += 1
    assert seen == 6

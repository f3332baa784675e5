"""Recipes: YAML files with arguments, of which flags on the command line take precedence.

    data:        # for every stage
      dataset: stanfordnlp/sst2
    training:    # for both trainings
      bf16: true
    finetune:    # one section for each stage that the recipe has
      num_train_epochs: 4
    qat:
      quantization_levels: 32

Every key is a flag of the stage's script, and the other way round.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

STAGES = ("finetune", "qat", "convert")
# Sections that a stage reads before its own.
SHARED = {"finetune": ("data", "training"), "qat": ("data", "training"), "convert": ("data",)}


def read_recipe(path: Path, stage: str) -> dict[str, Any]:
    """Arguments that the recipe at `path` has for `stage`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no recipe, or has no section for the stage; says which it has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No recipe at {path}.")
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    sections = ("data", "training", *STAGES)
    if not isinstance(recipe, dict) or not set(recipe) <= set(sections):
        raise ValueError(f"{path} is not a recipe: it should have the sections {', '.join(sections)}, and no others.")
    if stage not in recipe:
        there = ", ".join(name for name in STAGES if name in recipe) or "none"
        raise ValueError(f"{path} has no section {stage!r} (it has {there}): this is another script's recipe.")
    arguments: dict[str, Any] = {}
    for section in (*SHARED[stage], stage):
        arguments |= recipe.get(section) or {}
    return arguments


def parse(stage: str, kinds: Sequence[DataClassType], description: str, argv: Sequence[str]) -> list:
    """One object of each dataclass in `kinds`, of a recipe (the first argument, if it is no flag) and of flags.

    Raises:
        FileNotFoundError, ValueError: as `read_recipe`; a key that no dataclass has; a value that one refuses.
        SystemExit: --help, or flags that cannot be parsed.
    """
    parser = HfArgumentParser(
        kinds,
        description=description,
        usage=f"{Path(sys.argv[0]).name} [RECIPE.yaml] [--FLAG VALUE ...]",
        epilog="A recipe is a YAML file with any of these flags; a flag given here counts, whatever the recipe says.",
    )
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    flags = list(argv)
    if flags and not flags[0].startswith("-"):
        path = Path(flags.pop(0))
        values = read_recipe(path, stage)
        known = {action.dest for action in parser._actions}
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"{path}: {unknown[0]}: no such argument of this script.")
        parser.set_defaults(**values)
        for action in parser._actions:
            action.required = action.required and action.dest not in values
    return list(parser.parse_args_into_dataclasses(args=flags))


def main(run: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a stage on the command line: what is wrong with the input is one line, and Ctrl-C is no traceback."""
    try:
        run(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to go on from the last checkpoint, if there is one.")
    sys.exit(0)

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

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

from spikezip_hf.errors import is_out_of_memory, one_line

STAGES = ("finetune", "qat", "convert")
# Sections that a stage reads before its own.
SHARED = {"finetune": ("data", "training"), "qat": ("data", "training"), "convert": ("data",)}


def read_recipe(path: Path, stage: str) -> dict[str, list[str]]:
    """Arguments that the recipe at `path` has for `stage`, as they would stand on a command line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no recipe, or has no section for the stage; says which it has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No recipe at {path}.")
    try:
        text = path.read_text(encoding="utf-8")
        # As text, so that each argument is read in its own type: to YAML 1e-4 is a word, and `no` is false.
        recipe, typed = yaml.load(text, yaml.BaseLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    sections = ("data", "training", *STAGES)
    if not isinstance(recipe, dict) or not set(recipe) <= set(sections):
        raise ValueError(f"{path} is not a recipe: it should have the sections {', '.join(sections)}, and no others.")
    for name, section in recipe.items():
        if section and not isinstance(section, dict):
            raise ValueError(f"{path}: section {name!r} should hold arguments with their values, got {section!r}.")
    if stage not in recipe:
        there = ", ".join(name for name in STAGES if name in recipe) or "none"
        raise ValueError(f"{path} has no section {stage!r} (it has {there}): this is another script's recipe.")
    arguments: dict[str, list[str]] = {}
    for name in (*SHARED[stage], stage):
        for key, value in (recipe.get(name) or {}).items():
            if typed[name][key] is None:
                arguments.pop(key, None)
            elif isinstance(value, dict):
                arguments[key] = [json.dumps(typed[name][key])]
            else:
                arguments[key] = value if isinstance(value, list) else [value]
    return arguments


def parse(stage: str, kinds: Sequence[DataClassType], description: str, argv: Sequence[str]) -> list:
    """One object of each dataclass in `kinds`, of a recipe (the first argument, if it is no flag) and of flags.

    Raises:
        FileNotFoundError, ValueError: as `read_recipe`; a key that no dataclass has; a value that one refuses.
        SystemExit: --help, or flags that cannot be parsed.
    """
    parsed, unknown = parse_known(stage, kinds, description, argv)
    if unknown:
        raise ValueError(f"{' '.join(unknown)}: no such argument of this script; --help lists them.")
    return parsed


def parse_known(
    stage: str, kinds: Sequence[DataClassType], description: str, argv: Sequence[str]
) -> tuple[list, list[str]]:
    """`parse`, which also returns flags that are not of this stage, with their values."""
    parser = HfArgumentParser(
        kinds,
        description=description,
        usage=f"{Path(sys.argv[0]).name} [RECIPE.yaml] [--FLAG VALUE ...]",
        epilog="A recipe is a YAML file with any of these flags; a flag given here counts, whatever the recipe says.",
    )
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    flags, written = list(argv), []
    if flags and not flags[0].startswith("-"):
        path = Path(flags.pop(0))
        known = {action.dest for action in parser._actions}
        for key, values in read_recipe(path, stage).items():
            if key not in known:
                raise ValueError(f"{path}: {key}: no such argument of this script.")
            # With =, a value may begin with a minus.
            written += [f"--{key}={values[0]}"] if len(values) == 1 else [f"--{key}", *values]
    *parsed, unknown = parser.parse_args_into_dataclasses(args=written + flags, return_remaining_strings=True)
    return parsed, unknown


def main(run: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a stage on the command line: what is wrong with the input is one line, and Ctrl-C is no traceback."""
    try:
        run(sys.argv[1:])
    except Exception as error:
        expected = isinstance(error, ValueError | OSError | ImportError | FloatingPointError)
        if not expected and not is_out_of_memory(error):
            raise
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to go on from the last checkpoint, if there is one.")
    sys.exit(0)

"""All stages of a recipe, one after the other."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from spikezip_hf.recipes import convert, finetune, qat
from spikezip_hf.recipes.parsing import STAGES, parse_known

# Of each stage: its arguments, and what runs it.
KINDS: dict[str, tuple[tuple, str, Callable[..., Any]]] = {
    "finetune": (finetune.KINDS, finetune.DESCRIPTION, finetune.finetune),
    "qat": (qat.KINDS, qat.DESCRIPTION, qat.train_quantized),
    "convert": (convert.KINDS, convert.DESCRIPTION, convert.convert_and_print),
}


def run_stages(recipe: Path, stage: str | None, flags: Sequence[str] = ()) -> dict[str, str]:
    """Run the stages that a recipe has, or one of them. The arguments of all are checked before the first begins.

    Args:
        recipe: the YAML file.
        stage: "finetune", "qat" or "convert"; None for all that it has.
        flags: each for those stages that know it; they count more than the recipe.

    Returns:
        {stage: "finished"}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such stage, or something is wrong with an argument.
    """
    if stage is not None and stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    todo = [stage] if stage else stages_of(recipe)
    if len(todo) > 1 and any(flag.partition("=")[0] == "--output_dir" for flag in flags):
        raise ValueError(
            "--output_dir: each stage needs a folder of its own: set them in the recipe, or give --stage."
        )
    parsed, unknown = {}, []
    for name in todo:
        kinds, description, _ = KINDS[name]
        parsed[name], left_over = parse_known(name, kinds, description, [str(recipe), *flags])
        unknown.append({flag for flag in left_over if flag.startswith("--")})
    if of_none := set.intersection(*unknown):
        raise ValueError(f"{', '.join(sorted(of_none))}: no such argument of {' or '.join(todo)}.")
    for name in todo:
        KINDS[name][2](*parsed[name])
    return dict.fromkeys(todo, "finished")


def stages_of(recipe: Path) -> list[str]:
    """The stages that a recipe has, in their order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has none.
    """
    if not recipe.is_file():
        raise FileNotFoundError(f"No recipe at {recipe}.")
    try:
        sections = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{recipe} is not YAML: {' '.join(str(error).split())}") from error
    found = [name for name in STAGES if isinstance(sections, dict) and name in sections]
    if not found:
        raise ValueError(f"{recipe} has none of the sections {', '.join(STAGES)}: it is no recipe.")
    return found

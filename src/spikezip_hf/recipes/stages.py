"""All stages of a recipe, one after the other."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from spikezip_hf.recipes import convert, finetune, qat
from spikezip_hf.recipes.parsing import STAGES

RUN = {"finetune": finetune.main, "qat": qat.main, "convert": convert.main}


def run_stages(recipe: Path, stage: str | None, flags: Sequence[str] = ()) -> dict[str, str]:
    """Run the stages that a recipe has, or one of them.

    Args:
        recipe: the YAML file.
        stage: "finetune", "qat" or "convert"; None for all that it has.
        flags: for each stage that runs; they count more than the recipe.

    Returns:
        {stage: "finished"}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such stage, or something is wrong with an argument.
    """
    if stage is not None and stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    if not recipe.is_file():
        raise FileNotFoundError(f"No recipe at {recipe}.")
    try:
        sections = yaml.safe_load(recipe.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{recipe} is not YAML: {' '.join(str(error).split())}") from error
    todo = [stage] if stage else [name for name in STAGES if isinstance(sections, dict) and name in sections]
    if not todo:
        raise ValueError(f"{recipe} has none of the sections {', '.join(STAGES)}: it is no recipe.")
    for name in todo:
        RUN[name]([str(recipe), *flags])
    return dict.fromkeys(todo, "finished")

"""The recipes in training/recipes: those of the paper hold its tables' values, and all of them can be parsed."""

import math
from pathlib import Path

import pytest
import yaml

from spikezip_hf.recipes.parsing import SHARED, STAGES, parse
from tests.recipes.test_parsing import KINDS

HOME = Path(__file__).parents[2] / "training" / "recipes"
RECIPES = sorted(HOME.glob("*/*.yaml"))
IMAGENET = 1281167  # training images

# As printed in the paper, from A3 to A12. A table has no levels where it is one of fine-tuning.
COLUMNS = (
    *("table", "model", "betas", "base_lr", "weight_decay", "layer_decay", "gpus", "batch", "warmup_epochs", "epochs"),
    *("distillation", "randaug", "smoothing", "mixup", "cutmix", "drop_path", "levels"),
)
# fmt: off
PAPER = [dict(zip(COLUMNS, row, strict=True)) for row in (
    ("a03_vit_s_imagenet", "small", (0.9, 0.99), 1e-4, 0.05, 0.65, 4, "64/256", 5, 100,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.1, ()),
    ("a04_vit_b_imagenet", "base", (0.9, 0.99), 1.66e-4, 0.05, 0.65, 8, "96/768", 5, 100,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.1, ()),
    ("a05_vit_l_imagenet", "large", (0.9, 0.99), 1.67e-3, 0.05, 0.75, 8, "24/192", 5, 50,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.2, ()),
    ("a06_vit_s_imagenet", "small", (0.9, 0.99), 1.5e-4, 0.05, 0.65, 4, "64/256", 5, 100,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.1, (32,)),
    ("a07_vit_b_imagenet", "base", (0.9, 0.99), 1.5e-4, 0.001, 0.65, 6, "96/576", 5, 50,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.05, (32,)),
    ("a08_vit_l_imagenet", "large", (0.9, 0.99), 1.6e-3, 0.0005, 0.75, 8, "20/160", 5, 50,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.05, (32,)),
    ("a09_vit_s_cifar", "small", (0.9, 0.99), 1e-4, 0.05, 0.65, 8, "192/1536", 5, 100,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.1, ()),
    ("a10_vit_s_cifar", "small", (0.9, 0.99), 1.5e-4, 0.05, 0.65, 8, "128/1024", 5, 300,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.1, (8, 16)),
    ("a11_vit_s_dvs", "small", (0.9, 0.99), 2e-4, 0.05, 0.65, 4, "192/768", 5, 300,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.1, ()),
    ("a12_vit_s_dvs", "small", (0.9, 0.99), 2.25e-4, 0.05, 0.65, 4, "92/368", 5, 300,
     (1.0, 2.0), (9, 0.5), 0.1, 0.8, 1.0, 0.1, (16, 32)),
)]
# fmt: on
TABLES = {row["table"]: row for row in PAPER}
# Sections A4.1 to A4.3: which fine-tuned network each quantized one starts from.
STARTS_FROM = {
    "a06_vit_s_imagenet": "a03_vit_s_imagenet",
    "a07_vit_b_imagenet": "a04_vit_b_imagenet",
    "a08_vit_l_imagenet": "a05_vit_l_imagenet",
    "a10_vit_s_cifar": "a09_vit_s_cifar",
    "a12_vit_s_dvs": "a11_vit_s_dvs",
}


def stages_of(path: Path) -> list[str]:
    recipe = yaml.safe_load(path.read_text())
    return [stage for stage in STAGES if stage in recipe]


def parsed(path: Path, stage: str, *flags: str) -> list:
    """On the CPU in any case, so that batches are those of one device."""
    return parse(stage, KINDS[stage], "", [str(path), "--use_cpu", "true", *flags])


def parsed_table(name: str, *flags: str) -> list:
    return parsed(HOME / "paper" / f"{name}.yaml", "qat" if name in STARTS_FROM else "finetune", *flags)


def test_every_table_has_its_recipe_and_no_other_stage():
    assert {path.stem for path in RECIPES if path.parent.name == "paper"} == set(TABLES)
    for name, paper in TABLES.items():
        assert stages_of(HOME / "paper" / f"{name}.yaml") == (["qat"] if paper["levels"] else ["finetune"])


@pytest.mark.parametrize("name", TABLES)
def test_values_of_the_paper(name):
    paper = TABLES[name]
    network, data, args = parsed_table(name)
    at_once, total = map(int, paper["batch"].split("/"))

    assert args.optim == "adamw_torch"
    assert (args.adam_beta1, args.adam_beta2) == paper["betas"]
    # A tolerance: the product is formed factor by factor, which rounds otherwise than here.
    assert args.learning_rate == pytest.approx(paper["base_lr"] * total / 256, rel=1e-12)
    assert args.weight_decay == paper["weight_decay"]
    assert args.layer_decay == paper["layer_decay"]

    assert args.per_device_train_batch_size == at_once
    assert at_once * paper["gpus"] == args.total_train_batch_size == total
    assert args.train_batch_size * args.gradient_accumulation_steps == total

    assert args.num_train_epochs == paper["epochs"]
    assert args.warmup_steps == paper["warmup_epochs"] / paper["epochs"]  # below 1: a share of all steps
    assert args.lr_scheduler_type == "cosine"

    assert (args.distillation_weight, args.distillation_temperature) == paper["distillation"]
    magnitude, deviation = paper["randaug"]
    assert data.auto_augment.split("-")[:3] == ["rand", f"m{magnitude}", f"mstd{deviation}"]
    assert args.label_smoothing_factor == paper["smoothing"]
    assert args.mixup_alpha == paper["mixup"]
    assert args.cutmix_alpha == paper["cutmix"]
    assert network.drop_path_rate == paper["drop_path"]


@pytest.mark.parametrize("name", STARTS_FROM)
def test_levels_of_the_paper(name):
    levels = TABLES[name]["levels"]
    assert parsed_table(name)[0].quantization_levels in levels
    for count in levels:  # one of two is given on the command line, as the recipe says
        assert parsed_table(name, "--quantization_levels", str(count))[0].quantization_levels == count
    if len(levels) > 1:
        assert all(f"{count}" in (HOME / "paper" / f"{name}.yaml").read_text() for count in levels)


@pytest.mark.parametrize(("name", "first"), STARTS_FROM.items())
def test_quantized_training_starts_from_the_network_of_its_fine_tuning_table(name, first):
    assert parsed_table(name)[0].ann == parsed_table(first)[2].output_dir
    assert TABLES[name]["model"] == TABLES[first]["model"]


@pytest.mark.parametrize("name", sorted(set(TABLES) - set(STARTS_FROM)))
def test_network_has_the_size_of_the_paper(name):
    network = parsed_table(name)[0]
    assert network.architecture == ("event_vit" if "dvs" in name else "vit")
    assert (network.sensor_size, network.time_bins) == (([128, 128], 9) if "dvs" in name else (None, 1))
    assert f"vit-{TABLES[name]['model']}-patch16-224" in network.model


@pytest.mark.parametrize("name", [name for name in TABLES if "imagenet" in name])
def test_steps_of_a_stream_are_the_epochs_of_the_paper(name):
    _, data, args = parsed_table(name)
    assert data.streaming
    assert args.max_steps == math.ceil(TABLES[name]["epochs"] * IMAGENET / args.total_train_batch_size)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_can_be_parsed_and_its_stages_follow_one_another(path):
    stages = stages_of(path)
    assert stages
    first = {stage: parsed(path, stage)[0] for stage in stages}
    folders = {stage: (first[stage] if stage == "convert" else parsed(path, stage)[2]).output_dir for stage in stages}
    assert len(set(folders.values())) == len(folders), "two stages in one folder"
    if {"finetune", "qat"} <= set(stages):
        assert first["qat"].ann == folders["finetune"]
    if {"qat", "convert"} <= set(stages):
        assert first["convert"].qann == folders["qat"]


def test_no_two_recipes_share_a_folder():
    recipes = [yaml.safe_load(path.read_text()) for path in RECIPES]
    folders = [recipe[stage]["output_dir"] for recipe in recipes for stage in STAGES if stage in recipe]
    assert len(folders) > len(RECIPES)
    assert len(set(folders)) == len(folders)


def test_every_section_of_a_recipe_is_read_by_one_of_its_stages():
    for path in RECIPES:
        sections = set(yaml.safe_load(path.read_text()))
        read = {section for stage in stages_of(path) for section in (*SHARED[stage], stage)}
        assert sections <= read, path

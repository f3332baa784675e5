"""Recipes and flags to arguments, and what is said where something is wrong with them."""

import dataclasses
import re
import sys

import pytest
from transformers import TrainingArguments

from spikezip_hf.recipes import convert, finetune, qat
from spikezip_hf.recipes.convert import ConversionArguments
from spikezip_hf.recipes.finetune import NetworkArguments
from spikezip_hf.recipes.inputs import DataArguments
from spikezip_hf.recipes.parsing import main, parse
from spikezip_hf.recipes.qat import QuantizationArguments
from spikezip_hf.training import DistillationTrainingArguments, QATTrainingArguments

KINDS = {
    "finetune": (NetworkArguments, DataArguments, DistillationTrainingArguments),
    "qat": (QuantizationArguments, DataArguments, QATTrainingArguments),
    "convert": (ConversionArguments, DataArguments),
}
RECIPE = """
data:
  data_dir: films
  max_length: 40
training:
  weight_decay: 0.01
  num_train_epochs: 7
finetune:
  num_train_epochs: 3
  learning_rate: 1e-4
qat:
  ann: ann
  quantization_levels: 8
convert:
  qann: qann
  report_time_steps: [4, 8]
"""


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe; returns its path."""

    def write(text: str = RECIPE) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def parsed(stage: str, *argv: str) -> list:
    return parse(stage, KINDS[stage], "", argv)


@pytest.mark.parametrize("stage", KINDS)
def test_a_stage_reads_the_shared_sections_and_its_own(recipe, stage):
    first, data, *training = parsed(stage, recipe())
    assert (data.data_dir, data.max_length) == ("films", 40)
    if stage == "finetune":
        assert training[0].num_train_epochs == 3  # its own section, before the shared one
    if stage == "qat":
        assert (first.ann, first.quantization_levels, training[0].num_train_epochs) == ("ann", 8, 7)
    if training:
        assert training[0].weight_decay == 0.01
    if stage == "convert":
        assert (first.qann, first.report_time_steps) == ("qann", [4, 8])


def test_flags_win_over_the_recipe(recipe):
    _, data, args = parsed("finetune", recipe(), "--num_train_epochs", "9", "--data-dir", "reviews")
    assert (args.num_train_epochs, data.data_dir) == (9, "reviews")
    assert (args.weight_decay, data.max_length) == (0.01, 40)
    conversion, _ = parsed("convert", recipe(), "--report_time_steps", "2", "3", "5")
    assert conversion.report_time_steps == [2, 3, 5]


def test_number_that_yaml_takes_for_text_is_a_number(recipe):
    assert parsed("finetune", recipe())[2].learning_rate == 0.0001
    assert parsed("finetune", recipe("finetune: {base_learning_rate: 5e-4}"))[2].base_learning_rate == 5e-4


def test_no_of_yaml_which_is_false_there_is_the_strategy_no(recipe):
    args = parsed("finetune", recipe("finetune: {save_strategy: no, eval_strategy: no}"))[2]
    assert (args.save_strategy, args.eval_strategy) == ("no", "no")


def test_flags_alone_will_do():
    quantization, data, args = parsed("qat", "--ann", "net", "--dataset", "imdb", "--learning_rate", "3e-5")
    assert (quantization.ann, data.source(), args.learning_rate) == ("net", "imdb", 3e-5)


def test_fields_of_a_network_in_a_recipe_and_as_json(recipe):
    text = "finetune: {network: {hidden_size: 32, num_hidden_layers: 2}}"
    assert parsed("finetune", recipe(text))[0].network == {"hidden_size": 32, "num_hidden_layers": 2}
    assert parsed("finetune", "--network", '{"hidden_size": 48}')[0].network == {"hidden_size": 48}
    assert parsed("finetune", recipe(text), "--network", '{"hidden_size": 48}')[0].network == {"hidden_size": 48}


@pytest.mark.parametrize(
    ("stage", "text", "message"),
    [
        ("finetune", "finetune: {epochs: 3}", "recipe.yaml: epochs: no such argument of this script."),
        ("convert", "data: {}\ntraining: {}\nconvert: {learning_rate: 1}", "learning_rate: no such argument"),
        ("finetune", "finetune: {seed: 3", "recipe.yaml is not YAML: while parsing a flow mapping"),
        ("finetune", "- data\n- finetune", "recipe.yaml is not a recipe: it should have the sections data"),
        ("finetune", "", "recipe.yaml is not a recipe"),
        ("finetune", "finetune: {}\nfine-tuning: {}", "recipe.yaml is not a recipe"),
        ("qat", "finetune: {}\nconvert: {}", "no section 'qat' (it has finetune, convert): this is another script's"),
        ("qat", "data: {}", "no section 'qat' (it has none)"),
        ("finetune", "finetune: {architecture: gpt}", "architecture must be one of 'bert', 'roberta', 'vit'"),
        ("finetune", "finetune: {network: tiny}", "network must be a mapping"),
        ("finetune", "finetune: {drop_path_rate: 0.1}", "drop_path_rate is for 'vit', 'swin', 'event_vit'"),
        ("finetune", "finetune: {architecture: vit, drop_path_rate: 1.0}", "drop_path_rate must be at least 0"),
        ("finetune", "finetune: {architecture: vit, model: offline}", "the offline encoder is one of text"),
        ("finetune", "finetune: {mixup_alpha: -1}", "mixup_alpha must be at least 0, got -1"),
        (
            "finetune",
            "finetune: {warmup_epochs: 5, num_train_epochs: 5}",
            "warmup_epochs must be at least 0 and below",
        ),
        (
            "finetune",
            "finetune: {per_device_train_batch_size: 12, total_train_batch_size: 32, use_cpu: true}",
            "total_train_batch_size (32) is not a multiple of the 12 samples",
        ),
        ("qat", "qat: {quantization_levels: 8}", "No network to quantize: give --ann"),
        ("qat", "qat: {ann: net, calibration_method: best}", "calibration_method must be one of"),
        ("convert", "convert: {time_steps: 512}", "No network to convert: give --qann"),
        ("convert", "convert: {qann: net, simulate: 0}", "simulate must be an integer of at least 1, got 0"),
        ("convert", "convert: {qann: net, batch_size: 0}", "batch_size must be an integer of at least 1, got 0"),
        ("convert", "convert: {qann: net, time_steps: 64}", "report_time_steps must be at most time_steps (64)"),
        ("finetune", "finetune: 5", "finetune"),
        ("finetune", "data: films\nfinetune: {}", "data"),
    ],
)
def test_one_clear_error(recipe, stage, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        parsed(stage, recipe(text))
    assert "\n" not in str(refused.value)


def test_missing_recipe():
    with pytest.raises(FileNotFoundError, match=r"^No recipe at nowhere\.yaml\.$"):
        parsed("finetune", "nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", "high"),
        ("learning_rate", "{a: 1}"),
        ("max_steps", "few"),
        ("max_length", "12.5"),
        ("image_mean", "grey"),
        ("streaming", "maybe"),
        ("network", "[1]"),
        ("report_time_steps", "often"),
    ],
)
def test_value_of_another_type_is_refused_by_name(recipe, name, value, capsys):
    stage = "convert" if name == "report_time_steps" else "finetune"
    path = recipe(f"{stage}: {{{name}: {value}}}")
    with pytest.raises((ValueError, SystemExit)) as refused:
        parsed(stage, path, *(["--qann", "net"] if stage == "convert" else []))
    said = str(refused.value) if isinstance(refused.value, ValueError) else capsys.readouterr().err
    assert name in said


def test_flag_that_does_not_exist():
    with pytest.raises(ValueError, match="--epochs"):
        parsed("finetune", "--epochs", "3")


@pytest.mark.parametrize("stage", KINDS)
def test_help_has_every_flag(stage, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(stage, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "[RECIPE.yaml] [--FLAG VALUE ...]" in shown
    words = " ".join(shown.split())
    for kind in KINDS[stage]:
        for field in dataclasses.fields(kind):
            if field.init:
                assert f"--{field.name}" in words, field.name
    # Help is wrapped to the terminal's width, so one is looked for by its words.
    first, data, *_ = KINDS[stage]
    for kind in (first, data):
        for field in dataclasses.fields(kind):
            assert " ".join(field.metadata["help"].split()) in words.replace("- ", "-"), field.name


@pytest.mark.parametrize(
    "kind",
    [NetworkArguments, DataArguments, QuantizationArguments, ConversionArguments, QATTrainingArguments],
    ids=lambda kind: kind.__name__,
)
def test_every_field_has_help(kind):
    others = {
        field.name for field in dataclasses.fields(TrainingArguments)
    }  # transformers' own are not ours to explain
    own = [field for field in dataclasses.fields(kind) if field.name not in others]
    assert len(own) > 3
    for field in own:
        text = field.metadata.get("help", "")
        assert len(text) > 10, field.name
        assert text.endswith("."), field.name


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError])
def test_main_says_in_one_line_what_is_wrong(kind):
    def run(argv):
        raise kind("no such thing")

    with pytest.raises(SystemExit) as stop:
        main(run)
    assert stop.value.code == "error: no such thing"  # a string is printed to stderr, and the exit status is 1


def test_main_makes_one_line_of_a_library_s_many():
    def run(argv):
        raise OSError("net is not a local folder\nIf this is a private repository, log in.")

    with pytest.raises(SystemExit) as stop:
        main(run)
    assert "net is not a local folder" in stop.value.code
    assert "\n" not in stop.value.code


def test_main_hides_no_mistake_of_ours():
    def run(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main(run)


def test_main_takes_ctrl_c():
    def run(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        main(run)
    assert stop.value.code.strip().startswith("Interrupted. Run the same command again")
    assert "\n" not in stop.value.code.strip()


def test_main_passes_the_command_line_on_and_exits_with_0(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["finetune_relu.py", "recipe.yaml", "--seed", "3"])
    seen = []
    with pytest.raises(SystemExit) as stop:
        main(seen.append)
    assert stop.value.code == 0
    assert seen == [["recipe.yaml", "--seed", "3"]]


@pytest.mark.parametrize("stage", KINDS)
def test_each_stage_names_what_is_missing(stage):
    module = {"finetune": finetune, "qat": qat, "convert": convert}[stage]
    with pytest.raises(FileNotFoundError, match=r"No recipe at none\.yaml"):
        module.main(["none.yaml"])

"""The three stages on recordings of events made here, and what is refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from typer.testing import CliRunner

from spikezip_hf.cli.app import app
from spikezip_hf.data import event_transforms
from spikezip_hf.hub import read_results
from spikezip_hf.models.image_processing_events import EventImageProcessor
from spikezip_hf.models.modeling_event_vit import EventViTForImageClassification
from spikezip_hf.recipes import convert, finetune, networks, qat
from spikezip_hf.recipes.inputs import DataArguments, load_data, model_inputs
from tests.conftest import make_ann

RECIPE = """
data: {data_dir: events, validation_share: 0.25, random_crop: true}
training: {per_device_train_batch_size: 8, per_device_eval_batch_size: 32, save_strategy: "no", disable_tqdm: true}
finetune:
  output_dir: out/ann
  architecture: event_vit
  sensor_size: [8, 8]
  network: {image_size: 8, patch_size: 4, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
            intermediate_size: 16, initializer_range: 0.1}
  num_train_epochs: 4
  learning_rate: 3e-3
qat: {output_dir: out/qann, ann: out/ann, quantization_levels: 8, num_train_epochs: 1, learning_rate: 1e-3}
convert: {output_dir: out/snn, qann: out/qann, event_frames: 5, time_steps: 100, report_time_steps: [8, 16]}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """datasets keeps what it reads from Parquet."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_events(folder, rows=40, events=80):
    """Recordings that are left or right."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in {"train": rows, "test": rows // 4}.items():
        labels = [row % 2 for row in range(count)]
        columns = {
            "x": [(rng.integers(0, 4, events) + 4 * label).tolist() for label in labels],
            "y": [rng.integers(0, 8, events).tolist() for _ in labels],
            "p": [rng.integers(0, 2, events).tolist() for _ in labels],
            "t": [np.sort(rng.integers(0, 1000, events)).tolist() for _ in labels],
        }
        Dataset.from_dict({**columns, "label": labels}).to_parquet(folder / f"{split}.parquet")


def test_a_whole_life(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_events(tmp_path / "events")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for stage in (finetune, qat, convert):
        stage.main(["recipe.yaml", "--use_cpu", "true"])
    (results,) = read_results("out/snn/results.json")
    assert results["data"] == "events-5-frames"
    assert results["simulated"]["samples"] == 10
    assert "10 of 10" in results["simulated"]["certificate"]
    assert "embeddings.patch_embeddings.reduction" in " ".join(results["products"])
    assert AutoImageProcessor.from_pretrained("out/snn").frames == 5

    run = CliRunner().invoke(app, ["verify", "out/snn", "--data-dir", "events", "--samples", "4"])
    assert run.exit_code == 0, run.output
    for frames, name in (([], "events-5-frames"), (["--event-frames", "0"], "events-static")):
        run = CliRunner().invoke(app, ["evaluate", "out/snn", "--data-dir", "events", "--use-cpu", *frames])
        assert run.exit_code == 0, run.output
        found = {one["data"]: one for one in read_results("out/snn/results.json")}
        assert name in found
    # One answer, whether events come one by one or all at once.
    accuracies = [one["simulated"]["rows"][-1]["accuracy"] for one in found.values()]
    assert len(found) == 2
    assert accuracies[0] == accuracies[1]


def test_from_a_pretrained_vit(tmp_path):
    vit = make_ann(image_size=8)
    vit.save_pretrained(tmp_path)
    fields = {"id2label": {index: str(index) for index in range(3)}}
    ann, processor = networks.event_vit(str(tmp_path), fields, [8, 16], time_bins=4)
    assert isinstance(ann, EventViTForImageClassification)
    assert (ann.config.num_channels, ann.config.reduced_channels, ann.config.num_labels) == (8, 3, 3)
    assert torch.equal(
        ann.vit.embeddings.patch_embeddings.projection.weight, vit.vit.embeddings.patch_embeddings.projection.weight
    )
    assert processor.num_channels == 8
    assert processor.size == {"height": 8, "width": 8}
    ann.save_pretrained(tmp_path / "events")
    again, _ = networks.event_vit(str(tmp_path / "events"), {}, [8, 16], time_bins=4)
    assert all(torch.equal(one, other) for one, other in zip(ann.parameters(), again.parameters()))
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path / "events")) is type(ann)


def test_shifts_keep_frames_and_channels_together(tmp_path):
    write_events(tmp_path / "events")
    rows = load_data(DataArguments(data_dir=str(tmp_path / "events")), is_text=False)["train"][:]
    processor = EventImageProcessor({"height": 8, "width": 8}, frames=3)
    training, plain = event_transforms(processor, random_shift=True, horizontal_flip=0.5)
    (before, after) = (transform(rows)["pixel_values"] for transform in (plain, training))
    moves = set()
    for one, other in zip(before, after):
        fitting = [
            (flip, down, right)
            for flip in (False, True)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if torch.equal(other, moved(one.flip(-1) if flip else one, down, right))
        ]
        assert fitting
        moves.add(fitting[0])
    assert len(moves) > 2
    with pytest.raises(ValueError, match="horizontal_flip must lie between"):
        event_transforms(processor, horizontal_flip=1.5)


def moved(pixels, down, right):
    """Shifted, with zeros that come in."""
    wide = torch.nn.functional.pad(pixels, [1, 1, 1, 1])
    return wide[..., 1 - down : 9 - down, 1 - right : 9 - right]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"streaming": True}, "streaming is for images"),
        ({"image_column": "image"}, "image_column is for images"),
    ],
)
def test_arguments_of_images_alone(tmp_path, fields, problem):
    write_events(tmp_path / "events", rows=8)
    with pytest.raises(ValueError, match=problem):
        load_data(DataArguments(data_dir=str(tmp_path / "events"), **fields), is_text=False)


def test_data_that_does_not_fit_the_network(tmp_path):
    write_events(tmp_path / "events", rows=8)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / name / "0.png")
    of_events, of_images = (DataArguments(data_dir=str(tmp_path / name)) for name in ("events", "images"))
    splits = load_data(of_images, is_text=False, needs_training=False)
    with pytest.raises(ValueError, match="takes recordings of events, and the data are images"):
        model_inputs(splits, EventImageProcessor(), of_images, is_text=False)
    _, processor = networks.small_image_network("vit", {"image_size": 8}, [0.5] * 3, [0.5] * 3)
    splits = load_data(of_events, is_text=False, needs_training=False)
    with pytest.raises(ValueError, match="takes images, and the data are recordings of events"):
        model_inputs(splits, processor, of_events, is_text=False)
    with pytest.raises(ValueError, match="test_share is for recordings"):
        load_data(DataArguments(data_dir=str(tmp_path / "images"), test_share=0.1), is_text=False)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"architecture": "event_vit"}, "sensor_size, height and width"),
        ({"architecture": "vit", "sensor_size": [3, 3]}, "sensor_size, height and width"),
        ({"architecture": "event_vit", "sensor_size": [3]}, "must be height and width"),
        ({"architecture": "vit", "time_bins": 2}, "time_bins is for"),
    ],
)
def test_network_arguments(fields, problem):
    with pytest.raises(ValueError, match=problem):
        finetune.NetworkArguments(**fields)

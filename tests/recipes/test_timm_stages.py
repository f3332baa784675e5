"""A timm checkpoint through all stages: fine-tuned with ReLU, quantized, converted; and what is refused on the way."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    pipeline,
)

timm = pytest.importorskip("timm", reason="timm is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from spikezip_hf import QuantViTForImageClassification  # noqa: E402
from spikezip_hf.loading import load_network  # noqa: E402
from spikezip_hf.recipes import networks  # noqa: E402
from tests.recipes.test_stages import STAGES, make_images  # noqa: E402

SHAPE = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}
LABELS = {"id2label": {0: "blue", 1: "red"}, "label2id": {"blue": 0, "red": 1}}
TIMM_RECIPE = """
data: {data_dir: images, validation_share: 0.25, horizontal_flip: 0.5}
training:
  per_device_train_batch_size: 8
  per_device_eval_batch_size: 32
  eval_strategy: epoch
  save_strategy: "no"
  layer_decay: 0.65
  drop_path_rate: 0.1
  disable_tqdm: true
finetune:
  output_dir: out/ann
  architecture: vit
  model: pretrained
  num_train_epochs: 4
  learning_rate: 3e-3
qat: {output_dir: out/qann, ann: out/ann, quantization_levels: 8, num_train_epochs: 1, learning_rate: 1e-3}
convert: {output_dir: out/snn, qann: out/qann, time_steps: 100, report_time_steps: [8]}
"""


def save_pretrained(folder, architecture="vit_small_patch16_224", shape=SHAPE) -> TimmWrapperForImageClassification:
    """A network as timm publishes one: GELU, a thousand labels; its data config is the architecture's."""
    torch.manual_seed(0)
    model_args = {**shape, "global_pool": "avg"} if "vit" in architecture else {}
    network = TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture=architecture, num_labels=1000, model_args=model_args)
    )
    network.save_pretrained(folder)
    return network


def test_from_timm_to_spikes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(tmp_path / "pretrained")
    make_images(tmp_path / "images")
    (tmp_path / "recipe.yaml").write_text(TIMM_RECIPE)
    for name in ("finetune", "qat", "convert"):
        STAGES[name].main(["recipe.yaml"])
    ann = AutoModelForImageClassification.from_pretrained("out/ann")
    assert type(ann) is TimmWrapperForImageClassification
    assert type(ann.timm_model.blocks[0].mlp.act) is torch.nn.ReLU
    assert ann.timm_model.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)
    results = json.loads((tmp_path / "out" / "snn" / "results.json").read_text())
    assert results["simulated"]["exact"] is True, results["simulated"]["certificate"]
    assert results["accuracy on the whole split"]["ANN"] > 0.9
    snn = AutoModelForImageClassification.from_pretrained("out/snn")
    assert (snn.config.model_type, snn.config.pooling, snn.config.norm_after_pooling) == ("spike_vit", "mean", True)
    paths = sorted((tmp_path / "images" / "test").glob("*/*.png"))
    answers = pipeline("image-classification", model="out/snn")([Image.open(path) for path in paths], top_k=1)
    right = [answer[0]["label"] == path.parent.name for answer, path in zip(answers, paths, strict=True)]
    assert sum(right) / len(right) == results["accuracy on the whole split"]["QANN"]


class TestLoading:
    def test_relu_labels_and_drop_path(self, tmp_path):
        source = save_pretrained(tmp_path)
        network, processor = networks.load_image_network(str(tmp_path), "vit", LABELS, drop_path_rate=0.2)
        assert network.config.id2label == LABELS["id2label"]
        assert network.timm_model.head.out_features == 2
        assert network.timm_model.blocks[1].drop_path2.drop_prob == pytest.approx(0.2)
        ours, theirs = network.timm_model.state_dict(), source.timm_model.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours if not key.startswith("head."))
        assert dict(processor.crop_size) == {"height": 8, "width": 8}
        QuantViTForImageClassification.from_ann(network)
        network.save_pretrained(tmp_path / "again")
        again = AutoConfig.from_pretrained(tmp_path / "again")
        assert (again.num_labels, again.id2label, again.model_args["act_layer"]) == (2, LABELS["id2label"], "relu")

    def test_an_argument_that_makes_another_network(self, tmp_path):
        save_pretrained(tmp_path)
        for argument in ({"img_size": 16}, {"depth": 3}):
            with pytest.raises(ValueError, match="does not fit a network made with"):
                networks.load_image_network(str(tmp_path), "vit", {**LABELS, **argument})

    def test_another_family(self, tmp_path):
        save_pretrained(tmp_path, "resnet10t")
        with pytest.raises(ValueError, match="timm's ResNet cannot be converted"):
            networks.load_image_network(str(tmp_path), "vit", LABELS)

    def test_load_network_finds_the_processor(self, tmp_path):
        save_pretrained(tmp_path)
        _, processor = load_network(str(tmp_path))
        assert dict(processor.crop_size) == {"height": 8, "width": 8}
        processor.size = {"shortest_edge": 20}
        processor.save_pretrained(tmp_path)
        assert dict(load_network(str(tmp_path))[1].size) == {"shortest_edge": 20}

"""Saving, loading through the Auto classes, and pipelines."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTImageProcessor,
    pipeline,
)

import spikezip_hf
from spikezip_hf import (
    QuantViTForImageClassification,
    SpikeViTForImageClassification,
    SpikeViTModel,
    verify_equivalence,
)
from tests.conftest import make_ann, make_images, make_qann
from tests.files.common import tensors_of, write_tensors


@pytest.fixture(scope="module")
def qann():
    return make_qann()


@pytest.fixture(scope="module")
def snn(qann):
    return SpikeViTForImageClassification.from_quantized(qann, time_steps=300)


@pytest.fixture(scope="module")
def images(qann):
    return make_images(qann.config, 4)


@pytest.fixture
def saved(snn, tmp_path):
    snn.save_pretrained(tmp_path / "snn")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "snn")
    return tmp_path / "snn"


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_reload_gives_the_same_bits(tmp_path, images, granularity):
    qann = make_qann(granularity=granularity)
    snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=300)
    for name, model in (("qann", qann), ("snn", snn)):
        model.save_pretrained(tmp_path / name)
        twin = AutoModelForImageClassification.from_pretrained(tmp_path / name)
        assert type(twin) is type(model)
        assert twin.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path / name)}
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
        )
        with torch.no_grad():
            assert torch.equal(twin(images).logits, model.eval()(images).logits)
    assert verify_equivalence(qann, twin, {"pixel_values": images}).exact


def test_what_is_saved(saved):
    names = {path.name for path in saved.iterdir()}
    code = {name for name in names if name.endswith(".py")}
    assert names - code == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {"configuration_spike_vit.py", "modeling_spike_vit.py", "engines.py"} <= code
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "spike_vit"
    assert config["architectures"] == ["SpikeViTForImageClassification"]
    assert {"quantization_levels", "time_steps", "max_spikes_per_step", "firing_schedule"} <= set(config)
    assert "quantization_config" not in config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reload_in_half_precision_casts_all_but_the_scales(qann, snn, saved, images, dtype):
    loaded = AutoModelForImageClassification.from_pretrained(saved, dtype=dtype)
    for (name, ours), (_, theirs) in zip(snn.state_dict().items(), loaded.state_dict().items(), strict=True):
        expected = ours if name.endswith((".scale", ".initialized")) else ours.to(dtype)
        assert torch.equal(theirs, expected), name
        assert theirs.dtype == expected.dtype, name
    cast = SpikeViTForImageClassification.from_quantized(qann, time_steps=300).to(dtype)
    assert torch.equal(loaded(images).logits, cast(images).logits)
    # And what is computed in half precision is exact too.
    half = QuantViTForImageClassification.from_pretrained(saved, dtype=dtype)
    assert verify_equivalence(half, loaded, {"pixel_values": images}).exact


def test_auto_classes(saved):
    assert AutoConfig.from_pretrained(saved).time_steps == 300
    assert isinstance(AutoImageProcessor.from_pretrained(saved), ViTImageProcessor)
    assert isinstance(AutoModel.from_pretrained(saved), SpikeViTModel)


def test_base_model_of_a_classifier(snn, saved, images):
    base = AutoModel.from_pretrained(saved)
    hidden = base(images).last_hidden_state
    assert torch.equal(hidden, snn.base_model(images).last_hidden_state)
    # Within the network the head multiplies levels, exactly; these are their values, and rounded in the product.
    torch.testing.assert_close(snn.classifier(hidden[:, 0]), snn(images).logits, rtol=0, atol=1e-6)


def test_config_field_given_while_loading(saved, images):
    short = AutoModelForImageClassification.from_pretrained(saved, time_steps=2)
    assert short(images).equilibrium_step.tolist() == [-1] * 4


def test_image_processor_of_a_model_saved_without_one(snn, tmp_path):
    snn.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 8, "width": 8}}')
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), ViTImageProcessor)


def test_pipeline(qann, snn, saved):
    classify = pipeline("image-classification", model=str(saved))
    pictures = [Image.fromarray(image) for image in torch.randint(0, 256, (3, 20, 20, 3), dtype=torch.uint8).numpy()]
    pixel_values = AutoImageProcessor.from_pretrained(saved)(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = qann.eval()(pixel_values).logits.softmax(-1)
    for answers in (classify(pictures, top_k=5), classify(pictures, top_k=5, batch_size=3)):
        for answer, scores in zip(answers, expected, strict=True):
            assert [snn.config.label2id[a["label"]] for a in answer] == scores.argsort(descending=True).tolist()
            assert [a["score"] for a in answer] == pytest.approx(
                scores.sort(descending=True).values.tolist(), abs=1e-6
            )


class TestBadCheckpoints:
    def edit(self, folder, change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @pytest.mark.parametrize("loader", [SpikeViTForImageClassification, QuantViTForImageClassification])
    def test_plain_vit(self, tmp_path, loader):
        make_ann().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"holds no scales .* QuantViTForImageClassification\.from_ann\(ann\)"):
            loader.from_pretrained(tmp_path)

    def test_plain_gelu_vit(self, tmp_path):
        make_ann(hidden_act="gelu").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="hidden_act must be 'relu', got 'gelu'"):
            SpikeViTForImageClassification.from_pretrained(tmp_path)

    def test_one_scale_missing(self, saved):
        self.edit(saved, lambda tensors: tensors.pop("vit.layers.1.attention.v_node.scale"))
        for loader in (SpikeViTForImageClassification, QuantViTForImageClassification, AutoModel):
            with pytest.raises(ValueError, match=r"layers\.1\.attention\.v_node\.scale"):
                loader.from_pretrained(saved)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 0.0])
    def test_unusable_scale(self, saved, bad):
        self.edit(saved, lambda tensors: tensors["vit.layers.0.mlp.output_node.scale"].fill_(bad))
        for loader in (SpikeViTForImageClassification, QuantViTForImageClassification):
            with pytest.raises(ValueError, match=r"layers\.0\.mlp\.output_node\.scale is"):
                loader.from_pretrained(saved)

    def test_never_calibrated(self, tmp_path):
        QuantViTForImageClassification.from_ann(make_ann()).save_pretrained(tmp_path)
        assert not bool(QuantViTForImageClassification.from_pretrained(tmp_path).nodes[0].initialized)
        with pytest.raises(ValueError, match="never set by calibrate"):
            SpikeViTForImageClassification.from_pretrained(tmp_path)

    def test_missing_weight(self, saved):
        self.edit(saved, lambda tensors: tensors.pop("classifier.weight"))
        with pytest.raises(ValueError, match=r"lacks classifier\.weight: SpikeViTForImageClassification would answer"):
            SpikeViTForImageClassification.from_pretrained(saved)

    def test_scales_of_another_granularity(self, saved):
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps({**config, "scale_granularity": "per_channel"}))
        with pytest.raises(ValueError, match=r"scale_granularity of the config is 'per_channel', and .* 'per_tensor'"):
            SpikeViTForImageClassification.from_pretrained(saved)
        write_tensors(saved, tensors_of(saved))  # and where the file does not tell it
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            SpikeViTForImageClassification.from_pretrained(saved)
        with pytest.raises(ValueError, match=r"holds no scales .*\.scale"):
            SpikeViTForImageClassification.from_pretrained(saved, ignore_mismatched_sizes=True)

    def test_head_of_another_size(self, saved):
        fields = {"num_labels": 3, "ignore_mismatched_sizes": True}
        with pytest.raises(ValueError, match=r"lacks classifier\.bias, classifier\.weight"):
            SpikeViTForImageClassification.from_pretrained(saved, **fields)
        assert QuantViTForImageClassification.from_pretrained(saved, **fields).classifier.out_features == 3

    @pytest.mark.parametrize("field", [{"quantization_levels": 33}, {"time_steps": 0}])
    def test_edited_config(self, saved, field):
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps({**config, **field}))
        with pytest.raises(ValueError, match=next(iter(field))):
            AutoModelForImageClassification.from_pretrained(saved)


def test_what_trains_is_there_all_the_same():
    assert all(hasattr(spikezip_hf, name) for name in spikezip_hf.__all__)
    assert "QATTrainer" in dir(spikezip_hf)
    assert spikezip_hf.QATTrainer.__module__ == "spikezip_hf.training.trainer"
    with pytest.raises(AttributeError, match="module 'spikezip_hf' has no attribute 'QATrainer'"):
        spikezip_hf.QATrainer  # noqa: B018


def test_models_need_torch_and_transformers_only():
    """Import and use the package where every extra is missing."""
    script = """
import sys
sys.modules.update(dict.fromkeys({blocked}))  # None: as if not installed
import torch, spikezip_hf
assert "spikezip_hf.training" not in sys.modules  # it takes seconds, and inference does without
for name in ("analysis", "hub", "training"):
    assert getattr(spikezip_hf, name) is sys.modules["spikezip_hf." + name]
config = spikezip_hf.QuantViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    image_size=8, patch_size=4)
qann = spikezip_hf.QuantViTForImageClassification(config)
images = torch.randn(2, 3, 8, 8)
qann.calibrate([{{"pixel_values": images}}])
snn = spikezip_hf.SpikeViTForImageClassification.from_quantized(qann, time_steps=500)
assert spikezip_hf.verify_equivalence(qann, snn, {{"pixel_values": images}}).exact
from spikezip_hf import *
def plot():
    from spikezip_hf.analysis.plots import plot_accuracy_over_time
    plot_accuracy_over_time("x.png", {{}}, "")
for extra in (lambda: QATTrainingArguments("out"), plot, lambda: __import__("spikezip_hf.data.digits"),
              lambda: __import__("spikezip_hf.demo")):
    try:
        extra()
    except (ImportError, SystemExit) as error:
        print(error)
""".format(
        blocked={"accelerate", "datasets", "torchvision", "PIL", "sklearn", "matplotlib", "peft", "timm", "evaluate"}
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    accelerate, pictures, digits, demo = result.stdout.splitlines()
    assert "pip install 'accelerate" in accelerate  # transformers' own words
    assert all("pip install 'spikezip-hf[demo]'" in line for line in (pictures, digits, demo))

"""timm's data configs as image processors of transformers: the same pixels, and kept with the model."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, TimmWrapperConfig, TimmWrapperForImageClassification, pipeline

timm = pytest.importorskip("timm", reason="timm is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from timm.data import create_transform, resolve_data_config  # noqa: E402

from spikezip_hf import QuantViTForImageClassification, SpikeViTForImageClassification  # noqa: E402
from spikezip_hf.conversion.timm_models import image_processor_of  # noqa: E402

SHAPE = {"embed_dim": 32, "depth": 1, "num_heads": 4, "patch_size": 8, "act_layer": "relu"}
DATA = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25), "crop_pct": 0.9, "interpolation": "bicubic"}


def make(img_size=40, num_classes=3, **data):
    model = timm.create_model("vit_tiny_patch16_224", img_size=img_size, num_classes=num_classes, **SHAPE).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, **DATA, **data}
    return model


def picture(width: int, height: int, seed: int = 0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def timm_pixels(model, image):
    size = (3, *model.patch_embed.img_size)
    return create_transform(**resolve_data_config({"input_size": size}, model=model))(image)


def pixels(processor, image):
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


# Where a resized side is 3, 7, ... longer than the crop, timm's cut is a pixel further: that is tested by itself.
SIZES = [(40, 40), (50, 50), (64, 48), (40, 80), (31, 17), (320, 200)]


class TestPixels:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"interpolation": "bilinear"},
            {"crop_pct": 1.0},
            {"crop_pct": 0.875, "mean": (0.5,) * 3, "std": (0.5,) * 3},
            {"crop_mode": "squash"},
        ],
    )
    def test_those_of_timm(self, data, size):
        model = make(**data)
        ours, theirs = pixels(image_processor_of(model), picture(*size)), timm_pixels(model, picture(*size))
        # Bytes are divided by 255, and then by std, in other orders: the last digits of float32 (values are up to 5).
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)

    def test_cut_a_pixel_earlier_where_the_margin_is_odd(self):
        model, image = make(img_size=32), picture(50, 50)  # to 35 x 35, of which 32 x 32
        ours, theirs = pixels(image_processor_of(model), image), timm_pixels(model, image)
        assert torch.allclose(ours[:, 1:, 1:], theirs[:, :-1, :-1], rtol=0, atol=2e-6)  # as above

    def test_rectangular(self):
        model = make(img_size=(40, 48), crop_mode="squash")
        ours, theirs = pixels(image_processor_of(model), picture(60, 50)), timm_pixels(model, picture(60, 50))
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)  # as above

    @pytest.mark.parametrize(
        ("img_size", "data", "message"),
        [
            (32, {"crop_mode": "border"}, "crop_mode 'border' for images of 32 x 32"),
            ((32, 48), {}, "crop_mode 'center' for images of 32 x 48"),
            (32, {"mean": (0.5,)}, "mean and std of timm's data config"),
        ],
    )
    def test_what_transformers_has_not_is_named(self, img_size, data, message):
        with pytest.raises((ValueError, AssertionError), match=message):
            image_processor_of(make(img_size=img_size, **data))

    def test_the_size_is_the_network_s(self):
        assert make().pretrained_cfg["input_size"] == (3, 224, 224)
        assert dict(image_processor_of(make()).crop_size) == {"height": 40, "width": 40}

    def test_a_network_that_does_not_say(self):
        model = make()
        del model.pretrained_cfg
        assert image_processor_of(model) is None
        assert QuantViTForImageClassification.from_ann(model).processing_class is None


class TestKept:
    def test_saved_with_the_model_and_used_by_a_pipeline(self, tmp_path):
        model, image = make(), picture(64, 48)
        qann = QuantViTForImageClassification.from_ann(model, quantization_levels=8)
        qann.calibrate([{"pixel_values": torch.randn(8, 3, 40, 40)}])
        qann.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert (saved["size"], saved["crop_size"]) == ({"shortest_edge": 44}, {"height": 40, "width": 40})
        again = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        assert torch.allclose(pixels(again, image), timm_pixels(model, image), rtol=0, atol=2e-6)  # as above
        # torchvision resizes otherwise than PIL: some pixels are 1 of 255 levels away, which is 1 / 255 / std.
        other = AutoImageProcessor.from_pretrained(tmp_path)
        assert torch.allclose(pixels(other, image), timm_pixels(model, image), rtol=0, atol=1.01 / 255 / 0.2)

        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=8)
        snn.save_pretrained(tmp_path / "snn")
        answers = pipeline("image-classification", model=str(tmp_path / "snn"))(image)
        assert len(answers) == 3

    def test_of_a_wrapped_network_its_config_decides(self, tmp_path):
        config = TimmWrapperConfig(
            architecture="vit_tiny_patch16_224", num_labels=3, model_args={**SHAPE, "img_size": 32}
        )
        config.pretrained_cfg = {**DATA, "crop_pct": 0.8}
        TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
        wrapped = TimmWrapperForImageClassification.from_pretrained(tmp_path)
        processor = QuantViTForImageClassification.from_ann(wrapped).processing_class
        assert dict(processor.size) == {"shortest_edge": 40}
        assert list(processor.image_mean) == [0.5, 0.4, 0.3]

    def test_a_processor_beside_it_comes_first(self, tmp_path):
        config = TimmWrapperConfig(
            architecture="vit_tiny_patch16_224", num_labels=3, model_args={**SHAPE, "img_size": 32}
        )
        TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
        image_processor_of(make(crop_pct=0.5)).save_pretrained(tmp_path)
        wrapped = TimmWrapperForImageClassification.from_pretrained(tmp_path)
        processor = QuantViTForImageClassification.from_ann(wrapped).processing_class
        assert dict(processor.size) == {"shortest_edge": 80}

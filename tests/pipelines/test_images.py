"""Images of all kinds through pipelines: the quantized network's answer, or the ordinary pipeline's error."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from tests.conftest import make_ann, make_qann, make_swin_ann, make_swin_qann
from tests.pipelines.common import KINDS, logits_of, pipelines, refusal

NETWORKS = {"vit": (make_ann, make_qann, 8), "swin": (make_swin_ann, make_swin_qann, 16)}
NOISE = np.random.default_rng(0)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV", "YCbCr", "LAB", "I", "I;16", "F")
SIZES = ((1, 1), (1, 40), (40, 1), (3000, 2), (2, 3000))


def picture(mode: str, size: tuple[int, int] = (9, 7)) -> Image.Image:
    pixels = NOISE.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode in ("I", "I;16", "F"):
        return Image.fromarray(pixels[..., 0].astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    if mode == "LA":
        return Image.fromarray(pixels).convert("L").convert("LA")
    image = Image.fromarray(pixels).convert("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    if mode == "P":
        image.info["transparency"] = 0
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module", params=NETWORKS)
def served(request, tmp_path_factory):
    make_ordinary, make_quantized, size = NETWORKS[request.param]
    processor = ViTImageProcessor(size={"height": size, "width": size})
    folder = tmp_path_factory.mktemp("served")
    return pipelines("image-classification", folder, make_ordinary(), make_quantized(), processor)


def check(pipe, given, image) -> None:
    """The pipeline answers `given` with what the quantized network says of `image`."""
    pixels = pipe.image_processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        model = pipe.model if hasattr(pipe.model, "calibrate") else pipe.model.to_quantized()
        expected = model(pixels).logits[0]
    assert torch.equal(logits_of(pipe(given, top_k=99, function_to_apply="none"), pipe), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_modes(served, kind, mode):
    image = picture(mode)
    check(served[kind], image, image.convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(served, kind, size):
    image = picture("RGB", size)
    check(served[kind], image, image)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays(served, kind):
    pixels = NOISE.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for array in (pixels, pixels.transpose(2, 0, 1), pixels / 255, pixels.astype(np.uint16), torch.tensor(pixels)):
        check(served[kind], array, array)


@pytest.mark.parametrize("kind", KINDS)
def test_files(served, kind, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    photo = tmp_path / "turned.jpg"
    photo.write_bytes(saved(picture("RGB", (20, 10)), "JPEG", exif=turned))
    upright = Image.open(photo).transpose(Image.Transpose.ROTATE_270).convert("RGB")
    check(served[kind], str(photo), upright)
    animated = tmp_path / "animated.gif"
    animated.write_bytes(saved(picture("RGB"), "GIF", save_all=True, append_images=[picture("RGB"), picture("RGB")]))
    check(served[kind], str(animated), Image.open(animated).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_mixed_images_answers_as_each_alone(served, kind):
    images = [picture(mode) for mode in ("L", "RGBA", "P", "1")] + [picture("RGB", size) for size in SIZES]
    pipe = served[kind]
    answers = pipe(images, batch_size=4, top_k=99, function_to_apply="none")
    for image, answer in zip(images, answers, strict=True):
        alone = logits_of(pipe(image, top_k=99, function_to_apply="none"), pipe)
        # Tolerance: float32 products of other shapes than for an image alone.
        torch.testing.assert_close(logits_of(answer, pipe), alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_pipeline_answers_is_refused_alike(served, kind, tmp_path):
    """These do not reach a network: the error is that of the ordinary network's pipeline."""
    whole = saved(picture("RGB", (60, 60)), "PNG")
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("empty.png", b""), ("text.png", b"no image")):
        (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in ("cut.png", "empty.png", "text.png", "missing.png")]
    for what in (*files, Image.new("RGB", (0, 5)), 3, whole, {"x": [1]}, np.zeros((2, 2, 2, 2, 2))):
        assert refusal(served[kind], what) == refusal(served["ann"], what)

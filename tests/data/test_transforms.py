"""Transforms of images: evaluation is the processor's, training differs from it by what was asked for alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from datasets.fingerprint import Hasher
from PIL import Image as Pillow
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor, default_data_collator, set_seed

from spikezip_hf.data.transforms import image_transforms, posterize

SIZE = {"height": 16, "width": 24}
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]


@pytest.fixture
def processor():
    return ViTImageProcessor(size=SIZE, image_mean=MEAN, image_std=STD)


def images(height=16, width=24, count=3, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Pillow.fromarray(image).convert(mode) for image in pixels]


def batch(**fields):
    pictures = images(**fields)
    return {"image": pictures, "label": list(range(len(pictures))), "index": [7] * len(pictures)}


def stack(result):
    return torch.stack(result["pixel_values"])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("side", [16, 40])
def test_evaluation_is_the_processor(processor, mode, side):
    examples = batch(height=side, width=side, mode=mode)
    _, evaluation = image_transforms(processor, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=1.0)
    result = evaluation(examples)
    rgb = [image.convert("RGB") for image in examples["image"]]
    assert torch.equal(stack(result), processor(images=rgb, return_tensors="pt")["pixel_values"])
    assert set(result) == {"pixel_values", "labels"}
    assert result["labels"] == [0, 1, 2]


@pytest.mark.parametrize("fields", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 128}])
def test_training_without_augmentation_at_the_size(fields):
    processor = ViTImageProcessor(size=SIZE, image_mean=MEAN, image_std=STD, **fields)
    train, evaluation = image_transforms(processor)
    values, expected = stack(train(batch())), stack(evaluation(batch()))
    assert values.shape == (3, 3, 16, 24)
    assert values.dtype == torch.float32
    assert all(image.is_contiguous() for image in train(batch())["pixel_values"])
    # The same arithmetic, in another order of operations.
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("resample", "levels"), [(2, 1), (3, 4)])
def test_training_resizes_as_evaluation(resample, levels):
    processor = ViTImageProcessor(size=SIZE, image_mean=MEAN, image_std=STD, resample=resample)
    train, evaluation = image_transforms(processor)
    values, expected = (stack(transform(batch(height=50, width=37))) for transform in (train, evaluation))
    # PIL rounds to bytes, and cuts off what bicubic overshoots, after each axis, torchvision after both: gray levels
    # of 255 on noise, the worst case for it.
    gray_levels = (values - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    assert gray_levels.max() < levels + 0.01


@pytest.mark.parametrize("size", [{"shortest_edge": 20}, {"height": 20, "width": 30}])
def test_training_crops_as_a_processor_that_crops(size):
    processor = ViTImageProcessor(
        size=size, crop_size=SIZE, do_center_crop=True, image_mean=MEAN, image_std=STD, resample=2
    )
    train, evaluation = image_transforms(processor)
    values, expected = (stack(transform(batch(height=50, width=75))) for transform in (train, evaluation))
    assert values.shape == (3, 3, 16, 24)
    gray_levels = (values - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    assert gray_levels.max() < 1.01  # PIL rounds after each axis, torchvision after both


def test_flip(processor):
    train, evaluation = image_transforms(processor, horizontal_flip=1.0)
    torch.testing.assert_close(stack(train(batch())), stack(evaluation(batch())).flip(-1), rtol=1e-5, atol=1e-5)


def test_random_crop(processor):
    train, _ = image_transforms(processor, random_crop=True)
    picture = images(count=1)[0]
    padded = np.pad(np.asarray(picture), [(2, 2), (3, 3), (0, 0)], mode="reflect")
    values = stack(train({"image": [picture] * 60})) * torch.tensor(STD)[:, None, None]
    crops = ((values + torch.tensor(MEAN)[:, None, None]) * 255).round().permute(0, 2, 3, 1).byte().numpy()
    windows = {padded[y : y + 16, x : x + 24].tobytes() for y in range(5) for x in range(7)}
    found = {crop.tobytes() for crop in crops}
    assert found <= windows
    assert len(found) > 15


def test_crop_scale(processor):
    """A crop of the whole image's area is the image, unless its shape changes; smaller ones differ, at one size."""
    picture = Pillow.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2))
    train, _ = image_transforms(processor, crop_scale=(0.1, 0.2))
    values = stack(train({"image": [picture] * 20})) * STD[0] + MEAN[0]
    spans = (values[:, 0, 0, -1] - values[:, 0, 0, 0]) * 255  # of the columns in each crop
    assert values.shape == (20, 3, 16, 24)
    assert spans.min() > 64 * (0.1 * 3 / 4) ** 0.5 - 4
    assert spans.max() < 64 * (0.2 * 4 / 3) ** 0.5 + 4
    assert len(set(spans.tolist())) > 3


def test_random_erasing(processor):
    train, _ = image_transforms(processor, random_erasing=1.0)
    plain, _ = image_transforms(processor)
    white = {"image": [Pillow.new("RGB", (24, 16), "white")] * 20}
    values, kept = stack(train(white)), stack(plain(white))
    erased = values == 0  # the mean color
    assert torch.equal(values[~erased], kept[~erased])
    share = erased[:, 0].float().mean((1, 2))
    assert share.min() > 0
    assert share.max() < 0.45
    assert torch.equal(erased[:, 0], erased[:, 2])


@pytest.mark.parametrize(
    "description", ["rand-m9-mstd0.5-inc1", "rand-m5-n3-p0.9-tweights", "augmix-m3-w2", "original-mstd0.5", "v0", "3a"]
)
def test_auto_augment(processor, description):
    train, evaluation = image_transforms(processor, auto_augment=description)
    set_seed(0)
    first = stack(train(batch(count=8)))
    assert first.shape == (8, 3, 16, 24)
    assert not torch.allclose(first, stack(evaluation(batch(count=8))), atol=1e-2)
    set_seed(0)
    assert torch.equal(first, stack(train(batch(count=8))))


@pytest.mark.parametrize("description", ["rand-m10-n3-p1.0-inc1", "rand-m10-p1.0-mmax15", "augmix-m10", "v0", "3a"])
def test_every_operation_at_its_greatest(processor, description):
    """Enough images for each to be drawn: timm's own posterizing to no bits is refused by Pillow 13."""
    train, _ = image_transforms(processor, auto_augment=description)
    set_seed(0)
    assert stack(train(batch(count=300))).isfinite().all()


@pytest.mark.parametrize(("bits", "kept"), [(-1, 0), (0, 0), (1, 0b10000000), (3, 0b11100000), (8, 255), (9, 255)])
def test_posterize(bits, kept):
    (picture,) = images(count=1)
    assert np.array_equal(np.asarray(posterize(picture, bits)), np.asarray(picture) & kept)


def test_gray():
    processor = ViTImageProcessor(size=SIZE, image_mean=[0.286], image_std=[0.353])
    train, evaluation = image_transforms(processor, num_channels=1)
    values, expected = (stack(transform(batch(mode="L"))) for transform in (train, evaluation))
    assert values.shape == (3, 1, 16, 24)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(expected, processor(images=images(mode="L"), return_tensors="pt")["pixel_values"])
    everything = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5, "crop_scale": (0.8, 1.0)}
    train, _ = image_transforms(processor, num_channels=1, horizontal_flip=0.5, **everything)
    assert stack(train(batch(count=20, mode="L"))).shape == (20, 1, 16, 24)


def dataset():
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"image": images(), "label": [0, 1, 2]}, features=features)


def test_on_sets_and_in_workers(processor):
    train, evaluation = image_transforms(processor, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.2)
    expected = stack(evaluation(batch()))
    data = dataset().with_transform(evaluation)
    assert torch.equal(data[1]["pixel_values"], expected[1])
    assert data[1]["labels"] == 1
    stream = dataset().to_iterable_dataset()
    stream = stream.map(evaluation, batched=True, batch_size=2, remove_columns=["image", "label"])
    assert torch.equal(torch.stack([torch.as_tensor(row["pixel_values"]) for row in stream]), expected)
    loader = DataLoader(
        dataset().with_transform(train),
        batch_size=3,
        num_workers=1,
        multiprocessing_context="spawn",
        collate_fn=default_data_collator,
    )
    (loaded,) = loader
    assert loaded["pixel_values"].shape == (3, 3, 16, 24)
    assert loaded["labels"].tolist() == [0, 1, 2]


def test_pickle_and_fingerprint(processor):
    options = {"auto_augment": "augmix-m3", "random_erasing": 0.2, "crop_scale": (0.5, 1.0), "horizontal_flip": 0.5}
    transforms = image_transforms(processor, **options)
    for transform, again in zip(transforms, image_transforms(processor, **options)):
        copied = pickle.loads(pickle.dumps(transform))
        set_seed(1)
        values = stack(transform(batch()))
        set_seed(1)
        assert torch.equal(values, stack(copied(batch())))
        assert Hasher.hash(transform) == Hasher.hash(again)
    other, _ = image_transforms(processor, **{**options, "horizontal_flip": 0.4})
    assert Hasher.hash(other) != Hasher.hash(transforms[0])


def test_images_without_labels(processor):
    _, evaluation = image_transforms(processor)
    assert set(evaluation({"image": images()})) == {"pixel_values"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_augment": "rnd-m9"}, r"auto_augment is 'rnd-m9': timm knows"),
        ({"auto_augment": "rand-magnitude9"}, r"auto_augment is 'rand-magnitude9'"),
        ({"auto_augment": "rand-m1.2.3"}, r"auto_augment is 'rand-m1\.2\.3', which timm cannot read"),
        ({"auto_augment": ""}, r"auto_augment is ''"),
        ({"random_erasing": 1.5}, r"random_erasing is 1\.5"),
        ({"horizontal_flip": -0.1}, r"horizontal_flip is -0\.1"),
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale is \(0\.9, 0\.5\)"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale is \(0\.5, 1\.5\)"),
        ({"crop_scale": (0.5, 1.0), "random_crop": True}, r"crop_scale and random_crop"),
        ({"num_channels": 2}, r"num_channels is 2"),
        ({"num_channels": 1}, r"image_mean is \[.*\], for num_channels=1"),
    ],
)
def test_wrong_arguments(processor, options, message):
    with pytest.raises(ValueError, match=message):
        image_transforms(processor, **options)


def test_processor_with_another_kind_of_size(processor):
    processor = copy.deepcopy(processor)
    processor.size = {"shortest_edge": 16}
    with pytest.raises(ValueError, match=r"size is \{'shortest_edge': 16\}: it should have height and width"):
        image_transforms(processor)

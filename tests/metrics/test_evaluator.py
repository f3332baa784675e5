"""`evaluate.evaluator` takes our models, offline, and finds the accuracy that the quantized twin has."""

import evaluate
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from transformers import ViTImageProcessor, pipeline

from spikezip_hf.metrics import load_metric
from tests.conftest import ARCHITECTURES, make_qann, make_text_qann, spiking_twin
from tests.test_auto_text import TEXTS, make_tokenizer

pytestmark = pytest.mark.parametrize("kind", ["Quant", "Spike"])
ENOUGH = 400  # time-steps: every sample reaches equilibrium, where the twins agree


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No request may leave, whatever the environment says."""

    def refuse(*asked):
        raise AssertionError(f"a connection was asked for: {asked}")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def saved(model, processor, folder):
    """The argument for a model that is given by its path."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def texts(architecture, kind):
    """A model, its tokenizer, data with labels of which it gets some right, and its accuracy."""
    tokenizer = make_tokenizer(architecture)
    qann = make_text_qann(architecture, max_position_embeddings=64).eval()
    with torch.no_grad():
        classes = [int(qann(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in TEXTS]
    data = Dataset.from_dict({"text": TEXTS, "label": [*classes[:3], *((label + 1) % 3 for label in classes[3:])]})
    return spiking_twin(qann, time_steps=ENOUGH) if kind == "Spike" else qann, tokenizer, data, 3 / 5


def images(kind):
    """The same for images."""
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    noise = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    pictures = [Pillow.fromarray(image) for image in noise]
    qann = make_qann(seed=2).eval()
    with torch.no_grad():
        classes = qann(**processor(pictures, return_tensors="pt")).logits.argmax(-1).tolist()
    labels = [*classes[:4], *((label + 1) % 5 for label in classes[4:])]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=5)})
    data = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    return spiking_twin(qann, time_steps=ENOUGH) if kind == "Spike" else qann, processor, data, 4 / 6


def compute(task, model_or_path, data, model, **processor):
    """Accuracy by the evaluator, and how many samples it says it has seen."""
    result = evaluate.evaluator(task).compute(
        model_or_pipeline=model_or_path,
        data=data,
        metric=load_metric("accuracy"),
        label_mapping=model.config.label2id,
        device=-1,
        **processor,
    )
    seen = result["samples_per_second"] * result["total_time_in_seconds"]
    return result["accuracy"], round(seen)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts(architecture, kind, tmp_path):
    model, tokenizer, data, accuracy = texts(architecture, kind)
    path = saved(model, tokenizer, tmp_path)
    for given, processor in ((path, {}), (model, {"tokenizer": tokenizer})):
        assert compute("text-classification", given, data, model, **processor) == (accuracy, len(data))


def test_images(kind, tmp_path):
    model, processor, data, accuracy = images(kind)
    path = saved(model, processor, tmp_path)
    for given, named in ((path, {}), (model, {"feature_extractor": processor})):
        assert compute("image-classification", given, data, model, **named) == (accuracy, len(data))


def test_pipeline_object_is_beyond_evaluate(kind, tmp_path):
    """It asks transformers for a TensorFlow class, which is gone. When this fails, the documentation may say so."""
    model, tokenizer, data, _ = texts("bert", kind)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    with pytest.raises(AttributeError, match="TFPreTrainedModel"):
        compute("text-classification", classify, data, model)

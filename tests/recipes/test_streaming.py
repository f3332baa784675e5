"""Images read as a stream: no length, no random access, and still fine-tuned, calibrated and trained."""

import io

import numpy
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from spikezip_hf.recipes.finetune import NetworkArguments, finetune
from spikezip_hf.recipes.inputs import DataArguments, load_data
from spikezip_hf.recipes.qat import QuantizationArguments, train_quantized
from spikezip_hf.training import DistillationTrainingArguments, QATTrainingArguments

TINY = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def png(label: int, seed: int) -> dict:
    pixels = numpy.random.default_rng(seed).integers(0, 90, (8, 8, 3), dtype=numpy.uint8) + 150 * label
    file = io.BytesIO()
    PILImage.fromarray(pixels.astype(numpy.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def folder(tmp_path):
    features = Features({"image": Image(), "label": Value("int64")})
    for split, count in (("train", 40), ("validation", 8)):
        rows = {"image": [png(i % 2, i) for i in range(count)], "label": [i % 2 for i in range(count)]}
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{split}.parquet"))
    return tmp_path


def arguments(kind, folder, **fields):
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=10,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="steps",
        eval_steps=5,
        learning_rate=3e-3,
        **fields,
    )


@pytest.mark.slow
def test_a_stream(folder, tmp_path):
    data = DataArguments(data_dir=str(folder), streaming=True, horizontal_flip=0.5)
    network = NetworkArguments(architecture="vit", network=TINY)
    record = finetune(network, data, arguments(DistillationTrainingArguments, tmp_path / "ann"))
    assert record["evaluations"][-1]["eval_accuracy"] > 0.6
    quantization = QuantizationArguments(ann=str(tmp_path / "ann"), quantization_levels=16)
    args = arguments(QATTrainingArguments, tmp_path / "qann", calibration_samples=24)
    record = train_quantized(quantization, data, args)
    assert [entry["step"] for entry in record["evaluations"]] == [5, 10]
    assert (tmp_path / "qann" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_spiking_network_cannot_be_tried_on_a_stream(folder, tmp_path):
    data = DataArguments(data_dir=str(folder), streaming=True)
    network = NetworkArguments(architecture="vit", network=TINY)
    finetune(network, data, arguments(DistillationTrainingArguments, tmp_path / "ann"))
    args = arguments(QATTrainingArguments, tmp_path / "qann", snn_eval_every=1)
    with pytest.raises(ValueError, match="snn_eval_every needs an evaluation set with a length"):
        train_quantized(QuantizationArguments(ann=str(tmp_path / "ann")), data, args)


def test_a_folder_of_classes_is_mixed(tmp_path):
    """It is read class by class, and a network would see one class after the other."""
    for split, count in (("train", 30), ("test", 2)):
        for label in (0, 1):
            (tmp_path / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / f"class{label}" / f"{i}.png").write_bytes(png(label, i)["bytes"])
    (tmp_path / "val").symlink_to(tmp_path / "test")
    data = load_data(DataArguments(data_dir=str(tmp_path), streaming=True, max_train_samples=20), is_text=False)
    labels = [example["label"] for example in data["train"]]
    assert len(labels) == 20
    assert 4 < sum(labels) < 16

"""Saving text models, loading them through the Auto classes, and pipelines with their tokenizers."""

import json
import logging as python_logging

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
    RobertaTokenizer,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from spikezip_hf import verify_equivalence
from tests.conftest import ARCHITECTURES, make_text_ann, make_text_qann, make_texts, text_class

WORDS = [
    "a",
    "bad",
    "film",
    "good",
    "is",
    "it",
    "movie",
    "not",
    "of",
    "plot",
    "the",
    "this",
    "very",
    "was",
    "watch",
    "what",
]
TEXTS = ["a good film", "this movie was not very good", "bad", "what a plot is it", "it was the very film of this"]
AUTO = {
    "Model": AutoModel,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


def make_tokenizer(architecture):
    """A tokenizer of whole words, with the class and special tokens of its architecture."""
    if architecture == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return BertTokenizer(vocab={token: index for index, token in enumerate([*special, *WORDS])})
    words = [word for plain in WORDS for word in (plain, f"Ġ{plain}")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted({c for word in words for c in word})]
    return RobertaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


@pytest.fixture
def saved(architecture, tmp_path):
    """A spiking classifier with its tokenizer, and its quantized twin."""
    tokenizer = make_tokenizer(architecture)
    names = ["negative", "neutral", "positive"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    qann = make_text_qann(architecture, max_position_embeddings=64, **labels)
    snn = text_class("Spike", architecture).from_quantized(qann, time_steps=400)
    snn.save_pretrained(tmp_path / "snn")
    tokenizer.save_pretrained(tmp_path / "snn")
    return tmp_path / "snn", qann, snn, tokenizer


@pytest.fixture
def complaints():
    """What transformers and this library warn of."""
    records = []

    class Keep(python_logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler = Keep(level=python_logging.WARNING)
    for name in ("transformers", "spikezip_hf"):
        python_logging.getLogger(name).addHandler(handler)
    yield records
    for name in ("transformers", "spikezip_hf"):
        python_logging.getLogger(name).removeHandler(handler)


@pytest.mark.parametrize("kind", ["Quant", "Spike"])
@pytest.mark.parametrize("task", AUTO)
def test_reload_gives_the_same_bits(architecture, task, kind, tmp_path):
    qann = make_text_qann(architecture, task, granularity="mixed", head_act="tanh")
    model = qann if kind == "Quant" else text_class("Spike", architecture, task).from_quantized(qann, time_steps=400)
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert names == {"README.md", "config.json", "model.safetensors"}
    twin = AUTO[task].from_pretrained(tmp_path)
    assert type(twin) is type(model)
    assert twin.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}
    texts = make_texts(qann.config, [9, 4])
    with torch.no_grad():
        assert torch.equal(twin(**texts)[0], model(**texts)[0])


@pytest.mark.parametrize("task", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("kind", ["Quant", "Spike"])
def test_base_model_of_a_classifier_comes_without_complaint(architecture, kind, task, tmp_path, complaints):
    qann = make_text_qann(architecture, task, head_act="tanh")
    model = qann if kind == "Quant" else text_class("Spike", architecture, task).from_quantized(qann, time_steps=400)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert complaints == []
    assert type(base) is text_class(kind, architecture, "Model")
    texts = make_texts(qann.config, [9, 4])
    with torch.no_grad():
        assert torch.equal(base(**texts).last_hidden_state, model.base_model(**texts).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reload_in_half_precision(saved, dtype):
    path, qann, snn, _ = saved
    loaded = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype)
    for (name, ours), (_, theirs) in zip(snn.state_dict().items(), loaded.state_dict().items(), strict=True):
        expected = ours if name.endswith((".scale", ".initialized")) else ours.to(dtype)
        assert torch.equal(theirs, expected), name
    half = type(qann).from_pretrained(path, dtype=dtype)
    assert verify_equivalence(half, loaded, make_texts(snn.config, [9, 4, 12])).exact


def test_plain_checkpoint_is_refused(architecture, tmp_path):
    make_text_ann(architecture).save_pretrained(tmp_path)
    for kind in ("Quant", "Spike"):
        with pytest.raises(ValueError, match=r"holds no scales .*from_ann\(ann\)"):
            text_class(kind, architecture).from_pretrained(tmp_path)


def test_checkpoint_of_another_task_is_refused(architecture, saved):
    path = saved[0]
    with pytest.raises(ValueError, match=r"holds .*\.dense\..*checkpoint of another class"):
        text_class("Spike", architecture, "ForTokenClassification").from_pretrained(path)


def test_bare_network_gets_a_new_head_to_train(architecture, tmp_path):
    qann = make_text_qann(architecture, "Model")
    qann.save_pretrained(tmp_path)
    for task in ("ForSequenceClassification", "ForTokenClassification"):
        fresh = text_class("Quant", architecture, task).from_pretrained(tmp_path, num_labels=3)
        texts = make_texts(qann.config, [9, 4])
        with torch.no_grad():
            assert torch.equal(fresh.base_model(**texts).last_hidden_state, qann(**texts).last_hidden_state)
        assert fresh.calibrate([texts], overwrite=False).nodes[0].scale.equal(qann.nodes[0].scale)
        with pytest.raises(ValueError, match=r"lacks .*would answer at random"):
            text_class("Spike", architecture, task).from_pretrained(tmp_path, num_labels=3)


def test_tokenizer(architecture, saved):
    path, _, _, tokenizer = saved
    loaded = AutoTokenizer.from_pretrained(path)
    assert type(loaded) is type(tokenizer)
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_tokenizer_that_does_not_name_its_class(architecture, saved):
    path, _, _, tokenizer = saved
    config = json.loads((path / "tokenizer_config.json").read_text())
    del config["tokenizer_class"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(path)
    assert type(loaded) is type(tokenizer)
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def scores_of(qann, tokenizer, text):
    with torch.no_grad():
        return qann.eval()(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]


def test_text_classification_pipeline(saved, complaints):
    path, qann, snn, tokenizer = saved
    classify = pipeline("text-classification", model=str(path))
    assert type(classify.model) is type(snn)
    data = Dataset.from_dict({"sentence": TEXTS})
    many = (
        classify(TEXTS, top_k=None),
        classify(TEXTS, top_k=None, batch_size=2),
        list(classify(KeyDataset(data, "sentence"), batch_size=3, top_k=None)),
    )
    for answers in many:
        for text, answer in zip(TEXTS, answers, strict=True):
            scores = scores_of(qann, tokenizer, text)
            assert [snn.config.label2id[a["label"]] for a in answer] == scores.argsort(descending=True).tolist()
            # Other batches than the twin's: float32 sums of another shape.
            assert [a["score"] for a in answer] == pytest.approx(
                scores.sort(descending=True).values.tolist(), abs=1e-5
            )
    one = classify(TEXTS[0])
    assert len(one) == 1
    assert one[0]["label"] == snn.config.id2label[int(scores_of(qann, tokenizer, TEXTS[0]).argmax())]
    assert [len(answer) for answer in classify(TEXTS, top_k=2)] == [2] * len(TEXTS)
    assert not [line for line in complaints if "not supported" in line]


def test_feature_extraction_pipeline(architecture, saved):
    path, qann, _, tokenizer = saved
    extract = pipeline("feature-extraction", model=str(path))
    assert type(extract.model) is text_class("Spike", architecture, "Model")
    for text, features in zip(TEXTS, extract(TEXTS), strict=True):
        with torch.no_grad():
            expected = qann.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert torch.equal(torch.tensor(features), expected)


def test_token_classification_pipeline(architecture, tmp_path):
    tokenizer = make_tokenizer(architecture)
    qann = make_text_qann(architecture, "ForTokenClassification", max_position_embeddings=64)
    snn = text_class("Spike", architecture, "ForTokenClassification").from_quantized(qann, time_steps=400)
    snn.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tag = pipeline("token-classification", model=str(tmp_path), ignore_labels=[])
    for text in TEXTS:
        with torch.no_grad():
            logits = qann(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1]
        assert [answer["entity"] for answer in tag(text)] == [
            qann.config.id2label[index] for index in logits.argmax(-1).tolist()
        ]

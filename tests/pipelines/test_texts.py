"""Texts of all kinds through pipelines: the quantized network's answer, or one line that names the remedy."""

import pytest
import torch
from datasets import Dataset
from transformers.pipelines.pt_utils import KeyDataset

from tests.conftest import ARCHITECTURES, make_text_ann, make_text_qann
from tests.pipelines.common import KINDS, logits_of, pipelines, refusal
from tests.test_auto_text import WORDS, make_tokenizer

POSITIONS = 48
TASKS = {
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "feature-extraction": "Model",
}
TEXTS = {
    "plain": "a good film",
    "empty": "",
    "spaces": "   \t\n",
    "special tokens": "[CLS] [SEP] <s> </s>",
    "padding tokens": "[PAD] <pad>",
    "unknown": "zzz qqq",
    "emoji": "good 🎬🔥",
    "joined emoji": "👨‍👩‍👧‍👦",
    "right to left": "هذا فيلم",
    "Chinese and English": "这 a good 电影",
    "control characters": "a\x01 good\x1f\x7f",
    "NUL": "\x00",
    "combining": "e\u0301\u0301\u0301 a\u200b\u200d\ufeff",
    "beyond the first plane": "\U0001d524\U0001d52c\U0001d52c\U0001d521",
}
REFUSED = {
    "None": None,
    "a number": 7,
    "a float": 1.5,
    "bytes": b"good",
    "a lone surrogate": "good \ud800",
    "a dict without text": {"words": "good"},
    "a list with None": ["good", None],
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def served(architecture, tmp_path_factory):
    """{task: {kind: pipeline}}. The tokenizer knows no longest text, as one that was made from scratch."""
    folder, tokenizer = tmp_path_factory.mktemp("served"), make_tokenizer(architecture)
    made = {}
    for task, name in TASKS.items():
        fields = {"max_position_embeddings": POSITIONS}
        networks = make_text_ann(architecture, name, **fields), make_text_qann(architecture, name, **fields)
        made[task] = pipelines(task, folder / name, *networks, tokenizer)
    return made


@torch.no_grad()
def expected_of(pipe, text):
    """The quantized network's own answer to a text."""
    model = pipe.model if hasattr(pipe.model, "calibrate") else pipe.model.to_quantized()
    return model(**pipe.tokenizer(text, return_tensors="pt"))[0][0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_answers_are_the_quantized_networks(served, kind, text):
    classify = served["text-classification"][kind]
    answer = classify(text, top_k=None, function_to_apply="none")
    assert torch.equal(logits_of(answer, classify), expected_of(classify, text))
    extract = served["feature-extraction"][kind]
    assert torch.equal(torch.tensor(extract(text))[0], expected_of(extract, text))
    tag = served["token-classification"][kind]
    found = tag(text, ignore_labels=[])
    logits = expected_of(tag, text)
    for one in found:
        assert one["entity"] == tag.model.config.id2label[int(logits[one["index"]].argmax())]
    special = tag.tokenizer(text, return_special_tokens_mask=True)["special_tokens_mask"]
    assert len(found) == special.count(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_as_each_alone(served, kind):
    classify, texts = served["text-classification"][kind], list(TEXTS.values())
    alone = [logits_of(classify(text, top_k=None, function_to_apply="none"), classify) for text in texts]
    data = Dataset.from_dict({"text": texts})
    for given in (texts, (text for text in texts), KeyDataset(data, "text")):
        together = list(classify(given, top_k=None, function_to_apply="none", batch_size=3))
        assert len(together) == len(texts)
        for answer, logits in zip(together, alone, strict=True):
            # Tolerance: float32 products and sums of other shapes than for a text alone.
            torch.testing.assert_close(logits_of(answer, classify), logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_and_what_is_made_of_logits(served, kind):
    classify = served["text-classification"][kind]
    pair = {"text": "a good film", "text_pair": "bad"}
    logits = classify(pair, top_k=None, function_to_apply="none")
    with torch.no_grad():
        model = classify.model if kind == "quant" else classify.model.to_quantized()
        expected = model(**classify.tokenizer("a good film", "bad", return_tensors="pt")).logits[0]
    assert torch.equal(logits_of(logits, classify), expected)
    for function in ("softmax", "sigmoid"):
        scores = logits_of(classify(pair, top_k=None, function_to_apply=function), classify)
        # Tolerance: numpy's exponential against torch's.
        torch.testing.assert_close(scores, getattr(expected, function)(*([-1] if function == "softmax" else [])))
    assert [len(classify("good", top_k=k)) for k in (1, 2, 99)] == [1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", ["alone", "in a batch", "of 100000 words"])
def test_too_long_is_one_line_with_the_remedy(served, architecture, kind, task, form):
    pipe = served[task][kind]
    longest = pipe.model.max_tokens
    long = " ".join(WORDS * (6000 if form == "of 100000 words" else 10))
    error, message = refusal(pipe, ["good", long] if form == "in a batch" else long, batch_size=2)
    assert error is ValueError
    assert "\n" not in message
    assert f"has positions for {longest} (max_position_embeddings)" in message
    assert f"truncation=True, max_length={longest}" in message
    assert f"tokenizer.model_max_length = {longest}" in message


@pytest.mark.parametrize("kind", KINDS)
def test_the_remedies_work(served, kind):
    long = " ".join(WORDS * 10)
    classify = served["text-classification"][kind]
    length = {"truncation": True, "max_length": classify.model.max_tokens}
    answer = classify(long, top_k=None, function_to_apply="none", **length)
    with torch.no_grad():
        model = classify.model if kind == "quant" else classify.model.to_quantized()
        expected = model(**classify.tokenizer(long, return_tensors="pt", **length)).logits[0]
    assert torch.equal(logits_of(answer, classify), expected)
    extract = served["feature-extraction"][kind]
    assert len(extract(long, tokenize_kwargs=length)[0]) == length["max_length"]
    for task in TASKS:
        pipe = served[task][kind]
        before = pipe.tokenizer.model_max_length
        pipe.tokenizer.model_max_length = pipe.model.max_tokens
        try:
            assert pipe(long, **({} if task == "token-classification" else {"truncation": True}))
        finally:
            pipe.tokenizer.model_max_length = before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("what", REFUSED)
def test_what_no_pipeline_answers_is_refused_alike(served, kind, task, what):
    """These do not reach a network: the error is that of the ordinary network's pipeline."""
    assert refusal(served[task][kind], REFUSED[what]) == refusal(served[task]["ann"], REFUSED[what])

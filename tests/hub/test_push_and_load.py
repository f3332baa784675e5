"""What is pushed, and what comes back: by class, through the Auto classes and pipelines, from branches and offline."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    ViTImageProcessor,
    pipeline,
)

from spikezip_hf import (
    QuantBertForSequenceClassification,
    SpikeBertForSequenceClassification,
    SpikeBertModel,
    SpikeViTModel,
    verify_equivalence,
)
from spikezip_hf.analysis import compare_twins
from spikezip_hf.hub import network_digest, read_results
from spikezip_hf.hub.cards import NOTICE
from spikezip_hf.models import checkpoints
from tests.conftest import make_batch, make_images, make_qann, make_text_ann, make_text_qann, make_texts, spiking_twin
from tests.hub.routes import front_matter
from tests.test_auto_text import TEXTS, make_tokenizer

REPO = "org/name"
NETWORKS = ("bert", "roberta", "vit")
KINDS = ("Quant", "Spike")
AUTO = {"vit": AutoModelForImageClassification}
PICKLES = (".bin", ".pt", ".pth", ".pkl")


def make(network: str, kind: str = "Quant", **fields):
    """A classifier, and the tokenizer or image processor of its inputs."""
    if network == "vit":
        qann, processor = make_qann(**fields), ViTImageProcessor(size={"height": 8, "width": 8})
    else:
        qann = make_text_qann(network, max_position_embeddings=64, **fields)
        processor = make_tokenizer(network)
    return qann if kind == "Quant" else spiking_twin(qann, time_steps=300), processor


def auto_class(network: str) -> type:
    return AUTO.get(network, AutoModelForSequenceClassification)


@torch.no_grad()
def answers(model) -> torch.Tensor:
    """Of any model of this library, for the same inputs each time."""
    if model.config.model_type.endswith("vit"):
        return model.eval()(pixel_values=make_images(model.config, 3))[0]
    return model.eval()(**make_texts(model.config, [9, 4, 6]))[0]


@torch.no_grad()
def nudge(model):
    """The model with a bias moved, so that its answers and its file are others."""
    head = next(parameter for name, parameter in reversed(list(model.named_parameters())) if name.endswith("bias"))
    head += 0.25
    return model


def names(hub, repo_id: str = REPO, revision: str = "main") -> set[str]:
    return set(hub.files(repo_id, revision))


def weights(hub, repo_id: str = REPO) -> set[str]:
    return {name for name in names(hub, repo_id) if ".safetensors" in name}


def cached(folder) -> set[Path]:
    """Files in a cache that hold something: transformers leaves marks of what is missing in the usual one too, and
    older ones of the commit that was looked at."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and "refs" not in path.parts)
    return {path for path in files if path.stat().st_size}


# All of a model in one commit


@pytest.mark.parametrize("mode", ["regular", "lfs"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_pushed_and_loaded(hub, network, kind, mode):
    hub.upload_mode = mode
    model, processor = make(network, kind)
    info = model.push_to_hub(REPO, processing_class=processor)

    assert len(hub.commits(REPO)) == 2  # beside the empty one that the repository starts with
    assert hub.commits(REPO)[-1].sha == info.oid
    assert hub.commits(REPO)[-1].lfs == ({"model.safetensors"} if mode == "lfs" else set())
    theirs = {"preprocessor_config.json"} if network == "vit" else {"tokenizer.json", "tokenizer_config.json"}
    code = {name for name in names(hub) if name.endswith(".py")}
    assert names(hub) == {"config.json", "model.safetensors", "README.md"} | theirs | code
    assert {f"configuration_spike_{network}.py", f"modeling_spike_{network}.py", "neurons.py"} <= code
    assert not any(name.endswith(PICKLES) for name in names(hub))

    about = HfApi().model_info(REPO)
    task = "image-classification" if network == "vit" else "text-classification"
    assert (about.pipeline_tag, about.library_name) == (task, "transformers")
    assert {"spikezip-tf", "spikezip_hf"} <= set(about.tags)
    assert ("snn" in about.tags) == (kind == "Spike")
    assert ("quantized" in about.tags) == (kind == "Quant")
    assert NOTICE in hub.files(REPO)["README.md"].decode()
    assert f'from_pretrained("{REPO}")' in hub.files(REPO)["README.md"].decode()  # not the folder it was made in

    loaded = auto_class(network).from_pretrained(REPO)
    assert type(loaded) is type(model)
    assert torch.equal(answers(loaded), answers(model))
    assert torch.equal(answers(type(model).from_pretrained(REPO)), answers(model))
    base = AutoModel.from_pretrained(REPO)
    assert type(base).__name__ == type(model).__name__.partition("For")[0] + "Model"
    assert torch.equal(answers(base), answers(model.base_model))
    if network == "vit":
        image = Image.new("RGB", (8, 8), (200, 30, 90))
        pixels = [
            one(image, return_tensors="pt")["pixel_values"]
            for one in (AutoImageProcessor.from_pretrained(REPO), processor)
        ]
        assert torch.equal(*pixels)
    else:
        tokenizer = AutoTokenizer.from_pretrained(REPO)
        assert type(tokenizer) is type(processor)
        assert tokenizer(TEXTS)["input_ids"] == processor(TEXTS)["input_ids"]


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_loaded_model_gives_the_same_bits_in_every_batch_size(hub, network, batch):
    """Weights that stay where they lie in the file are not aligned, and one row is then multiplied otherwise."""
    model, _ = make(network, "Quant")
    model.push_to_hub(REPO)
    loaded = auto_class(network).from_pretrained(REPO)
    twin = spiking_twin(loaded, time_steps=500)
    for seed in range(4):
        if network == "vit":
            inputs = {"pixel_values": make_images(model.config, batch, seed=seed)}
        else:
            inputs = make_texts(model.config, [9] * batch, seed=seed)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(**inputs).logits, model.eval()(**inputs).logits)
        certificate = verify_equivalence(loaded, twin, inputs)
        assert certificate.exact, str(certificate)


def test_pushing_the_same_again_is_no_commit_and_no_harm(hub):
    model, processor = make("bert", "Spike")
    model.push_to_hub(REPO, processing_class=processor)
    before = hub.files(REPO)
    model.push_to_hub(REPO)
    assert hub.files(REPO) == before


def test_tags_and_message_and_private(hub):
    model, _ = make("vit")
    model.push_to_hub(REPO, private=True, tags=["mine", "snn"], commit_message="first", commit_description="why")
    assert hub.repos[REPO].private
    assert hub.commits(REPO)[-1].title == "first"
    tags = front_matter(hub.files(REPO)["README.md"].decode())["tags"]
    assert {"mine", "snn"} <= set(tags)
    assert len(tags) == len(set(tags))


def test_a_name_without_a_namespace_is_the_users(hub):
    model, _ = make("vit")
    model.push_to_hub("mine")
    assert "model.safetensors" in names(hub, "tester/mine")


# The tokenizer or image processor comes along


@pytest.mark.parametrize("network", NETWORKS)
def test_the_processor_beside_a_model_goes_with_it(hub, tmp_path, network):
    model, processor = make(network, "Spike")
    model.save_pretrained(tmp_path / "model", processing_class=processor)
    loaded = auto_class(network).from_pretrained(tmp_path / "model")
    assert type(loaded.processing_class) is type(processor)
    loaded.push_to_hub(REPO)
    beside = "preprocessor_config.json" if network == "vit" else "tokenizer.json"
    assert hub.files(REPO)[beside] == (tmp_path / "model" / beside).read_bytes()


def test_the_processor_of_the_ordinary_network_is_inherited_twice(hub, tmp_path):
    tokenizer = make_tokenizer("bert")
    make_text_ann("bert", max_position_embeddings=64).save_pretrained(tmp_path / "ann")
    tokenizer.save_pretrained(tmp_path / "ann")
    ann = BertForSequenceClassification.from_pretrained(tmp_path / "ann")
    qann = QuantBertForSequenceClassification.from_ann(ann, quantization_levels=16)
    qann.calibrate([make_batch(qann)])
    snn = SpikeBertForSequenceClassification.from_quantized(qann)
    for name, model in (("org/qann", qann), ("org/snn", snn), ("org/again", snn.to_quantized())):
        model.push_to_hub(name)
        assert AutoTokenizer.from_pretrained(name)(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_the_processor_on_the_hub_goes_with_a_model_loaded_from_there(hub):
    model, processor = make("bert")
    model.push_to_hub(REPO, processing_class=processor)
    spiking_twin(QuantBertForSequenceClassification.from_pretrained(REPO)).push_to_hub("org/snn")
    assert hub.files("org/snn")["tokenizer.json"] == hub.files(REPO)["tokenizer.json"]


def test_a_model_without_a_processor_is_pushed_without(hub):
    model, _ = make("bert")
    model.push_to_hub(REPO)
    assert not any("token" in name for name in names(hub))


# Pipelines of a name alone


def scores(found: list[dict]) -> dict[str, float]:
    return {one["label"]: one["score"] for one in found}


def labelled(model, logits: torch.Tensor) -> dict[str, float]:
    return {model.config.id2label[index]: float(logit) for index, logit in enumerate(logits)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["bert", "roberta"])
def test_text_pipeline_without_a_task(hub, network, kind):
    model, tokenizer = make(network, kind)
    model.push_to_hub(REPO, processing_class=tokenizer)
    classify = pipeline(model=REPO)
    assert classify.task == "text-classification"
    assert type(classify.model) is type(model)
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    for text in TEXTS:
        with torch.no_grad():
            logits = loaded(**tokenizer(text, return_tensors="pt")).logits[0]
        assert scores(classify(text, top_k=None, function_to_apply="none")) == labelled(model, logits)


@pytest.mark.parametrize("kind", KINDS)
def test_image_pipeline_without_a_task(hub, kind):
    model, processor = make("vit", kind)
    model.push_to_hub(REPO, processing_class=processor)
    classify = pipeline(model=REPO)
    assert classify.task == "image-classification"
    image = Image.new("RGB", (12, 9), (10, 200, 90))
    loaded = AutoModelForImageClassification.from_pretrained(REPO)
    with torch.no_grad():
        logits = loaded(**processor(image, return_tensors="pt")).logits[0]
    assert scores(classify(image, top_k=5, function_to_apply="none")) == labelled(model, logits)


def test_feature_pipeline_without_a_task(hub):
    model = spiking_twin(make_text_qann("bert", "Model", max_position_embeddings=64), time_steps=300)
    assert type(model) is SpikeBertModel
    tokenizer = make_tokenizer("bert")
    model.push_to_hub(REPO, processing_class=tokenizer)
    features = pipeline(model=REPO)
    assert features.task == "feature-extraction"
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state
    assert torch.equal(torch.tensor(features(TEXTS[0])), expected)


def test_features_of_images_by_name_alone(hub):
    model = SpikeViTModel.from_quantized(AutoModel.from_pretrained(saved_bare_vit(hub)), time_steps=300)
    model.push_to_hub(REPO)
    assert HfApi().model_info(REPO).pipeline_tag == "image-feature-extraction"
    image = Image.new("RGB", (12, 9), (10, 200, 90))
    features = pipeline(model=REPO)(image)
    processor = AutoImageProcessor.from_pretrained(REPO)
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).last_hidden_state
    assert torch.equal(torch.tensor(features), expected)


def saved_bare_vit(hub) -> str:
    model, processor = make("vit")
    model.push_to_hub("org/classifier", processing_class=processor)
    return "org/classifier"


# Saving and pushing at once


def test_save_and_push(hub, tmp_path):
    model, tokenizer = make("bert", "Spike")
    model.save_pretrained(tmp_path / "model", processing_class=tokenizer, push_to_hub=True, repo_id=REPO)
    assert names(hub) == {path.name for path in (tmp_path / "model").iterdir()}
    for source in (REPO, tmp_path / "model"):
        assert torch.equal(answers(AutoModelForSequenceClassification.from_pretrained(source)), answers(model))
        assert AutoTokenizer.from_pretrained(source)(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_save_and_push_under_the_folders_name(hub, tmp_path):
    model, _ = make("vit")
    model.save_pretrained(tmp_path / "vit", push_to_hub=True)
    assert torch.equal(answers(AutoModelForImageClassification.from_pretrained("tester/vit")), answers(model))


def test_save_and_push_in_the_same_shards(hub, tmp_path):
    model, _ = make("bert")
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=REPO, max_shard_size="20KB")
    shards = {path.name for path in (tmp_path / "model").iterdir() if ".safetensors" in path.name}
    assert len(shards) > 2
    assert weights(hub) == shards


@pytest.mark.usefixtures("anonymous")
def test_save_and_push_with_a_token(hub, tmp_path):
    model, _ = make("vit")
    model.save_pretrained(tmp_path / "vit", push_to_hub=True, repo_id=REPO, token=hub.token, private=True)
    assert hub.repos[REPO].private
    assert "model.safetensors" in names(hub)


# Where from: revisions, caches, tokens, offline


def test_revisions(hub):
    model, tokenizer = make("bert", "Spike")
    old = answers(model)
    first = model.push_to_hub(REPO, processing_class=tokenizer).oid
    before = hub.files(REPO)
    new = answers(nudge(model))
    assert not torch.equal(new, old)
    second = model.push_to_hub(REPO, revision="dev").oid
    assert hub.files(REPO) == before
    assert hub.commits(REPO)[-1].sha == first
    assert hub.commits(REPO, "dev")[-1].sha == second
    load = AutoModelForSequenceClassification.from_pretrained
    for revision, expected in {None: old, "main": old, first: old, "dev": new, second: new}.items():
        assert torch.equal(answers(load(REPO, revision=revision) if revision else load(REPO)), expected)
    assert AutoTokenizer.from_pretrained(REPO, revision="dev")(TEXTS) == tokenizer(TEXTS)


def test_a_new_branch_of_a_new_repository(hub):
    model, _ = make("vit")
    model.push_to_hub(REPO, revision="dev")
    assert names(hub) == set()
    assert torch.equal(answers(AutoModelForImageClassification.from_pretrained(REPO, revision="dev")), answers(model))


def test_the_processor_is_that_of_the_revision(hub):
    model, tokenizer = make("bert")
    model.push_to_hub(REPO, processing_class=tokenizer, revision="dev")
    model.processing_class = None
    nudge(model).push_to_hub(REPO)
    assert QuantBertForSequenceClassification.from_pretrained(REPO).processing_class is None
    assert QuantBertForSequenceClassification.from_pretrained(REPO, revision="dev").processing_class is not None


def test_cache_dir(hub, tmp_path):
    model, tokenizer = make("bert", "Spike")
    model.push_to_hub(REPO, processing_class=tokenizer)
    assert not any(path.name.endswith("safetensors") for path in cached(constants.HF_HUB_CACHE))
    already = cached(constants.HF_HUB_CACHE)
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO, cache_dir=tmp_path / "mine")
    assert torch.equal(answers(loaded), answers(model))
    assert loaded.processing_class(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in cached(tmp_path / "mine")}
    assert cached(constants.HF_HUB_CACHE) == already


@pytest.mark.usefixtures("anonymous")
def test_a_private_repository_wants_a_token(hub):
    model, tokenizer = make("bert", "Spike")
    model.push_to_hub(REPO, processing_class=tokenizer, private=True, token=hub.token)
    for load in (AutoModelForSequenceClassification, AutoModel, type(model), AutoConfig, AutoTokenizer):
        with pytest.raises(OSError, match="org/name"):
            load.from_pretrained(REPO)
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO, token=hub.read_token)
    assert torch.equal(answers(loaded), answers(model))
    assert loaded.processing_class(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    classify = pipeline(model=REPO, token=hub.read_token)
    assert classify(TEXTS[0]) == pipeline("text-classification", model=model, tokenizer=tokenizer)(TEXTS[0])


@pytest.mark.usefixtures("anonymous")
def test_nobody_logged_in_cannot_push(hub):
    model, _ = make("vit")
    with pytest.raises(OSError, match="401"):
        model.push_to_hub(REPO)
    assert hub.repos == {}


@pytest.mark.parametrize("network", ["bert", "vit"])
def test_offline_after_the_first_load(hub, go_offline, network):
    model, processor = make(network, "Spike")
    model.push_to_hub(REPO, processing_class=processor)
    auto_class(network).from_pretrained(REPO)
    (AutoImageProcessor if network == "vit" else AutoTokenizer).from_pretrained(REPO)
    hub.requests.clear()
    go_offline()
    loaded = auto_class(network).from_pretrained(REPO)
    assert torch.equal(answers(loaded), answers(model))
    assert type(loaded.processing_class) is type(processor)
    task = "image-classification" if network == "vit" else "text-classification"
    assert type(pipeline(task, model=REPO).model) is type(model)
    assert hub.requests == []
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        auto_class(network).from_pretrained("org/other")


def test_local_files_only(hub):
    model, tokenizer = make("bert")
    model.push_to_hub(REPO, processing_class=tokenizer)
    load = AutoModelForSequenceClassification.from_pretrained
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        load(REPO, local_files_only=True)
    load(REPO)
    hub.requests.clear()
    loaded = load(REPO, local_files_only=True)
    assert torch.equal(answers(loaded), answers(model))
    assert loaded.processing_class is None  # it was not downloaded, and must not be now
    assert hub.requests == []


def test_a_subfolder(hub):
    model, tokenizer = make("bert", "Spike")
    model.push_to_hub("org/other", processing_class=tokenizer)
    hub.seed(REPO, {f"snn/{name}": data for name, data in hub.files("org/other").items()})
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO, subfolder="snn")
    assert torch.equal(answers(loaded), answers(model))
    assert loaded.processing_class(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


# Shards


@pytest.mark.parametrize("mode", ["regular", "lfs"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_come_and_go(hub, kind, mode):
    hub.upload_mode = mode
    model, _ = make("bert", kind)
    sharded = {"max_shard_size": "20KB"}
    for options in (sharded, {}, sharded, {"max_shard_size": "40KB"}, {}):
        before = answers(model)
        assert not torch.equal(answers(nudge(model)), before)
        commits = len(hub.commits(REPO)) if REPO in hub.repos else 1
        model.push_to_hub(REPO, **options)
        assert len(hub.commits(REPO)) == commits + 1
        if options:
            index = json.loads(hub.files(REPO)["model.safetensors.index.json"])
            shards = set(index["weight_map"].values())
            assert len(shards) > 1
            assert weights(hub) == {"model.safetensors.index.json", *shards}
        else:
            assert weights(hub) == {"model.safetensors"}
        assert torch.equal(answers(type(model).from_pretrained(REPO)), answers(model))


# Cards


OWN = """---
license: mit
language: en
tags:
- mine
---

# My words

They are mine.
"""


def test_a_card_that_somebody_wrote_stays(hub):
    hub.seed(REPO, {"README.md": OWN.encode()})
    model, _ = make("bert", "Spike")
    model.push_to_hub(REPO, tags=["more"])
    card = hub.files(REPO)["README.md"].decode()
    assert card.endswith(OWN.partition("---\n\n")[2])
    data = front_matter(card)
    assert (data["license"], data["language"]) == ("mit", "en")
    assert data["tags"][0] == "mine"
    assert {"snn", "spikezip_hf", "more"} <= set(data["tags"])
    assert len(data["tags"]) == len(set(data["tags"]))
    assert NOTICE not in card


def test_a_card_without_front_matter_stays(hub):
    hub.seed(REPO, {"README.md": b"# My words\n"})
    make("vit")[0].push_to_hub(REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert card.endswith("# My words\n")
    assert "spikezip_hf" in front_matter(card)["tags"]


def test_a_generated_card_is_replaced(hub):
    model, _ = make("bert", "Spike")
    model.push_to_hub(REPO)
    assert "at most 300" in hub.files(REPO)["README.md"].decode()
    model.config.time_steps = 77
    model.push_to_hub(REPO)
    card = hub.files(REPO)["README.md"].decode()
    assert "at most 77" in card
    assert "at most 300" not in card


def test_a_generated_card_on_the_hub_keeps_what_no_model_knows(hub):
    model, _ = make("bert", "Spike")
    model.push_to_hub(REPO)
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    card.data.license, card.data.language = "mit", "en"
    card.data.tags.append("mine")
    hub.seed(REPO, {"README.md": str(card).encode()})
    nudge(model).push_to_hub(REPO)
    data = front_matter(hub.files(REPO)["README.md"].decode())
    assert (data.get("license"), data.get("language")) == ("mit", "en")
    assert "mine" in data["tags"]


# Results


def make_results(model, qann) -> dict:
    batch = {**make_batch(qann), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    figures = compare_twins(None, qann, spiking_twin(qann), [batch], [4, 16], 64)
    return {"data": "words", "split": "test", "network_digest": network_digest(model), "simulated": figures}


@pytest.mark.parametrize("kind", KINDS)
def test_results(hub, kind):
    qann, tokenizer = make("bert")
    model = qann if kind == "Quant" else spiking_twin(qann, time_steps=64)
    results = make_results(model, qann)
    model.push_to_hub(REPO, processing_class=tokenizer, results=results)
    assert len(hub.commits(REPO)) == 2
    assert read_results(json.loads(hub.files(REPO)["results.json"])) == json.loads(json.dumps([results]))
    (entry,) = front_matter(hub.files(REPO)["README.md"].decode())["model-index"]
    metrics = [metric for result in entry["results"] for metric in result["metrics"]]
    assert entry["name"] == "name"
    assert all(result["dataset"]["name"] == "words" for result in entry["results"])
    rows = [row for row in results["simulated"]["rows"] if row["network"] == ("SNN" if kind == "Spike" else "QANN")]
    assert [metric["value"] for metric in metrics] == [row["accuracy"] for row in rows]
    if kind == "Spike":
        last = rows[-1]["T"] if isinstance(rows[-1]["T"], int) else results["simulated"]["T"]
        assert [metric["args"]["time_steps"] for metric in metrics] == [4, 16, last]


def test_results_of_another_network_are_refused(hub):
    qann, _ = make("bert")
    snn = spiking_twin(qann, time_steps=64)
    results = make_results(snn, qann)
    nudge(snn)
    with pytest.raises(ValueError, match="another network"):
        snn.push_to_hub(REPO, results=results)
    assert hub.repos == {}


def test_results_that_are_none_are_refused(hub):
    with pytest.raises(ValueError, match="simulated is missing"):
        make("vit")[0].push_to_hub(REPO, results={"data": "words", "split": "test"})
    assert hub.repos == {}


def test_results_beside_a_local_model_go_with_it(hub, tmp_path):
    qann, _ = make("bert")
    snn = spiking_twin(qann, time_steps=64)
    snn.save_pretrained(tmp_path, results=make_results(snn, qann))
    SpikeBertForSequenceClassification.from_pretrained(tmp_path).push_to_hub(REPO)
    assert "results.json" in names(hub)
    assert "model-index" in front_matter(hub.files(REPO)["README.md"].decode())


# Fields of the config


def edit(hub, **fields) -> None:
    config = json.loads(hub.files(REPO)["config.json"])
    hub.seed(REPO, {"config.json": json.dumps({**config, **fields}).encode()})


def sources(hub, tmp_path) -> list:
    """The repository, and a folder with the same files."""
    for name, data in hub.files(REPO).items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    return [REPO, tmp_path / "copy"]


@pytest.mark.parametrize(
    "more",
    [{}, {"unknown_field": {"a": 1}}, {"scale_granularity": "per_head"}, {"quantization_levels": "many"}],
    ids=["alone", "unknown", "granularity", "type"],
)
def test_a_checkpoint_of_a_later_series(hub, tmp_path, more):
    model, _ = make("bert", "Spike")
    model.push_to_hub(REPO)
    edit(hub, spikezip_version="9.9.0", **more)
    for source in sources(hub, tmp_path):
        for load in (AutoConfig, AutoModel, AutoModelForSequenceClassification, type(model)):
            with pytest.raises(ValueError, match=r"9\.9\.0.*pip install --upgrade spikezip-hf"):
                load.from_pretrained(source)


def test_a_checkpoint_of_the_same_series(hub, tmp_path):
    model, _ = make("bert", "Spike")
    model.push_to_hub(REPO)
    edit(hub, spikezip_version="0.1.99")
    for source in sources(hub, tmp_path):
        assert torch.equal(answers(AutoModelForSequenceClassification.from_pretrained(source)), answers(model))


@pytest.mark.parametrize("version", ["new", "", None, 3], ids=["word", "empty", "null", "number"])
def test_what_is_no_version(hub, tmp_path, version):
    make("vit")[0].push_to_hub(REPO)
    edit(hub, spikezip_version=version)
    for source in sources(hub, tmp_path):
        with pytest.raises(ValueError, match="spikezip_version"):
            AutoModelForImageClassification.from_pretrained(source)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_given_beside_a_checkpoint(hub, kind):
    model, _ = make("bert", kind)
    model.push_to_hub(REPO)
    for load in (AutoModelForSequenceClassification, type(model)):
        with pytest.raises(ValueError, match="quantization_levels of the checkpoint is 16 and cannot become 8"):
            load.from_pretrained(REPO, quantization_levels=8)
        assert torch.equal(answers(load.from_pretrained(REPO, quantization_levels=16)), answers(model))
        if kind == "Spike":
            with pytest.raises(ValueError, match="time_steps must be an integer of at least 1, got 0"):
                load.from_pretrained(REPO, time_steps=0)
            short = load.from_pretrained(REPO, time_steps=7)
            assert short.config.time_steps == 7
            inputs = make_texts(model.config, [9, 4])
            with torch.no_grad():
                assert torch.equal(short(**inputs).logits, model(**inputs, time_steps=7).logits)


def test_a_processor_that_cannot_be_loaded_is_told(hub, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(checkpoints.logger, "warning", told.append)
    model, tokenizer = make("bert")
    model.save_pretrained(tmp_path, processing_class=tokenizer)
    (tmp_path / "tokenizer_config.json").write_text("{")
    loaded = QuantBertForSequenceClassification.from_pretrained(tmp_path)
    loaded.push_to_hub(REPO)
    assert len(told) == 1
    assert "cannot be loaded" in told[0]
    assert "tokenizer.json" not in names(hub)

"""What is left when something goes wrong: in a push, a download, a file, or a save."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, modeling_utils

from spikezip_hf.hub import push_folder
from spikezip_hf.hub.cards import NOTICE
from spikezip_hf.models import checkpoint_files, checkpoints
from spikezip_hf.models.checkpoint_files import DamagedFile, check_seal
from tests.conftest import make_text_qann
from tests.hub.http import httpx
from tests.hub.routes import front_matter
from tests.hub.test_push_and_load import KINDS, REPO, answers, make, nudge
from tests.test_auto_text import make_tokenizer

SHARDED = {"max_shard_size": "20KB"}

# A push that fails


PUSHES = {
    "create 500": ("POST", "/api/repos/create", 500, {}),
    "create cut": ("POST", "/api/repos/create", "cut", {}),
    "list 500": ("GET", f"/api/models/{REPO}", 500, {}),
    "list cut": ("GET", f"/api/models/{REPO}", "cut", {}),
    "card cut": ("GET", "README.md", "cut", {}),
    "preupload 500": ("POST", "/preupload/", 500, {}),
    "preupload cut": ("POST", "/preupload/", "cut", {}),
    "batch 500": ("POST", "/objects/batch", 500, {}),
    "put 500": ("PUT", "/lfs/", 500, {}),
    "put cut": ("PUT", "/lfs/", "cut", {}),
    "verify 500": ("POST", "/lfs/verify", 500, {}),
    "commit 500": ("POST", "/commit/", 500, {}),
    "commit 403": ("POST", "/commit/", 403, {}),
    "commit cut": ("POST", "/commit/", "cut", {}),
    "wrong token": ("POST", "nothing", 500, {"token": "hf_wrong"}),
    "no branch": ("POST", "/branch/", 500, {"revision": "dev"}),
}


@pytest.mark.parametrize("case", PUSHES)
def test_a_push_that_fails_over_a_good_checkpoint(hub, tmp_path, case):
    model, tokenizer = make("bert", "Spike")
    model.push_to_hub(REPO, processing_class=tokenizer)
    before, commits, old = hub.files(REPO), hub.commits(REPO), answers(model)
    method, path, how, options = PUSHES[case]
    hub.fail(method, path, how, times=None)
    with pytest.raises(OSError, match=r"\w"):  # of whatever wording: the class is what callers catch
        nudge(model).push_to_hub(REPO, **{**SHARDED, **options})
    hub.failures.clear()
    assert hub.files(REPO) == before
    assert hub.commits(REPO) == commits
    load = AutoModelForSequenceClassification.from_pretrained
    assert torch.equal(answers(load(REPO, cache_dir=tmp_path)), old)
    model.push_to_hub(REPO)
    assert torch.equal(answers(load(REPO, cache_dir=tmp_path / "new")), answers(model))
    assert not torch.equal(answers(model), old)


NOT_CREATED = ("create 500", "create cut", "wrong token")


@pytest.mark.parametrize("case", [case for case in PUSHES if case not in (*NOT_CREATED, "card cut")])
def test_a_first_push_that_fails_leaves_no_half_of_a_model(hub, case):
    method, path, how, options = PUSHES[case]
    hub.fail(method, path, how, times=None)
    model, _ = make("bert")
    with pytest.raises(OSError, match=r"\w"):
        model.push_to_hub(REPO, **{**SHARDED, **options})
    assert [(commit.title, commit.files) for commit in hub.commits(REPO)] == [("initial commit", {})]


@pytest.mark.parametrize("case", NOT_CREATED)
def test_a_repository_that_cannot_be_created(hub, case):
    method, path, how, options = PUSHES[case]
    hub.fail(method, path, how, times=None)
    model, _ = make("bert")
    with pytest.raises(OSError, match=r"\w"):
        model.push_to_hub(REPO, **options)
    assert hub.repos == {}


def test_a_push_to_somebody_elses_repository(hub):
    hub.seed("stranger/name", {"README.md": b"mine"})
    with pytest.raises(OSError, match="403"):
        make("vit")[0].push_to_hub("stranger/name")
    assert hub.files("stranger/name") == {"README.md": b"mine"}


def test_a_save_that_cannot_be_pushed_is_saved(hub, tmp_path):
    model, _ = make("bert")
    hub.fail("POST", "/commit/", 500)
    with pytest.raises(OSError, match="500"):
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id=REPO)
    assert torch.equal(answers(AutoModel.from_pretrained(tmp_path / "model")), answers(model.base_model))


# A download that fails


@pytest.mark.parametrize("options", [{}, SHARDED], ids=["whole", "sharded"])
@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_a_download_that_is_cut(hub, mode, options):
    hub.upload_mode = mode
    model, _ = make("bert", "Spike")
    model.push_to_hub(REPO, **options)
    name = "model-00003-of-00005.safetensors" if options else "model.safetensors"
    assert name in hub.files(REPO)
    hub.fail("GET", name, "cut", times=None)
    load = AutoModelForSequenceClassification.from_pretrained
    with pytest.raises((OSError, httpx.HTTPError)):
        load(REPO)
    with pytest.raises(OSError, match=r"safetensors|cached files"):
        load(REPO, local_files_only=True)
    hub.failures.clear()
    assert torch.equal(answers(load(REPO)), answers(model))


# A file that is damaged


def header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "five bytes": lambda data: data[:5],
    "cut in the header": lambda data: data[: header_end(data) // 2],
    "no data": lambda data: data[: header_end(data)],
    "cut in the data": lambda data: data[: (header_end(data) + len(data)) // 2],
    "last byte gone": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "first bit of the data": lambda data: flipped(data, header_end(data)),
    "last bit of the data": lambda data: flipped(data, len(data) - 1, 7),
    "length": lambda data: flipped(data, 1),
    "brace": lambda data: flipped(data, 8),
    "name": lambda data: flipped(data, data.index(b".weight") + 1),
    "shape": lambda data: flipped(data, data.index(b'"shape":[') + 9),
    "type": lambda data: data.replace(b'"F32"', b'"I32"', 1),
    "digest": lambda data: flipped(data, data.index(b'"sha256":"') + 10),
    "random": lambda data: bytes((i * 7919 + i // 256 * 31) % 251 for i in range(len(data))),
    "text": lambda data: b"<html>Not found</html>" * 9,
}


@pytest.fixture(scope="module")
def networks():
    """Both kinds of one classifier."""
    return {kind: make("bert", kind)[0] for kind in KINDS}


@pytest.fixture(scope="module")
def checkpoint(networks, tmp_path_factory):
    """A function: the folder of a checkpoint, which is not to be written to."""
    folders = {}

    def get(kind: str, **options) -> Path:
        key = kind, *options
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("checkpoint")
            networks[kind].save_pretrained(folders[key], **options)
        return folders[key]

    return get


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loaders(model) -> list[type]:
    return [type(model), AutoModelForSequenceClassification, AutoModel]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(checkpoint, networks, tmp_path, damage, kind):
    shutil.copytree(checkpoint(kind), tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    data = path.read_bytes()
    assert DAMAGES[damage](data) != data
    path.write_bytes(DAMAGES[damage](data))
    for load in loaders(networks[kind]):
        with pytest.raises(DamagedFile, match=r"model\.safetensors .*[Dd]ownload it again"):
            load.from_pretrained(tmp_path / "copy")
    path.write_bytes(data)
    assert torch.equal(answers(type(networks[kind]).from_pretrained(tmp_path / "copy")), answers(networks[kind]))


@pytest.mark.parametrize("damage", ["empty", "cut in the data", "last bit of the data", "name", "random"])
def test_a_damaged_file_on_the_hub(hub, checkpoint, networks, damage):
    files = files_of(checkpoint("Spike"))
    hub.seed(REPO, {**files, "model.safetensors": DAMAGES[damage](files["model.safetensors"])})
    for load in loaders(networks["Spike"]):
        with pytest.raises(DamagedFile, match=r"model\.safetensors "):
            load.from_pretrained(REPO)
    hub.seed(REPO, files)
    assert torch.equal(answers(AutoModelForSequenceClassification.from_pretrained(REPO)), answers(networks["Spike"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["empty", "cut in the data", "last bit of the data", "name", "random"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_damaged_shard(checkpoint, networks, tmp_path, number, damage, kind):
    shutil.copytree(checkpoint(kind, **SHARDED), tmp_path / "copy")
    shards = sorted((tmp_path / "copy").glob("model-*.safetensors"))
    assert len(shards) == 5
    shard = shards[number - 1]
    shard.write_bytes(DAMAGES[damage](shard.read_bytes()))
    for load in loaders(networks[kind]):
        with pytest.raises(DamagedFile, match=f"{shard.name} "):
            load.from_pretrained(tmp_path / "copy")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_missing(checkpoint, networks, tmp_path, kind):
    shutil.copytree(checkpoint(kind, **SHARDED), tmp_path / "copy")
    (tmp_path / "copy" / "model-00002-of-00005.safetensors").unlink()
    for load in loaders(networks[kind]):
        with pytest.raises(OSError, match="model-00002-of-00005"):
            load.from_pretrained(tmp_path / "copy")


def test_a_damaged_file_of_a_variant(networks, tmp_path):
    model = networks["Spike"]
    model.save_pretrained(tmp_path, variant="fp16")
    path = tmp_path / "model.fp16.safetensors"
    path.write_bytes(DAMAGES["last bit of the data"](path.read_bytes()))
    with pytest.raises(DamagedFile, match=r"model\.fp16\.safetensors "):
        type(model).from_pretrained(tmp_path, variant="fp16")


def test_a_damaged_file_in_a_subfolder(checkpoint, networks, tmp_path):
    shutil.copytree(checkpoint("Spike"), tmp_path / "sub")
    path = tmp_path / "sub" / "model.safetensors"
    path.write_bytes(DAMAGES["last bit of the data"](path.read_bytes()))
    for load in loaders(networks["Spike"]):
        with pytest.raises(DamagedFile, match=r"model\.safetensors "):
            load.from_pretrained(tmp_path, subfolder="sub")


def test_any_bit_of_what_describes_the_tensors_counts(checkpoint, tmp_path):
    """A flipped bit of the header is found wherever it is, but in the metadata, which no weight depends on."""
    data = (checkpoint("Quant") / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    start = data.index(b'"__metadata__"')
    end = data.index(b"}", start)
    overlooked = []
    for at in range(0, header_end(data), 13):
        if start <= at <= end:
            continue
        path.write_bytes(flipped(data, at, at % 8))
        with contextlib.suppress(DamagedFile):
            overlooked += [at] if check_seal(path) else []
    assert overlooked == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, SHARDED], ids=["whole", "sharded"])
def test_a_file_written_anew_has_no_digest_and_loads(checkpoint, networks, tmp_path, options, kind):
    shutil.copytree(checkpoint(kind, **options), tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*.safetensors"):
        assert check_seal(path)
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        for name in tensors:
            if name.endswith("classifier.bias"):
                tensors[name] += 1.0
        save_file(tensors, path, metadata={"format": "pt"})
        assert not check_seal(path)
    loaded = type(networks[kind]).from_pretrained(tmp_path / "copy")
    assert answers(loaded).shape == answers(networks[kind]).shape
    assert not torch.equal(answers(loaded), answers(networks[kind]))


def test_a_damaged_folder_is_not_pushed(hub, checkpoint, tmp_path):
    shutil.copytree(checkpoint("Spike"), tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(DAMAGES["last bit of the data"](path.read_bytes()))
    with pytest.raises(DamagedFile, match=r"model\.safetensors "):
        push_folder(tmp_path / "copy", REPO)
    assert hub.repos == {}


# Nothing is unpickled


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(params=["pickle", "torch"])
def pickled(request, checkpoint, tmp_path):
    """A checkpoint's folder with a pickle in place of weights, and the folder that appears when that is opened."""
    folder, trace = tmp_path / "pickled", tmp_path / "trace"
    shutil.copytree(checkpoint("Spike"), folder)
    (folder / "model.safetensors").unlink()
    state = {"classifier.weight": Bomb(trace)}
    if request.param == "torch":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    return folder, trace


def test_the_bomb_is_one(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "trace")))
    assert (tmp_path / "trace").is_dir()


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_nothing_is_unpickled(hub, networks, pickled, where, monkeypatch):
    folder, trace = pickled
    converted = []  # transformers may ask a service to make safetensors of a pickle
    monkeypatch.setattr(modeling_utils, "auto_conversion", lambda *args, **kwargs: converted.append(args))
    hub.seed(REPO, files_of(folder))
    source = folder if where == "folder" else REPO
    for load in loaders(networks["Spike"]):
        with pytest.raises((OSError, ValueError)):
            load.from_pretrained(source)
        with pytest.raises(ValueError, match="use_safetensors must be True"):
            load.from_pretrained(source, use_safetensors=False)
        with pytest.raises(OSError, match=r"model\.safetensors"):  # transformers' default, which would take either
            load.from_pretrained(source, use_safetensors=None)
    assert not trace.exists()
    assert converted == []
    assert not any("pytorch_model.bin" in path for method, path, _ in hub.requests if method == "GET")


def test_a_pickle_beside_weights_is_not_looked_at(hub, checkpoint, networks, pickled):
    folder, trace = pickled
    shutil.copy(checkpoint("Spike") / "model.safetensors", folder)
    for load in (type(networks["Spike"]), AutoModelForSequenceClassification):
        assert torch.equal(answers(load.from_pretrained(folder)), answers(networks["Spike"]))
    type(networks["Spike"]).from_pretrained(folder).push_to_hub(REPO)
    assert "pytorch_model.bin" not in hub.files(REPO)
    assert not trace.exists()


# A save that fails


class Broken(Exception):
    """Happens in the middle of a save."""


def break_seal(monkeypatch, model, error):
    monkeypatch.setattr(checkpoints, "seal", raising(error))


def break_last_seal(monkeypatch, model, error):
    calls = []
    real = checkpoints.seal

    def seal(path, network):
        calls.append(path)
        if len(calls) == 3:
            raise error
        return real(path, network)

    monkeypatch.setattr(checkpoints, "seal", seal)


def break_card(monkeypatch, model, error):
    monkeypatch.setattr(type(model), "write_card", raising(error))


def break_processor(monkeypatch, model, error):
    monkeypatch.setattr(type(model.processing_class), "save_pretrained", raising(error))


def break_move(monkeypatch, model, error):
    """The third file cannot be moved from the folder aside to where it belongs."""
    calls = []
    real = os.replace

    def replace(source, target):
        if "_partial-" in str(source) and "_partial-" not in str(target):
            calls.append(source)
        if len(calls) == 3:
            calls.append("once")  # putting things back must be possible
            raise error
        real(source, target)

    monkeypatch.setattr(checkpoint_files.os, "replace", replace)


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


BREAKS = {
    "seal": break_seal,
    "last seal": break_last_seal,
    "card": break_card,
    "processor": break_processor,
    "move": break_move,
}


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("place", BREAKS)
def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch, place, error):
    model = make_text_qann("bert", max_position_embeddings=64)
    model.save_pretrained(tmp_path / "model", processing_class=make_tokenizer("bert"))
    (tmp_path / "model" / "notes.txt").write_text("mine")
    before = files_of(tmp_path / "model")
    model.processing_class = make_tokenizer("bert")
    nudge(model).config.drop_path_rate = 0.25  # the config is another one, too
    for folder in ("model", "new"):
        with monkeypatch.context() as patch:
            BREAKS[place](patch, model, error)
            with pytest.raises(type(error)):
                model.save_pretrained(tmp_path / folder, **SHARDED)
    assert files_of(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nor is there a new folder
    assert all(path.is_file() for path in (tmp_path / "model").iterdir())  # nor the one aside
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(answers(type(model).from_pretrained(tmp_path / "model")), answers(model))


def test_a_save_that_fails_leaves_no_new_folders_above(tmp_path, monkeypatch, networks):
    with monkeypatch.context() as patch:
        break_seal(patch, networks["Quant"], Broken())
        with pytest.raises(Broken):
            networks["Quant"].save_pretrained(tmp_path / "runs" / "first" / "model")
    assert list(tmp_path.iterdir()) == []


def test_saving_to_a_file(tmp_path, networks):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file: name a folder to save to"):
        networks["Quant"].save_pretrained(tmp_path / "file")
    assert files_of(tmp_path) == {"file": b"mine"}


# What a save keeps, replaces and removes


def test_a_card_that_somebody_wrote_is_kept(tmp_path, networks):
    (tmp_path / "README.md").write_text("# My words\n")
    networks["Spike"].save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My words\n"


def test_a_generated_card_is_replaced_but_for_what_no_model_knows(tmp_path):
    model, _ = make("bert", "Spike")
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.data.license, card.data.language, card.data.datasets = "mit", "en", ["sst2"]
    card.data.tags.append("mine")
    card.save(tmp_path / "README.md")
    model.config.time_steps = 77
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert NOTICE in text
    assert "at most 77" in text
    data = front_matter(text)
    assert (data["license"], data["language"], data["datasets"]) == ("mit", "en", ["sst2"])
    assert "mine" in data["tags"]
    assert len(data["tags"]) == len(set(data["tags"]))


def test_a_card_whose_notice_was_removed_is_kept(tmp_path, networks):
    networks["Spike"].save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text().replace(NOTICE, "").replace("## Limits", "## My limits")
    (tmp_path / "README.md").write_text(text)
    networks["Spike"].save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_the_card_of_the_other_kind_leaves_none_of_its_tags(tmp_path, networks):
    for kind, none in (("Quant", "snn"), ("Spike", "quantized"), ("Quant", "snn")):
        networks[kind].save_pretrained(tmp_path)
        assert none not in front_matter((tmp_path / "README.md").read_text())["tags"]


def test_shards_come_and_go_beside_variants(tmp_path):
    model, _ = make("bert")
    model.save_pretrained(tmp_path, variant="fp16")
    model.save_pretrained(tmp_path, variant="bf16", **SHARDED)

    def here(variant: bool) -> dict[str, bytes]:
        files = files_of(tmp_path).items()
        return {n: d for n, d in files if ".safetensors" in n and (".fp16" in n or ".bf16" in n) == variant}

    variants = here(variant=True)
    assert len(variants) == 7
    for options in (SHARDED, {}, SHARDED, {"max_shard_size": "40KB"}, {}):
        nudge(model).save_pretrained(tmp_path, **options)
        written = set(here(variant=False))
        if options:
            index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
            assert written == {"model.safetensors.index.json", *index["weight_map"].values()}
        else:
            assert written == {"model.safetensors"}
        assert torch.equal(answers(type(model).from_pretrained(tmp_path)), answers(model))
        assert here(variant=True) == variants
    model.save_pretrained(tmp_path, variant="bf16")
    assert set(here(variant=True)) == {"model.fp16.safetensors", "model.bf16.safetensors"}
    assert set(here(variant=False)) == {"model.safetensors"}

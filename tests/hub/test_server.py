"""The loopback Hub holds up to the real client: what it answers, what it refuses, and what a failure leaves."""

import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    file_exists,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, BertTokenizer, pipeline

from tests.hub.http import httpx

REPO = "org/model"
WEIGHTS = bytes(range(256)) * 256  # 64 KiB
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "sub/notes.txt": b"notes", "empty.txt": b""}


@pytest.fixture
def api(hub):
    return HfApi()


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "folder"


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("_", "."), data) for name, data in files.items()]


def statuses(hub, method: str, part: str = "") -> list:
    return [status for verb, path, status in hub.requests if verb == method and part in path]


def read(path: str, revision: str | None = None, repo_id: str = REPO, **options) -> bytes:
    return Path(hf_hub_download(repo_id, path, revision=revision, **options)).read_bytes()


def leftovers() -> list[Path]:
    """Files of the cache that a download did not finish."""
    return list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def send_commit(hub, *items: dict, token: str | None = None) -> httpx.Response:
    """A commit as a client would send it that does not keep to the protocol."""
    lines = [{"key": "header", "value": {"summary": "raw"}}, *items]
    url = f"{hub.endpoint}/api/models/{REPO}/commit/main"
    headers = {"Authorization": f"Bearer {token or hub.token}"}
    return get_session().post(url, headers=headers, content=b"\n".join(json.dumps(line).encode() for line in lines))


# Round trips


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_a_folder_comes_back_as_it_went(hub, api, folder, mode):
    hub.upload_mode = mode
    url = api.create_repo(REPO)
    assert (url.repo_id, str(url)) == (REPO, f"{hub.endpoint}/{REPO}")
    commit = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == FILES
    assert [c.sha for c in hub.commits(REPO)][-1] == commit.oid
    assert hub.commits(REPO)[-1].lfs == ({"model.safetensors"} if mode == "lfs" else set())

    # LFS is three more requests; the text files stay in the commit.
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    assert [path for verb, path, _ in hub.requests if verb == "PUT"] == (
        [f"/lfs/{REPO}/{sha}"] if mode == "lfs" else []
    )
    expected = [200] if mode == "lfs" else []
    assert [statuses(hub, "POST", "lfs/objects/batch"), statuses(hub, "POST", "lfs/verify")] == [expected, expected]

    assert {path: read(path) for path in FILES} == FILES
    copy = Path(snapshot_download(REPO, cache_dir=hub.home / "second"))
    assert {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == FILES


def test_trees_and_info(hub, api):
    card = (
        b"---\ntags: [snn]\nlibrary_name: transformers\npipeline_tag: image-classification\nlicense: mit\n---\n# Hi\n"
    )
    sha = hub.seed(REPO, {**FILES, "sub/deep/x.bin": b"123", "README.md": card})
    info = api.model_info(REPO)
    assert (info.sha, info.private, info.library_name, info.pipeline_tag) == (
        sha,
        False,
        "transformers",
        "image-classification",
    )
    assert {"snn", "transformers", "image-classification", "license:mit"} == set(info.tags)
    assert {sibling.rfilename for sibling in info.siblings} == hub.files(REPO).keys()
    assert set(api.list_repo_files(REPO)) == hub.files(REPO).keys()
    top = {entry.path for entry in api.list_repo_tree(REPO)}
    assert top == {"README.md", "config.json", "empty.txt", "model.safetensors", "sub"}
    assert {entry.path for entry in api.list_repo_tree(REPO, "sub")} == {"sub/notes.txt", "sub/deep"}
    (weights,) = (entry for entry in api.list_repo_tree(REPO, recursive=True) if entry.path == "model.safetensors")
    assert (weights.lfs.size, weights.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))


def test_no_tags_without_a_card(hub, api):
    hub.seed(REPO, {"README.md": b"no front matter"})
    info = api.model_info(REPO)
    assert (info.library_name, info.pipeline_tag, info.tags) == (None, None, [])


def test_card_metadata_is_checked(hub, api):
    ModelCard("---\nlicense: mit\n---\ntext").validate()
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit(REPO, add(README_md=b"---\na: [unclosed\n---\n"), commit_message="bad card")
    assert hub.files(REPO) == {}


# Revisions


def test_no_second_download_without_a_change(hub, api):
    hub.seed(REPO, FILES)
    assert read("model.safetensors") == WEIGHTS
    assert [verb for verb, *_ in hub.requests] == ["HEAD", "GET"]
    hub.requests.clear()
    assert read("model.safetensors") == WEIGHTS
    assert [verb for verb, *_ in hub.requests] == ["HEAD"]


def test_commits_are_snapshots(hub, api):
    first = hub.seed(REPO, FILES)
    second = api.create_commit(REPO, add(config_json=b"{}"), commit_message="second").oid
    assert first != second
    assert [commit.title for commit in hub.commits(REPO)] == ["initial commit", "seed", "second"]
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][:2] == [second, first]
    assert (read("config.json"), read("config.json", first)) == (b"{}", FILES["config.json"])
    deletions = [CommitOperationDelete("sub/"), CommitOperationDelete("empty.txt")]
    api.create_commit(REPO, deletions, commit_message="third")
    assert hub.files(REPO).keys() == {"config.json", "model.safetensors"}
    assert hub.files(REPO, first) == FILES


def test_commit_ids_are_the_same_in_each_run(hub):
    assert hub.seed("org/a", FILES) == "3c759730df0647a3d169a0d7102376c12d95d019"
    assert hub.seed("org/b", FILES) != hub.commits("org/a")[-1].sha


def test_the_same_content_makes_no_commit(hub, api, folder):
    sha = hub.seed(REPO, FILES)
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == sha
    assert statuses(hub, "POST", "/commit/") == []
    assert statuses(hub, "PUT") == []  # the batch answer says that the object is here


def test_branches_and_tags(hub, api):
    first = hub.seed(REPO, FILES)
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="feature/x")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="feature/x")
    api.create_branch(REPO, branch="feature/x", exist_ok=True)
    sha = api.create_commit(REPO, add(config_json=b"branch"), commit_message="x", revision="feature/x").oid
    assert hub.files(REPO) == FILES
    assert read("config.json", "feature/x") == b"branch"
    assert read("config.json", "v1") == FILES["config.json"]
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "feature/x": sha}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert api.model_info(REPO, revision="feature/x").sha == sha
    api.create_branch(REPO, branch="old", revision=first)
    assert hub.files(REPO, "old") == FILES


def test_a_parent_that_is_not_the_head_is_refused(hub, api):
    first = hub.seed(REPO, FILES)
    second = hub.seed(REPO, {"config.json": b"other"})
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(REPO, add(config_json=b"mine"), commit_message="late", parent_commit=first)
    assert hub.commits(REPO)[-1].sha == second
    api.create_commit(REPO, add(config_json=b"mine"), commit_message="in time", parent_commit=second)
    assert hub.files(REPO)["config.json"] == b"mine"


# Who may do what


def test_a_private_repository_needs_the_token(hub, api):
    hub.seed(REPO, FILES, private=True)
    for call in (lambda: read("config.json", token=False), lambda: api.model_info(REPO, token=False)):
        with pytest.raises(RepositoryNotFoundError) as error:
            call()
        assert error.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
        api.model_info(REPO, token="hf_wrong")
    assert error.value.response.status_code == 401
    assert not isinstance(error.value, RepositoryNotFoundError)
    assert read("config.json") == FILES["config.json"]
    assert api.model_info(REPO).private


def test_nobody_is_logged_in(hub, api, anonymous):
    hub.seed(REPO, FILES)
    assert read("config.json") == FILES["config.json"]
    with pytest.raises(HfHubHTTPError, match="401"):
        api.create_commit(REPO, add(config_json=b"mine"), commit_message="stranger")
    with pytest.raises(HfHubHTTPError, match="401"):
        api.create_repo("org/new")
    assert hub.files(REPO) == FILES
    assert "org/new" not in hub.repos


@pytest.mark.parametrize("case", ["read token", "foreign namespace"])
def test_writing_needs_permission(hub, api, case):
    repo_id, token = (REPO, hub.read_token) if case == "read token" else ("google/model", hub.token)
    hub.seed(repo_id, FILES)
    attempts = [
        lambda: api.create_commit(repo_id, add(config_json=b"mine"), commit_message="x", token=token),
        lambda: api.create_repo(repo_id.replace("model", "new"), token=token),
        lambda: api.create_branch(repo_id, branch="x", token=token),
        lambda: api.create_tag(repo_id, tag="x", token=token),
    ]
    for attempt in attempts:
        with pytest.raises(HfHubHTTPError) as error:
            attempt()
        assert error.value.response.status_code == 403
    assert hub.files(repo_id) == FILES
    assert list(hub.repos) == [repo_id]
    assert list(hub.repos[repo_id].branches) == ["main"]


def test_creation(hub, api):
    assert str(api.create_repo("alone", private=True)) == f"{hub.endpoint}/tester/alone"
    assert hub.repos["tester/alone"].private
    assert api.create_repo("alone", exist_ok=True).repo_id == "tester/alone"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alone")
    assert api.whoami()["name"] == "tester"
    assert [org["name"] for org in api.whoami()["orgs"]] == ["org"]


def test_three_kinds_of_not_found(hub, api):
    sha = hub.seed(REPO, FILES)
    with pytest.raises(RepositoryNotFoundError) as error:
        read("config.json", repo_id="org/nothing")
    assert error.value.response.status_code == 404
    with pytest.raises(RevisionNotFoundError):
        read("config.json", "nothing")
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(REPO, add(a_txt=b"a"), commit_message="x", revision="nothing")
    with pytest.raises(EntryNotFoundError) as error:
        read("nothing.json")
    assert error.value.response.headers["X-Repo-Commit"] == sha  # clients remember the miss under it
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("gpt2")
    assert [file_exists(REPO, name) for name in ("config.json", "nothing.json")] == [True, False]  # peft's way to ask


def test_an_unknown_route_is_seen(hub, api):
    hub.seed(REPO, FILES)
    with pytest.raises(HfHubHTTPError, match="No such route"):
        api.delete_repo(REPO)
    assert hub.requests == [("DELETE", "/api/repos/delete", 404)]


# What must never be stored


def test_lfs_content_must_have_its_sha256(hub, api):
    hub.seed(REPO, FILES)
    (operation,) = add(model_safetensors=b"other weights")
    operation.upload_info.sha256 = hashlib.sha256(b"something else").digest()
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        api.create_commit(REPO, [operation], commit_message="corrupt")
    assert statuses(hub, "PUT") == [400]
    assert hub.files(REPO) == FILES
    assert hub.lfs.keys() == {hashlib.sha256(WEIGHTS).hexdigest()}


def test_only_announced_lfs_objects_are_stored(hub):
    data = b"unannounced"
    url = f"{hub.endpoint}/lfs/{REPO}/{hashlib.sha256(data).hexdigest()}"
    assert get_session().put(url, content=data).status_code == 403
    assert hub.lfs == {}


def test_verification_wants_the_object_in_its_size(hub):
    hub.seed(REPO, FILES)
    url, headers = f"{hub.endpoint}/{REPO}.git/info/lfs/verify", {"Authorization": f"Bearer {hub.token}"}
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    for asked, status in [((oid, len(WEIGHTS)), 200), ((oid, 1), 404), (("0" * 64, 1), 404)]:
        item = dict(zip(("oid", "size"), asked))
        assert get_session().post(url, json=item, headers=headers).status_code == status


def test_a_commit_is_all_or_nothing(hub):
    hub.seed(REPO, FILES)
    good = {"key": "file", "value": {"path": "config.json", "content": "e30=", "encoding": "base64"}}
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    missing = {"path": "new.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 1}
    for bad, status in [
        ({"key": "lfsFile", "value": missing}, 400),
        ({"key": "lfsFile", "value": {**missing, "oid": sha}}, 400),  # there, but of another size
        ({"key": "file", "value": {"path": "x", "content": "e30=!"}}, 400),
        ({"key": "deletedFile", "value": {"path": "nothing.txt"}}, 404),
        ({"key": "strange", "value": {"path": "x"}}, 400),
        ({"key": "file", "value": {}}, 400),
    ]:
        assert send_commit(hub, good, bad).status_code == status
        assert hub.files(REPO) == FILES
    assert send_commit(hub, good, token=hub.read_token).status_code == 403
    assert len(hub.commits(REPO)) == 2
    assert send_commit(hub, good).status_code == 200
    assert hub.files(REPO) == {**FILES, "config.json": b"{}"}


# Failures on purpose


def assert_unchanged(hub, sha: str) -> None:
    assert hub.commits(REPO)[-1].sha == sha
    assert hub.files(REPO) == FILES
    assert read("model.safetensors") == WEIGHTS


NEW = b"new weights " * 4096


@pytest.mark.parametrize("how", [401, 403, 404, 500, 503, "cut"])
def test_a_failed_commit_changes_nothing(hub, api, how):
    sha = hub.seed(REPO, FILES)
    hub.fail("POST", "/commit/", how)
    operations = add(model_safetensors=NEW, config_json=b"{}")
    with pytest.raises(httpx.HTTPError if how == "cut" else HfHubHTTPError):
        api.create_commit(REPO, operations, commit_message="fails")
    assert statuses(hub, "POST", "/commit/") == [how]  # the client does not try a commit twice
    assert_unchanged(hub, sha)
    api.create_commit(REPO, operations, commit_message="again")
    assert hub.files(REPO) == {**FILES, "model.safetensors": NEW, "config.json": b"{}"}
    assert len(statuses(hub, "PUT")) == 1  # the object was stored in the first attempt


def test_a_client_that_goes_away_changes_nothing(hub):
    hub.seed(REPO, FILES)
    lines = [
        {"key": "header", "value": {"summary": "whole lines, and yet half a commit"}},
        {"key": "file", "value": {"path": "config.json", "content": "e30=", "encoding": "base64"}},
    ]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    head = f"POST /api/models/{REPO}/commit/main HTTP/1.1\r\nAuthorization: Bearer {hub.token}\r\n"
    with socket.create_connection(hub.server.server_address) as connection:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % (len(body) + 99) + body)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""  # the server gave up, too
    assert statuses(hub, "POST") == ["cut"]
    assert hub.files(REPO) == FILES


@pytest.mark.parametrize("how", [500, "cut"])
def test_an_lfs_upload_that_always_fails(hub, api, how):
    sha = hub.seed(REPO, FILES)
    hub.fail("PUT", "/lfs/", how, times=None)
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        api.create_commit(REPO, add(model_safetensors=NEW, config_json=b"{}"), commit_message="fails")
    assert statuses(hub, "PUT") == [how] * 6  # one attempt, five retries
    assert statuses(hub, "POST", "/commit/") == []
    assert hashlib.sha256(NEW).hexdigest() not in hub.lfs
    assert_unchanged(hub, sha)


def test_an_lfs_upload_that_fails_once_is_retried(hub, api):
    hub.seed(REPO, FILES)
    hub.fail("PUT", "/lfs/", "cut")
    api.create_commit(REPO, add(model_safetensors=NEW), commit_message="heals")
    assert statuses(hub, "PUT") == ["cut", 200]
    assert hub.files(REPO)["model.safetensors"] == NEW


def test_a_cut_download_resumes(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # a resumption starts after the last whole chunk
    hub.seed(REPO, FILES)
    hub.fail("GET", "model.safetensors", "cut")
    assert read("model.safetensors") == WEIGHTS
    assert statuses(hub, "GET") == ["cut", 206]
    assert leftovers() == []


def test_a_download_that_is_always_cut_leaves_nothing(hub):
    hub.seed(REPO, FILES)
    hub.fail("GET", "model.safetensors", "cut", times=None)
    with pytest.raises(httpx.HTTPError):
        read("model.safetensors")
    assert statuses(hub, "GET") == ["cut"] * 6
    assert leftovers() == []
    with pytest.raises(LocalEntryNotFoundError):
        read("model.safetensors", local_files_only=True)
    hub.failures.clear()
    assert read("model.safetensors") == WEIGHTS


def test_ranges(hub):
    hub.seed(REPO, FILES)
    url = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
    for span, part in [
        ("0-9", WEIGHTS[:10]),
        ("65530-", WEIGHTS[65530:]),
        ("-5", WEIGHTS[-5:]),
        ("9-99999", WEIGHTS[9:]),
    ]:
        response = get_session().get(url, headers={"Range": f"bytes={span}"})
        assert (response.status_code, response.content) == (206, part)
    start = len(WEIGHTS) - 5
    response = get_session().get(url, headers={"Range": "bytes=-5"})
    assert response.headers["Content-Range"] == f"bytes {start}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    assert get_session().get(url, headers={"Range": f"bytes={len(WEIGHTS)}-"}).status_code == 416


# transformers, sent here by the fixture


def tiny_bert() -> BertForSequenceClassification:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=7, **sizes)).eval()


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_transformers_pushes_and_loads(hub, tmp_path, mode):
    hub.upload_mode = mode
    hub.seed(REPO, {"README.md": b"---\nlibrary_name: transformers\npipeline_tag: text-classification\n---\n"})
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld")
    model = tiny_bert()
    model.push_to_hub(REPO, tags=["snn"])
    BertTokenizer.from_pretrained(tmp_path).push_to_hub(REPO)
    assert len(statuses(hub, "PUT")) == (mode == "lfs")
    assert HfApi().model_info(REPO).tags == ["transformers", "snn", "text-classification"]
    loaded = pipeline(model=REPO)  # of the task that the card names
    assert loaded.task == "text-classification"
    assert loaded("hello world")[0]["label"] in ("LABEL_0", "LABEL_1")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    tiny_bert().push_to_hub(REPO, revision="branch", commit_message="on a branch")  # the same model would be no commit
    assert hub.commits(REPO, "branch")[-1].title == "on a branch"
    assert hub.commits(REPO)[-1].title != "on a branch"


@pytest.mark.parametrize("number", [1, 2])
def test_remote_code_is_that_of_this_test(hub, number):
    """Both tests load the same names, the second after the first in one process."""
    code = """
from transformers import BertConfig
from .other import NUMBER

class Config(BertConfig):
    number = NUMBER
"""
    config = {"model_type": "hub_test", "auto_map": {"AutoConfig": "code.Config"}}
    other = f"NUMBER = {number}\n"
    hub.seed(REPO, {"config.json": json.dumps(config).encode(), "code.py": code.encode(), "other.py": other.encode()})
    loaded = AutoConfig.from_pretrained(REPO, trust_remote_code=True)
    assert loaded.number == number
    assert Path(sys.modules[type(loaded).__module__].__file__).is_relative_to(hub.home)


# Without the server


def test_the_cache_serves_offline(hub, go_offline):
    hub.seed(REPO, FILES)
    snapshot_download(REPO)
    hub.requests.clear()
    go_offline()
    assert {path: read(path) for path in FILES} == FILES
    assert Path(snapshot_download(REPO), "config.json").read_bytes() == FILES["config.json"]
    with pytest.raises(LocalEntryNotFoundError):
        read("config.json", repo_id="org/other")
    assert hub.requests == []


def test_nothing_is_answered_after_stop(hub):
    hub.seed(REPO, FILES)
    read("config.json")
    hub.stop()
    assert read("config.json") == FILES["config.json"]  # from the cache, as the real client does
    with pytest.raises(LocalEntryNotFoundError):
        read("model.safetensors")


def test_a_subprocess_uses_this_hub_only(hub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.seed(REPO, FILES, private=True)
    code = f"from huggingface_hub import hf_hub_download as f; print(f({REPO!r}, 'config.json'), end='')"

    def run(**more):
        return subprocess.run(
            [sys.executable, "-c", code], env=hub.environment(**more), capture_output=True, text=True
        )

    path = Path(run().stdout)
    assert path.read_bytes() == FILES["config.json"]
    assert path.is_relative_to(hub.home / "subprocess")
    assert "RepositoryNotFoundError" in run(HF_TOKEN=None, HF_HOME=str(hub.home / "other")).stderr
    assert all(status != 404 for *_, status in hub.requests)

"""The routes of the Hub's API that huggingface_hub, transformers and peft ask for.

A route is called with the hub locked and the body received whole, so what it does is done at once or not at all.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml  # huggingface_hub depends on it, so it is where the client is

from tests.hub.store import Commit, Repo, blob_id, sha256

if TYPE_CHECKING:
    from tests.hub.server import LoopbackHub

EPOCH = "2026-01-01T00:00:00.000Z"  # one date for all, as tests compare nothing by time


@dataclass(eq=False)
class Reply(Exception):
    """An answer: returned when all is well, raised when the request is refused."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """The client picks its exception by X-Error-Code, and by X-Error-Message where there is no code."""
    header = " ".join(message.split()).encode("ascii", "replace").decode()  # a header is one line
    headers |= {"X-Error-Message": header} | ({"X-Error-Code": code} if code else {})
    return Reply(status, {"error": message}, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Request:
    hub: "LoopbackHub"
    method: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise refusal(400, f"The body is no JSON: {error}") from error

    @property
    def role(self) -> str | None:
        """What the token allows, "read" or "write"; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:  # the client tells this one from a repository it cannot see
            raise refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def reading(self, repo_id: str) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if self.role is None and (repo is None or repo.private):  # a stranger cannot tell a private from a missing one
            raise refusal(401, "Invalid username or password.", "RepoNotFound")
        if repo is None:
            raise refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def writing(self, repo_id: str) -> Repo:
        repo = self.reading(repo_id)
        self.may_write(repo_id)
        return repo

    def may_write(self, repo_id: str) -> None:
        if self.role is None:
            raise refusal(401, "Invalid username or password.")
        if self.role != "write" or repo_id.split("/")[0] not in self.hub.namespaces:
            raise refusal(403, f"You don't have the rights to write to {repo_id}")

    def commit(self, repo_id: str, revision: str | None) -> Commit:
        commit = self.reading(repo_id).find(revision or "main")
        if commit is None:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


ROUTES: list[tuple[tuple[str, ...], re.Pattern, Any]] = []
REPO = r"([^/]+(?:/[^/]+)?)"  # one segment too: clients ask for names such as gpt2, and must hear that it is not here


def route(method: str, pattern: str):
    def register(endpoint):
        ROUTES.append((tuple(method.split("|")), re.compile(pattern), endpoint))
        return endpoint

    return register


def front_matter(text: str) -> dict:
    """The metadata of a model card. Raises yaml.YAMLError."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", text, re.DOTALL)
    data = yaml.safe_load(match[1]) if match else None
    if data is not None and not isinstance(data, dict):
        raise yaml.YAMLError("The metadata must be a mapping")
    return data or {}


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> Reply:
    if request.role is None:
        raise refusal(401, "Invalid username or password.")
    orgs = [{"name": name, "type": "org"} for name in sorted(request.hub.namespaces - {request.hub.user})]
    auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": request.role}}
    return Reply(body={"type": "user", "name": request.hub.user, "orgs": orgs, "auth": auth})


@route("GET", "/api/agent-harnesses")
def agent_harnesses(request: Request) -> Reply:
    return Reply(body={"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Request) -> Reply:
    try:
        empty = not front_matter(request.json["content"])
    except yaml.YAMLError as error:
        raise Reply(400, {"error": str(error), "errors": [{"message": str(error)}], "warnings": []}) from error
    return Reply(body={"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}] if empty else []})


@route("POST", "/api/repos/create")
def create(request: Request) -> Reply:
    hub, data = request.hub, request.json
    repo_id = f"{data.get('organization') or hub.user}/{data['name']}"
    request.may_write(repo_id)
    if data.get("type", "model") != "model":
        raise refusal(400, "This Hub holds models only")
    answer = {"url": f"{hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
    if repo_id in hub.repos:
        return Reply(409, {"error": "You already created this model repo", **answer})
    hub.repos[repo_id] = Repo(repo_id, data.get("visibility") == "private" or bool(data.get("private")))
    return Reply(body=answer)


@route("GET", f"/api/models/{REPO}(?:/revision/([^/]+))?")
def model_info(request: Request, repo_id: str, revision: str | None) -> Reply:
    commit, private = request.commit(repo_id, revision), request.hub.repos[repo_id].private
    try:
        card = front_matter(commit.files.get("README.md", b"").decode(errors="replace"))
    except yaml.YAMLError:
        card = {}
    listed = [card["tags"]] if isinstance(card.get("tags"), str) else card.get("tags") or []
    licence = [f"license:{card['license']}"] if card.get("license") else []  # Trainer reads it for its own card
    tags = [card.get("library_name"), *listed, card.get("pipeline_tag"), *licence]
    info = {"id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": commit.sha, "private": private}
    info |= {"gated": False, "disabled": False, "lastModified": EPOCH, "createdAt": EPOCH, "cardData": card or None}
    info["tags"] = list(dict.fromkeys(tag for tag in tags if tag))
    info["siblings"] = [{"rfilename": path} for path in commit.files]
    return Reply(body=info | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card})


@route("GET", f"/api/models/{REPO}/refs")
def refs(request: Request, repo_id: str) -> Reply:
    repo = request.reading(repo_id)

    def listed(kind: str, heads: dict[str, Commit]) -> list[dict]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c.sha} for n, c in heads.items()]

    return Reply(body={"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []})


@route("GET", f"/api/models/{REPO}/commits/([^/]+)")
def commit_list(request: Request, repo_id: str, revision: str) -> Reply:
    same = {"message": "", "authors": [{"user": request.hub.user}], "date": EPOCH}
    history = request.commit(repo_id, revision).history()
    return Reply(body=[{"id": commit.sha, "title": commit.title, **same} for commit in history])


@route("GET", f"/api/models/{REPO}/tree/([^/]+)(?:/(.*))?")
def tree(request: Request, repo_id: str, revision: str, folder: str | None) -> Reply:
    commit = request.commit(repo_id, revision)
    prefix = f"{folder.strip('/')}/" if folder else ""
    deep = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    entries: dict[str, dict] = {}
    for path, data in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        folders = [str(parent) for parent in PurePosixPath(path).parents][:-1]  # without "."
        parents = [name for name in folders if name.startswith(prefix)]
        for parent in reversed(parents if deep else parents[-1:]):
            entries[parent] = {"type": "directory", "path": parent, "oid": blob_id(parent.encode()), "size": 0}
        if deep or not parents:
            entries[path] = {"type": "file", "path": path, "oid": blob_id(data), "size": len(data)}
            if path in commit.lfs:
                entries[path]["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    if prefix and not entries:
        raise refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    return Reply(body=list(entries.values()))


@route("POST", f"/api/models/{REPO}/branch/([^/]+)")
def create_branch(request: Request, repo_id: str, branch: str) -> Reply:
    repo = request.writing(repo_id)
    if branch in repo.branches:
        raise refusal(409, f"Reference already exists: {branch}")
    repo.branches[branch] = request.commit(repo_id, request.json.get("startingPoint"))
    return Reply()


@route("POST", f"/api/models/{REPO}/tag/([^/]+)")
def create_tag(request: Request, repo_id: str, revision: str) -> Reply:
    repo, tag = request.writing(repo_id), request.json["tag"]
    if tag in repo.tags:
        raise refusal(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = request.commit(repo_id, revision)
    return Reply()


@route("POST", f"/api/models/{REPO}/preupload/([^/]+)")
def preupload(request: Request, repo_id: str, revision: str) -> Reply:
    request.writing(repo_id)
    commit, answers = request.commit(repo_id, revision), []
    for file in request.json["files"]:
        path = file["path"]
        mode = "lfs" if request.hub.goes_to_lfs(path, file["size"]) else "regular"
        oid = {"oid": commit.oid(path)} if path in commit.files else {}
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | oid)
    return Reply(body={"files": answers})


@route("POST", f"/{REPO}[.]git/info/lfs/objects/batch")
def lfs_batch(request: Request, repo_id: str) -> Reply:
    request.writing(repo_id)
    hub, objects = request.hub, []
    for item in request.json["objects"]:
        hub.expected[item["oid"]] = item["size"]
        actions = {"upload": {"href": f"{hub.endpoint}/lfs/{repo_id}/{item['oid']}"}}
        actions["verify"] = {"href": f"{hub.endpoint}/{repo_id}.git/info/lfs/verify"}
        # No actions: the object is here already, and the client goes straight to the commit.
        objects.append(item if item["oid"] in hub.lfs else item | {"actions": actions})
    return Reply(body={"transfer": "basic", "objects": objects})


@route("PUT", f"/lfs/{REPO}/([0-9a-f]+)")
def lfs_put(request: Request, repo_id: str, oid: str) -> Reply:
    """The client sends no token here, as the Hub hands out signed addresses: only announced objects may come."""
    if request.hub.expected.get(oid) is None:
        raise refusal(403, "Request has no valid signature")
    if sha256(request.body) != oid or len(request.body) != request.hub.expected[oid]:
        raise refusal(400, "The content does not match the announced sha256 and size")
    request.hub.lfs[oid] = request.body
    return Reply()


@route("POST", f"/{REPO}[.]git/info/lfs/verify")
def lfs_verify(request: Request, repo_id: str) -> Reply:
    request.writing(repo_id)
    if len(request.hub.lfs.get(request.json["oid"], b"")) != request.json["size"]:
        raise refusal(404, "The LFS object was not uploaded")
    return Reply()


@route("POST", f"/api/models/{REPO}/commit/([^/]+)")
def create_commit(request: Request, repo_id: str, revision: str) -> Reply:
    """All or nothing: the branch moves in the last step, when every file of the commit is at hand and checked."""
    repo = request.writing(repo_id)
    head = request.commit(repo_id, revision)
    if revision not in repo.branches or request.query.get("create_pr"):
        raise refusal(400, "Commits go to a branch here; there are no pull requests")
    files, lfs, title = dict(head.files), set(head.lfs), ""
    try:
        for line in request.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", head.sha) != head.sha:
                    raise refusal(412, "A commit has happened since. Please refresh and try again.")
            else:
                change(files, lfs, key, value, request.hub.lfs)
    except (ValueError, KeyError) as error:
        raise refusal(400, f"Malformed commit: {error!r}") from error
    if not title:
        raise refusal(400, "The commit has no header")
    commit = repo.branches[revision] = head.child(title, files, frozenset(lfs))
    url = f"{request.hub.endpoint}/{repo_id}/commit/{commit.sha}"
    return Reply(body={"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def change(files: dict[str, bytes], lfs: set[str], key: str, value: dict, objects: Mapping[str, bytes]) -> None:
    """One operation of a commit, on a copy of the files."""
    path = value["path"]
    if key == "file":
        files[path] = base64.b64decode(value["content"], validate=True)
        lfs.discard(path)
    elif key == "lfsFile":
        data = objects.get(value["oid"])
        if data is None or len(data) != value.get("size", len(data)):
            raise refusal(400, f"LFS pointer of {path} points to a file that does not exist")
        files[path] = data
        lfs.add(path)
    elif key in ("deletedFile", "deletedFolder"):
        folder = f"{path.rstrip('/')}/"
        gone = [name for name in files if (name.startswith(folder) if key == "deletedFolder" else name == path)]
        if not gone:
            raise refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
            lfs.discard(name)
    else:
        raise refusal(400, f"Unknown operation {key}")


@route("GET|HEAD", f"/{REPO}/resolve/([^/]+)/(.+)")
def resolve(request: Request, repo_id: str, revision: str, path: str) -> Reply:
    commit = request.commit(repo_id, revision)
    if path not in commit.files:  # with the commit, for which clients remember that the file is missing
        raise refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
    data, etag = commit.files[path], f'"{commit.oid(path)}"'
    headers = {"ETag": etag, "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if path in commit.lfs:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
    span = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if span is None or span.groups() == ("", ""):
        return Reply(body=data, headers=headers)
    first, last = span.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    end = min(int(last), len(data) - 1) if first and last else len(data) - 1
    if start > end:
        raise refusal(416, "Range not satisfiable", Content_Range=f"bytes */{len(data)}")
    return Reply(206, data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

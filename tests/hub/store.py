"""What the loopback Hub keeps: repositories as trees of commits, each a whole snapshot."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    """Git's name of a file: what the client compares with to leave out unchanged files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A whole snapshot; `lfs` names the files that count as LFS files, and have a sha256 for ETag."""

    sha: str
    title: str
    parent: "Commit | None" = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    lfs: frozenset[str] = frozenset()

    def child(self, title: str, files: Mapping[str, bytes], lfs: frozenset[str]) -> "Commit":
        """The next commit. Its id depends on content and history alone, so that it is the same in each run."""
        content = sorted((path, sha256(data), path in lfs) for path, data in files.items())
        return Commit(hashlib.sha1(repr((self.sha, title, content)).encode()).hexdigest(), title, self, files, lfs)

    def history(self) -> Iterator["Commit"]:
        """This commit and all before it, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def oid(self, path: str) -> str:
        return sha256(self.files[path]) if path in self.lfs else blob_id(self.files[path])


class Repo:
    def __init__(self, repo_id: str, private: bool):
        self.private = private
        self.branches = {"main": Commit(hashlib.sha1(repo_id.encode()).hexdigest(), "initial commit")}
        self.tags: dict[str, Commit] = {}

    def find(self, revision: str) -> Commit | None:
        """By branch, tag, or full commit id."""
        heads = {**self.tags, **self.branches}
        reachable = (commit for head in heads.values() for commit in head.history() if commit.sha == revision)
        return heads.get(revision) or next(reachable, None)

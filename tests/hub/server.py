"""A HuggingFace Hub on the loopback interface, so that tests push and load over real HTTP with the real clients.

Stubs of `HfApi` skip what breaks in practice: headers, revisions, the LFS protocol, cut connections, half a push.
The server follows the public Hub as its client reads it, for model repositories named namespace/name. It leaves out
pull requests, Xet storage, gated repositories, paging, .gitignore, the .gitattributes that a new repository starts
with, and all that the Hub guesses from files other than the front matter of README.md.
"""

import json
import os
import re
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote

from tests.hub.routes import ROUTES, Reply, Request, refusal
from tests.hub.store import Commit, Repo, sha256

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".onnx", ".npz", ".model")


class LoopbackHub:
    """The server and what it stores; a context manager. Attributes may be set at any time.

    Attributes:
        requests: (method, path without query, status or "cut") of each request, in the order of the answers.
        repos: the `Repo` of each id.
        lfs: the content of each LFS object, by sha256.
        tokens: what each token allows. `token` may write, `read_token` may not.
        namespaces: where the user may write.
        upload_mode: "lfs" sends weights and files over `lfs_threshold` bytes through LFS, as the Hub does; "regular"
            has all files in the commit itself.
        home: folder for the caches of processes started with `environment()`.
    """

    user, token, read_token = "tester", "hf_loopback_write", "hf_loopback_read"

    def __init__(self, home: Path):
        self.home = home
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, int | str]] = []
        self.lfs: dict[str, bytes] = {}
        self.tokens = {self.token: "write", self.read_token: "read"}
        self.namespaces = {self.user, "org"}
        self.upload_mode, self.lfs_threshold = "lfs", 10_000_000
        self.expected: dict[str, int] = {}  # LFS objects that were announced, and their sizes
        self.failures: list[dict] = []
        self.lock = threading.RLock()
        self.server = Server(self)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def start(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    def seed(self, repo_id: str, files: Mapping[str, bytes], private: bool = False) -> str:
        """Adds files to main, without HTTP, and creates the repository where need be. Returns the commit id."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo(repo_id, private))
            head = repo.branches["main"]
            lfs = {path for path, data in files.items() if self.goes_to_lfs(path, len(data))}
            commit = head.child("seed", {**head.files, **files}, head.lfs.difference(files) | lfs)
            repo.branches["main"] = commit
            self.lfs.update({sha256(files[path]): files[path] for path in lfs})
            return commit.sha

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The history of a revision, oldest first; the first is the empty one that a repository is created with."""
        commit = self.repos[repo_id].find(revision)
        if commit is None:
            raise KeyError(f"{repo_id} has no revision {revision}")
        return list(commit.history())[::-1]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return dict(self.commits(repo_id, revision)[-1].files)

    def fail(self, method: str, path: str, how: int | str, times: int | None = 1) -> None:
        """Fails the next requests of this method with this in their path (`times=None`: all of them).

        `how` is a status, or "cut": the connection ends after half the body of the request where it has one, and
        otherwise after half the body of the answer, of which the full length was announced.
        """
        with self.lock:
            self.failures.append({"method": method, "path": path, "how": how, "times": times})

    def next_failure(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for rule in self.failures:
                if rule["method"] == method and rule["path"] in path and rule["times"] != 0:
                    rule["times"] = None if rule["times"] is None else rule["times"] - 1
                    return rule["how"]
        return None

    def environment(self, **more: str | None) -> dict[str, str]:
        """Environment of a subprocess that talks to this Hub alone; a variable set to None is left out.

        Its cache is not that of the test's own process, so it starts as a stranger's machine would; pass HF_HOME to
        give it another.
        """
        foreign = re.compile(r"^(HF_|HUGGING|TRANSFORMERS_|XDG_CACHE_HOME)|_PROXY$", re.IGNORECASE)
        ours: dict[str, str | None] = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home / "subprocess"),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        kept = {name: value for name, value in os.environ.items() if not foreign.search(name)}
        return {name: value for name, value in (kept | ours | more).items() if value is not None}

    def goes_to_lfs(self, path: str, size: int) -> bool:
        return self.upload_mode == "lfs" and size > 0 and (path.endswith(LFS_SUFFIXES) or size > self.lfs_threshold)


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # clients load files in parallel

    def __init__(self, hub: LoopbackHub):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no fault of the server, and not worth a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: headers alone would wait for the client's acknowledgement
    server: Server

    def answer(self) -> None:
        hub = self.server.hub
        self.close_connection = True  # so that nothing is answered any more once the server was stopped
        raw, _, query = self.path.partition("?")
        path = unquote(raw)
        how = hub.next_failure(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        cut = how == "cut"
        body = self.rfile.read(length // 2 if cut else length)
        if len(body) < length or (cut and self.command == "HEAD"):
            # Cut on purpose, or by the client: what it meant is unknown, so nothing may change.
            hub.requests.append((self.command, path, "cut"))
            return
        if isinstance(how, int):
            reply = refusal(how, "Failed on purpose")
        elif "Transfer-Encoding" in self.headers:
            reply = refusal(411, "Bodies without Content-Length are not read here")
        else:
            reply = self.dispatch(raw, Request(hub, self.command, parse_qs(query), self.headers, body))
        hub.requests.append((self.command, path, "cut" if cut else reply.status))  # before the client can look
        self.send(reply, cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def dispatch(self, raw: str, request: Request) -> Reply:
        """Routes are matched before unquoting, as a revision may hold a quoted slash."""
        try:
            for methods, pattern, endpoint in ROUTES:
                match = pattern.fullmatch(raw)
                if match and self.command in methods:
                    with request.hub.lock:
                        return endpoint(request, *(group and unquote(group) for group in match.groups()))
            return refusal(404, f"No such route here: {self.command} {raw}")
        except Reply as reply:
            return reply
        except Exception as error:  # the test sees the fault in the client's message instead of a lost connection
            return refusal(500, f"{type(error).__name__} in the loopback hub: {error}")

    def send(self, reply: Reply, cut: bool) -> None:
        is_bytes = isinstance(reply.body, bytes)
        body = reply.body if is_bytes else json.dumps(reply.body, default=str).encode()  # YAML knows dates
        self.send_response(reply.status)
        kind = "application/octet-stream" if is_bytes else "application/json; charset=utf-8"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *_) -> None:
        """`hub.requests` is the log."""

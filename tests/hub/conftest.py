"""Sends huggingface_hub and transformers in this process to a loopback Hub, each test to its own."""

import ssl
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.hf_api
import huggingface_hub.utils._http
import pytest
import transformers.dynamic_module_utils
import transformers.utils.hub

from tests.hub.bare import site
from tests.hub.server import LoopbackHub

__all__ = ["site"]  # a fixture

REMOTE_CODE = "transformers_modules"


def remote_code() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == REMOTE_CODE]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A started `LoopbackHub`, empty, and this process logged in to it as its user, with an empty cache.

    The libraries read their environment when they are imported, so what they made of it is replaced here.
    """
    with LoopbackHub(tmp_path / "hf") as hub:
        redirect(hub, monkeypatch)
        yield hub
        huggingface_hub.utils._http.close_session()
        for name in remote_code():  # its files go with tmp_path
            del sys.modules[name]


def redirect(hub: LoopbackHub, monkeypatch) -> None:
    home = hub.home / "in_process"
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # Xet needs a server of its own
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", hub.token)  # read at each request; without it, nobody is logged in
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    # Objects made at import, or at the first request.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "_whoami_cache", {})
    if agents := getattr(huggingface_hub.utils, "_detect_agent", None):  # which 1.x has not from the start
        monkeypatch.setattr(agents, "_registry", {"standardEnvVars": [], "harnesses": {}})
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    huggingface_hub.utils._http.close_session()  # the next one looks at NO_PROXY

    # Code that comes with a checkpoint: copied under a folder on sys.path, and imported from there.
    for module in (transformers.utils.hub, transformers.dynamic_module_utils):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(home / "modules"))
    # Without a cache of somebody else's, which evaluate may have put there: its code would be found first.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / REMOTE_CODE).is_dir()])
    for name in remote_code():
        monkeypatch.delitem(sys.modules, name)

    # Nobody here speaks HTTPS, and each client would read all certificates anew.
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *given, **named: None)

    # Retries stay, their waits (1, 2, 4, 8, 8 s and more) go. Only these modules lose their sleep.
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def anonymous(hub, monkeypatch):
    """Nobody is logged in."""
    monkeypatch.delenv("HF_TOKEN")


@pytest.fixture
def go_offline(hub, monkeypatch):
    """A function; after it was called the libraries are in offline mode."""

    def call() -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # peft reads it itself

    return call

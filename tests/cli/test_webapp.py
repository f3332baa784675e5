"""`spikezip app`: what it says and refuses; and, where gradio is installed, the page, spoken to over HTTP."""

import builtins
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest
import torch

from spikezip_hf.analysis.watching import EXAMPLES
from spikezip_hf.cli import webapp
from tests.analysis.test_watching import TEXT, make_watcher, noise, texts
from tests.cli.test_commands import complaint, contents, here, place, run  # noqa: F401

REFUSED = {
    "ordinary": ("app bert/ann", "neither a Quant nor a Spike model"),
    "missing": ("app ./no/where", "No network at ./no/where"),
    "time-steps": ("app bert/snn --time-steps 0", "time_steps must be an integer of at least 1, got 0"),
    "length": ("app bert/snn --max-length 0", "max_length must be an integer of at least 1, got 0"),
}


@pytest.fixture(scope="module")
def gradio():
    return pytest.importorskip("gradio", reason="gradio is not installed: pip install 'spikezip-hf[app]'")


@pytest.fixture(scope="module", params=["bert", "vit"])
def up(request, gradio):
    """A watcher, its page's address and a client of it."""
    from gradio_client import Client

    torch.manual_seed(0)
    watcher = make_watcher(request.param)
    with webapp.served(watcher, "a/<b>network") as address:
        yield watcher, address, Client(address, verbose=False)


def give(client, watcher, what):
    """What the page shows of an input: the line on what is wrong, the slider, pieces of the step, and of the input."""
    from gradio_client import handle_file

    if not watcher.of_text and what is not None:
        what = handle_file(what)
    trouble, *_, slider, now, answers, attention, nodes, facts, course, rates, raster = client.predict(
        what, api_name="/watch"
    )
    return texts(trouble).strip(), slider, (now, answers, attention, nodes), (facts, course, rates, raster)


def good_input(watcher, tmp_path):
    if watcher.of_text:
        return TEXT
    noise().save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def test_page_shows_what_was_simulated(up, tmp_path, monkeypatch):
    watcher, _, client = up
    what = good_input(watcher, tmp_path)
    watched = watcher.watch(what)
    trouble, slider, moving, fixed = give(client, watcher, what)
    assert trouble == ""
    assert slider["maximum"] == slider["value"] == len(watched)
    assert f"T = {len(watched)} of {len(watched)}" in texts(moving[0])
    assert f"{watched.facts()['T_eq']} steps" in fixed[0]
    assert f"{watched.facts()['spikes per neuron']:.2f}" in fixed[0]
    assert all("data:image/png" in drawn for drawn in fixed[1:])
    monkeypatch.setattr(type(watcher.model), "trajectory", None)  # steps are looked up, and not simulated
    for step in (1, len(watched) // 2, len(watched)):
        now, answers, _, nodes = client.predict(step, api_name="/show")
        assert f"T = {step} of {len(watched)}" in texts(now)
        assert f"{int(watched.frame(step).spikes.sum()):,} spikes in this step" in now
        for row in watched.answer_rows(step):
            assert f"{row['SNN logit']:.3f}" in answers
        assert nodes.count("<tr>") == 1 + len(watched.node_names)


def test_bad_inputs_are_told_in_a_line(up, tmp_path):
    watcher, _, client = up
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    bad = {None: "There is no image", str(broken): "cannot be read as an image"}
    if watcher.of_text:
        bad = {"": "There is no text", "film " * 99: "too long: 101 tokens", "qqq": "Nothing of this text"}
    for what, words in bad.items():
        trouble, *_ = give(client, watcher, what)
        assert words in trouble
        assert "\n" not in trouble
        assert "Traceback" not in trouble
        # And nothing is left to be looked at.
        assert "T = " not in texts(str(client.predict(1, api_name="/show")))


def test_what_is_no_input_of_ours_is_told_without_its_words(monkeypatch, caplog):
    watcher = make_watcher("bert")
    monkeypatch.setattr(watcher, "run", lambda *args, **kwargs: 1 / 0)
    watched, trouble = webapp.watched_or_problem(watcher, TEXT)
    assert watched is None
    assert trouble == "This input could not be simulated (ZeroDivisionError); the terminal says more."
    assert "ZeroDivisionError" in caplog.text


def test_page_is_of_this_machine_alone(up):
    import httpx

    watcher, address, client = up
    assert address.startswith("http://127.0.0.1:")
    page = httpx.get(address).text
    assert "fonts.googleapis" not in page
    config = client.config
    assert not config["analytics_enabled"]
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/watch", "/show"}
    assert "&lt;b&gt;network" in json.dumps(config)
    if watcher.of_text:
        assert EXAMPLES[0] in json.dumps(config)


def test_uploads_are_removed(gradio, tmp_path):
    before = os.environ.get("GRADIO_TEMP_DIR")
    with webapp.served(make_watcher("vit")) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        port = int(re.search(r":(\d+)/", address).group(1))
        with pytest.raises(OSError, match=str(port)), webapp.served(make_watcher("vit"), port=port):
            pass
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_without_gradio(here, monkeypatch):  # noqa: F811
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gradio":
            raise ImportError("No module named 'gradio'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    said = complaint(run("app", "bert/snn", status=1))
    assert said.endswith("pip install 'spikezip-hf[app]'.")


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(here, gradio, case):  # noqa: F811
    command, words = REFUSED[case]
    before = contents(here)
    assert words in complaint(run(*command.split(), status=1))
    assert contents(here) == before


def test_help_says_it_is_of_this_machine():
    shown = " ".join(run("app", "--help").stdout.split())
    for words in ("--host", "127.0.0.1", "--port", "--time-steps", "--max-length", "spikezip-hf[app]"):
        assert words in shown
    assert "--share" not in shown


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_command_until_it_is_ended(here, gradio, monkeypatch, how):  # noqa: F811
    import httpx

    before, found = contents(here), []

    def wait():
        found.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        found.append(httpx.get(f"http://127.0.0.1:{port}/").status_code)
        if how == "Ctrl-C":
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(webapp, "wait", wait)
    said = json.loads(run("app", "vit/snn", "--port", port, "--json").stdout)
    assert said == {"url": f"http://127.0.0.1:{port}/", "checkpoint": "vit/snn"}
    folder, status = found
    assert status == 200
    assert not folder.exists()
    assert contents(here) == before

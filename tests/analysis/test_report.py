"""Reports: whole, self-contained, escaped, and the same in every format; figures that can be read and made again."""

import base64
import csv
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from spikezip_hf.analysis import figures, report as report_module
from spikezip_hf.analysis.closeup import close_up
from spikezip_hf.analysis.recording import record
from spikezip_hf.analysis.report import check_folder, nodes_to_see, write_report
from spikezip_hf.hub import network_digest
from tests.analysis.test_recording import one_of
from tests.conftest import make_batch, make_qann, make_text_qann, spiking_twin

BAD = "<script>alert('x')</script> & \"quoted\" $x_1$ 酒店"
TABLES = ("steps.csv", "nodes.csv", "samples.csv")


class Strict(HTMLParser):
    """Reads a page, and notes what it has; every element must be closed where it belongs."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def texts():
    """A BERT with bad names of classes, recorded on six texts that are as bad."""
    names = {0: BAD, 1: "good", 2: "so-so"}
    qann = make_text_qann("bert", levels=8, id2label=names, label2id={name: key for key, name in names.items()})
    snn = spiking_twin(qann, time_steps=100)
    batch = make_batch(qann)
    recording = record(snn, [{**batch, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}])
    one = one_of(batch)
    seen = close_up(snn, one, nodes_to_see(snn))
    return {"model": snn, "recording": recording, "seen": seen, "texts": [BAD] * 6} | {
        "tokens": [BAD[:12], "$x_1$", "酒店", *["word"] * (one["input_ids"].shape[1] - 3)],
        "says": BAD,
        "title": BAD,
        "about": {"data": BAD},
        "energy": [{"network": BAD, "additions": 12, "energy (pJ)": 3.5}],
    }


@pytest.fixture(scope="module")
def images():
    qann = make_qann(levels=8)
    snn = spiking_twin(qann, time_steps=100)
    batch = make_batch(qann)
    recording = record(snn, [{**batch, "labels": torch.tensor([0, 1, 2, 3, 4, 0])}])
    seen = close_up(snn, one_of(batch), nodes_to_see(snn))
    return {"model": snn, "recording": recording, "seen": seen, "picture": torch.rand(8, 8, 3)}


@pytest.fixture(scope="module")
def written(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report(folder, **texts)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_is_whole_and_fetches_nothing(written):
    folder, _ = written
    source = (folder / "report.html").read_text(encoding="utf-8")
    page = Strict(source)
    assert not page.tags & {"script", "link", "iframe", "object", "base", "a"}
    assert not any(name.startswith("on") for name, _ in page.attributes)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert len(addresses) == 6  # figures
    for address in addresses:
        kind, _, data = address.partition(";base64,")
        assert kind == "data:image/svg+xml"
        svg = base64.b64decode(data).decode()
        links = re.findall(r'href="([^"]*)"', svg)
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert "<script" not in svg
    assert "url(" not in source
    assert "://" not in re.sub(r"base64,[^\"]*", "", source)


def test_text_of_users_is_escaped(written, texts):
    folder, _ = written
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert "alert('x')" not in source
    said = "\n".join(Strict(source).text)
    # title and heading, data, quotation, energy, texts; labels and answers
    assert said.count(BAD) >= 2 + 1 + 1 + 1 + 6


def test_numbers_are_the_same_in_all_formats(written, texts):
    folder, content = written
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == content
    for name in TABLES:
        table = content[name.removesuffix(".csv")]
        expected = [{key: "" if value is None else str(value) for key, value in row.items()} for row in table]
        assert rows(folder / name) == expected
    recording = texts["recording"]
    count, steps = recording.predictions.shape
    assert (len(content["samples"]), len(content["steps"]), len(content["nodes"])) == (count, steps, 22)
    anytime = Dataset.from_parquet(str(folder / "anytime.parquet"), cache_dir=str(folder / ".cache"))
    assert len(anytime) == count * steps
    assert anytime.features["prediction"].names == [BAD, "good", "so-so"]
    assert content["network"]["facts"]["Digest"] == network_digest(texts["model"])
    assert content["network"]["config"]["quantization_levels"] == 8
    said = " ".join(Strict((folder / "report.html").read_text(encoding="utf-8")).text)
    for name, definition in content["definitions"].items():
        assert definition in said, name
    assert content["time course"]["certificate"] in said


def test_figures_can_be_opened(written):
    folder, content = written
    assert list(content["figures"]) == ["accuracy", "equilibrium", "firing_rate", "tokens", "distance", "raster"]
    for name in content["figures"]:
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert np.ptp(np.asarray(picture.convert("RGB")).astype(int), axis=-1).max() == 0  # gray alone
        svg = ET.parse(folder / "figures" / f"{name}.svg").getroot()
        said = [text.strip() for text in svg.itertext()]
        assert any("time-step" in text for text in said)  # the axis, with its unit
        if name == "tokens":
            assert {BAD[:12], "$x_1$", "酒店", "QANN", "attention probability"} <= set(said)


def test_a_report_of_images_and_the_same_twice(images, tmp_path):
    for name in ("one", "two"):
        content = write_report(tmp_path / name, **images)
    assert {"image", "heads", "raster"} <= set(content["figures"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    Strict((tmp_path / "one" / "report.html").read_text(encoding="utf-8"))


def test_what_an_earlier_report_had_is_removed(texts, images, tmp_path):
    write_report(tmp_path, **texts)
    assert (tmp_path / "energy.csv").is_file()
    (tmp_path / "notes.txt").write_text("mine")
    bare = {key: images[key] for key in ("model", "recording")}
    write_report(tmp_path, **bare)
    names = {"accuracy", "equilibrium", "firing_rate"}
    expected = {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")}
    expected |= {"report.html", "report.json", "anytime.parquet", "notes.txt", *TABLES}
    assert set(contents(tmp_path)) == expected


def test_no_labels_and_no_equilibrium(images, tmp_path):
    recording = record(images["model"], [make_batch(images["model"])], 3)
    content = write_report(tmp_path, images["model"], recording)
    assert content["time course"]["T_up"] is None
    assert content["time course"]["certificate"].startswith("not exact")
    Strict((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "old report"])
def test_interrupted(images, texts, tmp_path, monkeypatch, there):
    if there:
        write_report(tmp_path / "report", **images)
    before = contents(tmp_path)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "write_text", interrupted)  # all else is written by then
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "report", **texts)
    assert contents(tmp_path) == before
    assert (tmp_path / "report").exists() == there


def test_what_is_somebody_elses_is_kept(tmp_path):
    (tmp_path / "report.json").write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match="holds something else"):
        check_folder(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"report\.json is a file"):
        check_folder(tmp_path / "report.json")
    check_folder(tmp_path / "new")


def test_evenly_spread():
    assert figures.evenly_spread(3, 7) == [0, 1, 2]
    assert figures.evenly_spread(9, 3) == [0, 3, 6]
    assert figures.evenly_spread(9, 3, ends=True) == [0, 4, 8]


def test_long_texts_are_cut_in_figures():
    figure = figures.token_figure([str(n) for n in range(100)], torch.rand(5, 100), torch.rand(100), "probability")
    assert figure.get_figwidth() < 20
    assert figure.axes[1].get_xlabel() == "token: the first 48 of 100"

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

from spikezip_hf.analysis import count_operations, energy, figures, report as report_module, simulation_costs
from spikezip_hf.analysis.closeup import close_up
from spikezip_hf.analysis.energy import EnergyConstants
from spikezip_hf.analysis.energy_account import account, conclusion, part_table, verdict
from spikezip_hf.analysis.page import OPTIONAL_TABLES, shown
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
        "energy": energy(count_operations(snn, {name: x[:2] for name, x in batch.items()})),
        "training": {
            "table": [{"training": BAD, "hours": 1.5}],
            "about": {"watts": None},
            "definitions": {"hours": "Wall clock."},
        },
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
    assert len(addresses) == 7  # figures
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
    # title and heading, data, quotation, training, texts; labels and answers
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
    assert list(content["figures"]) == [
        *("accuracy", "equilibrium", "firing_rate", "energy"),
        *("tokens", "distance", "raster"),
    ]
    for name in content["figures"]:
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert np.ptp(np.asarray(picture.convert("RGB")).astype(int), axis=-1).max() == 0  # gray alone
        svg = ET.parse(folder / "figures" / f"{name}.svg").getroot()
        said = [text.strip() for text in svg.itertext()]
        axis = "energy of an inference (nJ)" if name == "energy" else "time-step"
        assert any(axis in text for text in said)  # with its unit
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
    assert {path.stem for path in tmp_path.glob("*.csv")} >= set(OPTIONAL_TABLES) - {"simulation_costs"}
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


# Energy and costs

NETWORKS = ("ANN", "QANN", "QANN INT8", "SNN")


def test_energy_is_the_same_in_all_formats_and_adds_up(written, texts):
    folder, content = written
    expected = {row["network"]: row["energy_j"] for row in texts["energy"].table()}
    assert list(expected) == list(NETWORKS)
    assert {row["network"]: float(row["energy_j"]) for row in rows(folder / "energy.csv")} == expected
    for name in ("operations", "operations_by_layer", "operations_by_module"):
        assert len(rows(folder / f"{name}.csv")) == len(content[name])
        for network in NETWORKS:
            total = sum(row[f"{network} (J)"] for row in content[name])
            assert total == pytest.approx(expected[network], rel=1e-9), name
    layers = [row["layer"] for row in content["operations_by_layer"]]
    assert layers == ["before the layers", "layer 0", "layer 1", "after the layers"]
    said = " ".join(Strict((folder / "report.html").read_text(encoding="utf-8")).text)
    found = content["accounts"]["energy"]
    for text in (*found["says"], *found["definitions"].values(), *found["networks"].values(), *NETWORKS):
        assert text in said
    unit, parts = part_table(content["energy"])
    total = next(row for row in parts if row[""] == "total")
    assert f"Energy of an inference by kind of operation, {unit}" in said
    assert all(shown("", total[network]) in said for network in NETWORKS)


def test_what_comes_out_is_said_whichever_way_it_goes(texts):
    operations = texts["energy"].operations
    # Multiplications for nothing, and spikes for nothing.
    dense = energy(operations, EnergyConstants(fp32_multiply_pj=0, int8_multiply_pj=0, spike_pj=0))
    free = {"fp32_add_pj": 0, "integer_add_pj": 0, "layernorm_multiplies": 1e-3, "softmax_multiplies": 0}
    spiking = energy(operations, EnergyConstants(fp32_multiply_pj=1, **free))
    for report, words in ((dense, "spikes save nothing"), (spiking, "spikes save energy")):
        says = conclusion(report)
        assert words in says[1]
        # never one comparison without the others
        assert all(name in says[0] for name in ("quantized twin", "8-bit integers", "ordinary network"))
    assert conclusion(dense)[0].count(" times that of ") == 3
    assert conclusion(spiking)[0].count(" % less than that of ") == 3
    assert (
        f"{100 * (1 - spiking.snn.energy_j / spiking.int8.energy_j):.0f} % less than that of the quantized net"
        in (conclusion(spiking)[0])
    )


@pytest.mark.parametrize(
    ("less", "words"),
    [
        ((), "save nothing"),
        (("ANN",), "against floating point alone"),
        (("ANN", "QANN"), "against ANN and QANN, and cost more than QANN INT8"),
        (("ANN", "QANN", "QANN INT8"), "against integer arithmetic too"),
    ],
)
def test_verdict(less, words):
    assert words in verdict({name: name in less for name in NETWORKS[:-1]})


def test_samples_short_of_equilibrium_are_named(images):
    batch = make_batch(images["model"])
    says = account(energy(count_operations(images["model"], batch, 3)))["says"]
    assert says[-1].startswith("6 of the 6 samples are not at equilibrium")


def test_costs_in_a_report(images, tmp_path):
    costs = simulation_costs(images["model"], make_batch(images["model"]), (2, 4), repeats=1)
    write_report(tmp_path, images["model"], images["recording"], costs=costs)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(rows(tmp_path / "simulation_costs.csv")) == len(content["simulation_costs"]) == 7
    said = " ".join(Strict((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "Simulating 6 samples on cpu" in said
    assert all(text in said for text in (*costs["says"], *costs["definitions"].values()))
    assert "Operations and energy" not in said

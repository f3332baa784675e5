"""Records beside models: results.json, parts of predictions, recordings. Damaged, they are told of or made anew."""

import json
import struct

import pyarrow.parquet
import pytest
from datasets import Features, List, Value

from spikezip_hf.analysis.predictions import read_part
from spikezip_hf.data import event_files, read_events
from spikezip_hf.export import load_spike_graph, save_spike_graph
from spikezip_hf.export.spike_graph import GRAPH_FILE, TENSORS_FILE, SpikeGraphError
from spikezip_hf.hub import results_of_metrics
from spikezip_hf.hub.results import read_results
from tests.data.test_events import EVENTS, aedat4

from .common import edit_json

GOOD = results_of_metrics({"accuracy": 0.5, "accuracy_T4": 0.25}, data="words", split="test", samples=10, time_steps=8)


def changed(**fields):
    return {**GOOD, **fields}


def with_row(**row):
    return changed(simulated={"samples": 10, "rows": [{"network": "SNN", "T": 4, "accuracy": 0.5, **row}]})


RESULTS = {
    "empty": b"",
    "cut off": json.dumps(GOOD).encode()[:-9],
    "no text": json.dumps(GOOD).encode().replace(b"words", b"\xff\xfe"),
    "deep": b"[" * 100_000,
    "a number": 3,
    "nothing": None,
    "a path": "/etc/passwd",
    "paths": ["/etc/passwd"],
    "lists": [[GOOD]],
    "no rows": changed(simulated={"samples": 10}),
    "rows of another kind": changed(simulated={"samples": 10, "rows": [3]}),
    "simulated, a text": changed(simulated="x"),
    "accuracy, a text": with_row(accuracy="0.5"),
    "accuracy, none": with_row(accuracy=None),
    "accuracy, not a number": with_row(accuracy=float("nan")),
    "accuracy above 1": with_row(accuracy=50),
}


@pytest.mark.parametrize("content", RESULTS)
def test_results_that_are_damaged(tmp_path, content):
    path, data = tmp_path / "results.json", RESULTS[content]
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    with pytest.raises(ValueError, match=r"^results: .*results\.json"):
        read_results(path)


def test_results_with_any_byte_changed(tmp_path):
    """An error that names the file, or results."""
    path, data = tmp_path / "results.json", json.dumps(GOOD).encode()
    assert read_results(GOOD) == [GOOD]
    refused = 0
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            read_results(path)
        except ValueError as error:
            refused += str(path) in str(error)
    assert refused > len(data) // 4


def test_a_part_with_any_byte_changed(tmp_path, monkeypatch):
    """It is read as it was written, or made anew: no other prediction comes out of it."""
    features = Features({"index": Value("int64"), "score": Value("float32"), "steps": List(Value("int64"))})
    rows = list(range(20))
    columns = {"index": rows, "score": [row / 7 for row in rows], "steps": [[row, 3] for row in rows]}
    table = pyarrow.table(columns, schema=features.arrow_schema)
    path, said = tmp_path / "part-00000.parquet", []
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)
    monkeypatch.setattr("spikezip_hf.analysis.predictions.logger.warning", said.append)
    assert read_part(path, rows, features).equals(table)
    data = path.read_bytes()
    damaged = [data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :] for at in range(0, len(data), 3)]
    damaged += [data[:size] for size in range(0, len(data), 25)]
    for content in damaged:
        path.write_bytes(content)
        part = read_part(path, rows, features)
        assert part is None or part.equals(table)
    assert len(said) > len(damaged) // 2
    assert all("part-00000.parquet is damaged" in words for words in said)


def bomb(packet: bytes, zeros: int, size: int | None = None) -> bytes:
    """The packet, and zeros behind it, which LZ4 makes small; its size says what it is told to."""
    lz4 = pytest.importorskip("lz4.frame")
    return lz4.compress((packet if size is None else struct.pack("<I", size) + packet[4:]) + bytes(zeros))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (None, "is of more or fewer"),
        (10, "is of more or fewer"),
        (2**31 + 7, "and none is of more than"),
        (event_files.MAX_PACKET, "is of more or fewer"),
    ],
)
def test_a_recording_that_would_fill_memory(tmp_path, monkeypatch, size, message):
    """64 MB out of a file of 300 KB: no more of it is made than the packet says."""
    made = []
    lz4 = pytest.importorskip("lz4.frame")

    class Counted(lz4.LZ4FrameDecompressor):
        def decompress(self, *args, **kwargs):
            made.append(super().decompress(*args, **kwargs))
            return made[-1]

    monkeypatch.setattr(lz4, "LZ4FrameDecompressor", Counted)
    path = tmp_path / "recording.aedat4"
    path.write_bytes(aedat4(EVENTS, 1, lambda packet: bomb(packet, 2**26, size)))
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match=message):
        read_events(path)
    if size != event_files.MAX_PACKET:
        assert sum(map(len, made)) < 1000


@pytest.mark.parametrize("frame", [b"", b"\x04\x22\x4d\x18", b"no frame at all"])
def test_a_packet_that_is_cut_off_inside(tmp_path, frame):
    pytest.importorskip("lz4.frame")
    path = tmp_path / "recording.aedat4"
    path.write_bytes(aedat4(EVENTS, 1, lambda packet: frame))
    with pytest.raises(ValueError, match=r"recording\.aedat4 cannot be read"):
        read_events(path)


def test_a_spike_graph_with_any_byte_changed(networks, tmp_path):
    """In either file: no other network is read out of it."""
    save_spike_graph(networks["Spike"], tmp_path)
    expected = load_spike_graph(tmp_path)
    for name, step in ((GRAPH_FILE, 101), (TENSORS_FILE, 1001)):
        data = (tmp_path / name).read_bytes()
        damaged = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), step)]
        for content in (*damaged, data[:-3], b"", b"[" * 100_000):
            (tmp_path / name).write_bytes(content)
            try:
                graph = load_spike_graph(tmp_path)
            except SpikeGraphError:
                continue
            assert name == GRAPH_FILE  # a blank for another
            assert graph.to_dict("") == expected.to_dict("")
        (tmp_path / name).write_bytes(data)
    edit_json(tmp_path / GRAPH_FILE, time_steps=3)
    with pytest.raises(SpikeGraphError, match=r"content_sha256 is not that of the rest of .*spike_graph\.json"):
        load_spike_graph(tmp_path)
    content = json.loads((tmp_path / GRAPH_FILE).read_text())
    del content["content_sha256"]
    (tmp_path / GRAPH_FILE).write_text(json.dumps(content))
    assert load_spike_graph(tmp_path).time_steps == 3

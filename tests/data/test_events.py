"""Event files of every format, written here byte by byte; sets of recordings; frames."""

import importlib.util
import os
import struct
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image
from transformers.utils import logging

from spikezip_hf.data import from_tonic, load_events, read_events, split_off_test, with_validation
from spikezip_hf.data.event_files import EVENT
from spikezip_hf.models.image_processing_events import EventImageProcessor, events_to_frames

EVENTS = np.array([(3, 5, 100, 1), (120, 0, 250, 0), (0, 127, 250, 1), (64, 63, 1000, 0)], EVENT)
HERE = os.environ.get("SPIKEZIP_DATA")
with_data = pytest.mark.skipif(not HERE, reason="needs the data sets: set SPIKEZIP_DATA to their folder")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """datasets keeps what it reads from Parquet."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def recordings(count=6, events=40, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        made = np.empty(events, EVENT)
        made["x"], made["y"] = rng.integers(0, 34, (2, events))
        made["t"], made["p"] = np.sort(rng.integers(0, 10_000, events)), rng.integers(0, 2, events)
        yield made


def atis(events):
    return b"".join(
        bytes([int(x), int(y), int(p) << 7 | int(t) >> 16, int(t) >> 8 & 255, int(t) & 255]) for x, y, t, p in events
    )


def dat(events, header=b"% Data file\n% Version 2\n% Height 128\n% Width 128\n"):
    body = [struct.pack("<II", int(t), int(x) | int(y) << 14 | int(p) << 28) for x, y, t, p in events]
    return header + b"\x00\x08" + b"".join(body)


def aedat2(events, header=b"#!AER-DAT2.0\r\n# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n"):
    body = [
        struct.pack(">II", (127 - int(x)) << 8 | (127 - int(y)) << 1 | 1 - int(p), int(t)) for x, y, t, p in events
    ]
    return header + b"".join(body)


def aedat3(events):
    body = [struct.pack("<II", int(x) << 17 | int(y) << 2 | int(p) << 1 | 1, int(t)) for x, y, t, p in events]
    invalid = struct.pack("<II", 7 << 17, 5)
    packet = (
        struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(body) + 1, len(body) + 1, len(body)) + b"".join(body) + invalid
    )
    special = struct.pack("<hhiiiiii", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8)
    return b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n" + special + packet


def flat(kind, fields, tail):
    """A FlatBuffer, and its size before it: a table of fields (offset in it, bytes), and what these refer to."""
    size = max((offset + len(value) for offset, value in fields), default=4)
    layout = struct.pack(f"<HH{len(fields)}H", 4 + 2 * len(fields), size, *(offset for offset, _ in fields))
    layout += bytes(-len(layout) % 4)
    table = bytearray(struct.pack("<i", len(layout)) + bytes(size - 4))
    for offset, value in fields:
        table[offset : offset + len(value)] = value
    buffer = struct.pack("<I", 8 + len(layout)) + kind + layout + bytes(table) + tail
    return struct.pack("<I", len(buffer)) + buffer


STREAMS = """<dv version="2.0"><node name="outInfo">
<node name="0"><attr key="typeIdentifier">IMUS</attr></node>
<node name="4"><attr key="typeIdentifier">EVTS</attr>
<node name="info"><attr key="sizeX">128</attr><attr key="sizeY">130</attr></node></node></node></dv>"""


def aedat4(events, compression=0, compress=bytes, description=STREAMS):
    text = struct.pack("<I", len(description)) + description.encode()
    # The field of the string is the last of the table, so that the string is 4 bytes behind its place.
    fields = [(4, struct.pack("<i", compression)), (8, struct.pack("<q", -1)), (16, struct.pack("<I", 4))]
    header = flat(b"IOHE", fields, text)
    elements = b"".join(struct.pack("<qhh?xxx", int(t), int(x), int(y), bool(p)) for x, y, t, p in events)
    packet = compress(flat(b"EVTS", [(4, struct.pack("<I", 4))], struct.pack("<I", len(events)) + elements))
    other = compress(b"something else")
    parts = [struct.pack("<ii", owner, len(body)) + body for owner, body in ((0, other), (4, packet), (4, packet))]
    return b"#!AER-DAT4.0\r\n" + header + b"".join(parts)


WRITERS = {".bin": atis, ".dat": dat, "2.aedat": aedat2, "3.aedat": aedat3}


@pytest.mark.parametrize("ending", WRITERS)
def test_formats(tmp_path, ending):
    path = tmp_path / f"recording{ending}"
    path.write_bytes(WRITERS[ending](EVENTS))
    events, size = read_events(path)
    assert events.dtype == EVENT
    assert np.array_equal(events, EVENTS)
    assert size == {".bin": None, "3.aedat": None}.get(ending, (128, 128))


def lz4_frame(data):
    return pytest.importorskip("lz4.frame").compress(data)


@pytest.mark.parametrize(("compression", "compress"), [(0, bytes), (1, lz4_frame), (2, lz4_frame)])
def test_aedat4(tmp_path, compression, compress):
    path = tmp_path / "recording.aedat4"
    path.write_bytes(aedat4(EVENTS, compression, compress))
    events, size = read_events(path)
    assert np.array_equal(events, np.concatenate([EVENTS, EVENTS]))
    assert size == (130, 128)


def test_overflow_of_atis(tmp_path):
    """An event at y = 240 is none, and makes all that follow 2^13 microseconds later."""
    marks = np.array([(0, 240, 0, 0)], EVENT)
    path = tmp_path / "recording.bin"
    path.write_bytes(atis(np.concatenate([EVENTS[:2], marks, EVENTS[2:3], marks, EVENTS[3:]])))
    events, _ = read_events(path)
    assert np.array_equal(events[["x", "y", "p"]], EVENTS[["x", "y", "p"]])
    assert (events["t"] - EVENTS["t"]).tolist() == [0, 0, 8192, 16384]


def test_times_that_begin_anew(tmp_path):
    late = EVENTS.copy()
    late["t"] = [2**32 - 2, 2**32 - 1, 0, 5]
    for ending in (".dat", "2.aedat"):
        path = tmp_path / f"recording{ending}"
        path.write_bytes(WRITERS[ending](late))
        assert (read_events(path).events["t"] - 2**32).tolist() == [-2, -1, 0, 5]


def test_times_of_a_counter_that_ran_over_in_aedat3(tmp_path):
    """Each overflow adds 2^31 microseconds, and a recording may have more than one."""
    packets = b"".join(
        struct.pack("<hhiiiiii", 1, 1, 8, 4, overflow, 1, 1, 1) + struct.pack("<II", 3, 7) for overflow in range(4)
    )
    (tmp_path / "long.aedat").write_bytes(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + packets)
    assert read_events(tmp_path / "long.aedat").events["t"].tolist() == [7 + 2**31 * number for number in range(4)]


def test_triggers_are_no_events(tmp_path):
    path = tmp_path / "recording.aedat"
    path.write_bytes(aedat2(EVENTS) + struct.pack(">II", 1 << 15, 2000))
    assert len(read_events(path).events) == len(EVENTS)


def test_stmnist(tmp_path):
    io = pytest.importorskip("scipy.io")
    matrix = np.zeros((101, 3))
    matrix[[12, 99, 0], [0, 0, 2]] = [1, -1, 1]
    matrix[100] = [0.5, 0.6, 0.7]
    io.savemat(tmp_path / "recording.mat", {"spiketrain": matrix})
    events, size = read_events(tmp_path / "recording.mat")
    assert size == (10, 10)
    assert events.tolist() == [(2, 1, 500_000, 1), (9, 9, 500_000, 0), (0, 0, 700_000, 1)]


def test_matrices_that_are_no_recordings(tmp_path):
    io, sparse = pytest.importorskip("scipy.io"), pytest.importorskip("scipy.sparse")
    matrix = np.zeros((101, 3))
    for other in (matrix * 1j, sparse.csc_matrix(matrix), np.array([[1, "a"]], object)):
        io.savemat(tmp_path / "recording.mat", {"spiketrain": other})
        with pytest.raises(ValueError, match="no matrix 'spiketrain' of 101 rows of real numbers"):
            read_events(tmp_path / "recording.mat")
    for value in (np.nan, np.inf):
        matrix[100] = value
        io.savemat(tmp_path / "recording.mat", {"spiketrain": matrix})
        with pytest.raises(ValueError, match="not all finite"):
            read_events(tmp_path / "recording.mat")


BROKEN = {
    "empty.bin": (b"", "is empty"),
    "cut.bin": (atis(EVENTS)[:-1], "cut off: 19 bytes"),
    "cut.dat": (dat(EVENTS)[:-3], "cut off"),
    "header.dat": (b"% no end", "its header has no end"),
    "frames.dat": (dat(EVENTS).replace(b"\x00\x08", b"\x02\x08"), "type 2"),
    "short.dat": (b"% a\n\x00", "cut off or damaged"),
    "cut2.aedat": (aedat2(EVENTS)[:-1], "cut off"),
    "davis.aedat": (aedat2(EVENTS, b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.DAVIS240C\r\n"), "not those of a DVS128"),
    "wide.aedat": (aedat2(EVENTS) + struct.pack(">II", 1 << 20, 0), "not those of a DVS128"),
    "cut3.aedat": (aedat3(EVENTS)[:-1], "cut off in the packet at byte"),
    "header3.aedat": (b"#!AER-DAT3.1\r\n", "its header has no end"),
    "version.aedat": (b"#!AER-DAT1.0\r\n", "AEDAT 1.0 is not known"),
    "cut.aedat4": (aedat4(EVENTS)[:-1], "cut off in the packet at byte"),
    "header.aedat4": (aedat4(EVENTS)[:60], "in the middle of its header"),
    "zstd.aedat4": (aedat4(EVENTS, 3), "Zstandard"),
    "no_lz4.aedat4": (aedat4(EVENTS, 1), "no LZ4"),
    "two.aedat4": (aedat4(EVENTS, description=STREAMS.replace("IMUS", "EVTS")), "2 streams of events"),
    "no_xml.aedat4": (aedat4(EVENTS, description="<dv"), "no XML"),
    "other.mat": (b"MATLAB 5.0 MAT-file, cut off", "no MATLAB file|spiketrain"),
    "notes.txt": (b"some text", "no event file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path, name):
    content, problem = BROKEN[name]
    if name == "no_lz4.aedat4":
        pytest.importorskip("lz4.frame")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem) as caught:
        read_events(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@with_data
def test_files_of_others():
    folder = Path(HERE) / "event_files"
    found = {path.name: read_events(path) for path in sorted(folder.iterdir())}
    counts = {name: len(events) for name, (events, _) in found.items()}
    assert counts["tonic_sample_nmnist.bin"] == 4325
    assert counts["tonic_sample_ncars.dat"] == 2009
    assert counts["tonic_sample_stmnist.mat"] == 2346
    assert counts["tonic_sample.aedat4"] == 111_954  # as the index at the end of the file says
    assert found["tonic_sample.aedat4"].sensor_size == (240, 320)
    cars = found["tonic_sample_ncars.dat"].events
    assert (cars["x"].max(), cars["y"].max(), np.ptp(cars["t"])) == (77, 41, 99_952)
    assert all(np.all(np.diff(events["t"]) >= 0) for events, _ in found.values())


@with_data
def test_files_and_parquet_agree():
    """The ten recordings that are there in both forms."""
    test = load_events("nmnist_small")["test"]
    for path in sorted((Path(HERE) / "event_files").glob("nmnist_test_*.bin")):
        _, _, number, label = path.stem.split("_")
        row, events = test[int(number) - 60001], read_events(path).events
        assert label == f"label{row['label']}"
        assert all(np.array_equal(events[name], row[name]) for name in "xypt")


def write_folders(folder, homes, classes=("cat", "dog"), files=3):
    made = iter(recordings(len(homes) * len(classes) * files))
    for home in homes:
        for name in classes:
            (folder / home / name).mkdir(parents=True)
            for index in range(files):
                (folder / home / name / f"{index}.bin").write_bytes(atis(next(made)))


def test_folders_of_classes(tmp_path, monkeypatch):
    write_folders(tmp_path, ["Train", "Test"])
    data = load_events(str(tmp_path))
    assert list(data) == ["train", "test"]
    assert data["train"].features["label"] == ClassLabel(names=["cat", "dog"])
    expected = list(recordings(6))
    rows = [data["train"][row] for row in range(6)]
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert all(np.array_equal(events[name], row[name]) for events, row in zip(expected, rows) for name in "xypt")
    (tmp_path / "Train" / "dog" / "1.bin").write_bytes(b"123")
    data["train"][0]  # only what is looked at is read
    with pytest.raises(ValueError, match=r"1\.bin"):
        data["train"][4]


def test_what_would_be_left_out_silently(tmp_path, caplog):
    write_folders(tmp_path, ("train", "test"))
    with pytest.raises(ValueError, match=r"label_column='kind': .*folders of recordings, has no columns"):
        load_events(str(tmp_path), label_column="kind")
    logging.get_logger("spikezip_hf").addHandler(caplog.handler)
    try:
        data = load_events(str(tmp_path), test_share=0.5)
    finally:
        logging.get_logger("spikezip_hf").removeHandler(caplog.handler)
    assert len(data["test"]) == len(load_events(str(tmp_path))["test"])
    assert "test_share=0.5 is left out" in caplog.text


def test_classes_without_a_split(tmp_path):
    """The layout of CIFAR10-DVS: a tenth to test with, of each class the last files by name; then one to validate."""
    write_folders(tmp_path, [""], files=20)
    assert list(load_events(str(tmp_path))) == ["train"]
    data = load_events(str(tmp_path), test_share=0.1)
    names = [Path(path).stem for path in data["test"].with_format("arrow")[:]["path"].to_pylist()]
    assert names == ["8", "9", "8", "9"]
    assert len(data["train"]) == 36
    with_val = with_validation(data)
    assert [len(split) for split in with_val.values()] == [32, 4, 4]
    assert len(with_val["validation"][0]["x"]) == 40
    with pytest.raises(ValueError, match="test_share is 2"):
        split_off_test(DatasetDict(train=data["train"]), 2)
    with pytest.raises(ValueError, match="without a test split"):
        split_off_test(data)


def parquet(path, count=4, label="label", **columns):
    made = {name: [events[name].tolist() for events in recordings(count)] for name in "xypt"}
    Dataset.from_dict({**made, label: [index % 2 for index in range(count)], **columns}).to_parquet(path)


@pytest.mark.parametrize(("share", "left"), [(0.1, 9), (0.3, 7), (0.7, 3), (0.9, 1)])
def test_shares_to_test_with(share, left):
    features = datasets.Features({"label": ClassLabel(names=["a"])})
    data = DatasetDict(train=Dataset.from_dict({"label": [0] * 10}, features=features))
    assert len(split_off_test(data, share)["train"]) == left
    few = DatasetDict(train=data["train"].select([0]))
    with pytest.raises(ValueError, match="no recording to test with"):
        split_off_test(few, share)


def test_parquet(tmp_path):
    parquet(tmp_path / "train.parquet", label="target", sample_id=[1, 2, 3, 4])
    parquet(tmp_path / "test.parquet", label="target", sample_id=[1, 2, 3, 4])
    data = load_events(str(tmp_path))
    assert set(data["train"].column_names) == {"x", "y", "p", "t", "label"}
    assert data["train"]["label"][:] == [0, 1, 0, 1]
    assert all(
        np.array_equal(events[name], row[name]) for events, row in zip(recordings(4), data["test"]) for name in "xypt"
    )


def test_sets_that_are_none(tmp_path):
    Dataset.from_dict({"x": [[1]], "y": [[1]], "p": [[1]], "label": [0]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet has no column 't'"):
        load_events(str(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="has no recordings"):
        load_events(str(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match="No data folder"):
        load_events(str(tmp_path / "none"))


def test_sets_of_the_hub(monkeypatch):
    made = {name: [events[name].tolist() for events in recordings(4)] for name in "xypt"}
    train = Dataset.from_dict({**made, "digit": [3, 1, 0, 2], "more": [0] * 4})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: DatasetDict(train=train, test=train))
    data = load_events("organisation/set", label_column="digit")
    assert data["train"].features["label"].num_classes == 4
    assert set(data["test"].column_names) == {"x", "y", "p", "t", "label"}


class ToyTonic:
    """What tonic's data sets have."""

    classes = ["zero", "one"]
    targets = [0, 1, 1]

    def __getitem__(self, row):
        return list(recordings(3))[row][["t", "x", "y", "p"]], self.targets[row]

    def __len__(self):
        return 3


def test_tonic_adapter():
    data = from_tonic(ToyTonic())
    assert data.features["label"].names == ["zero", "one"]
    assert all(np.array_equal(events[name], row[name]) for events, row in zip(recordings(3), data) for name in "xypt")
    assert [row["label"] for row in data] == [0, 1, 1]
    frames = [(np.zeros((2, 2, 34, 34)), 0)]
    with pytest.raises(ValueError, match="row 0 of tonic's data set is a ndarray"):
        from_tonic(frames)[0]


@pytest.mark.skipif(importlib.util.find_spec("tonic") is None, reason="needs tonic")
def test_tonic_itself(tmp_path):
    import tonic

    write_folders(tmp_path / "NMNIST", ["Test"], classes=[str(digit) for digit in range(10)], files=1)

    class NMNIST(tonic.datasets.NMNIST):
        def _check_exists(self):
            return True

    data = from_tonic(NMNIST(str(tmp_path), train=False))
    ours = load_events(str(tmp_path / "NMNIST"))["test"]
    assert [row["label"] for row in data] == [row["label"] for row in ours] == list(range(10))
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(data, ours) for name in "xypt")


def test_aedat2_of_spikingjelly(tmp_path):
    """The reader that the paper's code has its CIFAR10-DVS from."""
    cifar10_dvs = pytest.importorskip("spikingjelly.datasets.cifar10_dvs", exc_type=ImportError)
    path = tmp_path / "recording.aedat"
    path.write_bytes(aedat2(next(recordings(1))))
    theirs = cifar10_dvs._load_origin_data(path)
    events, _ = read_events(path)
    assert all(np.array_equal(theirs[name], events[name]) for name in "xypt")


@pytest.mark.parametrize("by", ["time", "count"])
@pytest.mark.parametrize(
    ("frames", "time_bins", "size"), [(1, 1, None), (7, 1, (34, 34)), (10, 9, (13, 21)), (3, 2, (5, 5))]
)
def test_each_event_is_in_one_frame(by, frames, time_bins, size):
    for events in recordings():
        made = events_to_frames(events, frames, (34, 34), by, time_bins, size)
        assert made.shape == (frames, 2 * time_bins, *(size or (34, 34)))
        assert made.sum() == len(events)
        assert made[:, time_bins:].sum() == events["p"].sum()
        assert np.array_equal(made.sum(0), events_to_frames(events, 1, (34, 34), by, time_bins, size)[0])


def test_frames_by_hand():
    events = {"x": [0, 1, 1, 0], "y": [0, 0, 1, 1], "p": [0, 1, 1, 0], "t": [10, 11, 12, 109]}
    by_time = events_to_frames(events, 2, (2, 2))
    assert by_time[0].tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]]]
    assert by_time[1].tolist() == [[[0, 0], [1, 0]], [[0, 0], [0, 0]]]
    by_count = events_to_frames(events, 2, (2, 2), by="count")
    assert by_count.sum((1, 2, 3)).tolist() == [2, 2]
    bins = events_to_frames(events, 1, (2, 2), time_bins=2)
    assert bins.sum((0, 2, 3)).tolist() == [1, 1, 2, 0]  # OFF early, OFF late, ON early, ON late
    larger = events_to_frames(events, 1, (2, 2), size=(3, 4))
    assert larger[0, 1].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    smaller = events_to_frames(events, 1, (2, 2), size=(1, 2))
    assert smaller[0].tolist() == [[[2, 0]], [[0, 2]]]


def test_no_events_at_all():
    nothing = np.empty(0, EVENT)
    assert events_to_frames(nothing, 3, (4, 4)).sum() == 0
    assert events_to_frames(nothing, 3, (4, 4), by="count").shape == (3, 2, 4, 4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"x": [34]}, "x of the events goes from 34 to 34"),
        ({"y": [-1]}, "y of the events"),
        ({"p": [2]}, "p of the events"),
        ({"t": [1, 2]}, "must be of one length"),
        ({"t": [0.5]}, "t of the events must be whole numbers"),  # seconds, which would all be in one frame
        ({"x": [float("nan")]}, "x of the events must be whole numbers"),
        ({"t": [float("inf")]}, "t of the events must be whole numbers"),
        ({"y": [None]}, "y of the events must be whole numbers"),
        ({"x": [1, 1], "y": [1, 1], "p": [1, 1], "t": [-(2**63), 2**63 - 1]}, "no times of one recording"),
    ],
)
def test_events_that_do_not_fit(change, problem):
    with pytest.raises(ValueError, match=problem):
        events_to_frames({"x": [1], "y": [1], "p": [1], "t": [1], **change}, 1, (34, 34))


SENSOR = {"height": 34, "width": 34}


@pytest.mark.parametrize("size", [None, {"height": 40, "width": 17}])
@pytest.mark.parametrize("frames", [1, 3, 10])
def test_frames_sum_to_the_static_image(frames, size):
    rows = list(recordings(4, events=5000))
    settings = {"sensor_size": SENSOR, "size": size, "split_by": "count", "time_bins": 3}
    static = EventImageProcessor(**settings)(rows, return_tensors="pt")["pixel_values"]
    per_step = EventImageProcessor(frames=frames, **settings)(rows, return_tensors="pt")["pixel_values"]
    assert per_step.shape == (4, frames, *static.shape[1:])
    assert static.dtype == per_step.dtype == torch.float32
    for summed in (per_step.cumsum(1)[:, -1], per_step.sum(1), per_step.flip(1).sum(1)):
        assert torch.equal(summed, static)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rescale_factor": 0.1}, "rescale_factor must be a power of two"),
        ({"rescale_factor": 0.0}, "rescale_factor must be a power of two"),
        ({"frames": 0}, "frames must be an integer of at least 1"),
        ({"time_bins": 0}, "time_bins must be an integer of at least 1"),
        ({"split_by": "rate"}, "split_by must be one of"),
        ({"size": {"shortest_edge": 3}}, "size must have height and width"),
        ({"size": {"height": 3, "width": "4"}}, "size must have height and width"),
    ],
)
def test_settings_out_of_range(settings, problem):
    with pytest.raises(ValueError, match=problem):
        EventImageProcessor(SENSOR, **settings)


def test_one_recording_and_none():
    processor = EventImageProcessor(SENSOR)
    events = next(recordings(1))
    one = processor(events, return_tensors="pt")["pixel_values"]
    assert torch.equal(
        one, processor([{name: events[name].tolist() for name in "xypt"}], return_tensors="pt")["pixel_values"]
    )
    with pytest.raises(ValueError, match="no recordings"):
        processor([])
    picture = Image.new("RGB", (34, 34))
    for other in (picture, [picture], "recording.bin", None, {"x": [1]}, torch.zeros(2, 34, 34)):
        with pytest.raises(ValueError, match="A recording of events has x, y, p and t"):
            processor(other)
    with pytest.raises(ValueError, match="do_resize: no such argument"):
        processor([events], do_resize=True)

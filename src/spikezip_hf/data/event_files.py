"""Files of event cameras and other event sensors, each format as its maker describes it, to arrays of events.

| format                  | file      | of                                                          |
|-------------------------|-----------|-------------------------------------------------------------|
| ATIS                    | `.bin`    | N-MNIST, N-Caltech101: 5 bytes an event, no header          |
| Prophesee DAT           | `.dat`    | N-CARS: text header, 8 bytes an event                       |
| AEDAT 2.0 of a DVS128   | `.aedat`  | jAER, CIFAR10-DVS: text header, 8 bytes an event            |
| AEDAT 3.1               | `.aedat`  | cAER, DVS128 Gesture: packets                               |
| AEDAT 4.0               | `.aedat4` | iniVation's DV: FlatBuffers in packets, plain or LZ4        |
| ST-MNIST                | `.mat`    | tactile MNIST: MATLAB matrix of 100 taxels and their time   |
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from spikezip_hf.data.matlab import MatlabError, read_matrix

# The order of the fields is tonic's, whose transforms take such arrays.
EVENT = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.int8)])
MAX_PACKET = 2**28  # bytes: 16 million events; DV writes a packet each 10 ms
ENDINGS = (".aedat", ".aedat4", ".bin", ".dat", ".mat")


class Recording(NamedTuple):
    """What one file holds.

    Attributes:
        events: (events,) structured: x and y in pixels, from the left and from the top; t in microseconds; p, 1 where
            it became brighter (ON) and 0 where it became darker (OFF).
        sensor_size: (height, width), where the format or the file says it.
    """

    events: np.ndarray
    sensor_size: tuple[int, int] | None


def read_events(path: str | os.PathLike) -> Recording:
    """The events of a file, in the order in which they are there. Its first bytes, else its ending, tell the format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut off, or of no format that is known here; names the file.
        ImportError: the format needs a package that is not installed.
    """
    path = Path(path)
    raw = path.read_bytes()
    if not raw:
        raise ValueError(f"{path} is empty.")
    try:
        return reader_of(path, raw)(raw)
    except FormatError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    except (struct.error, ValueError, LookupError, OverflowError) as error:  # of an address or a number that is none
        raise ValueError(f"{path} cannot be read: it is cut off or damaged ({error}).") from error


class FormatError(Exception):
    """What is wrong with the bytes of a file; becomes a ValueError that names the file."""


def reader_of(path: Path, raw: bytes) -> Callable[[bytes], Recording]:
    """The function that reads the format of this file."""
    for magic, reader in MAGIC.items():
        if raw.startswith(magic):
            return reader
    if raw.startswith(b"#!AER-DAT"):
        version = raw[len(b"#!AER-DAT") :].split(maxsplit=1)[0][:8].decode("ascii", "replace")
        raise FormatError(f"AEDAT {version} is not known here, only 2.0, 3.1 and 4.0")
    if path.suffix.lower() in SUFFIX:
        return SUFFIX[path.suffix.lower()]
    raise FormatError(f"it is no event file that is known here ({', '.join(ENDINGS)})")


def make_events(x, y, t, p) -> np.ndarray:
    """Structured array of columns."""
    events = np.empty(len(x), EVENT)
    for name, column in zip("xytp", (x, y, t, p)):
        events[name] = column
    return events


def check_whole(size: int, unit: int) -> None:
    """Raise FormatError unless `size` bytes are whole events of `unit` bytes."""
    if size % unit:
        raise FormatError(f"it is cut off: {size} bytes of events are not a multiple of {unit}")


def unwrapped(t: np.ndarray) -> np.ndarray:
    """Times of a counter of 32 bits, which begins anew about every 71 minutes, as int64."""
    t = t.astype(np.int64)
    return t + (np.cumsum(np.diff(t, prepend=t[:1]) < -(2**31)) << 32)


def read_atis(raw: bytes) -> Recording:
    """N-MNIST and N-Caltech101 (Orchard et al. 2015, arXiv:1507.07629): x, y, 1 bit polarity, 23 bits of time.

    An event at y = 240 is none: it says that the counter of time has overflowed by 2^13 microseconds.
    """
    check_whole(len(raw), 5)
    x, y, high, middle, low = np.frombuffer(raw, np.uint8).reshape(-1, 5).T.astype(np.int64)
    overflow = y == 240
    t = (((high & 127) << 16) | (middle << 8) | low) + (np.cumsum(overflow) << 13)
    return Recording(make_events(x, y, t, high >> 7)[~overflow], None)


def read_dat(raw: bytes) -> Recording:
    """Prophesee's DAT: lines that begin with %, type and size of events, then of each its time and x, y, polarity."""
    start, header = 0, {}
    while raw[start : start + 1] == b"%":
        end = raw.find(b"\n", start)
        if end < 0:
            raise FormatError("its header has no end")
        words = raw[start:end].split()
        header[words[1] if len(words) > 1 else b""] = words[2:]
        start = end + 1
    kind, size = struct.unpack_from("<BB", raw, start)
    if kind not in (0, 12) or size != 8:  # 2D events, the second name for them is that of later cameras
        raise FormatError(f"events of type {kind} and {size} bytes are not those of an event camera (type 0 or 12)")
    body = raw[start + 2 :]
    check_whole(len(body), 8)
    t, word = np.frombuffer(body, "<u4").reshape(-1, 2).T
    sensor_size = None
    if header.get(b"Height") and header.get(b"Width"):
        sensor_size = int(header[b"Height"][0]), int(header[b"Width"][0])
    return Recording(make_events(word & 0x3FFF, word >> 14 & 0x3FFF, unwrapped(t), word >> 28 & 1), sensor_size)


def read_aedat2(raw: bytes) -> Recording:
    """AEDAT 2.0 of a DVS128: big-endian words of address and time behind a text header.

    An address has the polarity in bit 0, inverted, and two coordinates in bits 1 to 7 and 8 to 14, both counted from
    the far side. Which of them is x depends on how the camera stood: this is SpikingJelly's reading of CIFAR10-DVS,
    and so that of the paper's code; jAER would swap them. Bit 15 marks a trigger.
    """
    start, chip = 0, b""
    while raw[start : start + 1] == b"#":
        end = raw.find(b"\n", start)
        if end < 0:
            raise FormatError("its header has no end")
        line = raw[start:end]
        chip = line if b"AEChip" in line else chip
        start = end + 1
    body = raw[start:]
    check_whole(len(body), 8)
    address, t = np.frombuffer(body, ">u4").reshape(-1, 2).T
    if b"davis" in chip.lower() or (address >> 16).any():
        raise FormatError("its addresses are not those of a DVS128, the one camera of AEDAT 2.0 that is known here")
    events = make_events(127 - (address >> 8 & 127).astype(int), 127 - (address >> 1 & 127).astype(int),
                         unwrapped(t), 1 - (address & 1).astype(int))  # fmt: skip
    return Recording(events[(address >> 15) == 0], (128, 128))


def read_aedat3(raw: bytes) -> Recording:
    """AEDAT 3.1: packets of events of one kind each, of which those of polarity are read."""
    end = raw.find(b"#!END-HEADER\r\n")
    if end < 0:
        raise FormatError("its header has no end")
    start, parts = end + len(b"#!END-HEADER\r\n"), []
    while start < len(raw):
        kind, _, size, _, overflow, capacity, number, _ = struct.unpack_from("<hhiiiiii", raw, start)
        body = raw[start + 28 : start + 28 + size * capacity]
        if size < 1 or not 0 <= number <= capacity or len(body) < size * capacity:
            raise FormatError(f"it is cut off in the packet at byte {start}")
        if kind == 1:
            if size != 8:
                raise FormatError(f"polarity events of {size} bytes, not 8, at byte {start}")
            word, t = np.frombuffer(body[: 8 * number], "<u4").reshape(-1, 2).T
            events = make_events(word >> 17, word >> 2 & 0x7FFF, t.astype(np.int64) + (overflow << 31), word >> 1 & 1)
            parts.append(events[(word & 1) == 1])  # the others were marked invalid by a filter
        start += 28 + size * capacity
    return Recording(np.concatenate(parts) if parts else np.empty(0, EVENT), None)


AEDAT4_COMPRESSION = ("none", "LZ4", "LZ4 high", "Zstandard", "Zstandard high")
AEDAT4_EVENT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "?"],
                         "offsets": [0, 8, 10, 12], "itemsize": 16})  # fmt: skip


def read_aedat4(raw: bytes) -> Recording:
    """AEDAT 4.0: FlatBuffers, a header with a description of the streams and then packets of a stream each."""
    magic = len(b"#!AER-DAT4.0\r\n")
    (header_size,) = struct.unpack_from("<I", raw, magic)
    header, start = raw[magic + 4 : magic + 4 + header_size], magic + 4 + header_size
    if len(header) < header_size:
        raise FormatError("it ends in the middle of its header")
    fields = flat_table(header)
    compression = struct.unpack_from("<i", header, fields[0])[0] if fields[0] else 0
    (end,) = struct.unpack_from("<q", header, fields[1]) if fields[1] else (-1,)
    if not 0 <= compression < 3:
        name = AEDAT4_COMPRESSION[compression] if 0 <= compression < 5 else f"of kind {compression}"
        raise FormatError(f"its compression is {name}; record or convert it with LZ4, which is DV's default")
    stream, sensor_size = event_stream(flat_vector(header, fields[2], 1).decode("utf-8", "replace"))
    end = len(raw) if end < 0 else end  # behind it is an index of the packets
    parts = []
    while start < end:
        owner, size = struct.unpack_from("<ii", raw, start)
        body = raw[start + 8 : start + 8 + size]
        if size < 0 or len(body) < size:
            raise FormatError(f"it is cut off in the packet at byte {start}")
        if owner == stream:
            parts.append(packet_events(decompress_lz4(body) if compression else body))
        start += 8 + size
    return Recording(np.concatenate(parts) if parts else np.empty(0, EVENT), sensor_size)


def event_stream(description: str) -> tuple[int, tuple[int, int] | None]:
    """Number of the one stream of events that the header of an AEDAT 4 file describes, in XML, and (height, width)."""
    try:
        nodes = ElementTree.fromstring(description).iter("node")
    except ElementTree.ParseError as error:
        raise FormatError(f"the description of its streams is no XML ({error})") from error
    streams = [node for node in nodes if node.findtext("attr[@key='typeIdentifier']") == "EVTS"]
    if len(streams) != 1:
        raise FormatError(f"it has {len(streams)} streams of events, not one")
    height, width = (streams[0].findtext(f"node[@name='info']/attr[@key='size{axis}']") for axis in "YX")
    return int(streams[0].attrib["name"]), (int(height), int(width)) if height and width else None


def packet_events(packet: bytes) -> np.ndarray:
    """Events of a packet of AEDAT 4: its size, and a FlatBuffer whose one field is the vector of events."""
    buffer = packet[4:]
    if buffer[4:8] != b"EVTS":
        raise FormatError("a packet of its stream of events holds something else")
    events = np.frombuffer(flat_vector(buffer, flat_table(buffer)[0], AEDAT4_EVENT.itemsize), AEDAT4_EVENT)
    return make_events(events["x"], events["y"], events["t"], events["p"])


def flat_table(buffer: bytes, fields: int = 3) -> list[int]:
    """Positions of the first fields of the root table of a FlatBuffer; 0 for those that are not there."""
    (table,) = struct.unpack_from("<I", buffer, 0)
    (back,) = struct.unpack_from("<i", buffer, table)
    layout = table - back
    (size,) = struct.unpack_from("<H", buffer, layout)
    offsets = [struct.unpack_from("<H", buffer, at)[0] if at < layout + size else 0
               for at in range(layout + 4, layout + 4 + 2 * fields, 2)]  # fmt: skip
    return [table + offset if offset else 0 for offset in offsets]


def flat_vector(buffer: bytes, field: int, itemsize: int) -> bytes:
    """Bytes of the vector or string that a field of a FlatBuffer refers to; none if the field is not there."""
    if not field:
        return b""
    start = field + struct.unpack_from("<I", buffer, field)[0]
    size = struct.unpack_from("<I", buffer, start)[0] * itemsize
    if start + 4 + size > len(buffer):
        raise FormatError("a FlatBuffer in it refers to bytes behind its end")
    return buffer[start + 4 : start + 4 + size]


def decompress_lz4(frame: bytes) -> bytes:
    """A packet, and no more of what is in `frame` than the size that stands in its first four bytes.

    LZ4 makes up to 255 bytes of one: a small file could fill all memory.
    """
    try:
        import lz4.frame
    except ImportError as error:
        raise ImportError("AEDAT 4 files are compressed: pip install 'spikezip-hf[events]'.") from error
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        head = decompressor.decompress(frame, max_length=4)
        size = int.from_bytes(head, "little")
        if size > MAX_PACKET:
            raise FormatError(f"a packet of it says that it is of {size} bytes, and none is of more than {MAX_PACKET}")
        body = decompressor.decompress(b"", max_length=size) if size and not decompressor.eof else b""
        rest = b"" if decompressor.eof else decompressor.decompress(b"", max_length=1)
    except (RuntimeError, EOFError) as error:
        raise FormatError(f"a packet of it is no LZ4 ({error})") from error
    if len(head) < 4 or len(body) < size or rest or not decompressor.eof:
        raise FormatError(f"a packet of it says that it is of {size} bytes, and is of more or fewer")
    return head + body


def read_stmnist(raw: bytes) -> Recording:
    """ST-MNIST (See et al. 2020, arXiv:2005.04319): 10 x 10 taxels, row by row, with spikes of 1 and -1, and a row of
    times in seconds."""
    try:
        matrix = read_matrix(raw, "spiketrain")
    except MatlabError as error:
        raise FormatError(f"it is no MATLAB file that can be read: {error}") from error
    if matrix is None or matrix.ndim != 2 or len(matrix) != 101:
        raise FormatError("it has no matrix 'spiketrain' of 101 rows of real numbers")
    if not np.isfinite(matrix).all():
        raise FormatError("its times and spikes are not all finite")
    # Row by row of the transpose: in the order of time.
    column, taxel = matrix[:-1].T.nonzero()
    t = np.rint(matrix[-1] * 1e6).astype(np.int64)
    events = make_events(taxel % 10, taxel // 10, t[column], matrix[taxel, column] > 0)
    return Recording(events, (10, 10))


MAGIC: dict[bytes, Callable[[bytes], Recording]] = {
    b"#!AER-DAT2.0": read_aedat2,
    b"#!AER-DAT3.1": read_aedat3,
    b"#!AER-DAT4.0\r\n": read_aedat4,
    b"MATLAB 5.0": read_stmnist,
    b"% ": read_dat,
}
SUFFIX: dict[str, Callable[[bytes], Recording]] = {".bin": read_atis, ".dat": read_dat, ".mat": read_stmnist}

"""The IDX files of MNIST and the sets made like it: unsigned bytes, big-endian sizes, usually compressed by gzip."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

UNSIGNED_BYTE = 8  # the third byte of the magic number; the fourth is the number of axes


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The array of a file: uint8, with that many axes; labels (N,), or gray images (N, H, W).

    Raises:
        ValueError: the file is no IDX file of bytes with so many axes, or is cut short or damaged; names it.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}.") from error
    header = 4 + 4 * axes
    expected = bytes([0, 0, UNSIGNED_BYTE, axes])
    if content[:4] != expected:
        raise ValueError(f"{path} starts with {content[:4].hex()}, not with the magic number {expected.hex()}.")
    if len(content) < header:
        raise ValueError(f"{path} ends within its header.")
    shape = struct.unpack(f">{axes}I", content[4:header])
    values = np.frombuffer(content, np.uint8, offset=header)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} has {len(values)} bytes of data, not those of its shape {shape}.")
    return values.reshape(shape)

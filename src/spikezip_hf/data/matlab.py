"""Matrices of numbers in MATLAB 5 files.

Read here and not by scipy, whose reader a damaged file can crash, with the whole process. The format is MathWorks'
"MAT-File Format", chapter 1: a header of 128 bytes, then elements of a type, a length and data. Of what an element
may hold, dense matrices of real numbers are all that is read.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEADER = 128
# Types of elements.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
# Classes of arrays that are dense matrices of numbers; below them are cells, structures, text and sparse matrices.
NUMERIC, COMPLEX = range(6, 16), 0x0800
LARGEST = 2**28  # bytes of what is compressed: a small file may say that it is endless


class MatlabError(ValueError):
    """The file is none of MATLAB 5, or is damaged."""


def read_matrix(raw: bytes, name: str) -> np.ndarray | None:
    """The matrix of that name in a file; None if there is none, or no dense one of real numbers.

    Raises:
        MatlabError: the file is cut off or damaged, or of another version.
    """
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:HEADER])
    if order is None:
        raise MatlabError("its header is not that of MATLAB 5")
    for kind, data in elements(raw[HEADER:], order):
        if kind == COMPRESSED:
            ((kind, data),) = list(elements(inflated(data), order))[:1] or [(0, b"")]
        if kind != MATRIX:
            continue
        parts = list(elements(data, order))
        if len(parts) < 3 or len(parts[0][1]) < 4:
            raise MatlabError("a matrix of it has no flags, sizes and name")
        if parts[2][1].rstrip(b"\0") == name.encode():
            return real_numbers(parts, order)
    return None


def elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements that lie one behind another."""
    place = 0
    while place < len(data):
        if place + 8 > len(data):
            raise MatlabError("it is cut off")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # a small one, with its content in the place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(data) or (start == place + 4 and size > 4):
            raise MatlabError("it is cut off or damaged")
        yield kind, data[start : start + size]
        # To a multiple of 8; what is compressed stands as it is.
        place = place + 8 if start == place + 4 else start + (size if kind == COMPRESSED else -(-size // 8) * 8)


def inflated(data: bytes) -> bytes:
    try:
        inflator = zlib.decompressobj()
        plain = inflator.decompress(data, LARGEST)
    except zlib.error as error:
        raise MatlabError(f"what is compressed in it is damaged ({error})") from error
    if inflator.unconsumed_tail or not inflator.eof:
        raise MatlabError("what is compressed in it is cut off, or larger than any recording")
    return plain


def real_numbers(parts: list[tuple[int, bytes]], order: str) -> np.ndarray | None:
    """The matrix of the elements flags, sizes, name and numbers; None if it is no dense one of real numbers."""
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    if flags & 0xFF not in NUMERIC or flags & COMPLEX:
        return None
    if len(parts) != 4 or parts[3][0] not in NUMBERS or len(parts[1][1]) % 4:
        raise MatlabError("a matrix of it is damaged")
    shape = np.frombuffer(parts[1][1], f"{order}i4").tolist()
    stored = np.dtype(f"{order}{NUMBERS[parts[3][0]]}")
    if min(shape, default=-1) < 0 or math.prod(shape) * stored.itemsize != len(parts[3][1]):
        raise MatlabError("a matrix of it has not as many numbers as its sizes say")
    return np.frombuffer(parts[3][1], stored).astype(stored.newbyteorder("=")).reshape(shape, order="F")

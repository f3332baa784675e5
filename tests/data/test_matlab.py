"""Matrices in MATLAB files: what scipy writes is read as scipy reads it, and what is damaged is an error."""

import io
import random
import zlib

import numpy as np
import pytest

from spikezip_hf.data import matlab
from spikezip_hf.data.matlab import MatlabError, read_matrix

scipy_io = pytest.importorskip("scipy.io", reason="scipy writes the files")
MATRICES = [
    np.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
] + [np.zeros((0, 3)), np.ones((1, 1)), np.arange(24.0).reshape(2, 3, 4)]


def written(arrays: dict, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    scipy_io.savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("matrix", MATRICES, ids=lambda matrix: f"{matrix.dtype}{matrix.shape}")
def test_what_scipy_writes(matrix, compressed):
    raw = written({"first": np.ones(3), "spikes": matrix, "text": "abc"}, compressed)
    found = read_matrix(raw, "spikes")
    np.testing.assert_array_equal(found, scipy_io.loadmat(io.BytesIO(raw))["spikes"], strict=True)
    assert read_matrix(raw, "text") is None
    assert read_matrix(raw, "other") is None


def test_what_is_no_dense_matrix_of_real_numbers():
    sparse = pytest.importorskip("scipy.sparse")
    for value in (np.ones((2, 2)) * 1j, sparse.csc_matrix(np.eye(2)), np.array([[1, "a"]], object), {"a": 1}):
        assert read_matrix(written({"spikes": value}), "spikes") is None


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_errors_and_nothing_worse(compressed):
    raw = written({"spikes": np.arange(30.0).reshape(5, 6)}, compressed)
    draw = random.Random(0)
    errors = 0
    for _ in range(2000):
        damaged = bytearray(raw[: draw.randrange(129, len(raw)) if draw.random() < 0.3 else len(raw)])
        for _ in range(draw.randrange(1, 5)):
            damaged[draw.randrange(126, len(damaged))] = draw.randrange(256)
        try:
            found = read_matrix(bytes(damaged), "spikes")
        except MatlabError:
            errors += 1
        else:
            assert found is None or isinstance(found, np.ndarray)
    assert errors > 500


def test_other_versions():
    with pytest.raises(MatlabError, match="not that of MATLAB 5"):
        read_matrix(b"MATLAB 7.3 MAT-file" + bytes(200), "spikes")


def test_what_is_endless_when_it_is_inflated(monkeypatch):
    monkeypatch.setattr(matlab, "LARGEST", 10_000)
    packed = zlib.compress(bytes(100_000))
    raw = bytes(126) + b"IM" + (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
    with pytest.raises(MatlabError, match="larger than any recording"):
        read_matrix(raw, "spikes")

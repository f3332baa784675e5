"""Memory that was given back is kept for the next pass, unless the environment says what the allocator should do."""

import os
import subprocess
import sys
from unittest import mock

import pytest

from spikezip_hf.kernels import memory

glibc = pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="this C library is not glibc",
)

# Pages that a process has mapped anew each time that it took and gave back 40 pieces of 4 MiB.
FAULTS = f"""
import resource, runpy, sys
keep_memory = runpy.run_path({memory.__file__!r})["keep_memory"]  # alone: the package takes seconds to import
keep_memory() if sys.argv[1:] else None
for turn in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [bytearray(2**22) for _ in range(40)]
    del pieces
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, **environment) -> list[int]:
    clean = {name: value for name, value in os.environ.items() if name not in memory.SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *["keep"] * keep], env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@glibc
def test_memory_is_kept():
    pages = 40 * 2**22 // os.sysconf("SC_PAGE_SIZE")
    if min(faults(keep=False)) < pages / 2:
        pytest.skip("this system has larger pages, or an allocator that keeps memory by itself")
    first, *others = faults(keep=True)
    assert first > pages / 2
    assert max(others) < pages / 10


@glibc
@pytest.mark.parametrize("name", memory.SETTINGS)
def test_who_has_set_the_allocator_has_it_so(monkeypatch, name):
    for other in memory.SETTINGS:
        monkeypatch.delenv(other, raising=False)
    library = mock.Mock()
    library.mallopt.return_value = 1
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert memory.keep_memory()
    assert [call.args for call in library.mallopt.call_args_list] == [(-3, 2**25), (-1, 2**28)]
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=1" if name == "GLIBC_TUNABLES" else "131072")
    library.mallopt.reset_mock()
    assert not memory.keep_memory()
    library.mallopt.assert_not_called()


@pytest.mark.parametrize(("platform", "functions"), [("darwin", ["mallopt"]), ("win32", []), ("linux", [])])
def test_other_systems(monkeypatch, platform, functions):
    """No such function, or not that one."""
    for name in memory.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.sys, "platform", platform)
    library = mock.Mock(spec=functions)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert not memory.keep_memory()


def test_refused(monkeypatch):
    """As by a C library that takes the numbers for something else: then nothing more is asked for."""
    for name in memory.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    library = mock.Mock()
    library.mallopt.return_value = 0
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert not memory.keep_memory()
    library.mallopt.assert_called_once()

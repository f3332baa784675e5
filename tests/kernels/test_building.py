"""How the kernels are built on first use, and what does the work where they cannot be."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch

from spikezip_hf.kernels import building, native, wanted
from spikezip_hf.models import kernels
from tests.models.test_fast_engine import make_inputs, make_snn

built = native.library()
QUICK = ("-O1", *building.FLAGS[1:])  # builds in half the time
needs_compiler = pytest.mark.skipif(
    not any(map(building.shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler on this machine"
)


@pytest.fixture
def unbuilt(tmp_path, monkeypatch):
    """No kernels yet, and an empty cache: the folder. What was built before is there again afterwards.

    Optimized less, they do the same, more slowly.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(building, "FLAGS", QUICK)
    monkeypatch.delenv("SPIKEZIP_KERNELS", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native, "library", cache(native.library.__wrapped__))
    return tmp_path


@pytest.fixture
def messages(monkeypatch):
    said = []
    monkeypatch.setattr(native.logger, "warning", said.append)
    monkeypatch.setattr(native.logger, "info", said.append)
    return said


def still_right():
    """Whether a network answers as it should with what kernels there are."""
    snn = make_snn(weight_bits=8)
    batch = make_inputs(snn)
    out = snn(**batch, time_steps=20)
    with mock.patch.object(kernels, "native", None):
        reference = snn(**batch, time_steps=20)
    return torch.equal(out.logits, reference.logits) and torch.equal(out.spike_counts, reference.spike_counts)


def compiler_script(folder, text) -> str:
    """Path of an executable that is to be taken for a compiler."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def copied_source(folder):
    """Path of a copy of the source, headers beside it."""
    return Path(shutil.copytree(building.SOURCE.parent, folder / "source")) / building.SOURCE.name


BROKEN = [  # what a processor must have, a file, a text of it, and another in its place
    ("no AVX-512", "neurons.h", "q.threshold[c + i] + 0.5f)", "q.threshold[c + i] + 0.4f)"),
    ("no AVX-512", "neurons.h", "s = (int8_t)(s + step)", "s = (int8_t)(s - step)"),
    (None, "arrays.h", "x = x * scale[c]", "x = x + scale[c]"),
    (None, "arrays.h", "terms[t].index ? terms[t].index[i / vectors] :", "0 ? i :"),
    (None, "arrays.h", "add ? out[c] + x : x", "x"),
    (None, "native.c", "memset(levels + i, 0,", "memset(levels + i, 1,"),
    (None, "native.c", "width || a->fresh) memset", "width) memset"),
    (None, "native.c", "b < a->samples && a->fresh; b++", "b < 0; b++"),
    ("vectors", "arrays.h", "correct(out, k, correction", "correct(panels, k, correction"),
    ("products", "arrays.h", "right + loud.from * b_strides[2]", "right"),
    ("products", "arrays.h", "quiet = silent(", "quiet = !silent("),
    ("products", "native.c", "target + seen.from", "target"),
    ("products", "native.c", "head = column / width", "head = 0"),
    ("products", "native.c", "right + loud.from * right_strides[2]", "right"),
    ("products", "weights.h", "(bits >> 52) - 1022", "(bits >> 52) - 1030"),
    ("products", "events.h", "[PAIRS] = RISE_AND_FALL", "[PAIRS] = RISE"),
    ("products", "events.h", "span.from <= place % a->positions", "place % a->positions <= span.from"),
    ("AVX-512", "avx512/neurons.h", "half = _mm512_set1_ps(0.5f)", "half = _mm512_set1_ps(0.4f)"),
    ("AVX-512", "avx512/neurons.h", "s = _mm512_add_epi8(s, step)", "s = _mm512_sub_epi8(s, step)"),
    ("AVX-512", "avx512/events.h", "_mm512_unpackhi_epi8(one, other)", "_mm512_unpacklo_epi8(one, other)"),
    ("AVX-512", "avx512/events.h", "*next = (uint16_t)to", "*next = 0"),
    ("AVX-512", "avx512/events.h", "(_mm512_add_epi32(sum[v], sum[v])", "(sum[v]"),
    (
        "AVX-512",
        "avx512/events.h",
        "beyond |= _mm512_cmpneq_epi8_mask(next",
        "beyond &= _mm512_cmpneq_epi8_mask(next",
    ),
    ("AVX-512", "avx512/events.h", "(_mm512_add_pd(sum[v], sum[v])", "(sum[v]"),
    ("AVX-512", "avx512/events.h", "return next - out;", "return end - next;"),
    ("AVX-512", "avx512/events.h", "sum[v] = _mm512_add_pd(sum[v]", "sum[v] = _mm512_sub_pd(sum[v]"),
    ("AVX-512", "avx512/events.h", "rows, 1, part", "rows, 0, part"),
    ("tiles", "avx512/products.h", "left + 16 * stride + i", "left + 15 * stride + i"),
    (
        "AVX-512 vectors",
        "avx512/products.h",
        "bytes, _mm512_set1_epi8((char)128)",
        "bytes, _mm512_set1_epi8(64)",
    ),
    ("AVX-512", "avx512/products.h", "_mm512_shuffle_i32x4(low, more_low, 0xdd)", "low"),
    ("AVX-512", "avx512/products.h", "_mm512_unpackhi_epi8(row[2 * i]", "_mm512_unpacklo_epi8(row[2 * i]"),
    ("AVX-512 vectors", "avx512/softmax.h", "_mm512_srli_epi64(part, 32)", "part"),
    ("AVX-512 vectors", "avx512/softmax.h", "_mm512_mask_mov_epi32(hidden", "_mm512_mask_mov_epi32(x"),
    ("AVX-512", "avx512/weights.h", "_mm512_unpackhi_epi64(quarter[q]", "_mm512_unpacklo_epi64(quarter[q]"),
    ("AVX-512", "avx512/weights.h", "_mm512_set1_epi32(0x808080)", "_mm512_set1_epi32(0x8080)"),
    ("AVX-512", "avx512/weights.h", "0x88), b = ", "0xdd), b = "),
    ("AVX2", "avx2/neurons.h", "half = _mm256_set1_ps(0.5f)", "half = _mm256_set1_ps(0.4f)"),
    ("AVX2", "avx2/neurons.h", "s = _mm256_add_epi8(s, step)", "s = _mm256_sub_epi8(s, step)"),
    (
        "AVX2",
        "avx2/neurons.h",
        "levels + i,\n                    undefined",
        "levels,\n                    undefined",
    ),
    ("AVX2", "avx2/events.h", "_mm256_unpackhi_epi8(x, y)", "_mm256_unpacklo_epi8(x, y)"),
    ("AVX2", "avx2/events.h", "*next = (uint16_t)to", "*next = 0"),
    ("AVX2", "avx2/events.h", "(_mm256_add_epi32(sum, sum)", "(sum"),
    ("AVX2", "avx2/events.h", "_mm256_adds_epi8(b, move)", "next"),
    ("AVX2", "avx2/events.h", "[mask][8 - count + found]", "[mask][found]"),
    ("AVX2", "avx2/events.h", "(_mm256_add_pd(sum, sum)", "(sum"),
    ("AVX2", "avx2/events.h", "return next - out;", "return end - next;"),
    ("AVX2", "avx2/events.h", "part[v] = _mm256_sub_epi32(part[v]", "part[v] = _mm256_add_epi32(part[v]"),
    ("AVX2", "avx2/products.h", "ROOM = 128", "ROOM = 140"),
    ("AVX2", "avx2/products.h", "ROOM / widest,", "ROOM / widest + 1,"),
    ("AVX2", "avx2/products.h", "vectors(left, stride, 3,", "vectors(left, stride, 2,"),
    ("AVX2", "avx2/events.h", "SOME = 31", "SOME = 64"),
    ("vectors", "events.h", "PAIRS = 64", "PAIRS = 128"),
    ("AVX2", "avx2/products.h", "rest = _mm256_sub_epi8(four, half)", "rest = half"),
    ("AVX2", "avx2/products.h", "row->highest - row->lowest;", "0;"),
    ("AVX2", "avx2/products.h", "row->lowest * correction[j]", "0"),
    ("AVX2", "avx2/products.h", "_mm256_unpackhi_epi8(row[2 * i]", "_mm256_unpacklo_epi8(row[2 * i]"),
    ("AVX2", "avx2/softmax.h", "_mm256_srli_epi64(part, 32)", "part"),
    ("AVX2", "avx2/softmax.h", "_mm256_set1_epi32(HIDDEN)", "x"),
    ("AVX2", "avx2/weights.h", "_mm256_slli_epi32(other, 16)", "_mm256_slli_epi32(one, 16)"),
    ("AVX2", "avx2/weights.h", "LEVELS_PART = 256", "LEVELS_PART = 1024"),
    ("AVX2", "avx2/weights.h", "padded(k, 16) + from)", "padded(k, 16))"),
    ("AVX2", "avx2/weights.h", "_mm256_unpackhi_epi64(eight[2 * v]", "_mm256_unpacklo_epi64(eight[2 * v]"),
    ("AVX2", "avx2/weights.h", "_mm256_set1_epi32(0x8000)", "_mm256_set1_epi32(0x800)"),
    ("AVX2", "avx2/weights.h", "_mm256_set1_pd(65536.0)", "_mm256_set1_pd(32768.0)"),
    ("AVX2", "avx2/weights.h", "halves(left, HALVES_ROWS,", "halves(left, 3,"),
    ("AVX2", "avx2/weights.h", "_mm256_permute2x128_si256(x[c], x[4 + c], 0x31)", "x[c]"),
]


def broken():
    """The first of each file and processor; the others for `make test-slow`."""
    seen = set()
    for row in BROKEN:
        yield pytest.param(*row, marks=pytest.mark.slow if row[:2] in seen else ())
        seen.add(row[:2])


class TestBuilding:
    @needs_compiler
    def test_as_users_have_them(self):
        """Without them most tests of kernels would be skipped."""
        assert (built is not None) == wanted()

    def test_reference_can_be_chosen(self, unbuilt, monkeypatch):
        monkeypatch.setenv("SPIKEZIP_KERNELS", "reference")
        assert native.library() is None
        assert still_right()
        assert not list(unbuilt.iterdir())

    @needs_compiler
    def test_memory_is_kept_for_them(self, unbuilt, monkeypatch):
        monkeypatch.setattr(native, "keep_memory", mock.Mock())
        assert native.library() is not None
        native.keep_memory.assert_called_once()

    def test_another_choice_is_refused(self, unbuilt, monkeypatch):
        monkeypatch.setenv("SPIKEZIP_KERNELS", "fast")
        for _ in range(2):  # each time, not only the first
            with pytest.raises(ValueError, match="SPIKEZIP_KERNELS must be 'auto' or 'reference', got 'fast'"):
                native.library()

    def test_without_a_compiler(self, unbuilt, monkeypatch, messages):
        monkeypatch.setattr(building.shutil, "which", lambda name: None)
        assert native.library() is None
        assert "No C compiler" in messages[0]
        assert still_right()

    def test_a_compiler_that_fails(self, unbuilt, monkeypatch, messages):
        monkeypatch.setenv("CC", compiler_script(unbuilt, "echo no licence >&2; exit 1"))
        assert native.library() is None
        assert "no licence" in messages[0]
        assert still_right()
        assert not list((unbuilt / "spikezip_hf").iterdir())  # nothing half made is left

    @pytest.mark.parametrize("compiler", ["/no/such/compiler", "", " "])
    def test_a_compiler_that_is_not_there(self, unbuilt, monkeypatch, messages, compiler):
        monkeypatch.setenv("CC", compiler)
        if compiler.strip():
            assert native.library() is None
            assert "could not be built" in messages[0]
        else:
            native.library()
        assert still_right()

    def test_a_compiler_that_makes_something_else(self, unbuilt, monkeypatch, messages):
        """A file that is no library."""
        monkeypatch.setenv("CC", compiler_script(unbuilt, 'for last; do :; done; echo nonsense > "$last"'))
        assert native.library() is None
        assert "could not be built" in messages[0]
        assert still_right()

    @needs_compiler
    def test_a_library_without_the_functions(self, unbuilt, monkeypatch, messages):
        source = unbuilt / "empty.c"
        source.write_text("int nothing_of_use;\n")
        monkeypatch.setattr(building, "SOURCE", source)
        assert native.library() is None
        assert messages
        assert still_right()

    @pytest.mark.parametrize(("used_with", "file", "right", "wrong"), BROKEN)
    def test_what_is_broken_below_is_there(self, used_with, file, right, wrong):
        """On every machine, whatever its processor runs."""
        assert (building.SOURCE.parent / file).read_text().count(right) == 1

    @needs_compiler
    @pytest.mark.parametrize(("used_with", "file", "right", "wrong"), list(broken()))
    def test_a_library_that_computes_something_else(
        self, unbuilt, monkeypatch, messages, used_with, file, right, wrong
    ):
        able, products_by = set(building.processor().split()), getattr(built, "products_by", "nothing")
        ways = [None] if products_by == "nothing" else [None, "products", products_by]
        if {"avx512bw", "avx512dq", "avx512vl", "avx512_vnni"} <= able:
            ways += ["AVX-512", f"AVX-512 {products_by}"]
        else:
            ways += ["no AVX-512", "AVX2"] if {"avx2", "fma"} <= able else ["no AVX-512"]
        source = copied_source(unbuilt)
        text = (source.parent / file).read_text()
        if used_with not in ways:
            pytest.skip("not what this processor runs")
        (source.parent / file).write_text(text.replace(right, wrong))
        monkeypatch.setattr(building, "SOURCE", source)
        assert native.library() is None
        assert "not exact" in messages[0]
        assert still_right()

    @needs_compiler
    def test_is_done_once(self, unbuilt, monkeypatch):
        assert native.library() is not None
        (made,) = (unbuilt / "spikezip_hf").iterdir()
        native.library.cache_clear()
        monkeypatch.setattr(building.subprocess, "run", mock.Mock(side_effect=AssertionError("compiled again")))
        assert native.library() is not None
        assert list((unbuilt / "spikezip_hf").iterdir()) == [made]

    @needs_compiler
    def test_other_source_is_another_file(self, unbuilt, monkeypatch):
        first = building.build("cc")
        source = copied_source(unbuilt)
        monkeypatch.setattr(building, "SOURCE", source)
        assert building.build("cc") == first
        for file in ("native.c", "products.h", "avx2/products.h"):
            before = building.build("cc")
            with (source.parent / file).open("a") as text:
                text.write("\n// changed\n")
            assert building.build("cc") != before
        assert first.is_file()

    @needs_compiler
    def test_a_cache_that_cannot_be_written(self, unbuilt, monkeypatch):
        (unbuilt / "file").write_text("not a folder")
        monkeypatch.setenv("XDG_CACHE_HOME", str(unbuilt / "file"))
        assert native.library() is not None
        assert still_right()

    @needs_compiler
    def test_a_user_without_a_home(self, unbuilt, monkeypatch):
        """As in a container that runs under a number of its own."""
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(building.Path, "home", mock.Mock(side_effect=RuntimeError("no home directory")))
        native.library()
        assert still_right()

    @needs_compiler
    def test_a_damaged_file_in_the_cache(self, unbuilt, messages):
        path = building.build("cc")
        path.write_bytes(path.read_bytes()[:100])
        with mock.patch.object(building.shutil, "which", return_value="cc"):
            native.library()
        assert still_right()

    @pytest.mark.slow
    @needs_compiler
    def test_by_two_processes_at_once(self, unbuilt):
        code = "from spikezip_hf.kernels import native; assert native.library() is not None"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
        assert [path.suffix for path in (unbuilt / "spikezip_hf").iterdir()] == [".so"]

    @pytest.mark.slow
    @needs_compiler
    def test_does_not_bring_a_second_openmp(self):
        """Its threads and torch's would fight for the cores."""
        code = (
            "from pathlib import Path\n"
            "from spikezip_hf.kernels import native\n"
            "import torch\n"
            "maps = Path('/proc/self/maps')\n"
            "loaded = lambda: {line.split()[-1] for line in maps.read_text().splitlines() if 'omp' in line}\n"
            "before = loaded(); native.library(); after = loaded()\n"
            "assert after == before, after - before\n"
        )
        if not Path("/proc/self/maps").is_file():
            pytest.skip("no /proc on this machine")
        subprocess.run([sys.executable, "-c", code], check=True)

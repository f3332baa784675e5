"""A plugin for pytest: the kernels are those for AVX-512 and tiles (AMX), emulated, whatever the processor has.

    make emulated SIMDE=FOLDER     # of a checkout of SIMDe, a library of headers that has most of AVX-512 in plain C
    make emulated SIMDE=FOLDER TILES=0     # with VNNI alone: no tiles, no VBMI2

So what a machine does not run can be tested on it: the same source, but for `instructions.h`, which is the one beside
this file. It needs AVX2.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest

from spikezip_hf.kernels import building, native

KERNELS = building.SOURCE.parent
OPTIMIZED = {"-O3", "-march=native", "-std=c11"}
# -std: with the extensions that SIMDe is written in.
FLAGS = ("-O2", "-march=haswell", "-std=gnu11", *(flag for flag in building.FLAGS if flag not in OPTIMIZED))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    """Ahead of tests that ask for the kernels when they are imported."""
    simde = Path(os.environ.get("SIMDE", ""), "simde")
    if not (simde / "x86" / "avx512.h").is_file():
        raise pytest.UsageError(f"SIMDE has to name a folder with SIMDe in it; there is no {simde}/x86/avx512.h.")
    if not {"avx2", "fma"} <= set(building.processor().split()):
        raise pytest.UsageError("To emulate the kernels for AVX-512 takes a processor with AVX2.")
    tiles = os.environ.get("TILES") != "0"
    source = Path(tempfile.mkdtemp()) / "kernels"
    shutil.copytree(KERNELS, source, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(Path(__file__).with_name("instructions.h"), source)
    early_config.add_cleanup(lambda: shutil.rmtree(source.parent))
    headers = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(simde.rglob("*.h"))))
    building.SOURCE = source / building.SOURCE.name
    building.FLAGS = (
        *FLAGS,
        f"-I{simde.parent.resolve()}",
        f"-DHEADERS_{headers.hexdigest()[:16]}",  # others are built anew
        *([] if tiles else ["-DWITHOUT_TILES"]),
    )
    able = "avx512bw avx512dq avx512vl avx512_vnni" + (" avx512_vbmi2 amx_int8" if tiles else "")
    building.processor = lambda: f"flags : {able}"
    said: list[str] = []
    with mock.patch.multiple(native.logger, warning=said.append, info=said.append):
        kernels = native.library()
    if kernels is None or kernels.products_by != ("tiles" if tiles else "vectors"):
        why = said or ["SPIKEZIP_KERNELS turns kernels off."]
        raise pytest.UsageError("\n".join(["There are no emulated kernels.", *why]))

"""A plugin for pytest: the kernels are those for AVX-512 and tiles (AMX), emulated, whatever the processor has.

    make emulated SIMDE=FOLDER     # of a checkout of SIMDe, a library of headers that has most of AVX-512 in plain C

So what a machine does not run can be tested on it: the same source, but for `instructions.h`, which is the one beside
this file. It needs AVX2.
"""

import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest

from spikezip_hf.kernels import building, native

KERNELS = building.SOURCE.parent
# -std: with the extensions that SIMDe is written in.
FLAGS = ("-O2", "-march=haswell", *building.FLAGS[2:-2], "-std=gnu11", "-fPIC")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    """Ahead of tests that ask for the kernels when they are imported."""
    simde = Path(os.environ.get("SIMDE", ""), "simde", "x86", "avx512.h")
    if not simde.is_file():
        raise pytest.UsageError(f"SIMDE has to name a folder with SIMDe in it; there is no {simde}.")
    source = Path(tempfile.mkdtemp()) / "kernels"
    shutil.copytree(KERNELS, source, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(Path(__file__).with_name("instructions.h"), source)
    early_config.add_cleanup(lambda: shutil.rmtree(source.parent))
    building.SOURCE = source / building.SOURCE.name
    building.FLAGS = (*FLAGS, f"-I{simde.parents[2].resolve()}")
    flags = "avx512bw avx512dq avx512vl avx512_vnni avx512_vbmi2 amx_int8"
    building.processor = lambda: f"flags : {flags}"
    said: list[str] = []
    with mock.patch.object(native.logger, "warning", said.append):
        kernels = native.library()
    if kernels is None or kernels.products_by != "tiles":
        raise pytest.UsageError("\n".join(["There are no emulated kernels.", *said]))

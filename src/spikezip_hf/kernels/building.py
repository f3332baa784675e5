# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Building the kernels for the CPU by the machine's own C compiler: on first use, in a few seconds, once.

The result is kept in the user's cache, under a name made of the source, the compiler's flags and the processor.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("native.c")
# No contraction of a * b + c, which rounds once where the reference rounds twice; errno and traps, which nobody
# reads, would keep loops from being vectorized.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c11", "-fPIC")


def compiler() -> str | None:
    """The command of a C compiler: that of `CC` in the environment, if it is set; None if there is none."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def openmp() -> str | None:
    """The OpenMP library that torch has loaded: with a second one, the threads of both would fight for the cores."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = [line.split(maxsplit=5)[-1] for line in mapped]
    names = ("libgomp", "libiomp5", "libomp")
    return next((path for name in names for path in paths if Path(path).name.startswith(name)), None)


def processor() -> str:
    """What this processor can do: a file built on another one may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def build(compiler: str) -> Path:
    """Path of the shared library, compiled by this command if it is not in the cache."""
    threads = openmp()
    command = [*compiler.split(), *FLAGS, *(["-fopenmp"] if threads else [])]
    sources = [SOURCE, *sorted(SOURCE.parent.rglob("*.h"))]
    parts = [*(source.read_text() for source in sources), *command, str(threads), processor()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikezip_hf"
    path = folder / f"kernels-{key[:24]}.so"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(dir=folder))
    except OSError:  # no place to keep it
        made = path = Path(tempfile.mkdtemp())
    try:
        subprocess.run(
            [*command, "-c", str(SOURCE), "-o", str(made / "kernels.o")], check=True, capture_output=True, text=True
        )
        # Linked by hand: `-fopenmp` would bring the compiler's own OpenMP library.
        libraries = [threads] if threads else []
        subprocess.run(
            [*compiler.split(), "-shared", str(made / "kernels.o"), *libraries, "-lm", "-o", str(made / "kernels.so")],
            check=True,
            capture_output=True,
            text=True,
        )
        if path == made:
            return made / "kernels.so"
        os.replace(made / "kernels.so", path)  # whole or not, also with several processes at it
    finally:
        if path != made:
            shutil.rmtree(made, ignore_errors=True)
    return path

"""Brings in what ours is judged by: transformers' own tests of models, and SpikingJelly.

The tests, of exactly the installed version, are not in the wheel, but in the source archive of the same release. Two
of its files are taken as they are; the three modules that those import and that the archive lacks become empty ones:
so the tests of exporters and of text generation are out.

SpikingJelly is installed beside them and not into the environment, without what it requires: of that, loguru alone is
imported on the way to its neurons and to its recipe for SpikeZIP-TF.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HOME = Path(__file__).parents[1] / ".judge"
TAKEN = ("test_modeling_common.py", "test_configuration_common.py")
PEERS = ("spikingjelly==2.0.0", "loguru==0.7.3")
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def prepare() -> None:
    """Fetch what is not there yet."""
    prepare_peers()
    prepare_tests()


def prepare_peers() -> None:
    """Install PEERS, unless these versions are there already."""
    stamp = HOME / "peers" / "versions"
    if stamp.is_file() and stamp.read_text() == " ".join(PEERS):
        return
    shutil.rmtree(stamp.parent, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    subprocess.run([*command, "--target", str(stamp.parent), *PEERS], check=True)
    stamp.write_text(" ".join(PEERS))


def prepare_tests() -> None:
    """Fetch and lay out the tests, unless those of this version are there already."""
    release = version("transformers")
    stamp = HOME / "version"
    if stamp.is_file() and stamp.read_text() == release:
        return
    with tempfile.TemporaryDirectory() as scratch:
        source = f"transformers=={release}"
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", scratch, source], check=True)
        archive = next(Path(scratch).glob("transformers-*.tar.gz"))
        with tarfile.open(archive) as files:
            for name in TAKEN:
                member = files.extractfile(f"transformers-{release}/tests/{name}")
                assert member is not None
                write(name, member.read().decode())
    for name, text in STUBS.items():
        write(name, text)
        write(str(Path(name).parent / "__init__.py"), "")
    write("__init__.py", "")
    stamp.write_text(release)


def write(name: str, text: str) -> None:
    path = HOME / "tests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    prepare()

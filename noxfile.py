"""The suite under the oldest and the newest versions of what this library requires: `make compatibility`.

Each session has an environment of its own in `.nox`, about 6 GB, most of it PyTorch. Neither reads `constraints.txt`.
Arguments after `--` go to pytest: `nox -s lowest -- tests/models`. And what is done with mutants: `make mutate`.
"""

import platform
import shutil
import sysconfig

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"  # pip can't resolve to the lowest versions
nox.options.reuse_venv = "yes"

PYTHONS = ["3.11", "3.12", "3.13"]
PACKAGE = ".[demo,timm,export,events,test]"


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Every lower bound in pyproject.toml, exactly; what these require themselves, as new as they allow."""
    session.install("--resolution", "lowest-direct", "--editable", PACKAGE)
    # Old libraries call what newer ones among them have deprecated since: no errors here. And the loopback Hub's own
    # tests are of what today's client asks of it.
    left_out = ("tests/test_deprecations.py", "tests/hub/test_server.py")
    suite(session, "-W", "default", *(f"--ignore={path}" for path in left_out))


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """Whatever is newest today within the bounds of pyproject.toml."""
    session.install("--upgrade", "--editable", PACKAGE)
    suite(session)


@nox.session(python=platform.python_version(), default=False)
def mutate(session: nox.Session) -> None:
    """Change the source, a place at a time, and see that a test fails: what, and by which tests, is in pyproject.toml.

    Only mutmut is in this environment, the rest is that of `.venv`, which this is run from. Arguments after `--` are
    patterns of mutants, and only those are tested anew: `nox -s mutate -- '*.neurons.*'`.
    """
    if not session.posargs:
        shutil.rmtree("mutants", ignore_errors=True)
    session.install("--constraint", "constraints.txt", "mutmut==3.8.1")
    env = {
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "OMP_NUM_THREADS": "1",  # a process with threads is not to be forked
        "TOKENIZERS_PARALLELISM": "false",
    }
    session.run("mutmut", "run", *session.posargs, env=env)
    session.run("python", "mutation/check.py", env=env)


def suite(session: nox.Session, *options: str) -> None:
    session.run("uv", "pip", "freeze")  # what it was tested with
    arguments = session.posargs or ["-n", "auto", "--dist", "loadfile"]
    session.run("python", "-m", "pytest", *options, *arguments, env={"TOKENIZERS_PARALLELISM": "false"})

"""The suite under the oldest and the newest versions of what this library requires: `make compatibility`.

Each session has an environment of its own in `.nox`, about 6 GB, most of it PyTorch. Neither reads `constraints.txt`.
Arguments after `--` go to pytest: `nox -s lowest -- tests/models`.
"""

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


def suite(session: nox.Session, *options: str) -> None:
    session.run("uv", "pip", "freeze")  # what it was tested with
    arguments = session.posargs or ["-n", "auto", "--dist", "loadfile"]
    session.run("python", "-m", "pytest", *options, *arguments, env={"TOKENIZERS_PARALLELISM": "false"})

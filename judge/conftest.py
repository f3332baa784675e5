"""Holds what is skipped against the list of what may be: a skip that nobody wrote a reason for fails the run."""

import fnmatch
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
FETCHED = HERE.parent / ".judge"
sys.path[:0] = [str(FETCHED), str(HERE)]  # `tests` is transformers' package here, not ours
sys.path.append(str(FETCHED / "peers"))  # the last: what the environment has is not to be hidden

SKIPS = yaml.safe_load((HERE / "skips.yaml").read_text(encoding="utf-8"))
used: Counter = Counter()
unwritten: list[str] = []


def pytest_configure(config):
    assert "tests" not in sys.modules, "run the judge by itself: `make judge`"


def entry_of(nodeid: str, reason: str) -> int | None:
    """Which entry of the list allows this skip."""
    kind, test = nodeid.split("::")[1:3]
    for index, entry in enumerate(SKIPS):
        of_kind = any(fnmatch.fnmatch(kind, pattern) for pattern in entry.get("kinds", ["*"]))
        if of_kind and fnmatch.fnmatch(test, entry["test"]) and entry["says"] in reason:
            return index
    return None


def pytest_runtest_logreport(report):
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    index = entry_of(report.nodeid, reason)
    if index is None:
        unwritten.append(f"{report.nodeid}: {reason}")
    else:
        used[index] += 1


def stale(config) -> list[str]:
    """Entries that skipped nothing, if everything was run."""
    if config.option.keyword or config.option.file_or_dir:
        return []
    return [entry["test"] for index, entry in enumerate(SKIPS) if not used[index] and "depends_on" not in entry]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.section("skips")
    for index, entry in enumerate(SKIPS):
        terminalreporter.line(f"{used[index]:4d} {entry['test']}: {entry['why']}")
    for line in unwritten:
        terminalreporter.line(f"NO WRITTEN REASON {line}")
    for test in stale(config):
        terminalreporter.line(f"NEVER SKIPPED {test}")


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and (unwritten or stale(session.config)):
        session.exitstatus = 1

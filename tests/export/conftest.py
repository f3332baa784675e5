"""Making graphs, as fast under pytest as elsewhere."""

import logging

import pytest


@pytest.fixture(autouse=True, scope="package")
def without_traces():
    """torch tells its trace of a graph in tens of thousands of records where there is a handler; pytest adds one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._logging._internal.trace_log", logging.Logger("nobody listens"))
        yield

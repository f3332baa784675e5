"""Making graphs, as fast under pytest as elsewhere."""

import logging

import pytest


@pytest.fixture(autouse=True, scope="package")
def without_traces():
    """torch writes tens of thousands of records of a graph into its own trace where it has a handler; pytest is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._logging._internal.trace_log", logging.Logger("nobody listens"))
        yield

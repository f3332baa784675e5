"""What is deprecated fails the test that uses it, however the library says so."""

import logging
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from .deprecations import LIBRARIES, deprecations, no_deprecations


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize(
    "message", ["`old` is deprecated: use `new`.", "old will be removed\nin v9", "Deprecation: %s"]
)
def test_logged(name, message):
    with pytest.raises(pytest.fail.Exception, match=r"Deprecated: .*test_deprecations\.py"), no_deprecations():
        logging.getLogger(f"{name}.of.old").warning(message, *(["old"] if "%s" in message else []))


def test_logged_once():
    with pytest.raises(pytest.fail.Exception, match="`once` is deprecated"), no_deprecations():
        transformers_logging.get_logger("transformers.of.old").warning_once("`once` is deprecated.")


def test_said_before_the_test():
    logging.getLogger("transformers").warning("`imported` is deprecated.")
    with pytest.raises(pytest.fail.Exception, match="imported"), no_deprecations():
        pass
    with no_deprecations():  # said, and done with
        pass


def test_other_warnings_are_none():
    with no_deprecations():
        logging.getLogger("transformers").warning("Some weights are new: train them.")
        assert deprecations.said == []


@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, PendingDeprecationWarning])
def test_warned_by_kind(category):
    with pytest.raises(category):
        warnings.warn("Use something newer.", category, stacklevel=1)


@pytest.mark.parametrize("message", ["old is deprecated", "It's new.\nOld will be removed in v9.", "DEPRECATED"])
def test_warned_by_word(message):
    with pytest.raises(UserWarning):
        warnings.warn(message, UserWarning, stacklevel=1)

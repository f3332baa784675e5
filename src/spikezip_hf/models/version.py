# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The version of the library, which travels with its checkpoints."""

from packaging.version import InvalidVersion, Version

__version__ = "0.1.0"


def check_version(written_by: str) -> None:
    """Refuse a checkpoint from a later series (0.2 after 0.1) of this library; within one, formats do not change.

    Raises:
        ValueError: it is from a later series, or `written_by` is not a version.
    """
    try:
        theirs, ours = Version(written_by), Version(__version__)
    except (InvalidVersion, TypeError) as error:
        raise ValueError(f"spikezip_version is {written_by!r}, which is not a version.") from error
    if theirs.release[:2] > ours.release[:2]:
        raise ValueError(
            f"This checkpoint was written by spikezip_hf {written_by}, and this is {__version__}, which does not know "
            "all of its fields: pip install --upgrade spikezip-hf."
        )

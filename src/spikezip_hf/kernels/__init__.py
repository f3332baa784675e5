"""Compiled kernels for the inner loops of inference; their references are in `spikezip_hf.models`."""

import os


def wanted() -> bool:
    """Whether kernels are to be used: not with `SPIKEZIP_KERNELS=reference` in the environment.

    Raises:
        ValueError: it says something else.
    """
    choice = os.environ.get("SPIKEZIP_KERNELS", "auto")
    if choice not in ("auto", "reference"):
        raise ValueError(f"SPIKEZIP_KERNELS must be 'auto' or 'reference', got {choice!r}.")
    return choice == "auto"

"""The `spikezip` command line."""

from spikezip_hf.cli.app import main

__all__ = ["main"]

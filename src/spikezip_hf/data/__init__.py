"""Data sets, ready for training and evaluation."""

from spikezip_hf.data.digits import load_digits

__all__ = ["load_digits"]

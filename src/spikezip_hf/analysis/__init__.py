"""What a simulation says: accuracy against time-steps, and pictures of it."""

from spikezip_hf.analysis.accuracy import accuracy, accuracy_over_time

__all__ = ["accuracy", "accuracy_over_time"]

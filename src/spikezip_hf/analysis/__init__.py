"""What a simulation says: accuracy against time-steps, the three networks side by side, and pictures of it."""

from spikezip_hf.analysis.accuracy import accuracy, accuracy_over_time
from spikezip_hf.analysis.twins import compare_twins, table

__all__ = ["accuracy", "accuracy_over_time", "compare_twins", "table"]

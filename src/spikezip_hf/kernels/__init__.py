"""Compiled kernels for the inner loops of inference; their references are in `spikezip_hf.models`."""

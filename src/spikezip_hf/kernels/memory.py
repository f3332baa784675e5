# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What the allocator keeps of memory that was given back.

Each pass of a simulation asks for the same tens of MiB as the one before. By default glibc returns them to the system
in between, which clears and maps each page anew: about a tenth of the time, for a ViT-S/16.
"""

import ctypes
import os
import sys

KEPT = 2**28  # bytes that may lie free at the end of the heap
LARGEST = 2**25  # bytes of a piece of the heap; older versions of glibc allow no more
# Whoever sets one of these knows what the allocator should do.
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as in malloc.h


def keep_memory() -> bool:
    """Have glibc's allocator keep up to `KEPT` bytes at the end of its heap, of pieces up to `LARGEST`, for the next
    request. For the whole process; threads have heaps of their own.

    Returns:
        Whether glibc was told. Not with another C library, nor if the environment sets one of `SETTINGS`.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Without the first the second would have every large piece mapped by itself.
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, KEPT))

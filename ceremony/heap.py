"""How glibc's allocator treats what a worker frees; elsewhere nothing is set.

The names of `malloc.h` are mallopt(3)'s, which has what each means.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
FAST = {TRIM_THRESHOLD: 64 * 1024 * 1024, MMAP_THRESHOLD: 4 * 1024 * 1024}
"""Pieces of up to 4 MiB are kept, 64 MiB of them at most: requests and answers of Kafka come and go by the megabyte, in
several copies each, and each page of a piece that is taken anew costs a fault."""
SMALL = {TRIM_THRESHOLD: 1024 * 1024, MMAP_THRESHOLD: 256 * 1024, ARENA_MAX: 2}
"""What is large goes back to the system, and there are two arenas instead of eight for each core: for a worker whose
rows are on disk, which wants its memory for something else."""


def allocate(options: Mapping[int, int]) -> None:
    """Set these, FAST or SMALL, for the whole process."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option, value in options.items():
            mallopt(option, value)

"""Memory settings of a worker's process: glibc's allocator and Python's garbage collector.

The constants have the names of malloc.h; mallopt(3) explains each. On other systems the allocator stays as it is.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
MIB = 1024 * 1024
# Freed pieces of up to 4 MiB are kept, at most 64 MiB of them. Kafka's requests and responses come and go by the
# megabyte, in several copies each, and every page that is mapped again costs a fault.
FAST = {TRIM_THRESHOLD: 64 * MIB, MMAP_THRESHOLD: 4 * MIB}
# Large pieces go back to the system, and there are two arenas instead of eight per core: for a worker with its rows on
# disk, which needs the memory elsewhere.
SMALL = {TRIM_THRESHOLD: MIB, MMAP_THRESHOLD: 256 * 1024, ARENA_MAX: 2}


def allocate(options: Mapping[int, int]) -> None:
    """Set these options, FAST or SMALL, for the whole process."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option, value in options.items():
            mallopt(option, value)


def collect_seldom() -> None:
    """Make garbage collections rare.

    Records and rows hold no cycles, and with the default thresholds collections took a quarter of the CPU under load.
    """
    gc.collect()
    gc.freeze()  # no later collection looks at the modules loaded so far
    gc.set_threshold(50_000, 20, 50)

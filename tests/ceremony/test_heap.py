"""A worker reuses freed megabytes without page faults, unless it has the small heap."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PIECES = """
import resource
from ceremony import heap

{before}
for turn in range(51):
    if turn == 1:
        began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [b"x" * 1024 * 1024 for _ in range(4)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
"""


def faults(before: str) -> int:
    """Page faults of 50 rounds that allocate and free four pieces of a megabyte each."""
    code = PIECES.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide for themselves")
def test_freed_memory_is_used_again() -> None:
    assert faults("") > 10_000, "the allocator gives it back by itself"
    assert faults("heap.allocate(heap.FAST)") < 1_000
    assert faults("heap.allocate(heap.SMALL)") > 10_000

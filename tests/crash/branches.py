"""Kills a play at many awaits, but plays its beginning only once: this process forks at each of them.

The child plays on after a kill at that await, the parent without it. They share the beginning, so that the test command
has time for every await of a ceremony.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Collection

# A play that takes this as its `branch`, and returns the problems found at its end.
Judged = Callable[[Callable[[int], bool]], list[str]]


class _Branch:
    """Fulfils `VirtualLoop.branch`: True in a child, at its own await, and False in the parent."""

    def __init__(self, points: Collection[int]) -> None:
        self._points = points
        self.told: int | None = None
        """In a child: the pipe on which it reports its problems to the parent."""
        self.found: dict[int, list[str]] = {}

    def __call__(self, await_number: int) -> bool:
        if self.told is not None or await_number not in self._points:
            return False
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            gc.disable()
            os.close(reading)
            self.told = writing
            return True
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            problems = answer.read()
        _, status = os.waitpid(child, 0)
        self.found[await_number] = json.loads(problems) if problems else [f"the play ended its process: {status}"]
        return False


def branches(points: Collection[int], judged: Judged) -> dict[int, list[str]]:
    """The problems of a kill after each await, by the number of the await, in ascending order.

    It needs a process with one thread: a forked child has no others.
    """
    branch = _Branch(points)
    try:
        problems = judged(branch)
    except Exception as error:
        if branch.told is None:
            raise
        problems = [f"{type(error).__name__}: {error}"]
    if branch.told is not None:
        os.write(branch.told, json.dumps(problems).encode())
        os._exit(0)
    return branch.found

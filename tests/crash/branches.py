"""Kills a play at many awaits and plays its beginning only once: at each of them this process forks.

The child is the play that is killed there, the parent the one that goes on. What they share until then takes no time,
so that every await of a ceremony can be a point of the test command.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Collection

# Plays with this as its `branch`, and says what was wrong at the end.
Judged = Callable[[Callable[[int], bool]], list[str]]


class _Branch:
    """Fulfils `VirtualLoop.branch`: True in a child, at its own await, and False in the parent."""

    def __init__(self, points: Collection[int]) -> None:
        self._points = points
        self.told: int | None = None
        """Of a child: where it tells its parent what was wrong."""
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
    """By the number of each await, in their order, what was wrong when the process was killed behind it.

    For a process of one thread: of the others a child has none.
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

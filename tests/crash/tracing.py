"""Counts awaits and their lines by Python's own tracing, independently of the loop that counts them for the fuse.

An await counts when its task really waits: then the outermost coroutine of a task yields a future to the loop.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parent.parent.parent
OURS = tuple(f"{ROOT / package}/" for package in ("ports", "tables", "steps", "streams", "bridge", "ceremony"))


@dataclass
class Traced:
    awaits: int = 0
    sites: Counter[str] = field(default_factory=Counter)
    """Waits by the line of our own code that waited, `path:line`; `elsewhere` without such a line."""


def traced(play: Callable[[], Any]) -> Traced:
    """Run a function, and count the awaits of its tasks."""
    found = Traced()
    runner = asyncio.events.Handle._run.__code__
    waits_for: object = None
    site = ""

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal waits_for, site
        if event != "return" or not frame.f_code.co_flags & inspect.CO_COROUTINE or not asyncio.isfuture(arg):
            return
        if arg is not waits_for:
            waits_for, site = arg, ""
        if not site and frame.f_code.co_filename.startswith(OURS):
            site = f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        if frame.f_back is not None and frame.f_back.f_code is runner:
            found.awaits += 1
            found.sites[site or "elsewhere"] += 1
            waits_for = None

    sys.setprofile(profile)
    try:
        play()
    finally:
        sys.setprofile(None)
    return found

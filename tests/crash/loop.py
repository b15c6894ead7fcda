"""An event loop in virtual time that runs one handle after another, and can stop after any await of its tasks.

Nothing really waits: the driver of the loop advances the time when nothing is ready. A killed process is a loop that is
never run again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

MOST_AWAITS_OF_AN_END = 100


class Suspended(Coroutine[Any, Any, Any]):
    """A task's coroutine that counts its suspensions, which are the awaits that really wait."""

    def __init__(self, inner: Coroutine[Any, Any, Any], tell: Callable[[], None]) -> None:
        self._inner = inner
        self._tell = tell

    def send(self, value: Any) -> Any:
        waits_for = self._inner.send(value)
        self._tell()
        return waits_for

    def throw(self, *error: Any) -> Any:
        waits_for = self._inner.throw(*error)
        self._tell()
        return waits_for

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise RuntimeError("only tasks drive this")


def _unwind(coroutine: Any) -> None:
    """End a coroutine, also one that awaits again while it ends."""
    for _ in range(MOST_AWAITS_OF_AN_END):
        try:
            coroutine.close()
        except RuntimeError:  # it "ignored GeneratorExit": it awaits in a `finally`
            continue
        except Exception:  # noqa: BLE001 - what a dead process raises is nobody's business
            return
        return


class VirtualLoop(asyncio.BaseEventLoop):
    """Counts the suspensions of all its tasks in `awaits`, and stops after number `fuse` (from 1)."""

    # Attributes that asyncio's base class keeps, on which its own `_run_once` would work.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, now: Callable[[], float], *, counted: bool = True) -> None:
        super().__init__()
        self._now = now
        self._alive: set[asyncio.Task[Any]] = set()
        self.awaits = 0
        self.fuse = 0
        self.stopped = False
        self.branch: Callable[[int], bool] | None = None
        """Called after each await with its number. If it returns True, the loop stops there, as for `fuse`."""
        self.errors: list[str] = []
        self.set_exception_handler(self._heard)
        self.set_task_factory(self._counted if counted else self._kept)

    def time(self) -> float:
        return self._now()

    def turn(self, most: int = 100) -> bool:
        """Run ready and due handles, at most so many; return False if there were none."""
        due = self.time() + 1e-9
        while self._scheduled and (self._scheduled[0].cancelled() or self._scheduled[0].when() <= due):
            self._ready.append(self._taken())
        if self.stopped or not self._ready:
            return False
        with self._running():
            for _ in range(min(most, len(self._ready))):
                handle, awaits = self._ready.popleft(), self.awaits
                if not handle.cancelled():
                    handle._run()
                if self.branch is not None and self.awaits > awaits:
                    self.stopped = self.branch(self.awaits)
                if self.stopped:
                    break
        return True

    def _taken(self) -> asyncio.TimerHandle:
        timer: Any = heapq.heappop(self._scheduled)
        timer._scheduled = False
        taken: asyncio.TimerHandle = timer
        return taken

    @property
    def next_timer(self) -> float | None:
        """The time of the next timer; None without one."""
        while self._scheduled and self._scheduled[0].cancelled():
            self._taken()
        return self._scheduled[0].when() if self._scheduled else None

    def bury(self) -> None:
        """Drop everything. Python unwinds the coroutines, but the world ignores them."""
        self.stopped = True
        with self._running():
            for task in list(self._alive):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _unwind(task.get_coro())
        self._ready.clear()
        self._scheduled.clear()
        self._alive.clear()
        self.close()

    @contextmanager
    def _running(self) -> Generator[None]:
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def _told(self) -> None:
        self.awaits += 1
        if self.awaits == self.fuse:
            self.stopped = True

    def _counted(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return self._kept(loop, Suspended(coroutine, self._told), **options)

    def _kept(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=self, **options)
        self._alive.add(task)
        task.add_done_callback(self._alive.discard)
        return task

    def _heard(self, loop: Any, context: dict[str, Any]) -> None:
        if not self.stopped:
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

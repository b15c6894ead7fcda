"""Running a worker until a signal: clean ends, sudden ends, and errors as one line each."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from bridge.clock import HostClock
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.output import say
from ceremony.errors import SettingsInvalid, one_line
from ports.errors import CeremonyError

if TYPE_CHECKING:
    from ceremony.worker import Worker

Started = TypeVar("Started")


def leave_halfway(worker: Worker | None) -> None:
    """Exit at once after a shutdown that timed out.

    Tasks of libraries still wait for their neighbours, and would only report at length that they were cancelled.
    """
    if worker is not None and worker.halfway:
        sys.stdout.flush()
        os._exit(Exit.FAILED if worker.failure else Exit.OK)


async def run_until(stop: Stop, worker: Worker) -> None:
    """Return when a signal came. Raises CommandFailed when a part of the worker has failed for good."""
    clock = HostClock()
    waiting = [clock.spawn(worker.ended(), name="ended"), clock.spawn(stop.wait(), name="stop")]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    if not stop.wanted:
        raise CommandFailed("worker_failed", one_line(worker.failure))


class Stop:
    """Waits for SIGTERM, SIGHUP or Ctrl-C, which ask for a clean end. A second Ctrl-C ends the process at once."""

    def __init__(self, children: Callable[[], Iterable[int]] = tuple) -> None:
        """`children`: ids of the processes to kill when the end is sudden."""
        self._event = asyncio.Event()
        self._children = children
        self._terminals = [stream for stream in (0, 1, 2) if os.isatty(stream)]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._event.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    @property
    def wanted(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    def set(self) -> None:
        self._event.set()

    def _hung_up(self) -> None:
        """The terminal is gone, so that each write to it would fail."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in self._terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)
        self._event.set()

    def _interrupted(self) -> None:
        if not self._event.is_set():
            self._event.set()
            return
        for pid in self._children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(Exit.INTERRUPTED)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn errors of settings, addresses and neighbours into CommandFailed."""
    try:
        yield
    except CommandFailed:
        raise
    except SettingsInvalid as error:
        for problem in error.problems:
            say(f"{error.code}: {problem}", err=True)
        raise CommandFailed from None
    except CeremonyError as error:
        raise CommandFailed(error.code, error.message, place=error.place, remedy=error.remedy) from None
    except OSError as error:
        text, place = " ".join(str(error.strerror or error).split()), error.filename or ""
        raise CommandFailed("cannot_start", text, place=place if isinstance(place, str) else "") from None


@asynccontextmanager
async def started(stop: Stop, made: AbstractAsyncContextManager[Started]) -> AsyncIterator[Started | None]:
    """Enter `made` and yield its value. A signal meanwhile stops the parts that have started; then yield None."""
    clock = HostClock()
    entering = clock.spawn(made.__aenter__(), name="start")
    stopping = clock.spawn(stop.wait(), name="stop")
    try:
        await asyncio.wait([entering, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not entering.done():
            entering.cancel()
    if stop.wanted:
        with suppress(asyncio.CancelledError, Exception):
            await entering
            await made.__aexit__(None, None, None)
        yield None
        return
    entered = await entering
    try:
        yield entered
    finally:
        await made.__aexit__(None, None, None)

"""Who waits for the fold: clients for the answer to a command, watchers for the next version of a row."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tables.instance import Instance

# How long a call waits for the fold (specification 10.3).
FOLD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What the fold said to a command; `code` is empty when it was accepted."""

    code: str = ""
    message: str = ""


ACCEPTED = FoldResult()


class ReplyWaiters:
    """Futures by command id, in this process only: a client waits at the owner."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[asyncio.Future[FoldResult]]] = {}

    def expect(self, command_id: str) -> asyncio.Future[FoldResult]:
        """Announce the wait before the command is appended. Who waits for the same id gets the same answer."""
        future: asyncio.Future[FoldResult] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(command_id, []).append(future)
        return future

    def forget(self, command_id: str, future: asyncio.Future[FoldResult]) -> None:
        """This one waits no more; others for the same id still do."""
        waiting = self._waiting.get(command_id, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waiting.pop(command_id, None)

    def expects(self, command_id: str) -> bool:
        return bool(self._waiting) and command_id in self._waiting

    def resolve(self, results: Mapping[str, FoldResult]) -> None:
        for command_id, result in results.items():
            for future in self._waiting.pop(command_id, ()):
                if not future.done():
                    future.set_result(result)


class Watchers:
    """Who follows one instance: each gets an event it clears and waits on."""

    def __init__(self) -> None:
        self._events: defaultdict[bytes, set[asyncio.Event]] = defaultdict(set)

    def add(self, key: bytes) -> asyncio.Event:
        event = asyncio.Event()
        self._events[key].add(event)
        return event

    def remove(self, key: bytes, event: asyncio.Event) -> None:
        self._events[key].discard(event)
        if not self._events[key]:
            del self._events[key]

    def changed(self, rows: Iterable[bytes]) -> None:
        if not self._events:
            return
        for key in rows:
            for event in self._events.get(key, ()):
                event.set()

    def lost(self) -> None:
        """Ownership changed: everybody looks again."""
        for events in self._events.values():
            for event in events:
                event.set()


Rows = Mapping[bytes, Instance | None]

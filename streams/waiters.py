"""Waiting for the fold: clients wait for the reply to a command, watchers for the next version of a row."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tables.commands import AnyCommand, content_digest
from tables.instance import Instance

# How long a call waits for the fold (specification 10.3).
FOLD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class FoldResult:
    """The fold's result for a command; `code` is empty when it was accepted."""

    code: str = ""
    message: str = ""


ACCEPTED = FoldResult()


class ReplyKey(NamedTuple):
    """The command that a client waits for. One id may stand for several: of other ceremonies, or of other content."""

    instance_id: str
    command_id: str
    content: str
    """Digest of the operation; empty for a start, whose id is its own."""

    @classmethod
    def of(cls, command: AnyCommand) -> ReplyKey:
        return cls(command.instance_id, command.command_id, content_digest(command))


class ReplyWaiters:
    """Clients that wait for a reply. In this process only: a client waits at the partition's owner."""

    def __init__(self) -> None:
        self._waiting: dict[ReplyKey, list[asyncio.Future[FoldResult]]] = {}

    def expect(self, key: ReplyKey) -> asyncio.Future[FoldResult]:
        """Register a client before its command is appended. All clients with the same command get the same reply."""
        future: asyncio.Future[FoldResult] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        return future

    def forget(self, key: ReplyKey, future: asyncio.Future[FoldResult]) -> None:
        """Remove one client; others with the same command keep waiting."""
        waiting = self._waiting.get(key, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._waiting.pop(key, None)

    def expected(self, command: AnyCommand) -> ReplyKey | None:
        """Return the key of a command that a client waits for, else None."""
        if not self._waiting or not command.command_id:
            return None
        key = ReplyKey.of(command)
        return key if key in self._waiting else None

    def resolve(self, results: Mapping[ReplyKey, FoldResult]) -> None:
        for key, result in results.items():
            for future in self._waiting.pop(key, ()):
                if not future.done():
                    future.set_result(result)


class Watchers:
    """Clients that watch one instance: each has an event that it clears and waits for."""

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
        """Wake all watchers, because ownership changed."""
        for events in self._events.values():
            for event in events:
                event.set()


FoldedRows = Mapping[bytes, Instance | None]

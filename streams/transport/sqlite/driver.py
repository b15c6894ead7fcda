"""The embedded driver: `sqlite:///path/to/file.db` gives Faust one process, one file and every partition.

Settings go into the URL's query: `synchronous=full` (an fsync per commit window, so that a power cut loses no
acknowledged record; the default `normal` survives the end of the process), `window_ms` (the length of a commit window,
2 by default), and `take_over=1` (fence a process that still has the file open).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yarl import URL

from ports.clock import Clock
from ports.log import AgentSpec, LogUrlInvalid
from streams.topics import changelog, prefixed
from streams.transport.faust import membership
from streams.transport.partition.ownership import IsCurrent
from streams.transport.sqlite.backend import SqliteBackend
from streams.transport.sqlite.log import WINDOW_SECONDS, SqliteLog

SETTINGS = ("synchronous", "window_ms", "take_over")
LONGEST_WINDOW_MS = 1000.0


class SqliteTransport(membership.GroupTransport):
    """One log per app. Every partition is assigned to it at once, and recovered from the file."""

    driver_version = "ceremony-sqlite"
    keeps_consumed = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        app: Any = self.app
        self._log = open_log(self.url[0], app.clock)
        self._log.on_failure = app.fail

    @property
    def log(self) -> SqliteLog:
        return self._log

    def backend(self, spec: AgentSpec, number: int, is_current: IsCurrent) -> SqliteBackend:
        app: Any = self.app
        return SqliteBackend(
            self._log,
            spec.name,
            spec.topic,
            number,
            changelogs={table.name: prefixed(app.prefix, changelog(table.name)) for table in spec.tables},
            committed_only=spec.committed_only,
        )


def open_log(url: URL, clock: Clock) -> SqliteLog:
    """Return the log at a URL, not started yet. Raises LogUrlInvalid."""
    if url.host or not url.path.strip("/"):
        raise LogUrlInvalid(f"{url} names no file; write sqlite:///absolute/path/to/file.db")
    if unknown := set(url.query) - set(SETTINGS):
        raise LogUrlInvalid(f"{url} has unknown settings {sorted(unknown)}, known are {list(SETTINGS)}")
    synchronous = url.query.get("synchronous", "normal").lower()
    if synchronous not in ("normal", "full"):
        raise LogUrlInvalid(f"synchronous of {url} must be normal or full")
    return SqliteLog(
        Path(url.path),
        clock,
        synchronous=synchronous,
        window=_window(url),
        take_over=url.query.get("take_over", "0") == "1",
    )


def _window(url: URL) -> float:
    given = url.query.get("window_ms")
    if given is None:
        return WINDOW_SECONDS
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = -1.0
    if not 0.0 <= milliseconds <= LONGEST_WINDOW_MS:
        raise LogUrlInvalid(f"window_ms of {url} must be a number from 0 to {LONGEST_WINDOW_MS:.0f}")
    return milliseconds / 1000

"""Writes many lines to the log at once: rendered without structlog's processors, redacted together, in one write."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from ceremony.logs import LogHandler, Style, coloured
from ports.clock import Clock
from ports.lines import LineLevel, LogLine
from ports.masking import masked_urls
from ports.redaction import Redactor
from tables.timers import iso

LOGGER = "ceremony.journal"
LEVELS: Mapping[str, int] = {LineLevel.INFO: logging.INFO, LineLevel.WARNING: logging.WARNING}
# Columns of the console, as structlog has them.
LEVEL_WIDTH, EVENT_WIDTH = 9, 30
RESET, BRIGHT, DIM, CYAN, MAGENTA = "\033[0m", "\033[1m", "\033[2m", "\033[36m", "\033[35m"
COLOUR_OF: Mapping[str, str] = {LineLevel.INFO: "\033[32m", LineLevel.WARNING: "\033[33m"}

# A text that needs no quotes.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+@$<>\[\]-]+").fullmatch
_encode = msgspec.json.Encoder().encode
_root = logging.getLogger()


class LogLines:
    """Implements `ports.lines.LineSink` on the handler of this process."""

    def __init__(self, redactor: Redactor, clock: Clock) -> None:
        self._redactor = redactor
        self._clock = clock

    def wants(self, level: LineLevel) -> bool:
        return _root.isEnabledFor(LEVELS[level])

    def write(self, lines: Sequence[LogLine]) -> None:
        handler = next((one for one in _root.handlers if isinstance(one, LogHandler)), None)
        if handler is None:  # the logs of this process are not ours
            _by_structlog(lines)
            return
        wanted = [line for line in lines if self.wants(line["level"])]
        render = as_json if handler.style is Style.JSON else _console()
        now = iso(int(self._clock.wall() * 1000))
        try:
            text = self._redacted([render(line, now) for line in wanted])
        except (TypeError, ValueError):  # a value that JSON cannot hold
            _by_structlog(wanted)
        else:
            _write(handler, text)

    def _redacted(self, rendered: list[str]) -> str:
        """Join the lines; only where the whole is suspicious is each looked at alone."""
        text = "\n".join(rendered)
        if self._redactor.suspicious(text.encode(errors="surrogatepass"), json=False):
            text = "\n".join(map(self._redactor.text, rendered))
        return masked_urls(text)


def _write(handler: LogHandler, text: str) -> None:
    handler.acquire()
    try:
        handler.stream.write(f"{text}\n")
        handler.stream.flush()
    except (OSError, ValueError):  # the reader has gone; a log ends no worker
        pass
    finally:
        handler.release()


def _by_structlog(lines: Sequence[LogLine]) -> None:
    log = structlog.get_logger(LOGGER)
    for line in lines:
        fields = {name: value for name, value in line.items() if name not in ("event", "level")}
        report = log.warning if line["level"] == LineLevel.WARNING else log.info
        report(line["event"], **fields)


def as_json(line: LogLine, now: str) -> str:
    return f'{{"timestamp":"{now}","logger":"{LOGGER}",{_encode(line)[1:].decode()}'


def _console() -> Callable[[LogLine, str], str]:
    return in_colour if coloured() else plainly


def plainly(line: LogLine, now: str) -> str:
    fields = " ".join(f"{name}={_shown(value)}" for name, value in _fields(line))
    return f"{now} [{line['level']:<{LEVEL_WIDTH}}] {line['event']:<{EVENT_WIDTH}} [{LOGGER}] {fields}"


def in_colour(line: LogLine, now: str) -> str:
    level, event = line["level"], line["event"]
    fields = " ".join(f"{CYAN}{name}{RESET}={MAGENTA}{_shown(value)}{RESET}" for name, value in _fields(line))
    head = f"{DIM}{now}{RESET} [{COLOUR_OF[level]}{level:<{LEVEL_WIDTH}}{RESET}] {BRIGHT}{event:<{EVENT_WIDTH}}{RESET}"
    return f"{head} [{LOGGER}] {fields}"


def _fields(line: LogLine) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in line.items() if name not in ("event", "level")]


def _shown(value: Any) -> str:
    """Return a value on one line; a text with blanks, quotes or unprintable characters stands in quotes."""
    if isinstance(value, str):
        return value if _PLAIN(value) else repr(value)
    return repr(value)

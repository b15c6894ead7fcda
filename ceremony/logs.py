"""Structured logs, one event per line: for people on a terminal, or JSON. Logs of the standard library join in."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, TextIO

import structlog

from ceremony import raw_lines
from ports.masking import masked_urls
from ports.redaction import Redactor
from steps.secrets.redactor import TextRedactor

# Libraries that report each start and stop: they log from WARNING up only.
NOISY = ("aiokafka", "faust", "mode", "aiohttp", "asyncio", "grpc", "nats", "streams.transport")
# Their debug lines hold users, queries and whole rows: they log from WARNING up at every level.
DISCREET = ("neo4j", "redis")
# Off. The first logs ERROR while a young broker looks for its coordinator; readiness shows it if that lasts. The second
# logs a traceback for each record on which an agent fails: our own line names the record, and its dead letter has the
# traceback.
FALSE_ALARMS = ("aiokafka.consumer.group_coordinator", "faust.agents.actor")
# Lines of aiokafka while a broker is away, hundreds per second. Our own lines report once that it went, and once that
# it is back.
REPEATED = (
    "Unable connect to",
    "Unable to update metadata",
    "Failed fetch messages",
    "Got error produce response",
    "Unable to request metadata",
    "Cannot send <class",
    "Could not send <class",
)

# Libraries whose lines become the event `library_warning`: a line of theirs is a hint, the worker's state is in lines
# of our own.
LIBRARIES = ("aiokafka", "asyncio", "grpc", "nats", "py", *DISCREET)

# Events of ours about a failed call: in an outage there is one for every call.
MANY = frozenset({"append_failed", "forwarding_failed", "listing_failed"})
# After a line of MANY, further ones are only counted for this long.
QUIET_SECONDS = 5.0


class Style(StrEnum):
    """The form of the lines."""

    AUTO = "auto"
    """`console` where stderr is a terminal, else `json`."""
    CONSOLE = "console"
    JSON = "json"


def configure(level: str, style: str = Style.AUTO) -> None:
    """Set up structlog and the root logger of the standard library. Logs go to stderr."""
    style = _chosen(style)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == Style.JSON
        else structlog.dev.ConsoleRenderer(
            colors=coloured(),
            # The pretty one shows every local variable: whole records, with data of clients.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        # The level is checked first: a debug line for each attempt must cost nothing when it is off.
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = LogHandler(sys.stderr)
    handler.style = Style(style)
    tail: list[structlog.typing.Processor] = [_without_none, structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if style == Style.JSON:
        tail.append(structlog.processors.format_exc_info)
    handler.setFormatter(_Redacting(foreign_pre_chain=[*shared, _of_library], processors=[*tail, renderer]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(
            max(root.level, logging.WARNING) if root.level > logging.DEBUG else logging.DEBUG
        )
    for name in DISCREET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    for name in FALSE_ALARMS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    handler.addFilter(_is_news)
    handler.addFilter(Seldom())
    raw_lines.join()


def _chosen(style: str) -> str:
    if style == Style.AUTO:
        return Style.CONSOLE if sys.stderr.isatty() else Style.JSON
    return style


def coloured() -> bool:
    """Return whether lines for people have colours: on a terminal, unless NO_COLOR or FORCE_COLOR says otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


class LogHandler(logging.StreamHandler[TextIO]):
    """The one handler of the process."""

    style = Style.CONSOLE


def _without_none(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in [name for name, value in event.items() if value is None and name != "exc_info"]:
        del event[name]
    return event


def _of_library(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Turn the line of a library into an event of ours."""
    library = _library(str(event.get("logger", "")))
    if not library:
        return event
    record: logging.LogRecord = event["_record"]
    more = {"more": record.more} if hasattr(record, "more") else {}
    level = "warning" if record.levelno >= logging.WARNING else event["level"]
    library = "python" if library == "py" else library  # the module `warnings`
    return {**event, "event": "library_warning", "level": level, "library": library, "reason": event["event"], **more}


def _library(logger: str) -> str:
    name = logger.partition(".")[0]
    return name if name in LIBRARIES else ""


def redact_with(redactor: Redactor) -> None:
    """Redact every line from now on with this one, which knows the prompts of this process."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Redacting):
            handler.formatter.redactor = redactor


class _Redacting(structlog.stdlib.ProcessorFormatter):
    """Masks the credentials of every URL and redacts secrets, whoever wrote the line; tracebacks are part of it."""

    redactor: Redactor | None = None

    def format(self, record: logging.LogRecord) -> str:
        line = masked_urls(super().format(record))
        if self.redactor is None:
            self.redactor = TextRedactor()
        return self.redactor.text(line)


class Seldom(logging.Filter):
    """Lets through one line of each event of MANY, and of each kind of line of a library, in QUIET_SECONDS.

    Its `more` counts those held back before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._held_back: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        key = _kind_of_many(record)
        if not key:
            return True
        if 0 <= record.created - self._last.get(key, 0.0) < QUIET_SECONDS:
            self._held_back[key] += 1
            return False
        self._last[key] = record.created
        if more := self._held_back.pop(key, 0):
            _count(record, more)
        return True


def _kind_of_many(record: logging.LogRecord) -> str:
    """Return the kind of a line of which there may be many; empty for any other line."""
    if isinstance(record.msg, dict):
        event = str(record.msg.get("event"))
        return event if event in MANY else ""
    if not _library(record.name) or record.levelno < logging.WARNING:
        return ""
    form = record.getMessage() if record.msg == "%s" else str(record.msg)
    return f"{record.name}: {form.partition(chr(10))[0]}"


def _count(record: logging.LogRecord, more: int) -> None:
    if isinstance(record.msg, dict):
        record.msg["more"] = more
    else:
        record.more = more


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.name.startswith("aiokafka") and record.getMessage().startswith(REPEATED))

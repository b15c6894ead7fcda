"""Structured logs, one event per line: for people on a terminal, or JSON. Logs of the standard library join in."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, TextIO

import structlog

from ceremony import raw_lines
from ceremony.repeated_lines import DISCREET, Seldom, library_of
from ports.masking import masked_urls
from ports.redaction import Redactor
from steps.secrets.redactor import TextRedactor

# Libraries that report each start and stop: they log from WARNING up only.
NOISY = ("aiokafka", "faust", "mode", "aiohttp", "asyncio", "grpc", "nats", "streams.transport")
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
    handler.seldom = Seldom()
    handler.addFilter(handler.seldom)
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
    seldom: Seldom


def report_left_out(now: float) -> None:
    """Tell of lines held back where no further line of their kind has; `now`: seconds since the epoch."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            handler.seldom.report(now)


def _without_none(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in [name for name, value in event.items() if value is None and name != "exc_info"]:
        del event[name]
    return event


def _of_library(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Turn the line of a library into an event of ours."""
    library = library_of(str(event.get("logger", "")))
    if not library:
        return event
    record: logging.LogRecord = event["_record"]
    more = {"more": record.more} if hasattr(record, "more") else {}
    level = "warning" if record.levelno >= logging.WARNING else event["level"]
    return {**event, "event": "library_warning", "level": level, "library": library, "reason": event["event"], **more}


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


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.name.startswith("aiokafka") and record.getMessage().startswith(REPEATED))

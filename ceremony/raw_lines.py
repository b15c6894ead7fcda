"""Sends through the log what Python itself would print on stderr: warnings, and errors that nobody can catch.

What asyncio reports of a task or future whose error nobody has looked at is a line of its logger already.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

import structlog

log = structlog.get_logger(__name__)


def join() -> None:
    """Redirect them from now on."""
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _unraisable
    threading.excepthook = _of_thread


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    _report("error_unraisable", failure.exc_value, raised_by=type(failure.object).__name__)


def _of_thread(failure: threading.ExceptHookArgs) -> None:
    if not isinstance(failure.exc_value, SystemExit):
        _report("thread_failed", failure.exc_value, thread=getattr(failure.thread, "name", None))


def _report(event: str, error: BaseException | None, **fields: Any) -> None:
    log.error(event, error=type(error).__name__, exc_info=error, **fields)

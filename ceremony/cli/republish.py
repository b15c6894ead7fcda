"""The verb `republish`: restores the stream CEREMONY from the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.clock import HostClock
from ceremony.cli.errors import CommandFailed, Exit
from ceremony.cli.options import LogOption
from ceremony.cli.output import Format, OutputOption, emit_data, say
from ceremony.cli.running import readable_errors
from ceremony.cli.times import moment
from ports.clock import Clock
from ports.log import Log
from ports.masking import masked_address

if TYPE_CHECKING:
    from bridge.nats.republish import Republished
    from ceremony.settings import Settings

CONNECT_SECONDS = 10.0
BETWEEN_LINES_SECONDS = 2.0


def republish(
    since: Annotated[
        str | None,
        typer.Option(
            help="Only events appended since then: a time (2026-01-31T12:00:00Z), or an age (90m, 12h, 3d).",
            show_default=False,
        ),
    ] = None,
    log: LogOption = None,
    nats_url: Annotated[str | None, typer.Option("--nats", help="URL of the NATS server.", show_default=False)] = None,
    topic_prefix: Annotated[str | None, typer.Option(help="Prefix of the topics.", show_default=False)] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Publish all retained events again, with their ids, to restore the stream CEREMONY.

    The stream stores no message twice, so the verb can be interrupted and repeated. Settings come from the
    environment, as for `serve`; an embedded log must not be open elsewhere. Messages of publish steps are not among
    the log's events and do not come back. To keep the order of each ceremony as well, stop the workers (or bridges)
    first, delete the stream, and start them again afterwards.
    """
    from ceremony import logs, loop
    from ceremony.settings import read_settings

    since_ms = _since(since)
    options = {"log": log, "nats_url": nats_url, "topic_prefix": topic_prefix}
    with readable_errors():
        settings = read_settings({name: value for name, value in options.items() if value is not None})
        logs.configure("WARNING", settings.log_format)
        done = loop.run(_republish(settings, since_ms))
    if output is Format.TABLE:
        say(
            f"{done.sent} published, {done.present} were there, {done.refused} refused; "
            f"{done.read} of {done.total} retained records read"
        )
    else:
        emit_data(asdict(done), output)


@asynccontextmanager
async def opened_log(url: str, clock: Clock, **options: Any) -> AsyncIterator[Log]:
    """Open a log that workers may be using at the same time; `options`: of `open_log`. Raises LogUnavailable."""
    from streams.transport.app import open_log

    log = open_log(url, clock, **options)
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


async def _republish(settings: Settings, since_ms: int) -> Republished:
    from bridge.nats.connection import NatsConnection
    from bridge.nats.republish import Republisher
    from steps.secrets.redactor import TextRedactor

    clock = HostClock()
    connection = NatsConnection(
        settings.nats_url, clock, name="ceremony-republish", stream_replicas=settings.stream_replicas
    )
    await connection.start()
    try:
        try:
            async with clock.timeout(CONNECT_SECONDS):
                await connection.connected()
        except TimeoutError:
            raise CommandFailed(
                "nats_unavailable", f"{masked_address(settings.nats_url)}: {connection.state}", Exit.UNAVAILABLE
            ) from None
        async with opened_log(settings.log, clock) as log:
            lines = ProgressLines(clock)
            return await Republisher(
                log,
                connection,
                clock,
                prefix=settings.topic_prefix,
                redactor=TextRedactor(),
                since_ms=since_ms,
                on_progress=lines.show,
            ).run()
    finally:
        await connection.stop()


class ProgressLines:
    """Prints a line on stderr every two seconds."""

    def __init__(self, clock: HostClock) -> None:
        self._clock = clock
        self._printed = clock.monotonic()

    def show(self, progress: Republished) -> None:
        now = self._clock.monotonic()
        if now - self._printed >= BETWEEN_LINES_SECONDS:
            self._printed = now
            say(f"{progress.read} of {progress.total} records read, {progress.sent} published", err=True)


def _since(text: str | None) -> int:
    """Parse a time into milliseconds since the epoch; 0 without a limit. Raises CommandFailed."""
    if text is None:
        return 0
    return max(0, int(moment("since", text).timestamp() * 1000))

"""The JetStream streams the engine speaks of: CEREMONY, which it makes, and AGENT_RESPONSES, which others make."""

from __future__ import annotations

import nats.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

CEREMONY = "CEREMONY"
CEREMONY_SUBJECTS = "ceremony.>"
AGENT_RESPONSES = "AGENT_RESPONSES"
DUPLICATE_WINDOW_SECONDS = 600.0
MAX_AGE_SECONDS = 30 * 86400.0

log = structlog.get_logger(__name__)


def ceremony_stream() -> StreamConfig:
    """The stream CEREMONY as it is made where it is missing."""
    return StreamConfig(
        name=CEREMONY,
        description="What the ceremony engine tells the outside",
        subjects=[CEREMONY_SUBJECTS],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        duplicate_window=DUPLICATE_WINDOW_SECONDS,
        max_age=MAX_AGE_SECONDS,
    )


async def ensure_ceremony_stream(jetstream: JetStreamContext) -> str:
    """Make the stream CEREMONY if it is missing; returns `ok`, or what is wrong, for readiness.

    One that is there with other settings belongs to who made it: it is left alone, and reported when it does not take
    our subjects.
    """
    try:
        return _judge((await jetstream.stream_info(CEREMONY)).config)
    except NotFoundError:
        pass
    except (nats.errors.Error, ServiceUnavailableError, TimeoutError):
        return "JetStream does not answer"
    try:
        await jetstream.add_stream(ceremony_stream())
    except APIError as error:
        # Another stream holds subjects of ours, or there is no room.
        return f"stream {CEREMONY} cannot be made: {error.description}"
    except (nats.errors.Error, TimeoutError):
        return "JetStream does not answer"
    log.info("stream_made", stream=CEREMONY)
    return "ok"


async def stream_exists(jetstream: JetStreamContext, name: str) -> bool:
    """Whether a stream of this name is there. Raises nats.errors.Error when JetStream does not answer."""
    try:
        await jetstream.stream_info(name)
    except NotFoundError:
        return False
    return True


async def stored_message(jetstream: JetStreamContext, name: str, sequence: int) -> bytes | None:
    """The body of a message of a stream, or None where it has it no more. Raises nats.errors.Error, TimeoutError."""
    try:
        return (await jetstream.get_msg(name, sequence)).data
    except NotFoundError:
        return None


def _judge(config: StreamConfig) -> str:
    taken = config.subjects or []
    if not {CEREMONY_SUBJECTS, ">"} & set(taken):
        return f"stream {CEREMONY} takes {', '.join(taken) or 'no subjects'}, not {CEREMONY_SUBJECTS}: add it"
    if (config.duplicate_window or 0) < DUPLICATE_WINDOW_SECONDS:
        log.warning("stream_duplicate_window_short", stream=CEREMONY, seconds=config.duplicate_window)
    return "ok"

"""The JetStream streams: CEREMONY, which the engine makes, and AGENT_RESPONSES, which other services make."""

from __future__ import annotations

import nats.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from bridge.nats.connection import NatsConnection

CEREMONY = "CEREMONY"
CEREMONY_SUBJECTS = "ceremony.>"
AGENT_RESPONSES = "AGENT_RESPONSES"
DUPLICATE_WINDOW_SECONDS = 600.0
MAX_AGE_SECONDS = 30 * 86400.0
NO_ANSWER = "JetStream does not answer"
NO_ACK = "acknowledges nothing (no_ack), so no message is known to be stored: set it to false"

log = structlog.get_logger(__name__)


def ceremony_stream(replicas: int) -> StreamConfig:
    """The configuration with which a missing stream CEREMONY is made."""
    return StreamConfig(
        name=CEREMONY,
        description="Events and publications of the ceremony engine",
        subjects=[CEREMONY_SUBJECTS],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        duplicate_window=DUPLICATE_WINDOW_SECONDS,
        max_age=MAX_AGE_SECONDS,
        num_replicas=replicas,
    )


async def ensure_ceremony_stream(connection: NatsConnection) -> str:
    """Make the stream CEREMONY if it is missing; returns `ok` or a text for readiness.

    An existing stream with other settings is not changed. The text says so when it cannot take the engine's events.
    """
    jetstream = await connection.jetstream()
    try:
        return _state_of((await jetstream.stream_info(CEREMONY)).config)
    except NotFoundError:
        pass
    except APIError as error:
        return no_answer(error)
    except (nats.errors.Error, TimeoutError):
        return NO_ANSWER
    try:
        await jetstream.add_stream(ceremony_stream(connection.stream_replicas))
    except APIError as error:
        # Another stream takes these subjects, or there is no room.
        return f"stream {CEREMONY} cannot be made: {reason_of(error)}"
    except (nats.errors.Error, TimeoutError):
        return NO_ANSWER
    log.info("stream_made", stream=CEREMONY)
    return "ok"


async def replicas_warning(connection: NatsConnection) -> str:
    """Return how the replicas of an existing stream CEREMONY differ from the setting, with the remedy; else empty."""
    replicas = connection.stream_replicas
    jetstream = await connection.jetstream()
    try:
        found = (await jetstream.stream_info(CEREMONY)).config.num_replicas or 1
    except (nats.errors.Error, TimeoutError):
        return ""
    if found == replicas:
        return ""
    return (
        f"stream_replicas_differ: stream {CEREMONY} has {found} replicas, CEREMONY_STREAM_REPLICAS is {replicas};"
        f" nats stream edit {CEREMONY} --replicas={replicas}"
    )


async def stream_of(jetstream: JetStreamContext, subject: str) -> StreamConfig | None:
    """The stream that takes a subject; None where there is none. Raises nats.errors.Error, TimeoutError."""
    try:
        name = await jetstream.find_stream_name_by_subject(subject)
        return (await jetstream.stream_info(name)).config
    except NotFoundError:
        return None


async def stream_exists(jetstream: JetStreamContext, name: str) -> bool:
    """Return whether a stream of this name exists. Raises nats.errors.Error when JetStream does not answer."""
    try:
        await jetstream.stream_info(name)
    except NotFoundError:
        return False
    return True


async def stored_message(jetstream: JetStreamContext, name: str, sequence: int) -> bytes | None:
    """The body of a message; None if the stream no longer has it. Raises nats.errors.Error, TimeoutError."""
    try:
        return (await jetstream.get_msg(name, sequence)).data
    except NotFoundError:
        return None


def reason_of(error: APIError) -> str:
    """The server's own reason and number."""
    return f"{error.description} ({error.err_code})"


def no_answer(error: APIError) -> str:
    """The state for an error of JetStream itself, with the server's reason where it gave one."""
    return f"{NO_ANSWER}: {reason_of(error)}" if error.description else NO_ANSWER


def _state_of(config: StreamConfig) -> str:
    if config.sealed:
        return f"stream {CEREMONY} is sealed and takes no message ever again: move it away, the engine makes a new one"
    if config.no_ack:
        return f"stream {CEREMONY} {NO_ACK}"
    subjects = config.subjects or []
    if not {CEREMONY_SUBJECTS, ">"} & set(subjects):
        return f"stream {CEREMONY} takes {', '.join(subjects) or 'no subjects'}, not {CEREMONY_SUBJECTS}: add it"
    if (config.duplicate_window or 0) < DUPLICATE_WINDOW_SECONDS:
        log.warning("stream_duplicate_window_short", stream=CEREMONY, seconds=config.duplicate_window)
    return "ok"

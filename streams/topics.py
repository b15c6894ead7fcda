"""The names of the engine's topics, tables and record headers, in one place."""

from __future__ import annotations

from steps.registry import all_kinds

COMMANDS = "commands"
EVENTS = "events"
DEADLETTERS = "deadletters"
# Heartbeats of the workers, in one partition: the partitions each owns, and its address.
OWNERS = "owners"
# Actions of operators that are no commands: replays of dead letters.
AUDIT = "audit"
# Short names of the step kinds; each has the topic `steps.<kind>`.
STEP_KINDS = tuple(kind.name for kind in all_kinds().values())
# Table: instance id → instance.
CEREMONIES = "ceremonies"
# Table: content hash → definition text, in the partition of the ceremonies that use it.
DEFINITIONS = "definitions"


def prefixed(prefix: str, name: str) -> str:
    """Full name of a topic: `<prefix>.<name>`."""
    return f"{prefix}.{name}"


def step_topic(kind: str) -> str:
    """Topic (without prefix) of the requests of a step kind."""
    return f"steps.{kind}"


def changelog(table: str) -> str:
    """Topic (without prefix) of the changelog of a table."""
    return f"{table}.changelog"


# Record headers. Values are UTF-8.
CORRELATION_ID = "correlation-id"
EFFECT_ID = "effect-id"
# Fold number that made the effect.
FOLD = "fold"
COMMAND_OFFSET = "command-offset"
ORDINAL = "ordinal"
# NATS subject of an event.
SUBJECT = "subject"
ERROR_CODE = "error-code"
ERROR_MESSAGE = "error-message"
# Request id of the operator's replay that sent this record back from the dead letters.
REPLAY = "replay"
REPLAY_OF = "replay-of"
# `<topic or stream>/<partition>/<offset or sequence>` of a dead letter.
ORIGIN = "origin"
# Digits of a number that is read from a header or an id: more are not ours.
MOST_DIGITS = 18

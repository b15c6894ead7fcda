"""The names of the engine's topics, tables and record headers, in one place."""

from __future__ import annotations

from steps.registry import all_kinds

COMMANDS = "commands"
EVENTS = "events"
DEADLETTERS = "deadletters"
OWNERS = "owners"
"""Heartbeats of the workers, in one partition: who owns what, and where it answers."""
AUDIT = "audit"
"""What operators did beside the commands: dead letters sent back."""
STEP_KINDS = tuple(kind.name for kind in all_kinds().values())
"""Short names of the step kinds; each has the topic `steps.<kind>`."""
CEREMONIES = "ceremonies"
"""Table: instance id → instance."""
DEFINITIONS = "definitions"
"""Table: content hash → definition text, in the partition of the ceremonies that use it."""


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
FOLD = "fold"
"""Fold number that made the effect."""
COMMAND_OFFSET = "command-offset"
ORDINAL = "ordinal"
SUBJECT = "subject"
"""NATS subject of an event."""
ERROR_CODE = "error-code"
ERROR_MESSAGE = "error-message"
REPLAY = "replay"
"""Request id under which an operator sent this record back from the dead letters."""
ORIGIN = "origin"
"""`<topic or stream>/<partition>/<offset or sequence>` of a dead letter."""

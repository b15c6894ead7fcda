"""The whole pipeline on one page: topics, tables, and the agents that read them.

commands ─► ceremony ─┬─► steps.<kind> ─► one agent per kind ─► commands
                      ├─► events ─► NATS
                      └─► tables `ceremonies`, `definitions`
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ports.errors import CeremonyError
from ports.log import AgentSpec, Batch, PartitionView, RowUnwritable, TableSpec, TopicSpec
from steps.agent import AgentFunction
from steps.registry import all_kinds
from streams.topics import (
    AUDIT,
    CEREMONIES,
    COMMANDS,
    DEADLETTERS,
    DEFINITIONS,
    EVENTS,
    OWNERS,
    STEP_KINDS,
    changelog,
    prefixed,
    step_topic,
)
from tables.commands import UnreadableRow, encode_command
from tables.effects import FOLD
from tables.fold.set_aside import report, substituted
from tables.instance import Instance, decode_instance, encode_instance
from tables.invariants import Breach
from tables.rehydrate import from_changelog

DAY_MS = 24 * 60 * 60 * 1000
COMMANDS_KEPT_MS = 7 * DAY_MS
EVENTS_KEPT_MS = 30 * DAY_MS
# The engine needs only the last seconds; older heartbeats help people to reconstruct events.
OWNERS_KEPT_MS = 60 * 60 * 1000
# Breaches of an unreadable row that its report names, and bytes of a row that the report contains.
MOST_SHOWN, LARGEST_KEPT_BYTES = 10, 128 * 1024
# Name of the agent that folds commands.
CEREMONY = "ceremony"
# Largest batch of records of a partition.
FETCH_RECORDS = 500


def topics(prefix: str, partitions: int) -> list[TopicSpec]:
    """Return all topics with their retention (specification 21.2), except changelogs, which come with their agent."""

    def topic(name: str, retention_ms: int, *, queue: bool = False) -> TopicSpec:
        return TopicSpec(prefixed(prefix, name), partitions, retention_ms, queue=queue)

    return [
        topic(COMMANDS, COMMANDS_KEPT_MS, queue=True),
        *(topic(step_topic(kind), COMMANDS_KEPT_MS, queue=True) for kind in STEP_KINDS),
        topic(EVENTS, EVENTS_KEPT_MS),
        topic(DEADLETTERS, -1),
        TopicSpec(prefixed(prefix, OWNERS), 1, OWNERS_KEPT_MS),
        topic(AUDIT, -1),
    ]


def every_topic(prefix: str, partitions: int) -> list[TopicSpec]:
    """Return all topics, changelogs included, for a program that creates them without a worker."""
    tables = [TopicSpec(prefixed(prefix, changelog(table.name)), partitions, compacted=True) for table in TABLES]
    return [*topics(prefix, partitions), *tables]


def substitute(written: Instance | None, newest: Instance, error: RowUnwritable) -> tuple[Instance, bytes]:
    """Return the row of a ceremony whose newest row cannot be written, and the command that reports it.

    See specification 18.16.
    """
    row = substituted(written, newest)
    return row, encode_command(report(written, row, error.code, error.text))


def unreadable(key: bytes, value: bytes, error: CeremonyError) -> bytes:
    """Return the command that reports a row which cannot be read (specification 28.7)."""
    instance_id = key.decode(errors="replace")
    found = from_changelog(value, lambda _: Breach("definition_missing", "it was not looked for"), instance_id)
    broken = "; ".join(f"{breach.code}: {breach}" for breach in found.breaches[:MOST_SHOWN]) or error.code
    digest = hashlib.blake2b(value, digest_size=16).hexdigest()
    command = UnreadableRow(
        instance_id=instance_id,
        digest=digest,
        message=f"the row of {instance_id} cannot be read, and is set aside: {broken}",
        row=base64.b64encode(value).decode() if len(value) <= LARGEST_KEPT_BYTES else "",
    )
    return encode_command(command)


TABLES = (
    TableSpec(CEREMONIES, encode_instance, decode_instance, substitute, unreadable),
    TableSpec(DEFINITIONS, str.encode, bytes.decode),
)


def _reporting(replaced: Callable[[Instance, Instance], None]) -> tuple[TableSpec, ...]:
    """Return the tables with a report of each substitute."""

    def reported(written: Instance | None, newest: Instance, error: RowUnwritable) -> tuple[Instance, bytes]:
        row, report = substitute(written, newest, error)
        replaced(newest, row)
        return row, report

    ceremonies, *others = TABLES
    return (replace(ceremonies, substitute=reported), *others)


@dataclass(frozen=True, slots=True)
class PartitionListener:
    """Callbacks for changes of the ceremony agent's partitions."""

    taken: Callable[[PartitionView], Any]
    applied: Callable[[Batch], None]
    lost: Callable[[int], None]
    recovered: Callable[[int, float], None] | None = None
    saved: Callable[[int, int, float], None] | None = None
    substituted: Callable[[Instance, Instance], None] | None = None
    """Called with the newest row and the one in its place, where the newest cannot be written."""


def agents(
    prefix: str,
    ceremony: AgentFunction,
    owner: PartitionListener,
    steps: dict[str, AgentFunction],
    *,
    accepts_newer_fold: bool = False,
) -> list[tuple[AgentSpec, AgentFunction]]:
    """Return every agent with its attachment; `steps` maps the short name of a kind to its agent."""
    ceremony_spec = AgentSpec(
        CEREMONY,
        prefixed(prefix, COMMANDS),
        tables=TABLES if owner.substituted is None else _reporting(owner.substituted),
        batch=FETCH_RECORDS,
        fold=FOLD,
        accepts_newer_fold=accepts_newer_fold,
        on_taken=owner.taken,
        on_applied=owner.applied,
        on_lost=owner.lost,
        on_recovered=owner.recovered,
        on_saved=owner.saved,
    )
    attached = [(ceremony_spec, ceremony)]
    for kind in all_kinds().values():
        topic = prefixed(prefix, step_topic(kind.name))
        spec = AgentSpec(kind.name, topic, batch=FETCH_RECORDS, committed_only=kind.reaches_out)
        attached.append((spec, steps[kind.name]))
    return attached

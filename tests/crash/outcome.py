"""The outcome of a play: the parts that must be equal after every play, and the violations that must never occur.

Bytes are compared: rows in the changelog, events on CEREMONY, requests in the log. One part depends on the world:
`sequence` and `duplicate` in `ceremony.publish.completed` hold JetStream's answer, so they are checked against the
stream and left out of the comparison.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.nats.streams import CEREMONY, DUPLICATE_WINDOW_SECONDS
from steps.registry import all_kinds
from steps.secrets.redactor import TextRedactor
from streams.ceremony_agent import CeremonyAgent
from streams.log_clock import LogClock
from streams.topics import (
    COMMANDS,
    DEADLETTERS,
    EFFECT_ID,
    EVENTS,
    STEP_KINDS,
    SUBJECT,
    prefixed,
    step_topic,
)
from streams.topology import TABLES
from tests.contract.asyncapi import validate_sent
from tests.crash.lives import Play
from tests.crash.process import PREFIX, LoopClock, Surroundings
from tests.streams.fakes import MemoryBatch, MemoryView

PUBLISHED = "ceremony.plans.ready"
COMPLETED = "ceremony.publish.completed"
TOPICS = [prefixed(PREFIX, name) for name in (EVENTS, *map(step_topic, STEP_KINDS))]

# Headers of a message by name, as it was sent.
Sent = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Outcome:
    """The parts that are equal after every play."""

    rows: Mapping[tuple[str, int], Mapping[bytes, bytes]]
    """Encoded rows, by table and partition."""
    effects: Mapping[str, bytes]
    """Events and step requests, by effect id."""
    told: tuple[tuple[Sent, str, bytes], ...]
    """Headers, subject and bytes of the engine's messages on CEREMONY, in order."""
    published: tuple[tuple[str, tuple[Sent, bytes]], ...]
    """Id, headers and bytes of the publish step's messages."""
    tasks: tuple[str, ...]
    """Tasks that the Ray executor accepted, in order."""
    answers: tuple[tuple[str, Any], ...]
    """Codes of the replies to clients."""

    def differences(self, other: Outcome) -> list[str]:
        """One line for each part that differs from the other's."""
        return [
            f"{name} differ: {_shortly(getattr(self, name), getattr(other, name))}"
            for name in ("rows", "effects", "told", "published", "tasks", "answers")
            if getattr(self, name) != getattr(other, name)
        ]


def outcome(around: Surroundings) -> Outcome:
    messages = around.nats.streams[CEREMONY].messages
    return Outcome(
        rows={key: dict(rows) for key, rows in sorted(around.broker.rows.items()) if rows},
        effects={effect: value for effect, value, _ in _effects(around)},
        told=tuple(
            (m.headers, m.subject, _without_answer(m.data) if m.subject == COMPLETED else m.data)
            for m in messages
            if m.subject != PUBLISHED
        ),
        published=tuple(
            {m.message_id: (m.headers, m.data) for m in reversed(messages) if m.subject == PUBLISHED}.items()
        ),
        tasks=tuple(around.ray.tasks),
        answers=tuple(sorted((name, answer.code) for name, answer in around.answers.items())),
    )


def check_contract(around: Surroundings) -> None:
    """Raise MessageInvalid for a message that breaks `specs/asyncapi.yaml`; every other play sends the same bytes."""
    for message in around.nats.streams[CEREMONY].messages:
        validate_sent(message.subject, dict(message.headers), message.data)


def violations(play: Play) -> list[str]:
    """One line for each violation.

    A publish step's own message, unlike the engine's, may come again with the same id if a process was away for longer
    than JetStream's duplicate window, but only while the log does not have its acknowledgement.
    """
    around = play.around
    return [
        *play.problems,
        *_effects_twice_over(around),
        *_messages(around, forgotten=play.away > DUPLICATE_WINDOW_SECONDS and not play.recorded),
        *_dead_letters(around),
        *_not_as_folded(around),
    ]


def _effects(around: Surroundings) -> Iterator[tuple[str, bytes, str]]:
    for topic in TOPICS:
        for number in range(around.broker.partitions):
            for record in around.broker.records[topic, number]:
                headers = dict(record.headers)
                value = record.value or b""
                subject = headers.get(SUBJECT, b"").decode()
                yield headers[EFFECT_ID].decode(), _without_answer(value) if subject == COMPLETED else value, subject


def _effects_twice_over(around: Surroundings) -> Iterator[str]:
    """An effect id may come again, but never with other bytes."""
    seen: dict[str, bytes] = {}
    for effect, value, _ in _effects(around):
        if seen.setdefault(effect, value) != value:
            yield f"effect {effect} was sent with two contents"


def _messages(around: Surroundings, *, forgotten: bool) -> Iterator[str]:
    """CEREMONY has each id once, in the order of versions, and a step's own message before its announcement."""
    messages = around.nats.streams[CEREMONY].messages
    ids = Counter(m.message_id for m in messages)
    if "" in ids:
        yield f"{ids['']} messages without an id on {CEREMONY}"
        return
    for message_id, times in ids.items():
        if times > 1 and not (forgotten and message_id.startswith("publish/")):
            yield f"{message_id} is {times} times on {CEREMONY}"
    ours = [_order(m.message_id) for m in messages if m.subject != PUBLISHED]
    if ours != sorted(ours):
        yield f"out of order on {CEREMONY}: {ours}"
    published = {(m.message_id, m.sequence) for m in messages}
    for message in messages:
        if message.subject == COMPLETED:
            payload = json.loads(message.data)["payload"]
            told = (payload["idempotency_key"], payload["sequence"])
            if told not in published or payload["sequence"] > message.sequence:
                yield f"announced as published at {payload['sequence']}, where it is not"


def _order(effect: str) -> tuple[int, ...]:
    """Version and ordinal of `<instance>/<version>/<ordinal>@<fold>`."""
    _, version, ordinal = effect.split("@", maxsplit=1)[0].rsplit("/", 2)
    return int(version), int(ordinal)


def _dead_letters(around: Surroundings) -> Iterator[str]:
    for number in range(around.broker.partitions):
        for record in around.broker.records[prefixed(PREFIX, DEADLETTERS), number]:
            yield f"dead letter: {dict(record.headers)}"


def _not_as_folded(around: Surroundings) -> Iterator[str]:
    """The commands log is the truth: folded once from its start, it gives these rows and effects."""
    for number in range(around.broker.partitions):
        clock = LogClock(LoopClock(around.world))
        agent = CeremonyAgent(all_kinds(), PREFIX, clock, lambda _: None, TextRedactor())
        view = MemoryView(number)
        batch = MemoryBatch(view, around.broker.records[prefixed(PREFIX, COMMANDS), number])
        agent.fold(batch)
        for table in TABLES:
            folded = {key: table.encode(row) for key, row in view.rows(table.name).items()}
            if folded != around.broker.rows[table.name, number]:
                yield f"{table.name}[{number}] differs from the fold of its commands"
        wanted = {dict(sent.headers)[EFFECT_ID].decode() for sent in batch.sent}
        found = {effect for effect, _, _ in _effects(around)}
        if around.broker.partitions == 1 and wanted != found:
            yield f"effects differ from the fold of the commands: {sorted(wanted ^ found)}"


def _without_answer(envelope: bytes) -> bytes:
    told = json.loads(envelope)
    for name in ("sequence", "duplicate"):
        del told["payload"][name]
    return json.dumps(told, sort_keys=True).encode()


def _shortly(one: Any, other: Any) -> str:
    if isinstance(one, Mapping):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return "; ".join(f"{key}: {one.get(key)!r:.600} / {other.get(key)!r:.600}" for key in keys[:3])
    for a, b in zip(one, other, strict=False):
        if a != b:
            return f"{a!r:.600} / {b!r:.600}"
    return f"{len(one)} / {len(other)}"

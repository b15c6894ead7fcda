"""Folds the commands of an archive with the ceremony agent of today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ports.log import Record
from steps.registry import all_kinds
from steps.secrets.redactor import TextRedactor
from streams.ceremony_agent import CeremonyAgent
from streams.log_clock import LogClock
from streams.topics import CEREMONIES, COMMANDS, DEFINITIONS
from tables.instance import encode_instance
from tests.releases.archive import PREFIX, ArchivedLog
from tests.streams.fakes import HandClock, MemoryBatch, MemoryView


class SentEffect(NamedTuple):
    """A record that the agent sent, as far as the log does not add to it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass
class Folded:
    """The rows and effects that today's agent makes of the commands of a log, all partitions together."""

    ceremonies: dict[bytes, bytes] = field(default_factory=dict)
    """Encoded rows."""
    history: dict[bytes, list[bytes]] = field(default_factory=dict)
    """Every version of each row, encoded, in order."""
    definitions: dict[bytes, bytes] = field(default_factory=dict)
    sent: list[SentEffect] = field(default_factory=list)
    dead: list[tuple[int, int, str]] = field(default_factory=list)
    """Partition, offset and code of each command that was set aside."""

    def of(self, topic: str) -> list[SentEffect]:
        """The records sent to a topic (name without prefix), by partition, in order."""
        found = [one for one in self.sent if one.topic == f"{PREFIX}.{topic}"]
        return sorted(found, key=lambda one: one.partition)


def fold(log: ArchivedLog) -> Folded:
    """Fold every command of the archive, one at a time."""
    folded = Folded()
    records = [Record(*one) for one in log.records(COMMANDS)]
    for number in sorted({record.partition for record in records}):
        _fold_partition(folded, number, [record for record in records if record.partition == number])
    return folded


def _fold_partition(folded: Folded, number: int, records: Sequence[Record]) -> None:
    view = MemoryView(number)
    agent = CeremonyAgent(all_kinds(), PREFIX, LogClock(HandClock()), lambda _: None, TextRedactor())
    for record in records:
        batch = MemoryBatch(view, [record])
        agent.fold(batch)
        folded.sent += [SentEffect(one.topic, number, one.key, one.value, tuple(one.headers)) for one in batch.sent]
        folded.dead += [(number, one.offset, code) for one, code, _ in batch.dead]
        for key, row in batch.rows_changed(CEREMONIES).items():
            folded.history.setdefault(key, []).append(b"" if row is None else encode_instance(row))
    folded.ceremonies |= {key: encode_instance(row) for key, row in view.rows(CEREMONIES).items()}
    folded.definitions |= {key: text.encode() for key, text in view.rows(DEFINITIONS).items()}

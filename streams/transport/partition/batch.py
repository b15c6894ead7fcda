"""A batch in an agent's hands: its records, and the changes that take effect once the agent asks for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from ports.errors import CeremonyError
from ports.log import LARGEST_RECORD_BYTES, AgentSpec, Header, Record, RecordTooLarge
from streams.transport.partition.backend import NewRecord
from streams.transport.partition.dead_letters import DeadLetterTopic

# Bytes counted for a record beside its key, value and headers.
_OVERHEAD_BYTES = 128
_SURELY_SMALL_BYTES = LARGEST_RECORD_BYTES // 2
_MISSING = object()
# Makes a named tuple without calling the Python function of its class.
_new = tuple.__new__


class AgentGone(CeremonyError):
    """The agent left a batch without failing on it (restarted, cancelled, stopped); the batch is delivered again."""

    def __init__(self, message: str) -> None:
        super().__init__("agent_gone", message)


def record_size(topic: str, key: bytes | None, value: bytes, headers: Sequence[Header]) -> int:
    """Return the bytes that a record adds to a produce batch, rounded up. Raises RecordTooLarge."""
    size = len(value) + _OVERHEAD_BYTES
    if key is not None:
        size += len(key)
    for name, content in headers:
        size += len(name) + len(content) + 8
    if size > LARGEST_RECORD_BYTES:
        raise RecordTooLarge(f"{size} bytes for {topic}, at most {LARGEST_RECORD_BYTES}")
    return size


class BatchOwner(Protocol):
    """The partition of a batch; `Part` implements it."""

    spec: AgentSpec
    number: int
    dead_letters: DeadLetterTopic

    def rows(self, table: str) -> Mapping[bytes, Any]:
        """Return the present rows of a table. Raises KeyError for a table that the agent does not have."""

    def hold(self, record: Record) -> HeldRecord:
        """Keep the committed offset at or below this record until its release."""

    def release(self, offset: int) -> None: ...

    def send_soon(self, topic: str, partition: int, record: NewRecord) -> None: ...

    def count_dead_letter(self, code: str) -> None: ...


class PartBatch:
    """Implements `Batch`; keeps rows and effects until the part takes the batch back."""

    __slots__ = ("_part", "_records", "_rows", "bytes", "finished", "held", "note", "outputs", "partition")

    def __init__(self, part: BatchOwner, records: Sequence[Record]) -> None:
        self._part = part
        self._records = records
        self._rows: dict[str, dict[bytes, Any]] = {}
        self.partition = part.number
        self.note: Any = None
        self.outputs: dict[tuple[str, int], list[NewRecord]] = {}
        self.held: list[int] = []
        self.bytes = 0
        self.finished: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def last(self) -> Record:
        return self._records[-1]

    @property
    def rows(self) -> dict[str, dict[bytes, Any]]:
        """Changed rows by table; None deletes."""
        return self._rows

    def get(self, table: str, key: bytes) -> Any | None:
        changed = self._rows.get(table)
        if changed is not None:
            row = changed.get(key, _MISSING)
            if row is not _MISSING:
                return row
        return self._part.rows(table).get(key)

    def put(self, table: str, key: bytes, row: Any | None) -> None:
        changed = self._rows.get(table)
        if changed is None:
            self._part.rows(table)  # refuses an unknown table here, not at the checkpoint
            changed = self._rows[table] = {}
        changed[key] = row

    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        if headers or len(value) > _SURELY_SMALL_BYTES:
            self.bytes += record_size(topic, key, value, headers)
        else:
            self.bytes += len(value) + _OVERHEAD_BYTES
        target = (topic, self.partition if partition is None else partition)
        records = self.outputs.get(target)
        if records is None:
            records = self.outputs[target] = []
        records.append(_new(NewRecord, (key, value, headers)))

    def hold(self, record: Record) -> HeldRecord:
        held = self._part.hold(record)
        self.held.append(record.offset)
        return held

    def dead_letter(self, record: Record, code: str, message: str) -> None:
        letters = self._part.dead_letters
        if (letter := letters.letter(record, code, message)) is not None:
            self.send(letters.topic, letter.key, letter.value, letter.headers, letters.partition(record.partition))
        self._part.count_dead_letter(code)

    def finish(self, failure: BaseException | None = None) -> None:
        """Return the batch to its part; without a failure its changes become visible."""
        if not self.finished.done():
            self.finished.set_result(failure)


class HeldRecord:
    """Implements `Held`."""

    __slots__ = ("_part", "record")

    def __init__(self, part: BatchOwner, record: Record) -> None:
        self._part = part
        self.record = record

    def send(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[Header] = (), partition: int | None = None
    ) -> None:
        record_size(topic, key, value, headers)
        self._part.send_soon(
            topic, self.record.partition if partition is None else partition, NewRecord(key, value, headers)
        )

    def release(self) -> None:
        self._part.release(self.record.offset)

"""Turns records of the changelog into documents: the newest row of each instance, redacted, and rows that leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from bridge.projection.definitions import PinnedDefinitions
from bridge.projection.store import Gone
from ports.clock import Clock
from ports.log import Record
from tables.definition import Definition
from tables.errors import Undecodable
from tables.instance import Instance, decode_instance
from tables.read_model import Document, Redact, document_of
from tables.timers import iso

# Keys of the changelog that begin so are the engine's own: its position.
_OWN_KEY = b"\0"
# Rows that are made into documents between two turns of the loop, in bytes.
_BYTES_PER_TURN = 64 * 1024
# One write to a store takes rows up to these bounds; a single row may exceed the bytes.
MOST_ROWS = 500
MOST_BYTES = 1024 * 1024

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Changes:
    """What one write brings into a store."""

    documents: list[Document] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)
    definitions: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name and text by hash, of the documents."""


class Documents:
    """Makes documents of records, with the redaction of their pinned definitions."""

    def __init__(
        self, definitions: PinnedDefinitions, redact_by: Callable[[Definition | None], Redact], clock: Clock
    ) -> None:
        self._definitions = definitions
        self._redact_by = redact_by
        self._clock = clock

    async def of(self, records: Sequence[Record]) -> Changes:
        """Return the changes of records of one partition. Raises LogUnavailable, FormatTooNew."""
        changes = Changes()
        size = 0
        for key, record in newest(records).items():
            size += len(record.value or b"")
            if size > _BYTES_PER_TURN:
                size = 0
                await self._clock.sleep(0)
            await self._add(changes, key, record)
        return changes

    async def _add(self, changes: Changes, key: str, record: Record) -> None:
        if record.value is None:
            changes.gone.append(Gone(key, iso(record.timestamp)))  # whatever is older than the tombstone
            return
        # A row that cannot be read must not stop the partition, and the store keeps what it has.
        try:
            row = decode_instance(record.value)
            if row.expired:
                changes.gone.append(Gone(key, iso(row.created_at), row.version))
            else:
                changes.documents.append(await self.document(row, record.partition, changes.definitions))
        except Undecodable as error:
            log.error("row_not_projected", partition=record.partition, offset=record.offset, code=error.code)
        except msgspec.ValidationError:  # redaction has changed more than texts
            log.error("row_not_projected", partition=record.partition, offset=record.offset, code="redacted_wrongly")

    async def document(self, row: Instance, partition: int, definitions: dict[str, tuple[str, str]]) -> Document:
        """Return the document of a row; its definition is put into `definitions`."""
        definition = await self._definitions.of(row.definition_hash, partition)
        if definition is not None:
            definitions[definition.hash] = (definition.name, definition.text)
        return document_of(row, self._redact_by(definition))


def newest(records: Sequence[Record]) -> Mapping[str, Record]:
    """Return the newest record of each instance, in the order of their offsets."""
    found: dict[bytes, Record] = {}
    for record in records:
        if record.key is not None and not record.key.startswith(_OWN_KEY):
            found.pop(record.key, None)
            found[record.key] = record
    return {key.decode(errors="replace"): record for key, record in found.items()}


def portions(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Cut a batch into portions of bounded size, in order."""
    first = size = 0
    for number, record in enumerate(records):
        length = len(record.value or b"")
        if number > first and (size + length > MOST_BYTES or number - first >= MOST_ROWS):
            yield records[first:number]
            first, size = number, 0
        size += length
    if first < len(records):
        yield records[first:]

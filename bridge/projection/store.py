"""A read model's store as a projector uses it: atomic writes, each with the position that it brings the store to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from ports.errors import CeremonyError
from tables.read_model import Document

_encode = msgspec.json.Encoder().encode
# Sorts above every creation time, so that a removal with it removes any row.
_ANY_CREATION = "9999"
_ANY_VERSION = 2**53


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """The position of a partition of the followed topic in a store. Its text is compared as a whole by each write."""

    next: int
    """Offset of the first record that the store does not contain."""
    rebuild: str = ""
    """Id of the rebuild that is under way; `next` then counts from its begin."""
    end: int = 0
    """The log end when the rebuild began."""
    since: int = 0
    """Records before this offset were gone from the log before the store had them all; 0 where none were."""

    @property
    def text(self) -> str:
        return _encode(self).decode()

    @classmethod
    def read(cls, text: str) -> Place | None:
        """Return the place in a text; None for no text of ours."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError:
            return None


class Gone(NamedTuple):
    """A row that leaves the store, unless the store holds a newer one."""

    instance_id: str
    created_at: str = _ANY_CREATION
    """ISO-8601: of another life of the same instance id, only an older one is removed."""
    version: int = _ANY_VERSION


@dataclass(frozen=True, slots=True)
class Write:
    """One atomic change of a store: rows of one partition, and the place that it then has."""

    partition: int
    expected: str
    """Text of the place that the store must have, empty for none; else nothing is changed."""
    place: str
    documents: Sequence[Document] = ()
    """Each is written unless the store holds a newer version."""
    gone: Sequence[Gone] = ()
    definitions: Mapping[str, tuple[str, str]] | None = None
    """Name and text by hash; stored unless they are there."""


class StoredRow(NamedTuple):
    """The key of a row in a store, for comparing."""

    instance_id: str
    version: int
    document: bytes | Mapping[str, str | int] | None
    """As `valkey_json` or `neo4j_properties` give it; None where it cannot be read."""


class StoreError(CeremonyError):
    """The store cannot be reached, refuses, or did not answer in time; the call may be repeated."""

    def __init__(self, store: str, reason: str) -> None:
        super().__init__(f"{store}_unavailable", reason, place=store)
        self.store = store
        self.reason = reason
        """One line for people, without a password and without a library's text."""


class PlacedStore(Protocol):
    """A store that has a place for each partition. Every call raises StoreError; deadlines are the caller's."""

    name: str
    """`valkey` or `neo4j` for rows, `valkey_history` for histories."""

    async def open(self) -> None:
        """Prepare an empty store; harmless when it is prepared already."""

    async def places(self) -> Mapping[int, str]:
        """Texts of the stored places, by partition."""

    async def set_places(self, places: Mapping[int, str]) -> None:
        """Set places whatever they are, for a rebuild."""

    async def close(self) -> None: ...


class Store(PlacedStore, Protocol):
    """A store of rows."""

    async def write(self, write: Write) -> str:
        """Apply a write, and return its place; where the stored place is another one, return that, empty for none."""

    def instance_ids(self) -> AsyncIterator[Sequence[str]]:
        """Iterate over the ids of all rows, in pages; one that is written meanwhile may be missing or come twice."""

    async def rows(self, instance_ids: Collection[str]) -> Sequence[StoredRow]:
        """Return those of the rows that exist."""


class SourceStore(Store, Protocol):
    """A store that ceremonies can be restored from."""

    async def definitions(self, hashes: Collection[str]) -> Mapping[str, str]:
        """Return the texts of those definitions that are stored, by hash."""

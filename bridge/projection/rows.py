"""The read model of rows: the newest row of each instance, from the changelog of `ceremonies`, in one store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence

from bridge.projection.documents import Changes, Documents
from bridge.projection.dual_writes import DualWrites
from bridge.projection.model import Move, ReadModel
from bridge.projection.store import Gone, Store, StoreError, Write
from ports.log import Record
from streams import topics


class RowModel(ReadModel[Changes]):
    """The rows of one store. Writes that keep failing are announced, and kept in the ledger."""

    def __init__(self, store: Store, documents: Documents, dual_writes: DualWrites, *, prefix: str) -> None:
        changelog = topics.prefixed(prefix, topics.changelog(topics.CEREMONIES))
        super().__init__(store, changelog, topics.prefixed(prefix, f"projector.{store.name}"))
        self._rows = store
        self._documents = documents
        self._dual_writes = dual_writes
        self._defined: set[str] = set()
        """Hashes of definitions that the store has."""

    async def changes(self, records: Sequence[Record]) -> Changes:
        return await self._documents.of(records)

    def nothing(self) -> Changes:
        return Changes()

    async def write(self, move: Move, changes: Changes) -> str:
        missing = {digest: text for digest, text in changes.definitions.items() if digest not in self._defined}
        place = move.place.text
        write = Write(move.partition, move.expected, place, changes.documents, changes.gone, missing)
        found = await self._rows.write(write)
        if found == place:
            self._defined |= missing.keys()
        return found

    def count(self, changes: Changes) -> int:
        return len(changes.documents) + len(changes.gone)

    async def failing(self, changes: Changes, error: StoreError, attempts: int) -> None:
        await self._dual_writes.failed(changes.documents, error, attempts)

    async def written(self, changes: Changes) -> None:
        await self._dual_writes.done(self.seen(changes))

    async def up_to_date(self, partitions: Collection[int]) -> None:
        await self._dual_writes.done_up_to_date(partitions)

    def moved(self) -> None:
        self._defined.clear()

    def taken(self) -> None:
        self._dual_writes.forget()

    async def close(self) -> None:
        await self._dual_writes.close()

    def seen(self, changes: Changes) -> Iterable[str]:
        return (document.instance_id for document in changes.documents)

    def stored_ids(self) -> AsyncIterator[Sequence[str]]:
        return self._rows.instance_ids()

    def removal(self, ids: Collection[str]) -> Changes:
        return Changes(gone=[Gone(instance_id) for instance_id in ids])

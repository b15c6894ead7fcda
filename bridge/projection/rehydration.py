"""Restores ceremonies from the read models into a log that has lost them, as Restore commands.

Of the forms that the stores have of a ceremony, the newest sound one is restored, never over a newer row of the table.
The fold judges each Restore beforehand too, so the report says what it will do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from bridge.projection.store import SourceStore, StoredRow
from ports.clock import Clock
from ports.log import Log
from streams import topics
from tables.commands import Origin, PutDefinition, Restore, encode_command
from tables.definition import Definition
from tables.definitions.loader import content_hash
from tables.fold.decide import decide
from tables.fold.restore import is_newer, to_restore
from tables.instance import Instance, encode_instance
from tables.invariants import Breach
from tables.kinds import Kinds
from tables.lossy import still_read
from tables.rehydrate import Pinned, Rehydrated, from_neo4j, from_valkey, hash_in_neo4j, hash_in_valkey, pinned_in

# Ceremonies that are read, judged and sent together.
PAGE = 200
# Ceremonies that are judged between two turns of the loop.
PER_TURN = 10


class RestoreVerdict(StrEnum):
    SOUND = "sound"
    """Restored as it was."""
    LOSSY = "lossy"
    """Restored, but later steps or guards would read redacted texts; PAUSED unless it has ended."""
    BROKEN = "broken"
    """No store has a sound form of it."""
    SKIPPED = "skipped"
    """The table has it, and is as new."""


class Restoration(NamedTuple):
    """The outcome of one ceremony."""

    instance_id: str
    verdict: RestoreVerdict
    source: str
    """The store it comes from."""
    version: int
    """Of the form in that store; 0 where it cannot be read."""
    reasons: tuple[tuple[str, str], ...] = ()
    """Code and words of each."""


@dataclass(slots=True)
class RehydrationProgress:
    read: int = 0
    """Ceremonies that were judged."""
    total: int = 0
    restored: int = 0
    """Those of them that were sent, or would be."""


class _TableRow(msgspec.Struct):
    """The part of a table's row that decides which one is newer."""

    created_at: int
    version: int


@dataclass(slots=True)
class _Forms:
    """The stored forms of one ceremony, by store."""

    raw: dict[str, StoredRow] = field(default_factory=dict)

    def rehydrated(self, instance_id: str, pinned: Pinned) -> dict[str, Rehydrated]:
        return {store: _rehydrated(row, instance_id, pinned) for store, row in self.raw.items()}


_table_row = msgspec.json.Decoder(_TableRow).decode


class Rehydration:
    """Restores the ceremonies of some stores into one log. Methods raise StoreError, LogUnavailable, LogFailed."""

    def __init__(
        self,
        log: Log,
        stores: Sequence[SourceStore],
        clock: Clock,
        kinds: Kinds,
        *,
        prefix: str,
        partitions: int,
        dry_run: bool = False,
        on_progress: Callable[[RehydrationProgress], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._stores = stores
        self._clock = clock
        self._kinds = kinds
        self._prefix = prefix
        self._partitions = partitions
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._texts: dict[str, str] = {}
        """Texts of definitions by hash."""
        self._put: set[tuple[int, str]] = set()
        """Partition and hash of the definitions that were sent."""

    async def run(self) -> AsyncIterator[Sequence[Restoration]]:
        """Judge and restore every ceremony of the stores; yields the outcomes page by page."""
        table = await self._table()
        ids = sorted({i for store in self._stores async for page in store.instance_ids() for i in page})
        progress = RehydrationProgress(total=len(ids))
        for begin in range(0, len(ids), PAGE):
            page = ids[begin : begin + PAGE]
            outcomes = await self._page(page, table)
            progress.read += len(page)
            progress.restored += sum(one.verdict in (RestoreVerdict.SOUND, RestoreVerdict.LOSSY) for one in outcomes)
            self._on_progress(progress)
            yield outcomes

    # -- reading

    async def _table(self) -> Mapping[str, _TableRow]:
        """Return the rows that the log has; one that cannot be read is none, for the engine sets it aside."""
        topic = topics.prefixed(self._prefix, topics.changelog(topics.CEREMONIES))
        found: dict[str, _TableRow] = {}
        if not await self._log.has(topic):
            return found  # a report on a log that is still to be made
        for partition, (start, end) in enumerate(await self._log.ends(topic)):
            async for records in self._log.read(topic, partition, start, end):
                for record in records:
                    key = (record.key or b"\0").decode(errors="replace")
                    found.pop(key, None)
                    if record.value is not None and not key.startswith("\0"):
                        try:
                            found[key] = _table_row(record.value)
                        except msgspec.DecodeError:
                            continue
                await self._clock.sleep(0)
        return found

    async def _page(self, ids: Sequence[str], table: Mapping[str, _TableRow]) -> list[Restoration]:
        forms = {instance_id: _Forms() for instance_id in ids}
        for store in self._stores:
            for row in await store.rows(ids):
                forms[row.instance_id].raw[store.name] = row
        await self._read_definitions(forms.values())
        pinned = pinned_in(self._texts.get, self._kinds)
        outcomes: list[Restoration] = []
        sending: list[tuple[Instance, Restore]] = []
        for number, (instance_id, stored) in enumerate(forms.items(), start=1):
            if stored.raw:  # else it has left the stores meanwhile
                outcome, restore = self._judge(instance_id, stored.rehydrated(instance_id, pinned), pinned, table)
                outcomes.append(outcome)
                if restore is not None:
                    sending.append(restore)
            if number % PER_TURN == 0:
                await self._clock.sleep(0)
        if not self._dry_run:
            await self._send(sending)
        return outcomes

    async def _read_definitions(self, forms: Iterable[_Forms]) -> None:
        """Read the definitions that are not known yet; a text with another hash is looked for in the next store."""
        wanted = {_hash_of(row) for stored in forms for row in stored.raw.values()} - {""}
        for store in self._stores:
            missing = [h for h in sorted(wanted) if h not in self._texts or content_hash(self._texts[h]) != h]
            if missing:
                self._texts |= await store.definitions(missing)

    # -- judging

    def _judge(
        self, instance_id: str, found: Mapping[str, Rehydrated], pinned: Pinned, table: Mapping[str, _TableRow]
    ) -> tuple[Restoration, tuple[Instance, Restore] | None]:
        """Return the outcome of one ceremony, and the row with its Restore where it is to be sent."""
        sound = [(store, one.instance, one) for store, one in found.items() if one.instance is not None]
        broken = tuple((breach.code, f"{store}: {breach}") for store, one in found.items() for breach in one.breaches)
        if not sound:
            store, one = max(found.items(), key=lambda item: item[1].version)
            return Restoration(instance_id, RestoreVerdict.BROKEN, store, one.version, broken), None
        store, row, newest = max(sound, key=lambda one: (one[1].created_at, one[1].version))
        seen = max(one.version for one in found.values())
        there = table.get(instance_id)
        if there is not None and is_newer(there.created_at, there.version, row, seen):
            reason = ("newer_row", f"the table has version {there.version}")
            return Restoration(instance_id, RestoreVerdict.SKIPPED, store, row.version, (reason,)), None
        definition = pinned(row.definition_hash)
        lost = [] if isinstance(definition, Breach) else still_read(row, definition, self._kinds, newest.redacted)
        restore = _restore_of(row, seen, lost)
        refused = self._refused(restore, None if isinstance(definition, Breach) else definition)
        if refused:
            return Restoration(instance_id, RestoreVerdict.BROKEN, store, row.version, (*broken, refused)), None
        verdict = RestoreVerdict.LOSSY if lost else RestoreVerdict.SOUND
        reasons = (*broken, *(("text_redacted", words) for words in lost))
        return Restoration(instance_id, verdict, store, row.version, reasons), (row, restore)

    def _refused(self, restore: Restore, definition: Definition | None) -> tuple[str, str] | None:
        """Return why the fold would refuse the command, or why it cannot be written."""
        now = int(self._clock.wall() * 1000)
        try:
            decision = decide(None, restore, Origin(0, 0, now), definition, self._kinds)
        except Exception as error:  # noqa: BLE001 - a bug of the fold, on a row that no other check has found broken
            return "fold_failed", f"the fold fails on it ({type(error).__name__})"
        return (decision.note, "the fold refuses it") if decision.row is None else None

    # -- sending

    async def _send(self, sending: Sequence[tuple[Instance, Restore]]) -> None:
        """Send the definitions that the rows are pinned to, then the rows; each is durable when this returns."""
        wanted = {(self._partition(row.instance_id), row.definition_hash) for row, _ in sending if not row.expired}
        await self._together(self._put_definition(*one) for one in sorted(wanted - self._put))
        self._put |= wanted
        await self._together(self._append(row, restore) for row, restore in sending)

    async def _together(self, appends: Iterable[Coroutine[Any, Any, None]]) -> None:
        tasks = [self._clock.spawn(append, name="rehydrate") for append in appends]
        await asyncio.gather(*tasks)

    async def _put_definition(self, partition: int, digest: str) -> None:
        command = PutDefinition(hash=digest, text=self._texts[digest])
        await self._log.append(self._commands, partition, digest.encode(), encode_command(command))

    async def _append(self, row: Instance, restore: Restore) -> None:
        headers = [(topics.CORRELATION_ID, row.correlation_id.encode())]
        value = encode_command(restore)
        await self._log.append(
            self._commands, self._partition(row.instance_id), row.instance_id.encode(), value, headers
        )

    @property
    def _commands(self) -> str:
        return topics.prefixed(self._prefix, topics.COMMANDS)

    def _partition(self, instance_id: str) -> int:
        return self._log.partition_of(instance_id.encode(), self._partitions)


def _rehydrated(row: StoredRow, instance_id: str, pinned: Pinned) -> Rehydrated:
    if isinstance(row.document, Mapping):
        return from_neo4j(row.document, pinned, instance_id)
    return from_valkey(row.document or b"", pinned, instance_id)


def _hash_of(row: StoredRow) -> str:
    if isinstance(row.document, Mapping):
        return hash_in_neo4j(row.document)
    return hash_in_valkey(row.document or b"")


def _restore_of(row: Instance, seen: int, lost: Sequence[str]) -> Restore:
    raised = to_restore(row, seen, "; ".join(lost))
    body = msgspec.json.decode(encode_instance(raised), type=dict)
    return Restore(instance_id=row.instance_id, instance=body, seen_version=seen)

"""A write that keeps failing is announced once, and its entry in the ledger is completed when the store is back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.clock import HostClock
from bridge.projection.documents import Changes
from bridge.projection.dual_writes import DualWrites, FailingWrite
from bridge.projection.projector import Projector
from bridge.projection.store import Store, StoredRow, StoreError, Write
from bridge.valkey.ledger import ValkeyLedger
from ports.log import Header, LogUnavailable, Record, TopicSpec
from streams.transport.sqlite.log import SqliteLog
from tests.bridge.projection.test_projector import PARTITIONS, Changelog, ids, until, until_versions
from tests.bridge.projection.world import TOPIC, ValkeySite, document, row, row_projector
from tests.contract.asyncapi import validate_message
from tests.services import ValkeyServer

EVENTS = "t.events"
HOUR = 3600.0


class RushedClock(HostClock):
    """A clock on which sleeping takes no time."""

    up = 0.0

    def monotonic(self) -> float:
        return self.up

    async def sleep(self, seconds: float) -> None:
        self.up += seconds
        await asyncio.sleep(0.0005)  # leaves the processor to others


class Interrupted:
    """A store that can be away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name = store.name
        self.is_away = False

    def _check(self) -> None:
        if self.is_away:
            raise StoreError(self.name, "no connection to it")

    async def open(self) -> None:
        self._check()
        await self._store.open()

    async def places(self) -> Mapping[int, str]:
        self._check()
        return await self._store.places()

    async def write(self, write: Write) -> str:
        self._check()
        return await self._store.write(write)

    async def set_places(self, places: Mapping[int, str]) -> None:
        await self._store.set_places(places)

    def instance_ids(self) -> AsyncIterator[Sequence[str]]:
        return self._store.instance_ids()

    async def rows(self, instance_ids: Collection[str]) -> Sequence[StoredRow]:
        return await self._store.rows(instance_ids)

    async def close(self) -> None:
        await self._store.close()


class AwayLog:
    """The part of a log that announcements use, which can be away."""

    def __init__(self) -> None:
        self.is_away = True
        self.asked: list[str] = []

    def partition_of(self, key: bytes, partitions: int) -> int:
        return len(key) % partitions

    async def append(self, topic: str, partition: int, key: bytes, value: bytes, headers: Sequence[Header]) -> None:
        self.asked.append(key.decode())
        if self.is_away:
            raise LogUnavailable("log_unavailable", "not acknowledged in time")


@pytest.fixture
async def changelog(tmp_path: Path) -> AsyncIterator[Changelog]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    changelogs = [TopicSpec(name, PARTITIONS, compacted=True) for name in (TOPIC, "t.definitions.changelog")]
    await log.create([*changelogs, TopicSpec(EVENTS, PARTITIONS)])
    yield Changelog(log)
    await log.stop()


@pytest.fixture
def site(valkey: ValkeyServer) -> Iterator[ValkeySite]:
    site = ValkeySite(valkey)
    site.wipe()
    yield site
    site.close()


@asynccontextmanager
async def projecting(
    changelog: Changelog, store: Store, site: ValkeySite, clock: HostClock
) -> AsyncIterator[Projector[Changes]]:
    ledger = ValkeyLedger(site.address)
    projector = row_projector(changelog.log, store, clock, prefix="t", partitions=PARTITIONS, ledger=ledger)
    await projector.start()
    try:
        yield projector
    finally:
        await projector.stop()


async def events(log: SqliteLog) -> list[Record]:
    found: list[Record] = []
    for partition, (start, end) in enumerate(await log.ends(EVENTS)):
        async for records in log.read(EVENTS, partition, start, end):
            found += records
    return found


def entries(site: ValkeySite) -> dict[str, dict[str, Any]]:
    found = {}
    for key in site._keys("ceremony:dualwrite:save_instance:*"):
        text: Any = site.client.get(key)
        found[key.removeprefix("ceremony:dualwrite:")] = json.loads(text)
    return found


def test_a_write_is_announced_after_three_failures_over_ten_seconds() -> None:
    # specification 25.11
    clock = RushedClock()
    trouble = FailingWrite(clock)
    assert [trouble.failed(), trouble.failed(), trouble.failed()] == [False, False, False]
    clock.up = 9.9
    assert not trouble.failed()
    clock.up = 10.0
    assert trouble.failed()
    seldom = FailingWrite(clock)
    assert not seldom.failed()
    clock.up = 100.0
    assert not seldom.failed()
    assert seldom.failed()


async def test_an_hour_without_the_store_under_load_is_one_event_and_one_entry_for_each_instance(
    site: ValkeySite, changelog: Changelog
) -> None:
    # specification 25.11, 25.12
    clock = RushedClock()
    store = Interrupted(site.store())
    await changelog.put(*(row(i) for i in ids(6)))
    async with projecting(changelog, store, site, clock):
        await hour_of_outage(site, changelog, clock, store)


async def hour_of_outage(site: ValkeySite, changelog: Changelog, clock: RushedClock, store: Interrupted) -> None:
    await until_versions(site, dict.fromkeys(ids(6), 1))
    store.is_away = True
    begun, version = clock.up, 1
    while clock.up < begun + HOUR:
        version += 1
        await changelog.put(*(row(i, version) for i in ids(6)))
        await asyncio.sleep(0.01)
    await until(lambda: len(entries(site)) == 6)
    found = await events(changelog.log)
    assert sorted(str(record.key, "ascii") for record in found if record.key) == ids(6)
    event = json.loads(found[0].value or b"")
    validate_message("ceremony.dualwrite.reconcile.requested", event)
    instance_id, operation_id = str(found[0].key, "ascii") if found[0].key else "", event["payload"]["operation_id"]
    assert operation_id.startswith(f"save_instance:{instance_id}:")
    assert event["idempotency_key"] == f"{operation_id}:valkey"
    assert event["event_type"] == "ceremony.dualwrite.reconcile.requested"
    assert event["payload"] == {
        "operation_id": operation_id,
        "operation_type": "save_instance",
        "operation_data": {
            "instance_id": instance_id,
            "correlation_id": "corr-1",
            "definition_name": "probe",
            "error_message": "no connection to it",
            "store": "valkey",
        },
    }
    pending = site._members("ceremony:dualwrite:pending")
    assert pending == entries(site).keys() and len(pending) == 6
    entry = entries(site)[f"{operation_id}:valkey"]
    assert entry["status"] == "PENDING" and entry["attempts"] > 100 and entry["last_error"] == "no connection to it"
    assert {"operation_id", "created_at", "updated_at"} <= entry.keys()
    store.is_away = False
    await until_versions(site, dict.fromkeys(ids(6), version))
    await until(lambda: all(entry["status"] == "COMPLETED" for entry in entries(site).values()))
    assert site._members("ceremony:dualwrite:pending") == set()
    assert len(entries(site)) == 6 and len(await events(changelog.log)) == 6


async def test_a_log_that_is_away_is_asked_once_and_again_after_the_next_failure() -> None:
    """Each call to it may take ten seconds, in which the store could be back."""
    log = AwayLog()
    writes = DualWrites(log, None, HostClock(), store="neo4j", prefix="t", partitions=PARTITIONS)  # type: ignore[arg-type]
    documents = [document(i) for i in ids(5)]
    error = StoreError("neo4j", "no connection")
    await writes.failed(documents, error, 3)
    assert log.asked == ["c0:s1"]
    log.is_away = False
    await writes.failed(documents, error, 4)
    await writes.failed(documents, error, 5)
    assert log.asked == ["c0:s1", *ids(5)]


class Deaf(Interrupted):
    """A store whose calls swallow cancellations, as those of redis-py do at times."""

    swallows = 0

    async def write(self, write: Write) -> str:
        if self.is_away:
            try:
                await asyncio.sleep(HOUR)
            except asyncio.CancelledError:
                self.swallows -= 1
                if self.swallows < 0:
                    raise
        return await super().write(write)


async def test_a_projector_stops_although_calls_swallow_its_cancellations(
    site: ValkeySite, changelog: Changelog
) -> None:
    store = Deaf(site.store())
    async with projecting(changelog, store, site, HostClock()):
        await changelog.put(*(row(i) for i in ids(3)))
        await until_versions(site, dict.fromkeys(ids(3), 1))
        store.is_away, store.swallows = True, 2 * PARTITIONS
        await changelog.put(*(row(i, 2) for i in ids(3)))
        await asyncio.sleep(0.1)
    assert store.swallows < 2 * PARTITIONS


async def test_entries_that_a_killed_process_left_are_completed_by_the_next(
    site: ValkeySite, changelog: Changelog
) -> None:
    # specification 25.12
    store = Interrupted(site.store())
    await changelog.put(*(row(i) for i in ids(3)))
    async with projecting(changelog, store, site, RushedClock()):
        await until_versions(site, dict.fromkeys(ids(3), 1))
        store.is_away = True
        await changelog.put(*(row(i, 2) for i in ids(3)))
        await until(lambda: len(entries(site)) == 3)
    again = Interrupted(site.store())
    again.is_away = True
    async with projecting(changelog, again, site, RushedClock()) as following:
        await until(lambda: following.calls.state != "not asked yet")
        await asyncio.sleep(0.3)
        assert len(await events(changelog.log)) == 3, "a pending entry is announced once"
        again.is_away = False
        await until(lambda: site._members("ceremony:dualwrite:pending") == set())
        assert {entry["status"] for entry in entries(site).values()} == {"COMPLETED"}
        await until_versions(site, dict.fromkeys(ids(3), 2))

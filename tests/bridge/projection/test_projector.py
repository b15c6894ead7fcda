"""The projector on an embedded log and a real store: nothing is lost, whatever happens to the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.clock import HostClock
from bridge.projection.documents import Changes
from bridge.projection.projector import Projector
from bridge.projection.store import Place, Store, Write
from ports.log import TopicSpec
from streams.transport.sqlite.log import SqliteLog
from tables.fold.retention import stub_of
from tables.instance import Instance, encode_instance
from tests.bridge.projection.world import DEFINITION, TOPIC, Neo4jSite, Site, ValkeySite, document, row, row_projector
from tests.services import Neo4jServer, Server, ValkeyServer, running

PARTITIONS = 3
SECONDS = 30.0


class Changelog:
    """The changelogs of an engine, whose rows a test sets."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log

    async def put(self, *rows: Instance) -> None:
        """Write rows and their definition in one transaction, as a checkpoint does."""
        for instance in rows:
            self._set(instance.instance_id, encode_instance(instance))
        await self.log.flush()

    async def set(self, instance_id: str, value: bytes | None) -> None:
        self._set(instance_id, value)
        await self.log.flush()

    def _set(self, instance_id: str, value: bytes | None) -> None:
        partition = self.partition_of(instance_id)
        definition = {DEFINITION.hash.encode(): DEFINITION.text.encode()}
        self.log.put_rows("t.definitions.changelog", partition, definition)
        self.log.put_rows(TOPIC, partition, {b"\0position": b"no row", instance_id.encode(): value})

    def partition_of(self, instance_id: str) -> int:
        return self.log.partition_of(instance_id.encode(), PARTITIONS)


@pytest.fixture
async def changelog(tmp_path: Path) -> AsyncIterator[Changelog]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    specs = [TopicSpec(name, PARTITIONS, compacted=True) for name in (TOPIC, "t.definitions.changelog")]
    await log.create(specs)
    yield Changelog(log)
    await log.stop()


def projector_on(changelog: Changelog, store: Store) -> Projector[Changes]:
    return row_projector(changelog.log, store, HostClock(), prefix="t", partitions=PARTITIONS)


@asynccontextmanager
async def projecting(changelog: Changelog, store: Store) -> AsyncIterator[Projector[Changes]]:
    projector = projector_on(changelog, store)
    await projector.start()
    try:
        yield projector
    finally:
        await projector.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():
            await asyncio.sleep(0.05)


async def until_versions(site: Site, versions: Mapping[str, int]) -> None:
    """Wait until the store has exactly these rows, in all its sets."""
    found: Mapping[str, int] | AssertionError = {}
    try:
        async with asyncio.timeout(SECONDS):
            while (found := await asyncio.to_thread(read, site)) != versions:
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{found} instead of {versions}") from None


def read(site: Site) -> Mapping[str, int] | AssertionError:
    try:
        return site.versions()
    except AssertionError as differs:  # its keys are not read at one moment
        return differs


def ids(count: int) -> list[str]:
    return [f"c{number}:s1" for number in range(count)]


async def test_rows_follow_the_tables_and_leave_with_their_stubs_and_tombstones(
    site: Site, changelog: Changelog
) -> None:
    # specification 25.4, 25.6
    await changelog.put(*(row(i) for i in ids(20)))
    async with projecting(changelog, site.store()) as projector:
        await until_versions(site, dict.fromkeys(ids(20), 1))
        assert projector.state == "ok"
        assert site.definitions() == {DEFINITION.hash: DEFINITION.text}
        await changelog.put(row("c0:s1", 2), row("c0:s1", 3), stub_of(row("c1:s1", 2), 0, 1))
        await changelog.set("c2:s1", None)
        expected = {**dict.fromkeys(ids(20)[3:], 1), "c0:s1": 3}
        await until_versions(site, expected)
        await until(lambda: projector.lag_records == 0)
        assert projector.lag_seconds == 0


async def test_a_row_that_cannot_be_read_stops_no_other(site: Site, changelog: Changelog) -> None:
    await changelog.put(row("c1:s1"))
    async with projecting(changelog, site.store()):
        await until_versions(site, {"c1:s1": 1})
        await changelog.set("c1:s1", b"{broken")
        await changelog.put(row("c2:s1"), *(row(i, 2) for i in ids(9)[3:]))
        await until_versions(site, {"c1:s1": 1, "c2:s1": 1, **dict.fromkeys(ids(9)[3:], 2)})


async def test_a_projector_goes_on_from_the_place_in_the_store(site: Site, changelog: Changelog) -> None:
    # specification 25.5
    await changelog.put(*(row(i) for i in ids(6)))
    async with projecting(changelog, site.store()):
        await until_versions(site, dict.fromkeys(ids(6), 1))
    store = site.store()
    places = await store.places()
    ends = [end for _, end in await changelog.log.ends(TOPIC)]
    assert places == {p: Place(end).text for p, end in enumerate(ends) if end}
    await store.close()
    await changelog.put(row("c1:s1", 2))
    async with projecting(changelog, site.store()):
        await until_versions(site, {**dict.fromkeys(ids(6), 1), "c1:s1": 2})


async def test_a_store_found_empty_is_built_again_without_being_asked(site: Site, changelog: Changelog) -> None:
    """Both while rows change and while nothing happens, with its constraints."""
    # specification 25.8
    await changelog.put(*(row(i) for i in ids(9)))
    async with projecting(changelog, site.store()):
        await until_versions(site, dict.fromkeys(ids(9), 1))
        site.wipe()
        await until_versions(site, dict.fromkeys(ids(9), 1))
        assert site.definitions() == {DEFINITION.hash: DEFINITION.text}
        if isinstance(site, Neo4jSite):
            assert site.ask("SHOW CONSTRAINTS YIELD name WHERE name = 'ceremony_instance_id' RETURN name")
        site.wipe()
        await changelog.put(row("c3:s1", 2))
        await until_versions(site, {**dict.fromkeys(ids(9), 1), "c3:s1": 2})


async def test_a_store_restored_from_a_backup_catches_up(site: Site, changelog: Changelog) -> None:
    # specification 25.8
    await changelog.put(*(row(i) for i in ids(9)))
    async with projecting(changelog, site.store()):
        await until_versions(site, dict.fromkeys(ids(9), 1))
        store = site.store()
        backup = await store.places()
        await changelog.put(*(row(i, 2) for i in ids(9)[:5]))
        await changelog.put(stub_of(row("c8:s1"), 0, 1))
        await until_versions(site, {**dict.fromkeys(ids(9)[:8], 1), **dict.fromkeys(ids(5), 2)})
    site.wipe()
    await store.open()
    for partition, place in backup.items():
        rows = [document(i) for i in ids(9) if changelog.partition_of(i) == partition]
        assert await store.write(Write(partition, "", place, rows)) == place
    await store.close()
    assert site.versions() == dict.fromkeys(ids(9), 1)
    async with projecting(changelog, site.store()):
        await until_versions(site, {**dict.fromkeys(ids(9)[:8], 1), **dict.fromkeys(ids(5), 2)})


async def test_two_projectors_of_one_partition_leave_the_newest_rows(site: Site, changelog: Changelog) -> None:
    """As a worker that was frozen and wakes up beside its successor: only one at a time continues a place."""
    # specification 25.5
    async with projecting(changelog, site.store()), projecting(changelog, site.store()):
        for version in range(1, 30):
            await changelog.put(*(row(i, version) for i in ids(6)))
        await until_versions(site, dict.fromkeys(ids(6), 29))
        ends = [end for _, end in await changelog.log.ends(TOPIC)]
        store = site.store()
        assert await store.places() == {p: Place(end).text for p, end in enumerate(ends) if end}
        await store.close()


async def rebuilt(store: Store) -> None:
    async with asyncio.timeout(SECONDS):
        while any("again" in place for place in (await store.places()).values()):
            await asyncio.sleep(0.1)


async def test_a_rebuild_writes_every_row_again_and_removes_rows_that_the_tables_do_not_have(
    site: Site, changelog: Changelog
) -> None:
    # specification 25.9
    await changelog.put(*(row(i) for i in ids(9)))
    async with projecting(changelog, site.store()) as projector:
        await until_versions(site, dict.fromkeys(ids(9), 1))
        store = site.store()
        stale_ids = ("gone1:s1", "gone2:s1", "gone3:s1")
        await changelog.put(*map(row, stale_ids))
        await until_versions(site, dict.fromkeys((*ids(9), *stale_ids), 1))
        for stale in stale_ids:  # as if the log had compacted them away
            changelog.log.file._writer.execute("DELETE FROM rows WHERE key = ?", (stale.encode(),))
        await store.set_places({partition: Place(0, "again").text for partition in range(PARTITIONS)})
        await until_versions(site, dict.fromkeys(ids(9), 1))
        ends = [end for _, end in await changelog.log.ends(TOPIC)]
        await rebuilt(store)
        places = await store.places()
        assert all((Place.read(places[p]) or Place(0)).next <= end for p, end in enumerate(ends))
        await changelog.put(row("c1:s1", 2))
        await until_versions(site, {**dict.fromkeys(ids(9), 1), "c1:s1": 2})
        assert projector.state == "ok"
        await store.close()


async def test_a_log_without_records_empties_no_store(site: Site, changelog: Changelog) -> None:
    """After the loss of the log, the rows of the store are the last copy."""
    # specification 25.9
    store = site.store()
    await store.open()
    partition = changelog.partition_of("c1:s1")
    await store.write(Write(partition, "", Place(500).text, [document("c1:s1", 9)]))
    async with projecting(changelog, site.store()) as projector:
        await until(lambda: projector.state == "ok")
        await store.set_places({number: Place(0, "again").text for number in range(PARTITIONS)})
        await rebuilt(store)
        assert site.versions() == {"c1:s1": 9}
        await changelog.put(row("c1:s1", 1009))
        await until_versions(site, {"c1:s1": 1009})
    await store.close()


async def test_a_store_that_was_ahead_of_a_new_log_takes_its_rows(site: Site, changelog: Changelog) -> None:
    # specification 25.8
    store = site.store()
    await store.open()
    await store.set_places({number: Place(5000).text for number in range(PARTITIONS)})
    async with projecting(changelog, site.store()):
        await changelog.put(row("c1:s1", 1))
        await until_versions(site, {"c1:s1": 1})
    await store.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", [ValkeyServer, Neo4jServer])
async def test_a_store_killed_in_the_midst_of_writes_gets_every_row(
    kind: type[ValkeyServer | Neo4jServer], tmp_path: Path, changelog: Changelog
) -> None:
    """Killed with SIGKILL under load, then restarted with its data, and once more empty; its state says so."""
    # specification 25.8, 25.10
    with running(kind(tmp_path / "store")) as server:
        site: Site = ValkeySite(server) if isinstance(server, ValkeyServer) else Neo4jSite(server)
        async with projecting(changelog, site.store()) as projector:
            writing = asyncio.create_task(write_versions(changelog, 40))
            await until(lambda: projector.state == "ok")
            server.kill()
            await writing
            await until(lambda: projector.state != "ok")
            await until(lambda: projector.lag_records > 0)
            assert "no connection to" in projector.state and "records wait" in projector.state
            await start(server)
            site = reopened(site, server)
            await until_versions(site, dict.fromkeys(ids(6), 40))
            server.kill()
            server.forget()
            await start(server)
            site = reopened(site, server)
            await until_versions(site, dict.fromkeys(ids(6), 40))
        site.close()


async def write_versions(changelog: Changelog, count: int) -> None:
    for version in range(1, count + 1):
        await changelog.put(*(row(i, version) for i in ids(6)))
        await asyncio.sleep(0.02)


async def start(server: Server) -> None:
    await asyncio.to_thread(server.start)


def reopened(site: Site, server: ValkeyServer | Neo4jServer) -> Site:
    site.close()
    return ValkeySite(server) if isinstance(server, ValkeyServer) else Neo4jSite(server)


async def test_a_projector_stops_while_its_store_is_away(changelog: Changelog, tmp_path: Path) -> None:
    # specification 25.10
    site = ValkeySite(ValkeyServer(tmp_path))
    await changelog.put(row("c1:s1"))
    async with asyncio.timeout(10):
        async with projecting(changelog, site.store()) as projector:
            await until(lambda: projector.state != "not asked yet" and projector.lag_seconds > 0)
            assert "no connection" in projector.state
    site.close()

"""Histories in a real Valkey: each event once and in order, whatever happens to the store, and the newest of many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.clock import HostClock
from bridge.projection.histories import Appended, HistoryModel, HistoryWrite, PlacedEvent
from bridge.projection.model import Move
from bridge.projection.projector import Projector
from bridge.projection.rebuild import begin_rebuild
from bridge.projection.store import Gone, Place, Write
from bridge.valkey import history as valkey_history
from bridge.valkey.client import ValkeyAddress
from bridge.valkey.history import ORPHAN_SECONDS, ValkeyHistories, ValkeyHistoryCopy
from ports.errors import Unreachable
from ports.history import HistoryEvent
from ports.log import Header, TopicSpec
from steps.secrets.redactor import TextRedactor
from streams.envelope import event_record
from streams.transport.sqlite.log import SqliteLog
from tables.effects import Event
from tests.bridge.projection.test_projector import until
from tests.bridge.projection.world import ValkeySite, document
from tests.services import ValkeyServer, free_port
from tests.steps.secrets.planted import planted

EVENTS = "t.events"
MINE = "c1:s1"
PARTITIONS = 3
BEGIN = 1_700_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def site(valkey: ValkeyServer) -> Iterator[ValkeySite]:
    site = ValkeySite(valkey)
    site.wipe()
    yield site
    site.close()


@pytest.fixture
async def store(site: ValkeySite) -> AsyncIterator[ValkeyHistories]:
    store = ValkeyHistories(site.address, topic=EVENTS)
    yield store
    await store.close()


@pytest.fixture
async def copy(site: ValkeySite) -> AsyncIterator[ValkeyHistoryCopy]:
    copy = ValkeyHistoryCopy(site.address, topic=EVENTS)
    yield copy
    await copy.close()


def placed(
    version: int, *, offset: int | None = None, fold: int = 2, at: int = 0, said: str = "", effect_id: str = ""
) -> PlacedEvent:
    """An event whose offset is 100 more than its version; `at`: minutes, by default its version."""
    return PlacedEvent(
        100 + version if offset is None else offset,
        HistoryEvent(
            subject="ceremony.started" if version == 1 else "ceremony.step.executed",
            at=f"2023-11-14T{(at or version) // 60:02}:{(at or version) % 60:02}:00.000Z",
            effect_id=effect_id or f"{MINE}/{version}/0@{fold}",
            correlation_id="corr",
            payload=json.dumps({"said": said or f"v{version}"}, separators=(",", ":")),
            metadata='{"actor":"ana"}',
            partition=0,
            command_offset=version,
        ),
    )


async def append(
    store: ValkeyHistories, *events: PlacedEvent, instance_id: str = MINE, rebuild: str = "", since: int = 0
) -> None:
    """Append to the list of one ceremony, from the place that the store has."""
    before = (await store.places()).get(0, "")
    following = (Place.read(before) or Place(0)).next + 1
    move = Move(0, before, Place(following, rebuild, since=since))
    assert await store.append(HistoryWrite(move, {instance_id: events})) == move.place.text


def listed(site: ValkeySite, instance_id: str = MINE) -> list[Any]:
    found: Any = site.client.lrange(f"ceremony:history:{instance_id}", 0, -1)
    return [json.loads(one) for one in found]


def said(site: ValkeySite, instance_id: str = MINE) -> list[str]:
    return [one["payload"]["said"] for one in listed(site, instance_id)]


# -- the store


async def test_an_element_is_the_envelope_with_its_number_and_its_places_in_the_log(
    site: ValkeySite, store: ValkeyHistories
) -> None:
    # specification 26.5
    await append(store, placed(1), placed(2))
    assert listed(site)[1] == {
        "number": 2,
        "offset": 102,
        "idempotency_key": "c1:s1/2/0@2",
        "timestamp": "2023-11-14T00:02:00.000Z",
        "event_type": "ceremony.step.executed",
        "correlation_id": "corr",
        "producer": "ceremony-engine",
        "payload": {"said": "v2"},
        "metadata": {"actor": "ana"},
        "command": {"partition": 0, "offset": 2},
    }


async def test_an_event_that_a_crash_wrote_again_is_listed_once(site: ValkeySite, store: ValkeyHistories) -> None:
    """In the same write and in a later one, with the order of ids or without, also after another fold number."""
    # specification 26.5
    announced = placed(0, effect_id="save_instance:c1:s1:2:valkey", said="announced")
    await append(store, placed(1), placed(2), announced, placed(2), placed(3))
    await append(store, placed(2), announced, placed(3), placed(3, fold=3), placed(4, fold=3))
    await append(store, announced, placed(3), placed(3, fold=3), placed(4, fold=3), placed(5, fold=3))
    assert said(site) == ["v1", "v2", "announced", "v3", "v3", "v4", "v5"]
    assert [one["number"] for one in listed(site)] == list(range(1, 8))


async def test_only_the_newest_are_kept_and_their_numbers_tell_how_many_have_gone(
    site: ValkeySite, store: ValkeyHistories, copy: ValkeyHistoryCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 26.5
    monkeypatch.setattr(valkey_history, "MOST_EVENTS", 4)
    await append(store, *(placed(version) for version in range(1, 8)))
    await append(store, placed(2), placed(8))
    assert said(site) == ["v5", "v6", "v7", "v8"]
    extent = await copy.extent(MINE, 0)
    assert (extent.first, extent.last) == (5, 8)
    assert [one.number for one in await copy.events(MINE, 1, 6)] == [5, 6]
    assert [one.number for one in await copy.events(MINE, 6, 7)] == [6, 7]


async def test_a_write_from_another_place_or_a_repeated_one_appends_nothing(
    site: ValkeySite, store: ValkeyHistories
) -> None:
    # specification 26.5
    write = HistoryWrite(Move(0, "", Place(5)), {MINE: [placed(0, effect_id="one")]})
    assert await store.append(write) == await store.append(write) == Place(5).text
    late = HistoryWrite(Move(0, "", Place(9)), {MINE: [placed(0, effect_id="two")]})
    assert await store.append(late) == Place(5).text
    assert len(listed(site)) == 1


async def test_a_list_lives_as_long_as_the_row(site: ValkeySite, store: ValkeyHistories) -> None:
    """Without a row it expires, whichever of both comes first; it is removed in the same write as the row."""
    # specification 26.8
    key = f"ceremony:history:{MINE}"
    await append(store, placed(1))
    assert 0 < int(str(site.client.ttl(key))) <= ORPHAN_SECONDS
    rows = site.store()
    await rows.write(Write(0, "", Place(1).text, [document(MINE, 1)]))
    assert site.client.ttl(key) == -1
    await append(store, placed(2))
    assert site.client.ttl(key) == -1
    await rows.write(Write(0, Place(1).text, Place(2).text, [document(MINE, 2)], [Gone("other:s1")]))
    assert said(site) == ["v1", "v2"]
    await rows.write(Write(0, Place(2).text, Place(3).text, gone=[Gone(MINE)]))
    assert listed(site) == []
    await append(store, placed(3))
    assert 0 < int(str(site.client.ttl(key))) <= ORPHAN_SECONDS
    await rows.close()


async def test_a_new_life_of_an_id_begins_a_new_list(site: ValkeySite, store: ValkeyHistories) -> None:
    """After the loss of a log, for example; the start of the same life written again begins none."""
    # specification 26.8
    await append(store, placed(1), placed(7))
    await append(store, placed(1))
    assert said(site) == ["v1", "v7"]
    await append(store, placed(1, at=600, said="again"), placed(2, at=601))
    assert said(site) == ["again", "v2"]
    assert [one["number"] for one in listed(site)] == [1, 2]


async def test_an_event_behind_deleted_ones_says_so(
    site: ValkeySite, store: ValkeyHistories, copy: ValkeyHistoryCopy
) -> None:
    """Once, and only where the list has events from before the hole."""
    # specification 26.7
    await append(store, placed(1), placed(2))
    await append(store, placed(5), placed(6), since=104)
    await append(store, placed(5), instance_id="other:s1", since=104)
    await append(store, placed(7), since=104)
    assert [one.lost_before for one in await copy.events(MINE, 1, 9)] == [False, False, True, False, False]
    assert "lost_before" not in listed(site, "other:s1")[0]


async def test_a_rebuild_writes_each_event_again_in_its_place(site: ValkeySite, store: ValkeyHistories) -> None:
    """As a release that finds more secrets does it; it drops none, and adds those that are not there."""
    # specification 26.8
    await append(store, placed(1), placed(2), placed(3, said="a secret"), placed(4))
    again = [placed(3, said="[redacted]"), placed(4), placed(5)]
    await append(store, *again, rebuild="r1")
    await append(store, placed(6), rebuild="r1")
    assert said(site) == ["v1", "v2", "[redacted]", "v4", "v5", "v6"]
    assert [one["number"] for one in listed(site)] == list(range(1, 7))


async def test_a_copy_that_is_away_is_one_line_with_its_address(copy: ValkeyHistoryCopy, site: ValkeySite) -> None:
    port = free_port()
    gone = ValkeyHistoryCopy(ValkeyAddress("127.0.0.1", port, 0, lambda: "hunter2"), topic=EVENTS)
    with pytest.raises(Unreachable, match=rf"no connection to 127\.0\.0\.1:{port}") as caught:
        await gone.extent(MINE, 0)
    assert "hunter2" not in str(caught.value)
    await gone.close()
    site.client.rpush(f"ceremony:history:{MINE}", "not ours")
    with pytest.raises(Unreachable, match="no projector wrote"):
        await copy.events(MINE, 1, 5)
    with pytest.raises(Unreachable, match="no projector wrote"):
        await copy.extent(MINE, 0)


async def test_a_copy_that_has_nothing_of_a_ceremony_says_so(copy: ValkeyHistoryCopy) -> None:
    extent = await copy.extent("no:body", 0)
    assert extent.last < extent.first and extent.copied_to == 0
    assert await copy.events("no:body", 1, 100) == []


# -- the projector


class EventLog:
    """The topic `events` of an engine, to which a test writes."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log

    async def put(self, instance_id: str, *versions: int, said: Any = "", at: int = BEGIN) -> None:
        for version in versions:
            event = Event(
                id=f"{instance_id}/{version}/0@2",
                subject="ceremony.started" if version == 1 else "ceremony.step.executed",
                instance_id=instance_id,
                correlation_id="corr",
                at=at + version,
                payload={"said": said or f"v{version}"},
            )
            await self.append(*event_record(event, 100 + version, 0, 2))

    async def append(self, key: bytes | None, value: bytes, headers: Sequence[Header]) -> None:
        partition = self.log.partition_of(key or b"", PARTITIONS)
        await self.log.append(EVENTS, partition, key, value, headers)


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[EventLog]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec(EVENTS, PARTITIONS)])
    yield EventLog(log)
    await log.stop()


@asynccontextmanager
async def copying(events: EventLog, site: ValkeySite) -> AsyncIterator[Projector[Appended]]:
    store = ValkeyHistories(site.address, topic=EVENTS)
    model = HistoryModel(store, TextRedactor(), HostClock(), prefix="t")
    projector = Projector(events.log, model, HostClock(), partitions=PARTITIONS)
    await projector.start()
    try:
        yield projector
    finally:
        await projector.stop()


async def until_said(site: ValkeySite, expected: Sequence[str], instance_id: str = MINE) -> None:
    try:
        await until(lambda: said(site, instance_id) == list(expected))
    except TimeoutError:
        raise AssertionError(f"{said(site, instance_id)} instead of {expected}") from None


async def test_events_follow_the_log_each_once_through_a_restart_of_the_projector(
    events: EventLog, site: ValkeySite
) -> None:
    # specification 26.5
    await events.put(MINE, 1, 2, 3)
    await events.put(MINE, 2, 3, 4)
    await events.append(None, b"{}", [])
    await events.append(MINE.encode(), b"a stranger's", [])
    async with copying(events, site) as projector:
        await until_said(site, ["v1", "v2", "v3", "v4"])
        await events.put("c2:s2", 1)
        await until_said(site, ["v1"], "c2:s2")
        await until(lambda: projector.lag_records == 0 and projector.state == "ok")
        assert projector.store.name == "valkey_history"
    await events.put(MINE, 4, 5)
    async with copying(events, site):
        await until_said(site, ["v1", "v2", "v3", "v4", "v5"])


async def test_a_store_found_empty_gets_what_the_log_has(events: EventLog, site: ValkeySite) -> None:
    """Both while events come and while nothing happens."""
    # specification 26.8
    await events.put(MINE, 1, 2)
    async with copying(events, site):
        await until_said(site, ["v1", "v2"])
        site.wipe()
        await until_said(site, ["v1", "v2"])
        site.wipe()
        await events.put(MINE, 3)
        await until_said(site, ["v1", "v2", "v3"])


async def test_two_projectors_of_one_partition_list_each_event_once(events: EventLog, site: ValkeySite) -> None:
    # specification 26.5
    async with copying(events, site), copying(events, site):
        for version in range(1, 40):
            await events.put(MINE, version)
        await until_said(site, [f"v{version}" for version in range(1, 40)])
    assert [one["number"] for one in listed(site)] == list(range(1, 40))


async def test_a_rebuild_reads_the_log_again_and_drops_nothing(events: EventLog, site: ValkeySite) -> None:
    # specification 26.8
    await events.put(MINE, 1, 2, 3)
    async with copying(events, site):
        await until_said(site, ["v1", "v2", "v3"])
        spoilt: Any = site.client.lindex(f"ceremony:history:{MINE}", 1)
        site.client.lset(f"ceremony:history:{MINE}", 1, spoilt.replace(b'"v2"', b'"spoilt"'))
        assert said(site) == ["v1", "spoilt", "v3"]
        store = ValkeyHistories(site.address, topic=EVENTS)
        await begin_rebuild(store, "again", range(PARTITIONS))
        await until_said(site, ["v1", "v2", "v3"])
        async with asyncio.timeout(30):
            while any("again" in place for place in (await store.places()).values()):
                await asyncio.sleep(0.1)
        await store.close()


async def test_events_that_the_log_deleted_before_they_were_copied_leave_a_mark(
    tmp_path: Path, site: ValkeySite
) -> None:
    # specification 26.7
    class Ahead(HostClock):
        ahead_ms = 0

        def wall(self) -> float:
            return super().wall() + self.ahead_ms / 1000

    clock = Ahead()
    log = SqliteLog(tmp_path / "trimmed.db", clock)
    await log.start()
    await log.create([TopicSpec(EVENTS, PARTITIONS, retention_ms=DAY_MS)])
    events = EventLog(log)
    await events.put(MINE, 1, 2)
    async with copying(events, site):
        await until_said(site, ["v1", "v2"])
    await events.put(MINE, 3)
    await log.flush()
    clock.ahead_ms = 2 * DAY_MS
    await events.put(MINE, 4)
    log.enforce_retention()
    await log.flush()
    async with copying(events, site):
        await until_said(site, ["v1", "v2", "v4"])
        await events.put(MINE, 5)
        await until_said(site, ["v1", "v2", "v4", "v5"])
    assert [one.get("lost_before", False) for one in listed(site)] == [False, False, True, False]
    await log.stop()


async def test_a_history_holds_no_secret_of_an_event_that_an_older_release_wrote(
    events: EventLog, site: ValkeySite
) -> None:
    # specification 27.14
    secrets = list(planted())
    for version, one in enumerate(secrets, 1):
        await events.put(MINE, version, said=one.text)
    async with copying(events, site):
        await until(lambda: len(listed(site)) == len(secrets))
    kept: Any = site.client.lrange(f"ceremony:history:{MINE}", 0, -1)
    assert not [one.rule for one in secrets if any(one.secret.encode() in element for element in kept)]


async def test_a_store_that_is_away_slows_nothing_and_is_named(events: EventLog, tmp_path: Path) -> None:
    # specification 25.10
    site = ValkeySite(ValkeyServer(tmp_path))
    await events.put(MINE, 1)
    async with asyncio.timeout(20):
        async with copying(events, site) as projector:
            await until(lambda: projector.state != "not asked yet" and projector.lag_records > 0)
            assert "no connection" in projector.state and "1 records wait" in projector.state
    site.close()

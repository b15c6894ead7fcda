"""The history of a ceremony outlives the log's events: it comes from Valkey, and what neither has is named."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.valkey import history as valkey_history
from ceremony.worker import Worker
from tables.fold.retention import UNTIL_STUB_MS
from tests.bridge.projection.world import ValkeySite
from tests.e2e.test_retention import LeapingClock
from tests.e2e.world import World, until
from tests.services import ValkeyServer

pytestmark = pytest.mark.timeout(180)
DAY_SECONDS = 86_400.0


@pytest.fixture
def clock() -> LeapingClock:
    return LeapingClock()


@pytest.fixture
def site(valkey: ValkeyServer) -> Iterator[ValkeySite]:
    site = ValkeySite(valkey)
    site.wipe()
    yield site
    site.close()


@pytest.fixture
async def world(tmp_path: Path, clock: LeapingClock, site: ValkeySite) -> AsyncIterator[World]:
    settings: dict[str, Any] = {
        "VALKEY_HOST": site.address.host,
        "VALKEY_PORT": site.address.port,
        "VALKEY_PASSWORD": site.address.password(),
    }
    with mock.patch("tests.e2e.world.Worker", partial(Worker, clock=clock)):
        async with World(tmp_path, f"sqlite:///{tmp_path}/log.db", **settings) as made:
            yield made


async def paused(world: World, ceremony_id: str) -> str:
    """A ceremony paused at its gate, which so stays open for days."""
    instance_id = await world.start("approval", ceremony_id)

    async def waits() -> bool:
        return (await world.get(instance_id)).status == "WAITING_FOR_HUMAN"

    await until(waits, "its gate is open")
    await world.client.pause(instance_id, actor="ana", reason="holidays")

    async def is_in_the_log() -> bool:
        return (await world.client.history(instance_id)).events[-1].subject == "ceremony.paused"

    await until(is_in_the_log, "its pause is in the log")
    return instance_id


async def whole(world: World, instance_id: str, limit: int = 3) -> list[pb.GetHistoryResponse]:
    return [page async for page in world.client.history_pages(instance_id, limit=limit)]


def events_of(pages: list[pb.GetHistoryResponse]) -> list[pb.HistoryEvent]:
    return [event for page in pages for event in page.events]


def ids(pages: list[pb.GetHistoryResponse]) -> list[str]:
    return [event.effect_id for event in events_of(pages)]


def in_valkey(site: ValkeySite, instance_id: str) -> int:
    length: Any = site.client.llen(f"ceremony:history:{instance_id}")
    return int(length)


def newest_in_valkey(site: ValkeySite, instance_id: str) -> str:
    newest: Any = site.client.lindex(f"ceremony:history:{instance_id}", -1)
    return "" if newest is None else str(json.loads(newest)["idempotency_key"])


async def days_later(world: World, clock: LeapingClock, days: float) -> None:
    """Let days pass, and the log delete what it keeps no longer."""
    log: Any = world.worker.app.driver.log
    await log.flush()
    clock.leap(days * DAY_SECONDS)
    log.enforce_retention()
    await log.flush()


async def test_a_history_goes_on_in_valkey_where_the_log_has_deleted_its_events(
    world: World, clock: LeapingClock, site: ValkeySite
) -> None:
    """First in the log alone, then its beginning in Valkey, then all of it; and none of it once the row has left."""
    # specification 26.5, 26.6, 26.8
    instance_id = await paused(world, "long")
    first = ids(await whole(world, instance_id))
    clock.leap(6 * DAY_SECONDS)
    await world.client.resume(instance_id, actor="ana")
    await world.finish(instance_id)
    before = await whole(world, instance_id)
    every = ids(before)
    assert len(every) > len(first) and {event.source for event in events_of(before)} == {"log"}
    await until(lambda: in_valkey(site, instance_id) == len(every), "valkey has all events")

    await days_later(world, clock, 25)
    pages = await whole(world, instance_id)
    assert ids(pages) == every and pages[-1].complete
    assert [event.source for event in events_of(pages)] == ["valkey"] * len(first) + ["log"] * (len(every) - len(first))
    assert [(e.subject, e.payload, e.at, e.metadata) for e in events_of(pages)] == [
        (e.subject, e.payload, e.at, e.metadata) for e in events_of(before)
    ]
    newest = await world.client.history(instance_id)
    assert [event.effect_id for event in newest.events] == every and newest.complete

    await world.restart_worker()
    assert ids(await whole(world, instance_id)) == every
    site.client.flushdb()
    await until(lambda: in_valkey(site, instance_id) == len(every) - len(first), "valkey has what the log has")
    rest = await whole(world, instance_id)
    assert ids(rest) == every[len(first) :] and not rest[-1].complete
    assert events_of(rest)[0].missing_before == "the log keeps events for 30 days, and valkey has no older ones"

    clock.leap(UNTIL_STUB_MS / 1000 - 25 * DAY_SECONDS + 60)
    await until(lambda: in_valkey(site, instance_id) == 0, "its history has left with its row")


async def test_a_history_that_valkey_has_cut_says_that_older_events_are_missing(
    world: World, clock: LeapingClock, site: ValkeySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all events of the log deleted, and with a bound of a few events instead of 10,000."""
    # specification 26.7
    monkeypatch.setattr(valkey_history, "MOST_EVENTS", 3)
    instance_id = await paused(world, "cut")
    clock.leap(6 * DAY_SECONDS)
    await world.client.cancel(instance_id, actor="ana", reason="enough")
    every = ids(await whole(world, instance_id))
    await until(lambda: newest_in_valkey(site, instance_id) == every[-1], "valkey has the newest event")
    assert world.ok("valkey", "valkey_history") and in_valkey(site, instance_id) == 3
    await days_later(world, clock, 29.5)
    pages = await whole(world, instance_id)
    assert len(every) > 3 and ids(pages) == every[-3:] and not pages[-1].complete
    gone = f"the log keeps events for 30 days, and valkey the newest 10,000 of a ceremony; {len(every) - 3} are gone"
    assert events_of(pages)[0].missing_before == gone
    newest = await world.client.history(instance_id)
    assert [event.effect_id for event in newest.events] == every[-3:] and gone in newest.message


async def test_a_valkey_that_is_away_costs_a_history_only_its_older_events(world: World, clock: LeapingClock) -> None:
    # specification 26.7
    instance_id = await paused(world, "away")
    clock.leap(6 * DAY_SECONDS)
    await world.client.resume(instance_id, actor="ana")
    await world.finish(instance_id)
    every = ids(await whole(world, instance_id))
    await days_later(world, clock, 25)
    copy: Any = world.worker.history_copy
    with mock.patch.object(copy._client.connection_pool, "get_connection", side_effect=ConnectionError("gone")):
        pages = await whole(world, instance_id)
    assert 0 < len(ids(pages)) < len(every) and not pages[-1].complete
    assert "valkey could not be asked" in events_of(pages)[0].missing_before

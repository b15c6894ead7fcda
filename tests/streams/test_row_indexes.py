"""The indexes of a worker: filled by whoever needs them first, kept up in the background, built anew after an error."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.clock import HostClock
from ports.log import LogFailed
from streams import row_indexes
from streams.api import Query, Unavailable
from streams.row_index import PartitionIndex
from streams.row_indexes import RowIndexes
from streams.turns import Turns
from tests.streams.search_world import KINDS, SearchWorld, by_looking, definition_of

pytestmark = pytest.mark.asyncio


class Site:
    """The indexes of a worker with one partition of random ceremonies."""

    def __init__(self) -> None:
        self.world = SearchWorld(1)
        self.world.change(60)
        clock = HostClock()
        self.indexes = RowIndexes(clock, Turns(clock), definition_of, KINDS)
        self.world.index = self  # type: ignore[assignment]  # it is notified of each change
        self.indexes.taken(self.world.view)

    def changed(self, rows: Any, before: Any) -> None:
        self.indexes.changed(0, rows, before)

    async def finds_all(self) -> bool:
        found = await self.indexes.search(0, Query(), 1000)
        return (found.total, list(found.keys)) == by_looking(self.world.rows.values(), Query())


async def test_a_search_fills_the_index_if_nobody_has() -> None:
    site = Site()
    assert all(await asyncio.gather(*(site.finds_all() for _ in range(3))))
    site.world.change(30)
    assert await site.finds_all()


async def test_changed_rows_are_entered_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_indexes, "EVERY_SECONDS", 0.001)
    site = Site()
    running = asyncio.create_task(site.indexes.run())
    (index,) = site.indexes._indexes.values()
    site.world.change(30)
    async with asyncio.timeout(10):
        while not index.filled or index.behind:
            await asyncio.sleep(0.001)
    assert len(index) == len(site.world.rows)
    running.cancel()


async def test_a_lost_partition_is_unavailable_also_to_a_search_that_waits_for_its_index() -> None:
    site = Site()
    waiting = asyncio.create_task(site.finds_all())
    await asyncio.sleep(0)
    site.indexes.lost(0)
    with pytest.raises(Unavailable, match="not served"):
        await waiting
    with pytest.raises(Unavailable, match="not served"):
        await site.finds_all()
    site.changed({b"x": None}, {})


async def test_a_list_is_unavailable_while_the_index_is_built_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_indexes, "FILL_SECONDS", 0.01)
    site = Site()
    (index,) = site.indexes._indexes.values()

    async def never(_index: PartitionIndex) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr(site.indexes, "_fill", never)
    with pytest.raises(Unavailable, match="the index of partition 0 is being built: 0 of "):
        await site.indexes.search(0, Query(), 10)
    assert not index.filled


@pytest.mark.parametrize("where", ["background", "search", "batch"])
async def test_an_index_that_fails_is_built_anew_and_stops_nothing(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    # specification 14.23
    monkeypatch.setattr(row_indexes, "EVERY_SECONDS", 0.001)
    site = Site()
    assert await site.finds_all()
    (index,) = site.indexes._indexes.values()

    def fail(*_: Any) -> Any:
        raise ValueError("not in list")

    if where == "batch":
        monkeypatch.setattr(index, "changed", fail)
        site.world.change(40)
    else:
        monkeypatch.setattr(index, "catch_up", fail)
        site.world.change(40)
    if where == "search":
        with pytest.raises(Unavailable, match="built anew"):
            await site.finds_all()
    if where == "background":
        running = asyncio.create_task(site.indexes.run())
        async with asyncio.timeout(10):
            while site.indexes._indexes[0] is index:
                await asyncio.sleep(0.001)
        assert not running.done()
        running.cancel()
    assert site.indexes._indexes[0] is not index
    assert await site.finds_all()


async def test_a_row_that_cannot_be_read_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()

    def unreadable(*_: Any) -> Any:
        raise LogFailed("row_unreadable", "no row of this release")

    monkeypatch.setattr(site.world.view, "scan", unreadable)
    with pytest.raises(LogFailed):
        await site.indexes.run()

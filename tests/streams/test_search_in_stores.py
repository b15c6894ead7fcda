"""The index agrees with the rows of a partition, in memory and on disk, between checkpoints and after a take-over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bridge.clock import HostClock
from streams.row_index import PartitionIndex
from streams.topics import CEREMONIES, DEFINITIONS
from streams.topology import TABLES
from streams.transport.partition.rocks_store import RocksStores
from streams.transport.partition.row_cache import SMALL_ROW_BYTES, RowCache
from streams.transport.partition.row_store import MemoryStores, RowStore
from streams.transport.partition.rows import Rows
from tables.instance import Instance
from tests.streams.search_world import KINDS, SearchWorld, by_looking, definition_of, searched

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(params=["memory", "rocks"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RowStore]:
    stores: Any = MemoryStores() if request.param == "memory" else RocksStores(tmp_path)
    await stores.start()
    opened = await stores.open("ceremony", 0, [CEREMONIES, DEFINITIONS])
    await opened.loaded()
    yield opened
    opened.close()
    await stores.stop()


class StoredView:
    """The view of a partition with a small cache, so that most rows are read from the store."""

    number = 0

    def __init__(self, store: RowStore) -> None:
        self.all = Rows(TABLES, 0, HostClock(), RowCache(5 * SMALL_ROW_BYTES), store)

    def scan(self, table: str, decode: Any = None, keys: Any = None) -> Any:
        return self.all.tables[table].scan(decode, keys)

    async def checkpoint(self) -> None:
        taken = self.all.take_dirty()
        await self.all.saved(await self.all.encode(taken))


@pytest.mark.parametrize("seed", range(3))
async def test_searches_find_rows_that_are_not_written_yet_and_rows_in_the_store(store: RowStore, seed: int) -> None:
    # specification 14.21
    world = SearchWorld(seed)
    view: Any = StoredView(store)
    world.index = PartitionIndex(view, definition_of, KINDS)
    changed = world.index.changed

    def applied(rows: Any, before: Any) -> None:
        read: dict[bytes, Instance | None] = {key: view.all.tables[CEREMONIES].get(key) for key in before}
        view.all.apply(CEREMONIES, rows)
        changed(rows, read)

    world.index.changed = applied  # type: ignore[method-assign]  # the world's changes go through the table
    world.fill()
    for turn in range(25):
        world.change(15)
        if turn % 3 == 0:
            await view.checkpoint()
        for _ in range(4):
            query = world.random_query()
            total, keys = by_looking(world.rows.values(), query)
            found = searched(world.index, query, 1000)
            assert (found.total, list(found.keys)) == (total, keys), query
    await view.checkpoint()
    again = PartitionIndex(view, definition_of, KINDS)
    for _ in again.fill():
        pass
    for _ in range(10):
        query = world.random_query()
        assert searched(again, query, 1000) == searched(world.index, query, 1000)
    assert list(again.values) == list(world.index.values)

"""Every row store, in memory or on disk, reads like a dict of the rows loaded and written."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ports.log import LogFailed, StateLost
from streams.transport.partition.rocks_store import PAGE_ROWS, RocksStore, RocksStores
from streams.transport.partition.row_store import MemoryStores, RowStore, Stores

# One name begins with the other; their rows must not mix.
TABLES = ("rows", "rows2")

Rows = dict[bytes, bytes | None]

KEYS = st.sampled_from([b"", b"\0", b"a", b"a\0", b"a\0b", b"b", b"\xff", b"\xff\xff", b"2\0a", "é:S".encode()])
CHANGES = st.dictionaries(KEYS, st.one_of(st.none(), st.binary(max_size=3), st.just(b"x" * 30_000)), max_size=6)
STEPS = st.lists(st.tuples(st.sampled_from(TABLES), CHANGES), max_size=8)
Make = Callable[[Path], Stores]


def memory(_: Path) -> Stores:
    return MemoryStores()


@pytest.fixture(params=[memory, RocksStores], ids=["memory", "rocks"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    made: Stores = request.param(tmp_path / "state")
    await made.start()
    yield made
    await made.stop()


async def rocks(folder: Path) -> RocksStores:
    made = RocksStores(folder)
    await made.start()
    return made


def change(model: dict[bytes, bytes], rows: Rows) -> None:
    for key, raw in rows.items():
        if raw is None:
            model.pop(key, None)
        else:
            model[key] = raw


def check(store: RowStore, models: dict[str, dict[bytes, bytes]]) -> None:
    for table, model in models.items():
        assert dict(store.items(table)) == model
        assert sorted(store.keys(table)) == sorted(model)
        assert store.count(table) == len(model)
        assert all(store.get(table, key) == model.get(key) for key in (*model, b"a", b"unknown"))


@pytest.mark.parametrize("make", [memory, RocksStores], ids=["memory", "rocks"])
@settings(max_examples=25, deadline=None)
@given(loaded=STEPS, written=STEPS)
def test_a_store_reads_like_a_dict(
    make: Make,
    loaded: list[tuple[str, Rows]],
    written: list[tuple[str, Rows]],
) -> None:
    """A dict of the changelog's rows, with tombstones, and of every checkpoint since."""

    async def play(folder: Path) -> None:
        stores = make(folder)
        await stores.start()
        store = await stores.open("fold", 0, TABLES)
        models: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        for table, rows in loaded:
            await store.load(table, rows)
            change(models[table], rows)
        await store.loaded()
        check(store, models)
        for table, rows in written:
            await store.write({table: rows})
            change(models[table], rows)
            check(store, models)
        store.close()
        await stores.stop()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))


async def test_stores_of_different_partitions_are_independent(stores: Stores) -> None:
    one, two = [await stores.open("fold", number, TABLES) for number in (0, 1)]
    await one.write({"rows": {b"a": b"1"}})
    await two.loaded()
    check(one, {"rows": {b"a": b"1"}, "rows2": {}})
    check(two, {"rows": {}, "rows2": {}})


async def test_all_rows_can_be_read_while_rows_are_written(stores: Stores) -> None:
    """Rows that exist all the time are returned once each."""
    store = await stores.open("fold", 0, TABLES)
    there = {b"%05d" % number: b"1" for number in range(0, 3 * PAGE_ROWS, 2)}
    await store.load("rows", there)
    await store.loaded()
    seen = []
    for number, (key, _) in enumerate(store.items("rows")):
        seen.append(key)
        if number % 50 == 0:
            await store.write({"rows": {b"%05d" % (number + 1): b"new", b"%05d" % (2 * number + 40): b"2"}})
    assert len(set(seen)) == len(seen)
    assert set(there) <= set(seen)


async def test_a_closed_store_is_empty_and_its_partition_can_be_opened_again(stores: Stores) -> None:
    """Also in the middle of a read, and immediately."""
    store = await stores.open("fold", 0, TABLES)
    await store.write({"rows": {b"%d" % number: b"1" for number in range(3 * PAGE_ROWS)}})
    reading = store.items("rows")
    next(reading)
    store.close()
    again = await stores.open("fold", 0, TABLES)
    assert len(list(reading)) < 3 * PAGE_ROWS
    check(store, {"rows": {}, "rows2": {}})
    await store.load("rows", {b"late": b"1"})
    await store.write({"rows": {b"late": b"1"}})
    check(again, {"rows": {}, "rows2": {}})


async def test_files_of_a_former_process_are_deleted(tmp_path: Path) -> None:
    """Old rows, half a file, or a file in the place of a folder."""
    stores = await rocks(tmp_path / "living")
    await (await stores.open("fold", 0, TABLES)).write({"rows": {b"old": b"1"}})
    shutil.copytree(tmp_path / "living", tmp_path / "killed")
    await stores.stop()
    folder = tmp_path / "killed" / "partitions"
    (folder / "fold-1").write_bytes(b"no folder")
    (folder / "fold-2").mkdir()
    (folder / "fold-2" / "CURRENT").write_bytes(b"MANIFEST-0")
    stores = await rocks(tmp_path / "killed")
    for number in range(3):
        check(await stores.open("fold", number, TABLES), {"rows": {}, "rows2": {}})
    await stores.stop()


async def test_a_broken_file_of_a_store_raises_state_lost(tmp_path: Path) -> None:
    """For reads of one row, all rows or the keys; none of them treats it as a missing row."""
    stores = await rocks(tmp_path)
    store = await stores.open("fold", 0, TABLES)
    assert isinstance(store, RocksStore)
    await store.write({"rows": {b"%05d" % number: b"%d" % number * 200 for number in range(5_000)}})
    store._database.flush()
    for file in (tmp_path / "partitions" / "fold-0").glob("*.sst"):
        file.write_bytes(b"\0" * file.stat().st_size)
    for read in (
        lambda: store.get("rows", b"00000"),
        lambda: list(store.items("rows")),
        lambda: store.keys("rows"),
    ):
        with pytest.raises(StateLost, match=r"^state_lost: .*fold-0 cannot be read \(Corruption"):
            read()
    with pytest.raises(StateLost):
        await store.write({"rows": {b"00000": b"new"}})
    store.close()
    check(await stores.open("fold", 0, TABLES), {"rows": {}, "rows2": {}})
    await stores.stop()


async def test_two_workers_on_one_folder_are_refused(tmp_path: Path) -> None:
    first = await rocks(tmp_path)
    with pytest.raises(LogFailed, match=r"^state_dir_in_use: .* is another worker's; give each its own CEREMONY_STATE"):
        await rocks(tmp_path)
    await first.stop()
    await (await rocks(tmp_path)).stop()


async def test_a_folder_that_cannot_be_created_gives_a_message_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LogFailed, match=r"^state_dir_unusable: .*file/state .Not a directory"):
        await rocks(tmp_path / "file" / "state")


async def test_other_files_in_the_folder_are_kept(tmp_path: Path) -> None:
    """A user who names a wrong folder loses nothing."""
    (tmp_path / "thesis.txt").write_text("five years")
    stores = await rocks(tmp_path)
    await (await stores.open("fold", 0, TABLES)).write({"rows": {b"a": b"1"}})
    await stores.stop()
    assert (tmp_path / "thesis.txt").read_text() == "five years"

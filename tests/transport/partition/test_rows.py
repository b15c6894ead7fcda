"""The rows of a partition read the same, decoded or encoded, cached or stored."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.clock import HostClock
from ports.log import LogFailed, TableSpec
from streams.transport.partition.row_cache import SMALL_ROW_BYTES, RowCache
from streams.transport.partition.row_store import WORTH_COMPRESSING_BYTES, MemoryStore
from streams.transport.partition.rows import TIDIED_PER_ROW, TIDIED_PER_TURN, Rows, Table


class Counting:
    """A table of JSON values that counts decoded rows."""

    def __init__(self) -> None:
        self.decoded = 0
        self.spec = TableSpec("t", lambda row: json.dumps(row).encode(), self._decode)

    def _decode(self, raw: bytes) -> Any:
        self.decoded += 1
        return json.loads(raw)

    def rows(self, stored: dict[bytes, bytes], *, cached: int) -> Rows:
        """`cached`: the number of small rows that fit into the cache."""
        store = MemoryStore({"t": stored})
        return Rows([self.spec], 0, HostClock(), RowCache(cached * SMALL_ROW_BYTES), store)


def stored(count: int) -> dict[bytes, bytes]:
    return {b"%d" % number: b"%d" % number for number in range(1, count + 1)}


async def checkpoint(rows: Rows) -> None:
    await rows.saved(await rows.encode(rows.take_dirty()))
    await rows.tidy()


def decoded(table: Table) -> int:
    return len(table._held.young) + len(table._held.old)


async def test_the_cache_bounds_the_decoded_rows() -> None:
    counting = Counting()
    rows = counting.rows({}, cached=10)
    table = rows.tables["t"]
    for number in range(1, 101):
        rows.apply("t", {b"%d" % number: number})
        await checkpoint(rows)
        assert decoded(table) <= 10
    assert len(table) == 100
    assert [table.get(b"%d" % number) for number in range(1, 101)] == list(range(1, 101))
    assert decoded(table) <= 10


async def test_a_row_that_is_used_repeatedly_is_decoded_once() -> None:
    counting = Counting()
    table = counting.rows(stored(50), cached=10).tables["t"]
    for number in range(2, 51):
        assert (table.get(b"1"), table.get(b"%d" % number)) == (1, number)
    assert counting.decoded == 50


async def test_large_rows_count_with_their_size() -> None:
    """The cache has room for ten small rows, or for one that is ten times as large."""
    counting = Counting()
    rows = counting.rows({}, cached=10)
    for number in range(1, 21):
        rows.apply("t", {b"%d" % number: "x" * 10 * SMALL_ROW_BYTES})
        await checkpoint(rows)
    counting.decoded = 0
    for number in range(1, 21):
        rows.tables["t"].get(b"%d" % number)
    assert counting.decoded >= 18
    assert decoded(rows.tables["t"]) <= 2


async def test_large_rows_that_were_only_written_count_with_their_size() -> None:
    """The size of a row is known when its checkpoint encodes it."""
    rows = Counting().rows({}, cached=10)
    for number in range(1, 101):
        rows.apply("t", {b"%d" % number: "x" * 4 * SMALL_ROW_BYTES})
        await checkpoint(rows)
        assert decoded(rows.tables["t"]) <= 4
    assert len(rows.tables["t"]) == 100


async def test_rows_of_the_last_batches_stay_readable_with_any_cache() -> None:
    """The store does not have them before their checkpoint has committed."""
    rows = Counting().rows({b"1": b"1"}, cached=1)
    table = rows.tables["t"]
    rows.apply("t", {b"%d" % number: number for number in range(2, 30)})
    taken = rows.take_dirty()
    rows.apply("t", {b"2": 20, b"1": None})
    want = {b"2": 20, **{b"%d" % number: number for number in range(3, 30)}}
    assert dict(table.items()) == want
    assert (len(table), b"1" in table, table.get(b"1", 7)) == (28, False, 7)
    await rows.saved(await rows.encode(taken))
    assert dict(table.items()) == want
    await checkpoint(rows)
    assert dict(table.items()) == want == {key: table[key] for key in table}


async def test_a_table_reads_like_a_dict_after_any_changes_and_checkpoints() -> None:
    """Random puts, deletions, reads and checkpoints, by seed."""
    for seed in range(30):
        dice = random.Random(seed)
        rows = Counting().rows(stored(8), cached=dice.choice([1, 3, 50]))
        table, model = rows.tables["t"], {b"%d" % number: number for number in range(1, 9)}
        taken = None
        for turn in range(1, 200):
            key = b"%d" % dice.randint(1, 12)
            what = dice.random()
            if what < 0.4:
                rows.apply("t", {key: turn})
                model[key] = turn
            elif what < 0.6:
                rows.apply("t", {key: None})
                model.pop(key, None)
            elif what < 0.7 and taken is None:
                taken = rows.take_dirty()
            elif what < 0.8 and taken is not None:
                await rows.saved(await rows.encode(taken))
                taken = None
            assert table.get(key) == model.get(key), f"seed {seed}, turn {turn}"
            assert len(table) == len(model), f"seed {seed}, turn {turn}"
        assert dict(table.items()) == model, f"seed {seed}"
        assert dict(table.scan(json.loads)) == model, f"seed {seed}"


async def test_all_rows_can_be_read_while_they_change() -> None:
    """No row that exists all the time is missing."""
    rows = Counting().rows(stored(10), cached=4)
    seen = []
    for key, _ in rows.tables["t"].scan(json.loads):
        seen.append(key)
        rows.apply("t", {b"new %d" % len(seen): 1, b"3": 33})
        await checkpoint(rows)
    assert set(stored(10)) <= set(seen)


async def test_reading_all_rows_evicts_no_row_in_use() -> None:
    counting = Counting()
    table = counting.rows(stored(1000), cached=10).tables["t"]
    table.get(b"7")
    assert len(list(table.values())) == 1000
    assert decoded(table) <= 10
    before = counting.decoded
    table.get(b"7")
    assert counting.decoded == before


async def test_tables_share_one_bound_until_they_are_closed() -> None:
    cache, counting = RowCache(10 * SMALL_ROW_BYTES), Counting()
    one, two = (Rows([counting.spec], n, HostClock(), cache, MemoryStore({"t": stored(99)})) for n in (0, 1))
    for number in range(1, 100):
        one.tables["t"].get(b"%d" % number)
        two.tables["t"].get(b"%d" % number)
    assert decoded(one.tables["t"]) + decoded(two.tables["t"]) <= 10
    one.close()
    assert len(cache._members) == 1
    assert list(one.tables["t"]._store.items("t")) == []


def test_the_error_for_an_unreadable_row_names_it() -> None:
    table = Counting().rows({b"a": b"{"}, cached=1).tables["t"]
    with pytest.raises(LogFailed, match=r"row_unreadable: 'a' of table t\[0\]"):
        table.get(b"a")
    with pytest.raises(LogFailed, match="row_unreadable"):
        list(table.values())


async def test_unused_rows_are_compressed_a_few_at_a_time_and_stay_readable() -> None:
    long = {b"%d" % number: b"%d " % number + b"x" * WORTH_COMPRESSING_BYTES for number in range(20)}
    store = MemoryStore({"t": {**long, b"small": b"1"}})
    store.cool("t", [*long, b"small", b"unknown"])
    assert [store.tidy(9) for _ in range(4)] == [9, 9, 4, 0]
    table = store._tables["t"]
    assert set(table.cold) == set(long)
    assert sum(map(len, table.cold.values())) < sum(map(len, long.values())) / 3
    assert {key: store.get("t", key) for key in long} == long
    assert dict(store.items("t")).items() >= long.items()
    assert sorted(store.keys("t")) == sorted([*long, b"small"])
    assert store.count("t") == 21
    await store.write({"t": {b"3": b"changed", b"4": None}})
    assert (store.get("t", b"3"), store.get("t", b"4"), store.count("t")) == (b"changed", None, 20)


async def test_a_table_larger_than_its_cache_is_compressed_and_reads_like_a_dict() -> None:
    rows = Counting().rows({}, cached=4)
    text = "x" * WORTH_COMPRESSING_BYTES
    for number in range(100):
        rows.apply("t", {b"%d" % number: f"{number} {text}"})
        await checkpoint(rows)
    assert len(rows._store._tables["t"].cold) > 80  # type: ignore[attr-defined]
    assert dict(rows.tables["t"].items()) == {b"%d" % number: f"{number} {text}" for number in range(100)}


async def test_keys_are_listed_without_reading_rows() -> None:
    """Listing a table of compressed rows costs no more than its keys."""

    class Closed(MemoryStore):
        def get(self, table: str, key: bytes) -> bytes | None:
            pytest.fail(f"{table}: {key!r} was read")

        def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
            pytest.fail(f"{table} was read")

    rows = Rows([Counting().spec], 0, HostClock(), RowCache(), Closed({"t": stored(9)}))
    taken = {b"1": None, b"2": 20}
    rows.tables["t"].dirty.update(taken)
    assert sorted(rows.tables["t"]) == [b"%d" % number for number in range(2, 10)]


async def test_postponed_work_lets_other_tasks_run_in_between() -> None:
    turns = 0

    class Turning(HostClock):
        async def sleep(self, seconds: float) -> None:
            nonlocal turns
            turns += 1
            await super().sleep(seconds)

    text = b'"' + b"x" * WORTH_COMPRESSING_BYTES + b'"'
    store = MemoryStore({"t": {b"%d" % number: text for number in range(1000)}})
    rows = Rows([Counting().spec], 0, Turning(), RowCache(), store)
    store.cool("t", store.keys("t"))
    await rows.saved({"t": {b"new %d" % number: b"1" for number in range(200)}})
    assert store._tables["t"].cold == {}
    await rows.tidy()
    assert len(store._tables["t"].cold) == TIDIED_PER_ROW * 200
    assert turns == TIDIED_PER_ROW * 200 / TIDIED_PER_TURN

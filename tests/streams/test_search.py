"""A search of a partition finds what a look at every row finds, and looks at few of them, however many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from bridge.clock import HostClock
from streams import row_index
from streams import search as searching
from streams.api import Matches, Query, SortKey
from streams.matches import merged
from streams.search import LOOKS_PER_TURN, MOST_LOOKS, search
from streams.topics import CEREMONIES
from streams.turns import Turns
from tables.instance import Instance
from tests.loop_turns import LoopTurns
from tests.streams.search_world import SearchWorld, by_looking, random_row, run, searched

SEEDS = range(12)


def whole(index: Any, query: Query, page_size: int) -> list[SortKey]:
    """All pages of a list, each begun behind the page before."""
    found: list[SortKey] = []
    while True:
        page = searched(index, query, page_size)
        found += page.keys
        if page.stopped is None:
            return found
        query = after(query, page.stopped)


def after(query: Query, key: SortKey) -> Query:
    return Query(**{**{name: getattr(query, name) for name in Query.__slots__}, "after": key})


# -- the same answer as a look at every row


@pytest.mark.parametrize("seed", SEEDS)
def test_every_search_finds_the_rows_that_match_after_random_changes(seed: int) -> None:
    # specification 14.8, 14.21
    world = SearchWorld(seed)
    world.change(60)
    world.fill()
    for _ in range(25):
        world.change(world.draw.randrange(12))
        for _ in range(8):
            query = world.random_query()
            total, keys = by_looking(world.rows.values(), query)
            found = searched(world.index, query, 15)
            assert (list(found.keys), found.total, found.exact) == (keys[:15], total, True), query
            assert whole(world.index, query, 7) == keys


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_change_while_the_index_is_filled_are_entered_as_they_are(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_index, "ROWS_PER_TURN", 5)
    world = SearchWorld(seed)
    world.change(80)
    for _ in world.index.fill():
        world.change(3)
        if world.draw.random() < 0.3:
            run(world.index.catch_up())
    for _ in range(20):
        query = world.random_query()
        total, keys = by_looking(world.rows.values(), query)
        found = searched(world.index, query, 1000)
        assert (list(found.keys), found.total) == (keys, total), query


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_change_during_a_search_leave_no_gap_and_repeat_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that match throughout are found once; the others may or may not be."""
    monkeypatch.setattr(searching, "LOOKS_PER_TURN", 3)
    world = SearchWorld(seed)
    world.change(150)
    world.fill()
    for _ in range(15):
        query = world.random_query()
        before = set(by_looking(world.rows.values(), query)[1])
        throughout = set(before)
        pieces = search(world.index, query, 1000)
        found: Matches | None = None
        while found is None:
            try:
                next(pieces)
            except StopIteration as end:
                found = end.value
            else:
                world.change(2)
                throughout &= set(by_looking(world.rows.values(), query)[1])
        assert found is not None
        assert list(found.keys) == sorted(set(found.keys))
        assert throughout <= set(found.keys), query


@pytest.mark.parametrize("seed", SEEDS)
def test_an_empty_partition_has_an_empty_index(seed: int) -> None:
    world = SearchWorld(seed)
    world.change(40)
    world.fill()
    gone = dict.fromkeys(world.rows)
    before: Mapping[bytes, Instance | None] = dict(world.rows)
    world.view.tables[CEREMONIES].clear()
    world.index.changed(gone, before)
    run(world.index.catch_up())
    assert len(world.index) == len(world.index.values) == 0
    assert world.index.matching(Query()) == []


# -- bounded work


def large(rows: int, seed: int = 1) -> SearchWorld:
    """Many rows of few kinds; one in 1,000 has the team `rare`."""
    world = SearchWorld(seed)
    like = replace(random_row(world.draw, 0), inputs={"team": "red", "size": "blue"}, correlation_id="corr-1")
    for number in range(rows):
        inputs = {"team": "rare", "size": "blue"} if number % 1_000 == 0 else like.inputs
        state = "OPEN" if number % 2 else "SENT"
        row = replace(like, instance_id=f"c{number}:s1", story_id="s1", created_at=number, inputs=inputs, state=state)
        world.rows[row.instance_id.encode()] = row
    world.fill()
    return world


QUERIES = {
    "no filter": Query(),
    "a state": Query(state="OPEN"),
    "a story": Query(story="s1"),
    "an input": Query(inputs=(("team", "rare"),)),
    "times": Query(created_from=100, created_before=900),
    "state and story": Query(state="OPEN", story="s1"),
    "two inputs": Query(inputs=(("team", "rare"), ("size", "blue"))),
    "no match": Query(state="OPEN", story="s1", inputs=(("team", "nobody"),)),
}


@pytest.fixture(scope="module")
def worlds() -> Mapping[int, SearchWorld]:
    return {rows: large(rows) for rows in (1_000, 30_000)}


@pytest.mark.parametrize("name", QUERIES)
def test_a_page_looks_at_as_few_ceremonies_of_30000_as_of_1000(name: str, worlds: Mapping[int, SearchWorld]) -> None:
    # specification 14.20, 14.21
    looks = {}
    for rows, world in worlds.items():
        world.index.looks = 0
        searched(world.index, QUERIES[name], 51)
        looks[rows] = world.index.looks
    assert looks[30_000] <= max(looks[1_000], 2 * 51 + LOOKS_PER_TURN)


def test_a_search_with_several_filters_stops_after_its_looks_and_goes_on_from_there(
    worlds: Mapping[int, SearchWorld],
) -> None:
    """Neither set of candidates is small, and few of them match: the count is a lower bound."""
    # specification 14.21
    index = worlds[30_000].index
    query = Query(
        story="s1", correlation="corr-1", state="OPEN", status=next(iter(index.matching(Query()))).facts.status
    )
    worlds[30_000].index.looks = 0
    first = searched(index, Query(story="s1", correlation="nobody", state="OPEN"), 50)
    assert (first.total, first.exact, index.looks) == (0, True, 0)
    found = searched(index, query, 50)
    assert (len(found.keys), found.exact) == (50, False)
    assert index.looks <= 2 * LOOKS_PER_TURN
    total, keys = by_looking(worlds[30_000].rows.values(), query)
    assert found.total <= total and list(found.keys) == keys[:50]


def test_a_page_of_rare_matches_ends_early_and_the_next_ones_find_the_rest(worlds: Mapping[int, SearchWorld]) -> None:
    # specification 14.21
    world = worlds[30_000]
    rare = replace(next(iter(world.rows.values())), instance_id="rare:s1", created_at=5, state="SENT", story_id="s1")
    rare = replace(rare, error_code="once", correlation_id="corr-1")
    world.rows[b"rare:s1"] = rare
    world.index.changed({b"rare:s1": rare}, {b"rare:s1": None})
    many = [replace(row, error_code="many", version=9) for row in list(world.rows.values())[:9_000]]
    keys = {row.instance_id.encode(): row for row in many if row.state == "OPEN"}
    before = {key: world.rows[key] for key in keys}
    world.rows.update(keys)
    world.index.changed(keys, before)
    query = Query(error_code="many", inputs=(("size", "blue"), ("team", "rare")))
    assert searched(world.index, query, 50).exact
    wide = Query(error_code="many", story="s1", correlation="corr-1")
    total, wanted = by_looking(world.rows.values(), wide)
    world.index.looks = 0
    page = searched(world.index, wide, 5_000)
    assert world.index.looks <= MOST_LOOKS and page.stopped is not None and not page.exact
    assert whole(world.index, wide, 5_000) == wanted and len(wanted) == total


@pytest.mark.asyncio
async def test_four_searches_look_at_few_ceremonies_in_a_turn(worlds: Mapping[int, SearchWorld]) -> None:
    # specification 14.20
    index, turns, counted = worlds[30_000].index, Turns(HostClock()), LoopTurns()
    seen = 0

    class Counting(Turns):
        async def next(self) -> None:
            nonlocal seen
            counted.work(index.looks - seen)
            seen = index.looks
            await turns.next()

    index.looks = 0
    counting = Counting(HostClock())
    found = await counted.during(*(counting.run(search(index, Query(state="OPEN"), 2_000)) for _ in range(4)))
    assert all(len(one.keys) == 2_000 for one in found)
    assert counted.most <= 4 * LOOKS_PER_TURN and counted.often <= LOOKS_PER_TURN


# -- merging partitions


def test_merged_matches_stop_where_the_first_part_stopped() -> None:
    """Behind it another match of that part may be missing."""
    parts = [
        Matches(3, exact=True, keys=[(-9, "a"), (-5, "b"), (-1, "c")], stopped=None),
        Matches(9, exact=False, keys=[(-8, "d")], stopped=(-4, "e")),
    ]
    found: Matches = run(merged(parts, 10))
    assert list(found.keys) == [(-9, "a"), (-8, "d"), (-5, "b")]
    assert (found.total, found.exact, found.stopped) == (12, False, (-4, "e"))


def test_merged_matches_are_no_more_than_wanted() -> None:
    part = Matches(3, exact=True, keys=[(-9, "a"), (-5, "b"), (-1, "c")], stopped=None)
    first: Matches = run(merged([part], 2))
    assert (list(first.keys), first.stopped) == ([(-9, "a"), (-5, "b")], (-5, "b"))
    all_of_them: Matches = run(merged([part], 3))
    assert (len(all_of_them.keys), all_of_them.stopped) == (3, None)

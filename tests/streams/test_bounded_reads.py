"""Reads of operators do bounded work between two turns of the event loop, however many rows there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bridge.clock import HostClock
from ports.log import Record
from streams import letter_index
from streams.dead_letters import dead_letter_record, placed_letter
from streams.doctor import ROWS_PER_TURN, Doctor
from streams.letter_index import LETTERS_PER_PIECE, LetterIndex
from streams.topology import topics
from streams.transport.sqlite.log import SqliteLog
from streams.turns import Turns
from tests.loop_turns import LoopTurns
from tests.streams.fakes import MemoryView
from tests.streams.test_timers import row

pytestmark = pytest.mark.asyncio
ROWS, CALLERS = 3_000, 4


class CountingView(MemoryView):
    """Counts the rows that are looked at."""

    def __init__(self, counted: LoopTurns) -> None:
        super().__init__()
        self._counted = counted
        for number in range(ROWS):
            self.put(replace(row(f"c{number}"), created_at=number))

    def scan(self, table: str, decode: Any = None, keys: Iterable[bytes] | None = None) -> Iterator[tuple[bytes, Any]]:
        for found in super().scan(table, decode, keys):
            self._counted.work()
            yield found


async def test_four_diagnoses_look_at_few_rows_in_a_turn() -> None:
    # specification 14.20
    counted, clock = LoopTurns(), HostClock()
    view, turns = CountingView(counted), Turns(clock)
    found = await counted.during(*(Doctor(clock, lambda *_: None, 0, turns).all([view], []) for _ in range(CALLERS)))
    assert all(sum(one.verdicts.values()) == ROWS and not one.incomplete for one in found)
    assert counted.all == CALLERS * ROWS
    assert counted.most <= ROWS_PER_TURN * CALLERS  # each begins at once; from then on one of them has a turn
    assert counted.often <= ROWS_PER_TURN


# -- dead letters


class Letters:
    """A topic of dead letters and its index."""

    def __init__(self, log: SqliteLog, most: int = 10_000) -> None:
        self.log = log
        self.turns = Turns(HostClock())
        self.index = LetterIndex(log, self.turns, "t.deadletters", most)

    async def write(self, *numbers: int, topic: str = "t.commands") -> None:
        await asyncio.gather(*(self._write(topic, number) for number in numbers))

    async def _write(self, topic: str, number: int) -> None:
        letter = dead_letter_record(topic, number % 3, number, f"code{number % 2}", "it broke", key=None, value=b"x")
        await self.log.append("t.deadletters", number % 3, *letter)


@pytest.fixture
async def letters(tmp_path: Path) -> AsyncIterator[Letters]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create(topics("t", 3))
    yield Letters(log)
    await log.stop()


def counting(counted: LoopTurns, patch: pytest.MonkeyPatch) -> None:
    read = placed_letter

    def counted_letter(record: Record) -> Any:
        counted.work()
        return read(record)

    patch.setattr(letter_index, "placed_letter", counted_letter)


async def test_dead_letters_are_read_once_and_few_in_a_turn(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.20
    await letters.write(*range(3_000))
    counted = LoopTurns()
    counting(counted, monkeypatch)
    await counted.during(*(letters.index.refresh() for _ in range(CALLERS)))
    assert (counted.all, letters.index.total()) == (3_000, 3_000)
    assert counted.most <= LETTERS_PER_PIECE
    await letters.write(3_000)
    await letters.index.refresh()
    assert (counted.all, letters.index.total()) == (3_001, 3_001)
    assert letters.index.codes == {"code0": 1_501, "code1": 1_500}


async def test_a_page_of_dead_letters_is_read_by_its_places(letters: Letters) -> None:
    await letters.write(*range(40))
    await asyncio.sleep(0.01)  # else some have the same time
    await letters.write(*range(40, 50), topic="t.steps.publish")
    await letters.index.refresh()
    shown: list[int] = []
    for offset in range(0, 50, 7):
        page = await letters.index.records(await letters.index.newest(7, offset))
        shown += [placed_letter(record).offset for record in page]
    assert sorted(shown) == list(range(50)) and sorted(shown[:10]) == list(range(40, 50))
    few = await letters.index.newest(100, 2, "t.steps.publish")
    assert ({place.origin[0] for place in few}, len(few)) == ({"t.steps.publish"}, 8)
    assert letters.index.total("t.steps.publish") == 10


async def test_a_dead_letter_is_found_in_whichever_partition_it_was_written(letters: Letters) -> None:
    letter = dead_letter_record("t.events", 2, 7, "refused", "no", key=None, value=b"x")
    await letters.log.append("t.deadletters", 0, *letter)
    await letters.index.refresh()
    place = await letters.index.find(("t.events", 2, 7))
    assert place is not None and (place.partition, place.offset) == (0, 0)
    assert await letters.index.find(("t.events", 2, 8)) is None


async def test_the_index_keeps_the_newest_letters_and_counts_the_others(letters: Letters) -> None:
    await letters.write(*range(30))
    few = Letters(letters.log, most=12)
    await few.index.refresh()
    await few.write(*range(30, 36))
    await few.index.refresh()
    assert (few.index.total(), few.index.indexed) == (36, 12)
    newest = await few.index.newest(100, 0)
    assert len(newest) == 12 and {place.origin[2] for place in newest} >= set(range(30, 36))


async def test_letters_that_were_deleted_are_forgotten(letters: Letters) -> None:
    await letters.write(*range(30))
    await letters.index.refresh()
    letters.index._forget_deleted(0, start=4, end=10)
    assert letters.index.total() == 26
    letters.index._forget_deleted(1, start=0, end=2)  # made anew
    assert letters.index.total() == 16


async def test_turns_are_given_in_the_order_of_the_requests() -> None:
    turns, order = Turns(HostClock()), []

    async def caller(name: str, pieces: int) -> None:
        for _ in range(pieces):
            await turns.next()
            order.append(name)

    work: list[Awaitable[None]] = [caller("long", 5), caller("short", 1)]
    await asyncio.gather(*work)
    assert order[:2] == ["long", "short"]


async def test_heavy_work_rests_for_as_long_as_its_last_piece_took() -> None:
    # specification 14.20
    clock = HostClock()
    turns = Turns(clock)
    await turns.next()
    began = clock.monotonic()
    while clock.monotonic() < began + 0.02:
        pass
    await turns.next()
    assert clock.monotonic() - began >= 0.039


async def test_heavy_work_rests_after_many_short_pieces_too() -> None:
    # specification 14.20
    clock = HostClock()
    turns = Turns(clock)
    worked, first = 0.0, clock.monotonic()
    for _ in range(60):
        await turns.next()
        began = clock.monotonic()
        while clock.monotonic() < began + 0.0005:
            pass
        worked += clock.monotonic() - began
    assert clock.monotonic() - first >= 1.9 * worked - 0.002

"""Histories read back from a real log: the newest events, in pieces, bounded, with a note about missing ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.clock import HostClock
from ports.log import LogUnavailable, Record, TopicSpec
from streams import history as history_module
from streams import history_span, topics
from streams.api import History, HistoryPlace, Unavailable
from streams.envelope import event_record
from streams.history import HistoryReader, Life
from streams.transport.sqlite.log import SqliteLog
from streams.turns import Turns
from tables.effects import Event

TOPIC = "t.events"
MINE = "c:s"
BEGIN = 1_700_000_000_000
# The life of a ceremony that may have events anywhere in the log.
ALWAYS = Life(0, 2**53)
FIRST = HistoryPlace()


class Site:
    """A log with events of two ceremonies, and a reader that notes which pieces it read."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log
        self.pieces: list[tuple[int, int]] = []
        self.stall_below = -1
        self.stall_after = -1
        clock = HostClock()
        self.reader = HistoryReader(self, clock, TOPIC, Turns(clock))  # type: ignore[arg-type]  # all it reads with

    async def newest(self, limit: int = 200, life: Life = ALWAYS) -> History:
        return await self.reader.newest(0, MINE, limit, life)

    async def page(self, place: HistoryPlace = FIRST, limit: int = 200, life: Life = ALWAYS) -> History:
        return await self.reader.page(0, MINE, limit, life, place)

    async def pages(self, limit: int, life: Life = ALWAYS) -> list[History]:
        """All pages of the whole history."""
        found = [await self.page(FIRST, limit, life)]
        while (place := found[-1].next) is not None:
            found.append(await self.page(place, limit, life))
        return found

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        return await self.log.offset_at(topic, partition, timestamp)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        return await self.log.ends(topic)

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        self.pieces.append((start, end))
        if start < self.stall_below:
            await asyncio.sleep(60)
        async for records in self.log.read(topic, partition, start, end):
            if self.stall_after > start:
                yield records[: self.stall_after - start]
                await asyncio.sleep(60)
            yield records

    async def put(
        self,
        instance_id: str,
        number: int,
        subject: str = "ceremony.step.executed",
        size: int = 0,
        metadata: dict[str, str] | None = None,
        fold: int = 2,
        at: int = 0,
    ) -> None:
        event = Event(
            id=f"{instance_id}/{number}/0@{fold}",
            subject=subject,
            instance_id=instance_id,
            correlation_id="corr",
            at=at or BEGIN + number,
            payload={"number": number, "pad": "x" * size},
            metadata=metadata,
        )
        key, value, headers = event_record(event, 100 + number, 0, fold)
        await self.log.append(TOPIC, 0, key, value, headers)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(history_module, "FIRST_PIECE_RECORDS", 4)
    monkeypatch.setattr(history_module, "LARGEST_PIECE_RECORDS", 8)
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec(TOPIC, 1)])
    yield Site(log)
    await log.stop()


class SteppedClock(HostClock):
    """The host's clock, ahead by as many seconds as the test has stepped it."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def step(self, seconds: float) -> None:
        self._ahead += seconds

    def wall(self) -> float:
        return super().wall() + self._ahead

    def now_ms(self) -> int:
        return int(self.wall() * 1000)


@asynccontextmanager
async def opened(folder: Path, clock: HostClock, retention_ms: int = -1) -> AsyncIterator[Site]:
    """A site whose log appends by this clock."""
    log = SqliteLog(folder / "log.db", clock, window=0.0)
    await log.start()
    await log.create([TopicSpec(TOPIC, 1, retention_ms)])
    yield Site(log)
    await log.stop()


async def fill(site: Site, mine: Sequence[int], others: int) -> None:
    """Write events of the ceremony with these numbers, each followed by `others` events of another one."""
    for number in mine:
        await site.put(MINE, number, "ceremony.started" if number == 1 else "ceremony.step.executed")
        for other in range(others):
            await site.put("d:s", number * 1000 + other)


async def test_the_newest_events_of_this_ceremony_are_returned_oldest_first(site: Site) -> None:
    await fill(site, range(1, 6), others=3)
    found = await site.newest()
    assert [json.loads(event.payload)["number"] for event in found.events] == [1, 2, 3, 4, 5]
    first = found.events[0]
    assert (first.subject, first.effect_id, first.correlation_id) == ("ceremony.started", "c:s/1/0@2", "corr")
    assert (first.at, first.partition, first.command_offset) == ("2023-11-14T22:13:20.001Z", 0, 101)
    assert found.complete


async def test_an_event_is_shown_with_its_metadata(site: Site) -> None:
    """An empty object without metadata, and for a record that is no envelope."""
    who = {"actor": "ana", "role": "PO", "reason": ""}
    await site.put(MINE, 1)
    await site.put(MINE, 2, "ceremony.transition.applied", metadata=who)
    await site.log.append(TOPIC, 0, MINE.encode(), b"no envelope", [(topics.EFFECT_ID, b"c:s/3/0@2")])
    found = await site.newest()
    assert [json.loads(event.metadata) for event in found.events] == [{}, who, {}]


async def test_pieces_grow_and_reading_ends_at_the_start_of_the_ceremony(site: Site) -> None:
    """Records before `ceremony.started` are never read."""
    await fill(site, [0], others=40)
    await fill(site, [1, 2], others=4)
    found = await site.newest()
    assert found.complete and len(found.events) == 2
    assert site.pieces == [(47, 51), (39, 47)]
    assert found.stopped_at == 39


async def test_records_older_than_the_ceremony_are_not_read(site: Site) -> None:
    """Also when the log has lost the ceremony's first event, or the ceremony has none."""
    await fill(site, [0], others=40)
    found = await site.newest(life=Life(2**53, 2**53))
    assert (found.events, found.complete) == ([], False)
    assert "not in the log" in found.message
    assert site.pieces == []


async def test_the_limit_leaves_out_older_events_and_tells_the_offset(site: Site) -> None:
    # specification 14.13
    await fill(site, range(1, 6), others=0)
    found = await site.newest(2)
    assert [event.effect_id for event in found.events] == ["c:s/4/0@2", "c:s/5/0@2"]
    assert (found.complete, found.stopped_at) == (False, 3)
    assert "older" in found.message


async def test_the_size_leaves_out_older_events_but_never_the_newest(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 14.13
    monkeypatch.setattr(history_module, "LARGEST_ANSWER_BYTES", 1000)
    for number in (1, 2):
        await site.put(MINE, number, size=2000)
    found = await site.newest()
    assert [event.effect_id for event in found.events] == ["c:s/2/0@2"]
    assert not found.complete


async def test_an_event_written_twice_by_a_crash_is_shown_once_at_its_first_place(site: Site) -> None:
    # specification 14.13
    await fill(site, [1, 2, 3], others=0)
    await fill(site, [2, 3, 4], others=0)
    found = await site.newest()
    assert [event.effect_id for event in found.events] == [f"c:s/{number}/0@2" for number in (1, 2, 3, 4)]


async def test_a_history_cut_off_by_its_time_limit_tells_the_offset(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished piece does not count, so the shown events have no gap."""
    # specification 14.13
    monkeypatch.setattr(history_module, "READ_SECONDS", 0.3)
    await fill(site, range(1, 21), others=0)
    site.stall_below = 10
    found = await site.newest()
    assert [event.effect_id for event in found.events] == [f"c:s/{number}/0@2" for number in (17, 18, 19, 20)]
    assert (found.complete, found.stopped_at) == (False, 16)
    assert "0.3 s" in found.message


async def test_an_event_that_cannot_be_read_still_shows_its_headers(site: Site) -> None:
    await site.log.append(TOPIC, 0, MINE.encode(), b"\xff", [("effect-id", b"c:s/1/0@2"), ("subject", b"ceremony.x")])
    (event,) = (await site.newest()).events
    assert (event.subject, event.payload, event.command_offset) == ("ceremony.x", "{}", -1)


async def test_a_log_that_is_away_is_unavailable(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: str) -> Sequence[tuple[int, int]]:
        raise LogUnavailable("log_unavailable", "away")

    monkeypatch.setattr(site, "ends", away)
    with pytest.raises(Unavailable):
        await site.newest()


# -- the whole history, in pages


def numbers(found: History) -> list[int]:
    return [json.loads(event.payload)["number"] for event in found.events]


async def test_all_events_come_in_order_whatever_the_size_of_a_page(site: Site) -> None:
    # specification 26.1
    await fill(site, range(1, 8), others=3)
    for limit in (1, 2, 3, 7, 200):
        pages = await site.pages(limit)
        assert [number for page in pages for number in numbers(page)] == list(range(1, 8))
        assert [page.complete for page in pages] == [False] * (len(pages) - 1) + [True]
        assert all(len(page.events) <= limit for page in pages)


async def test_a_page_ends_at_its_size_but_has_an_event(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 26.1
    monkeypatch.setattr(history_module, "LARGEST_ANSWER_BYTES", 1000)
    for number in (1, 2, 3):
        await site.put(MINE, number, "ceremony.started" if number == 1 else "ceremony.x", size=2000)
    assert [numbers(page) for page in await site.pages(200)] == [[1], [2], [3]]


async def test_events_written_again_after_a_crash_come_once_also_on_later_pages(site: Site) -> None:
    # specification 26.1
    await fill(site, [1, 2, 3], others=1)
    await fill(site, [2, 3, 4], others=1)
    for limit in (1, 2, 3, 10):
        assert [number for page in await site.pages(limit) for number in numbers(page)] == [1, 2, 3, 4]


async def test_an_event_of_another_fold_number_is_not_taken_for_a_repetition(site: Site) -> None:
    # specification 24.2
    await fill(site, [1, 2], others=0)
    await site.put(MINE, 2, fold=3)
    assert [event.effect_id for page in await site.pages(1) for event in page.events] == [
        "c:s/1/0@2",
        "c:s/2/0@2",
        "c:s/2/0@3",
    ]


async def test_a_page_whose_time_is_up_says_how_far_it_came_and_goes_on_from_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records that were read are not read again, and the span tells how many there are."""
    # specification 26.1
    monkeypatch.setattr(history_module, "PAGE_SECONDS", 0.2)
    monkeypatch.setattr(history_module, "RECORDS_PER_TURN", 5)
    await fill(site, [1], others=30)
    await fill(site, [2], others=0)
    site.stall_after = 15
    first = await site.page()
    assert (numbers(first), first.complete, first.stopped_at, first.span) == ([1], False, 15, (0, 32))
    assert first.next is not None
    site.stall_after = -1
    site.pieces.clear()
    rest = await site.page(first.next)
    assert (numbers(rest), rest.complete, rest.next) == ([2], True, None)
    assert site.pieces == [(15, 32)]


async def test_only_the_time_of_the_ceremony_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the records before its start, nor those of commands after its last change."""
    # specification 26.2
    monkeypatch.setattr(history_span, "FIRST_STEP_RECORDS", 8)
    clock = SteppedClock()
    async with opened(tmp_path, clock) as site:
        for number in range(40):
            await site.put("d:s", number, at=clock.now_ms())
        clock.step(120)
        begun = clock.now_ms()
        for number in range(1, 5):
            await site.put(MINE, number, "ceremony.started" if number == 1 else "ceremony.x", at=clock.now_ms())
            await site.put("d:s", 100 + number, at=clock.now_ms())
            clock.step(1)
        life = Life(begun, clock.now_ms())
        clock.step(600)
        for number in range(200, 400):
            await site.put("d:s", number, at=clock.now_ms())
        (page,) = await site.pages(200, life)
        assert (numbers(page), page.complete) == ([1, 2, 3, 4], True)
        assert page.span[0] == 40 and page.span[1] < 80
        newest = await site.newest(2, life)
        assert numbers(newest) == [3, 4]
        assert sum(end - start for start, end in site.pieces) < 120


async def test_events_that_a_late_worker_wrote_are_found_by_the_time_of_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command came before an outage, its event was appended hours later, among others of the same outage."""
    # specification 26.2
    monkeypatch.setattr(history_span, "FIRST_STEP_RECORDS", 4)
    clock = SteppedClock()
    async with opened(tmp_path, clock) as site:
        begun = clock.now_ms()
        clock.step(7200)
        for number in range(50):
            await site.put("d:s", number, at=begun)
        for number in (1, 2):
            await site.put(MINE, number, "ceremony.started" if number == 1 else "ceremony.x", at=begun + number)
        for number in range(50):
            await site.put("d:s", number, at=clock.now_ms())
        (page,) = await site.pages(200, Life(begun, begun + 2))
        assert (numbers(page), page.complete) == ([1, 2], True)


async def test_a_history_whose_first_events_are_gone_says_so_on_every_page(tmp_path: Path) -> None:
    # specification 26.3
    clock = SteppedClock()
    async with opened(tmp_path, clock, retention_ms=60_000) as site:
        await site.put(MINE, 1, "ceremony.started")
        await site.log.flush()
        clock.step(3600)
        await site.put(MINE, 2)
        await site.put(MINE, 3)
        site.log.enforce_retention()
        await site.log.flush()
        pages = await site.pages(1)
        assert [number for page in pages for number in numbers(page)] == [2, 3]
        assert not any(page.complete for page in pages)
        gone = "its events before 2023-11-14T22:13:20.002Z are not in the log: the log keeps events for 30 days"
        assert pages[0].message == gone
        newest = await site.newest()
        assert (numbers(newest), newest.complete, newest.message) == ([2, 3], False, pages[0].message)


async def test_a_restored_ceremony_says_that_its_older_events_are_not_in_this_log(site: Site) -> None:
    # specification 26.3
    await site.put(MINE, 1007)
    (page,) = await site.pages(200)
    assert (numbers(page), page.complete) == ([1007], False)
    assert "it was restored" in page.message

"""Histories whose older events the log has deleted: they come from the copy beside it, and every hole is named."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.clock import HostClock
from ports.errors import Unreachable
from ports.history import CopiedEvent, CopyExtent, HistoryEvent
from streams import copy_reader
from streams import history as history_module
from streams.api import History, HistoryPlace
from streams.copied_events import is_before
from streams.joined_history import JoinedHistory
from tests.streams.test_history import ALWAYS, MINE, Site, SteppedClock, opened

STARTED, EXECUTED = "ceremony.started", "ceremony.step.executed"


def copied(number: int, version: int, fold: int = 2, *, lost: bool = False, size: int = 0) -> CopiedEvent:
    event = HistoryEvent(
        subject=STARTED if version == 1 else EXECUTED,
        at=f"2023-11-14T22:13:{20 + version % 40}.000Z",
        effect_id=f"{MINE}/{version}/0@{fold}",
        correlation_id="corr",
        payload=json.dumps({"number": version, "pad": "x" * size}),
        metadata="{}",
        partition=0,
        command_offset=version,
        source="valkey",
    )
    return CopiedEvent(number, event, lost)


def in_order(versions: Collection[int], first: int = 1) -> list[CopiedEvent]:
    return [copied(number, version) for number, version in enumerate(versions, first)]


class ListedCopy:
    """A copy in memory, which can be away, or slow after some calls."""

    name = "valkey"
    most = 10_000

    def __init__(self, events: Sequence[CopiedEvent], copied_to: int = 2**40) -> None:
        self.kept = list(events)
        self.copied_to = copied_to
        self.calls = 0
        self.is_away = False
        self.stalls_after = 2**40

    async def extent(self, instance_id: str, partition: int) -> CopyExtent:
        assert (instance_id, partition) == (MINE, 0)
        await self._called()
        if not self.kept:
            return CopyExtent(1, 0, self.copied_to)
        return CopyExtent(self.kept[0].number, self.kept[-1].number, self.copied_to)

    async def events(self, instance_id: str, first: int, last: int) -> Sequence[CopiedEvent]:
        await self._called()
        return [one for one in self.kept if first <= one.number <= last]

    async def _called(self) -> None:
        self.calls += 1
        if self.is_away:
            raise Unreachable("valkey", "no connection to it")
        if self.calls > self.stalls_after:
            await asyncio.sleep(60)

    async def close(self) -> None: ...


class Joined:
    """The history of the ceremony in a log and in a copy."""

    def __init__(self, site: Site, copy: ListedCopy | None) -> None:
        self._reader = JoinedHistory(site.reader, copy, HostClock())

    async def pages(self, limit: int = 200) -> list[History]:
        found: list[History] = []
        place: HistoryPlace | None = HistoryPlace()
        while place is not None:
            found.append(await self._reader.page(0, MINE, limit, ALWAYS, place))
            place = found[-1].next
        return found

    async def newest(self, limit: int = 200) -> History:
        return await self._reader.newest(0, MINE, limit, ALWAYS)


def versions(*found: History) -> list[int]:
    return [json.loads(event.payload)["number"] for page in found for event in page.events]


def holes(*found: History) -> dict[int, str]:
    """The reason of each hole, by the version of the event behind it."""
    events = [event for page in found for event in page.events]
    return {json.loads(event.payload)["number"]: event.missing_before for event in events if event.missing_before}


@asynccontextmanager
async def trimmed(folder: Path, kept: Sequence[int], gone: int = 3) -> AsyncIterator[Site]:
    """A log that has deleted its first records, and has events of the ceremony with these versions."""
    clock = SteppedClock()
    async with opened(folder, clock, retention_ms=60_000) as site:
        for number in range(gone):
            await site.put("d:s", number)
        await site.log.flush()
        clock.step(3600)
        for version in kept:
            await site.put(MINE, version, STARTED if version == 1 else EXECUTED)
            await site.put("d:s", 100 + version)
        await site.put("d:s", 99)
        site.log.enforce_retention()
        await site.log.flush()
        yield site


async def test_a_copy_is_not_asked_where_the_log_has_the_first_event(tmp_path: Path) -> None:
    async with trimmed(tmp_path, [1, 2, 3]) as site:
        copy = ListedCopy(in_order([1, 2, 3]))
        pages = await Joined(site, copy).pages(1)
        assert versions(*pages) == [1, 2, 3] and pages[-1].complete
        assert versions(await Joined(site, copy).newest()) == [1, 2, 3]
        assert copy.calls == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 200])
async def test_events_that_the_log_has_no_more_come_from_the_copy_each_once(limit: int, tmp_path: Path) -> None:
    # specification 26.6
    async with trimmed(tmp_path, [4, 5, 6]) as site:
        pages = await Joined(site, ListedCopy(in_order(range(1, 6)))).pages(limit)
        assert versions(*pages) == [1, 2, 3, 4, 5, 6]
        sources = [event.source for page in pages for event in page.events]
        assert sources == ["valkey"] * 3 + ["log"] * 3
        assert [page.complete for page in pages] == [False] * (len(pages) - 1) + [True]
        assert not holes(*pages) and all(len(page.events) <= limit for page in pages)


async def test_the_newest_events_go_back_into_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 26.6
    monkeypatch.setattr(copy_reader, "PIECE_EVENTS", 2)
    async with trimmed(tmp_path, [4, 5]) as site:
        joined = Joined(site, ListedCopy(in_order(range(1, 6))))
        for limit in (1, 2, 3, 4):
            found = await joined.newest(limit)
            assert versions(found) == [1, 2, 3, 4, 5][-limit:] and not found.complete
        whole = await joined.newest()
        assert versions(whole) == [1, 2, 3, 4, 5] and whole.complete
        assert whole.message == "all that the log and valkey have of it"


async def test_a_log_that_has_none_of_them_leaves_all_to_the_copy(tmp_path: Path) -> None:
    # specification 26.6
    async with trimmed(tmp_path, []) as site:
        joined = Joined(site, ListedCopy(in_order([1, 2, 3])))
        pages = await joined.pages()
        assert versions(*pages) == [1, 2, 3] and pages[-1].complete
        newest = await joined.newest()
        assert versions(newest) == [1, 2, 3] and newest.complete


async def test_a_page_of_the_copy_ends_at_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.joined_history.LARGEST_ANSWER_BYTES", 1000)
    async with trimmed(tmp_path, [4]) as site:
        copy = ListedCopy([copied(number, number, size=2000) for number in (1, 2, 3)])
        pages = await Joined(site, copy).pages()
        assert versions(*pages) == [1, 2, 3, 4]
        assert max(len(page.events) for page in pages) == 1


async def test_a_copy_that_has_no_older_ones_is_named_with_the_reason(tmp_path: Path) -> None:
    # specification 26.7
    async with trimmed(tmp_path, [4, 5]) as site:
        for copy, why in (
            (ListedCopy([]), "valkey has none of them"),
            (ListedCopy(in_order([4, 5])), "valkey has no older ones"),
            (ListedCopy(in_order([4, 5], first=8)), "valkey the newest 10,000 of a ceremony; 7 are gone"),
            (ListedCopy(in_order([5, 6], first=12)), "valkey keeps the newest 10,000 of a ceremony"),
        ):
            joined = Joined(site, copy)
            for found in (await joined.pages(), [await joined.newest()]):
                assert versions(*found) == [4, 5] and not found[-1].complete
                assert holes(*found) == {4: f"the log keeps events for 30 days, and {why}"}


async def test_older_events_that_the_copy_has_dropped_are_counted(tmp_path: Path) -> None:
    # specification 26.7
    async with trimmed(tmp_path, [6]) as site:
        joined = Joined(site, ListedCopy(in_order([4, 5, 6], first=345)))
        why = "the log keeps events for 30 days, and valkey the newest 10,000 of a ceremony; 344 are gone"
        for found in (await joined.pages(1), [await joined.newest()]):
            assert versions(*found) == [4, 5, 6] and not any(page.complete for page in found)
            assert holes(*found) == {4: why}
        assert (await joined.newest()).message == f"events before 2023-11-14T22:13:24.000Z may be missing: {why}"


async def test_a_store_that_was_emptied_says_that_older_ones_are_missing(tmp_path: Path) -> None:
    # specification 26.7
    async with trimmed(tmp_path, [6]) as site:
        pages = await Joined(site, ListedCopy(in_order([4, 5, 6]))).pages()
        assert holes(*pages) == {4: "the log keeps events for 30 days, and valkey has no older ones"}


async def test_a_copy_that_was_behind_the_log_leaves_a_hole_that_is_named(tmp_path: Path) -> None:
    # specification 26.7
    async with trimmed(tmp_path, [6, 7]) as site:
        behind = Joined(site, ListedCopy(in_order([1, 2]), copied_to=1))
        for found in (await behind.pages(1), [await behind.newest()]):
            assert versions(*found) == [1, 2, 6, 7] and not found[-1].complete
            assert list(holes(*found)) == [6] and "only the events up to here" in holes(*found)[6]
        near = Joined(site, ListedCopy(in_order([1, 2]), copied_to=3))
        assert (await near.pages())[-1].complete and (await near.newest()).complete


async def test_holes_within_the_copy_are_named(tmp_path: Path) -> None:
    """Where the log had deleted events before they were copied, and where the ceremony was restored."""
    # specification 26.7
    async with trimmed(tmp_path, [2010]) as site:
        kept = [copied(1, 1), copied(2, 5, lost=True), copied(3, 1005), copied(4, 1006)]
        joined = Joined(site, ListedCopy(kept))
        for found in (await joined.pages(1), await joined.pages(), [await joined.newest()]):
            assert versions(*found) == [1, 5, 1005, 1006, 2010] and not found[-1].complete
            assert {version: why[:13] for version, why in holes(*found).items()} == {
                5: "the log had d",
                1005: "it was restor",
                2010: "it was restor",
            }


async def test_a_copy_that_is_away_or_slow_delays_the_answer_by_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 26.7
    monkeypatch.setattr(copy_reader, "COPY_SECONDS", 0.05)
    async with trimmed(tmp_path, [4, 5]) as site:
        away, slow = ListedCopy(in_order([1, 2, 3])), ListedCopy(in_order([1, 2, 3]))
        away.is_away = True
        slow.stalls_after = 0
        for copy, why in ((away, "valkey could not be asked (no connection to it)"), (slow, "valkey did not answer")):
            joined = Joined(site, copy)
            for found in (await joined.pages(1), [await joined.newest()]):
                assert versions(*found) == [4, 5] and not found[-1].complete
                assert why in holes(*found)[4]
                assert any(why in page.message for page in found)


async def test_a_copy_that_fails_half_way_is_asked_again_by_the_next_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_reader, "COPY_SECONDS", 0.05)
    monkeypatch.setattr(copy_reader, "PIECE_EVENTS", 2)
    async with trimmed(tmp_path, [6]) as site:
        copy = ListedCopy(in_order(range(1, 6)))
        copy.stalls_after = 2
        joined = JoinedHistory(site.reader, copy, HostClock())
        first = await joined.page(0, MINE, 200, ALWAYS, HistoryPlace())
        assert versions(first) == [1, 2] and first.next is not None
        copy.stalls_after = 2**40
        second = await joined.page(0, MINE, 200, ALWAYS, first.next)
        assert versions(second) == [3, 4, 5] and not holes(first, second)


async def test_a_copy_that_fails_between_two_pages_is_named_at_the_seam(tmp_path: Path) -> None:
    async with trimmed(tmp_path, [6]) as site:
        copy = ListedCopy(in_order(range(1, 6)))
        joined = JoinedHistory(site.reader, copy, HostClock())
        first = await joined.page(0, MINE, 2, ALWAYS, HistoryPlace())
        copy.is_away = True
        assert first.next is not None
        second = await joined.page(0, MINE, 2, ALWAYS, first.next)
        assert versions(first, second) == [1, 2, 6] and not second.complete
        assert "could not be asked" in holes(second)[6]


async def test_events_that_are_dropped_while_they_are_read_are_named(tmp_path: Path) -> None:
    async with trimmed(tmp_path, [8]) as site:
        copy = ListedCopy(in_order(range(1, 8)))
        joined = JoinedHistory(site.reader, copy, HostClock())
        first = await joined.page(0, MINE, 2, ALWAYS, HistoryPlace())
        copy.kept = copy.kept[4:]
        assert first.next is not None
        second = await joined.page(0, MINE, 2, ALWAYS, first.next)
        assert versions(second) == [5, 6] and "dropped" in holes(second)[5]


async def test_a_slow_log_is_searched_over_several_pages_before_the_copy_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "PAGE_SECONDS", 0.2)
    async with trimmed(tmp_path, [4]) as site:
        joined = JoinedHistory(site.reader, ListedCopy(in_order([1, 2, 3])), HostClock())
        site.stall_below = 2**40
        first = await joined.page(0, MINE, 200, ALWAYS, HistoryPlace())
        assert (first.events, first.message) == ([], "there are more") and first.next is not None
        site.stall_below = -1
        assert versions(await joined.page(0, MINE, 200, ALWAYS, first.next)) == [1, 2, 3]


async def test_a_later_page_does_not_name_a_hole_that_is_not_there(tmp_path: Path) -> None:
    """It says that an earlier one has."""
    # specification 26.3
    async with trimmed(tmp_path, [4, 5]) as site:
        first, second = await Joined(site, None).pages(1)
        assert holes(first) == {4: "the log keeps events for 30 days"} and not holes(second)
        assert second.message == "events are missing, as an earlier page says"


@pytest.mark.parametrize(
    ("mine", "first", "before"),
    [
        ("c:s/4/0@2", "c:s/5/0@2", True),
        ("c:s/5/0@2", "c:s/5/0@2", False),
        ("c:s/5/1@2", "c:s/5/0@2", False),
        ("c:s/5/0@2", "c:s/4/0@3", True),  # folded again by a new fold number, and both are events
        ("c:s/6/0@3", "c:s/5/0@2", False),
        ("save_instance:c:s:5:valkey", "c:s/5/0@2", True),
        ("other", "save_instance:c:s:5:valkey", True),
        ("save_instance:c:s:5:valkey", "save_instance:c:s:5:valkey", False),
    ],
)
def test_events_of_the_copy_stand_before_those_of_the_log(mine: str, first: str, before: bool) -> None:  # noqa: FBT001 - a parameter
    one, other = (HistoryEvent("s", "2023-11-14T22:13:20.000Z", id_, "c", "{}", "{}", 0, 1) for id_ in (mine, first))
    assert is_before(one, other) is before

"""Histories read back from a real log: the newest events, in pieces, bounded, with a note about missing ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bridge.clock import HostClock
from ports.log import LogUnavailable, Record, TopicSpec
from streams import history as history_module
from streams import topics
from streams.api import Unavailable
from streams.envelope import event_record
from streams.history import HistoryReader
from streams.transport.sqlite.log import SqliteLog
from tables.effects import Event

TOPIC = "t.events"
MINE = "c:s"


class Site:
    """A log with events of two ceremonies, and a reader that notes which pieces it read."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log
        self.pieces: list[tuple[int, int]] = []
        self.stall_below = -1
        self.reader = HistoryReader(self, HostClock(), TOPIC)  # type: ignore[arg-type]  # all it reads with

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        return await self.log.ends(topic)

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        self.pieces.append((start, end))
        if start < self.stall_below:
            await asyncio.sleep(60)
        async for records in self.log.read(topic, partition, start, end):
            yield records

    async def put(
        self,
        instance_id: str,
        number: int,
        subject: str = "ceremony.step.executed",
        size: int = 0,
        metadata: dict[str, str] | None = None,
    ) -> None:
        event = Event(
            id=f"{instance_id}/{number}/0@2",
            subject=subject,
            instance_id=instance_id,
            correlation_id="corr",
            at=1_700_000_000_000 + number,
            payload={"number": number, "pad": "x" * size},
            metadata=metadata,
        )
        key, value, headers = event_record(event, 100 + number, 0, 2)
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


async def fill(site: Site, mine: Sequence[int], others: int) -> None:
    """Write events of the ceremony with these numbers, each followed by `others` events of another one."""
    for number in mine:
        await site.put(MINE, number, "ceremony.started" if number == 1 else "ceremony.step.executed")
        for other in range(others):
            await site.put("d:s", number * 1000 + other)


async def test_the_newest_events_of_this_ceremony_are_returned_oldest_first(site: Site) -> None:
    await fill(site, range(1, 6), others=3)
    found = await site.reader.read(0, MINE, 200, 0)
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
    found = await site.reader.read(0, MINE, 200, 0)
    assert [json.loads(event.metadata) for event in found.events] == [{}, who, {}]


async def test_pieces_grow_and_reading_ends_at_the_start_of_the_ceremony(site: Site) -> None:
    """Records before `ceremony.started` are never read."""
    await fill(site, [0], others=40)
    await fill(site, [1, 2], others=4)
    found = await site.reader.read(0, MINE, 200, 0)
    assert found.complete and len(found.events) == 2
    assert site.pieces == [(47, 51), (39, 47)]
    assert found.stopped_at == 39


async def test_records_older_than_the_ceremony_are_not_read(site: Site) -> None:
    """Also when the log has lost the ceremony's first event, or the ceremony has none."""
    await fill(site, [0], others=40)
    found = await site.reader.read(0, "never:spoke", 200, 2**53)
    assert (found.events, found.complete) == ([], True)
    assert len(site.pieces) == 1


async def test_the_limit_leaves_out_older_events_and_tells_the_offset(site: Site) -> None:
    # specification 14.13
    await fill(site, range(1, 6), others=0)
    found = await site.reader.read(0, MINE, 2, 0)
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
    found = await site.reader.read(0, MINE, 200, 0)
    assert [event.effect_id for event in found.events] == ["c:s/2/0@2"]
    assert not found.complete


async def test_an_event_written_twice_by_a_crash_is_shown_once_at_its_first_place(site: Site) -> None:
    # specification 14.13
    await fill(site, [1, 2, 3], others=0)
    await fill(site, [2, 3, 4], others=0)
    found = await site.reader.read(0, MINE, 200, 0)
    assert [event.effect_id for event in found.events] == [f"c:s/{number}/0@2" for number in (1, 2, 3, 4)]


async def test_a_history_cut_off_by_its_time_limit_tells_the_offset(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished piece does not count, so the shown events have no gap."""
    # specification 14.13
    monkeypatch.setattr(history_module, "READ_SECONDS", 0.3)
    await fill(site, range(1, 21), others=0)
    site.stall_below = 10
    found = await site.reader.read(0, MINE, 200, 0)
    assert [event.effect_id for event in found.events] == [f"c:s/{number}/0@2" for number in (17, 18, 19, 20)]
    assert (found.complete, found.stopped_at) == (False, 16)
    assert "0.3 s" in found.message


async def test_an_event_that_cannot_be_read_still_shows_its_headers(site: Site) -> None:
    await site.log.append(TOPIC, 0, MINE.encode(), b"\xff", [("effect-id", b"c:s/1/0@2"), ("subject", b"ceremony.x")])
    (event,) = (await site.reader.read(0, MINE, 200, 0)).events
    assert (event.subject, event.payload, event.command_offset) == ("ceremony.x", "{}", -1)


async def test_a_log_that_is_away_is_unavailable(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: str) -> Sequence[tuple[int, int]]:
        raise LogUnavailable("log_unavailable", "away")

    monkeypatch.setattr(site, "ends", away)
    with pytest.raises(Unavailable):
        await site.reader.read(0, MINE, 200, 0)

"""The directory of workers: heartbeats of the others, their validity, and the worker's own heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from ports.log import Header, LogUnavailable, Position, Record
from streams.api import HERE, Unavailable
from streams.dead_letters import placed_letter
from streams.log_clock import LogClock
from streams.topics import OWNERS
from streams.worker_directory import VALID_MS, Heartbeat, WorkerDirectory
from tests.poison.shapes import good, shapes
from tests.streams.fakes import HandClock, settle

NOW = 1_700_000_000_000


class Topic:
    """The topic `owners`: keeps appended records, and passes them to every reader of its tail."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.away = False

    def partition_of(self, key: bytes, partitions: int) -> int:
        return len(key) % partitions

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        if self.away:
            raise LogUnavailable("log_unavailable", "away")
        place = len(self.records)
        self.records.append(Record(topic, partition, place, NOW + place, key, value, tuple(headers)))
        return Position(partition, len(self.records) - 1, self.records[-1].timestamp)

    async def ends(self, topic: str) -> Sequence[tuple[int, int]]:
        return [(0, len(self.records))]

    async def tail(self, topic: str, partition: int, start: int) -> AsyncIterator[Sequence[Record]]:
        yield [record for record in self.records[start:] if record.topic == topic]
        raise LogUnavailable("log_unavailable", "the reader is lost")

    def heartbeats(self) -> Iterator[Heartbeat]:
        for record in self.records:
            yield msgspec.json.decode(record.value or b"", type=Heartbeat)


class Site:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.log_clock = LogClock(self.clock)
        self.log_clock.acknowledged(NOW)
        self.topic = Topic()
        self.mine: set[int] = {0}
        log: Any = self.topic
        self.owners = WorkerDirectory(
            log,
            self.clock,
            self.log_clock,
            prefix="t",
            partitions=3,
            worker="me",
            address=lambda: "me:1",
            mine=lambda: self.mine,
            generation=lambda: 7,
        )
        self._offset = 0

    def receive(self, worker: str, partitions: list[int], generation: int = 1, at: int = NOW) -> None:
        value = msgspec.json.encode(Heartbeat(worker, f"{worker}:1", partitions, generation))
        self._offset += 1
        self.owners.receive(Record("t.owners", 0, self._offset, at, worker.encode(), value))


@pytest.fixture
def site() -> Site:
    return Site()


def test_own_partitions_are_here_and_others_at_the_address_of_their_owner(site: Site) -> None:
    site.receive("a", [1])
    site.receive("b", [2])
    assert [site.owners.address_of(number) for number in range(3)] == [HERE, "a:1", "b:1"]
    assert site.owners.partitions_by_address() == {HERE: [0], "a:1": [1], "b:1": [2]}
    assert set(site.owners.addresses()) == {"a:1", "b:1"}


def test_a_partition_that_no_worker_claims_is_unavailable(site: Site) -> None:
    site.receive("a", [1])
    with pytest.raises(Unavailable, match="partition 2"):
        site.owners.address_of(2)
    with pytest.raises(Unavailable):
        site.owners.partitions_by_address()


async def test_a_heartbeat_is_valid_for_a_session_timeout_by_the_logs_clock(site: Site) -> None:
    site.receive("a", [1])
    await site.clock.advance(5.9)
    assert site.owners.address_of(1) == "a:1"
    await site.clock.advance(0.2)
    with pytest.raises(Unavailable) as refused:
        site.owners.address_of(1)
    assert refused.value.retry_after_seconds > 0
    assert set(site.owners.addresses()) == set()


def test_a_newer_heartbeat_replaces_the_claims_of_a_worker(site: Site) -> None:
    site.receive("a", [1, 2])
    site.receive("a", [2])
    assert site.owners.address_of(2) == "a:1"
    with pytest.raises(Unavailable):
        site.owners.address_of(1)


def test_the_claim_of_the_later_generation_wins(site: Site) -> None:
    """A frozen worker that wakes still claims partitions that the group has assigned to another."""
    site.receive("new", [1], generation=5)
    site.receive("zombie", [1], generation=4)
    assert site.owners.address_of(1) == "new:1"


def test_own_heartbeats_are_not_used_for_routing(site: Site) -> None:
    """A call for a partition just given up is not forwarded to the worker's own address."""
    site.receive("me", [1])
    with pytest.raises(Unavailable):
        site.owners.address_of(1)


@pytest.mark.parametrize("value", [b'{"worker": 3}', b"", None])
def test_an_invalid_heartbeat_changes_nothing(site: Site, value: bytes | None) -> None:
    site.receive("a", [1])
    with pytest.raises(ValueError, match="no heartbeat"):
        site.owners.receive(Record("t.owners", 0, 99, NOW, b"a", value))
    assert site.owners.address_of(1) == "a:1"


async def test_heartbeats_are_sent_every_second_and_at_once_after_a_change(site: Site) -> None:
    """They also set the log's clock; with the log away, sending is tried again."""
    beating = asyncio.create_task(site.owners.beat())
    await settle()
    assert [one.partitions for one in site.topic.heartbeats()] == [[0]]
    site.mine = {0, 2}
    site.owners.changed()
    await settle()
    site.topic.away = True
    await site.clock.advance(1.0)
    site.topic.away = False
    await site.clock.advance(1.0)
    said = list(site.topic.heartbeats())
    assert [one.partitions for one in said] == [[0], [0, 2], [0, 2]]
    assert {(one.worker, one.address, one.generation) for one in said} == {("me", "me:1", 7)}
    beating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await beating


async def test_reading_begins_with_recent_heartbeats_and_continues_after_an_outage(site: Site) -> None:
    value = msgspec.json.encode(Heartbeat("a", "a:1", [1], 1))
    await site.topic.append("t.owners", 0, b"a", value)
    listening = asyncio.create_task(site.owners.listen())
    await settle()
    assert site.owners.address_of(1) == "a:1"
    await site.topic.append("t.owners", 0, b"b", msgspec.json.encode(Heartbeat("b", "b:1", [2], 1)))
    await site.clock.advance(1.0)
    assert site.owners.address_of(2) == "b:1"
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening


@pytest.mark.parametrize("mine", [{0}, {1}])
async def test_an_invalid_heartbeat_becomes_one_dead_letter_and_ends_no_worker(site: Site, mine: set[int]) -> None:
    """The owner of partition 0 writes it once, even when it reads the heartbeat again after an outage."""
    site.mine = mine
    bad = [shape.spoil(good(OWNERS, f"poisoned-{number}")) for number, shape in enumerate(shapes(OWNERS))]
    assert len(bad) >= 30
    for record in bad:
        await site.topic.append("t.owners", 0, *record)
    await site.topic.append("t.owners", 0, b"a", msgspec.json.encode(Heartbeat("a", "a:1", [2], 1)))
    listening = asyncio.create_task(site.owners.listen())
    await settle()
    await site.clock.advance(1.0)
    assert not listening.done()
    assert site.owners.address_of(2) == "a:1"
    aside = [placed_letter(record) for record in site.topic.records if record.topic == "t.deadletters"]
    assert [(one.origin, one.code) for one in aside] == [
        (f"t.owners/0/{number}", "heartbeat_undecodable") for number in range(len(bad)) if 0 in mine
    ]
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening


def test_a_heartbeat_from_a_clock_ahead_is_valid_no_longer_than_others(site: Site) -> None:
    # specification 18.14
    heartbeat = msgspec.json.encode(Heartbeat("a", "a:1", [1], 1))
    site.owners.receive(Record("t.owners", 0, 1, NOW + 86_400_000, b"a", heartbeat))
    assert site.owners.address_of(1) == "a:1"
    site.clock.seconds += VALID_MS / 1000 + 1
    with pytest.raises(Unavailable):
        site.owners.address_of(1)

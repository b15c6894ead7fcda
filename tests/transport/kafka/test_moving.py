"""Partitions that move on a real Kafka: what stays is served on, and a take that is broken off leaves nothing open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError

from bridge.clock import HostClock
from ports.log import Fenced
from streams.transport.app import CeremonyApp
from streams.transport.kafka import client
from streams.transport.kafka.client import TransactionalWriter
from streams.transport.kafka.driver import KafkaBackend
from streams.transport.kafka.group import GroupMember
from streams.transport.partition.row_store import MemoryStore
from tests.transport.kafka.test_driver import Bench, rows, running, until

pytestmark = pytest.mark.timeout(90)
ANSWERED = {bytes([key]): 2 for key in b"abcdefgh"}


@pytest.fixture
def bench(kafka: Any) -> Bench:
    return Bench(f"kafka://{kafka.bootstrap}")


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AIOKafkaProducer]]:
    """The transactional producers that a test makes; at its end each must be closed."""
    made: list[AIOKafkaProducer] = []

    def note(*arguments: Any, **options: Any) -> AIOKafkaProducer:
        producer = new_producer(*arguments, **options)
        if "transactional_id" in options:
            made.append(producer)
        return producer

    new_producer = client.new_producer
    monkeypatch.setattr(client, "new_producer", note)
    yield made
    assert [one._closed for one in made] == [True] * len(made)


def member_of(app: CeremonyApp) -> GroupMember:
    member: Any = app.consumer
    assert isinstance(member, GroupMember)
    return member


async def test_a_partition_that_stays_keeps_its_part_through_both_rounds(bench: Bench) -> None:
    # specification 18.17
    async with running(bench.app()) as first:
        await bench.send(first, *"abcdefgh")
        await until(lambda: len(rows(first)) == 8)
        before = dict(first.views("counter"))
        async with running(bench.app()) as second:
            await until(lambda: len(first.parts) == 1 and len(second.parts) == 1)
            (number,) = first.views("counter")
            assert first.views("counter")[number] is before[number]
            await bench.send(first, *"abcdefgh")
            await until(lambda: rows(first, second) == ANSWERED)
        await until(lambda: len(first.parts) == 2 and first.settled)
        assert first.views("counter")[number] is before[number]
        assert len(await bench.read(first, "answers")) == 16


async def test_a_member_that_the_group_has_replaced_takes_everything_anew(
    bench: Bench, producers: list[AIOKafkaProducer]
) -> None:
    async with running(bench.app()) as app:
        await bench.send(app, *"abcdefgh")
        await until(lambda: len(rows(app)) == 8)
        before = dict(app.views("counter"))
        member_of(app).group._coordinator.reset_generation()
        assert not app.fresh
        await until(lambda: app.settled and app.owner.assigned and app.fresh)
        assert all(part is not before[number] for number, part in app.views("counter").items())
        await bench.send(app, *"abcdefgh")
        await until(lambda: rows(app) == ANSWERED)
        assert len(await bench.read(app, "answers")) == 16
    assert len(producers) == 4


async def test_a_member_whose_request_to_join_is_refused_claims_nothing_and_gives_everything_up(bench: Bench) -> None:
    """The group replaced it after it had begun to join again: aiokafka asks anew without a word to the listener."""
    async with running(bench.app()) as app:
        await bench.send(app, *"abcdefgh")
        await until(lambda: len(rows(app)) == 8)
        before, member = dict(app.views("counter")), member_of(app)
        await member.joins_again(set(member.assignment()))
        assert member.claims() == {bench.name("commands"): [0, 1]}
        member.group._coordinator.generation = -1
        assert member.claims() == {}
        assert app.owner.assigned == frozenset()
        member.group._coordinator.reset_generation()
        await until(lambda: app.settled and app.owner.assigned and app.fresh)
        assert all(part is not before[number] for number, part in app.views("counter").items())
        await bench.send(app, *"abcdefgh")
        await until(lambda: rows(app) == ANSWERED)


async def test_a_partition_that_is_still_being_given_up_is_claimed(bench: Bench) -> None:
    async with running(bench.app()) as app:
        member = member_of(app)
        app.owner.take_over([], lambda: True, keep=True, leave_seconds=5)
        assert member.claims() == {bench.name("commands"): [0, 1]}
        await app.owner.left()
        assert member.claims() == {}


@pytest.mark.parametrize("moment", [0, 1, 2, 4, 8, 16, 32, 64])
@pytest.mark.usefixtures("producers")
async def test_a_take_that_is_broken_off_leaves_no_producer_open(bench: Bench, moment: int) -> None:
    async with running(bench.app()) as app:
        backend = app.driver.backend(app.specs["counter"], 0, lambda: True)
        taking = asyncio.create_task(backend.take(MemoryStore({"counts": {}})))
        for _ in range(moment):
            await asyncio.sleep(0)
        taking.cancel()
        closing = asyncio.create_task(_cancelled_and_closed(taking, backend))
        await asyncio.sleep(0.001 * moment)
        closing.cancel()  # closing is broken off, too
        await asyncio.wait({closing})
        for writer in [backend._writer] if isinstance(backend, KafkaBackend) and backend._writer else []:
            await writer.stop()


async def _cancelled_and_closed(taking: asyncio.Task[Any], backend: Any) -> None:
    await asyncio.wait({taking})
    await backend.close()


async def test_a_producer_is_closed_where_the_offsets_cannot_be_committed(
    bench: Bench, producers: list[AIOKafkaProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(bench.app()) as app:
        backend = app.driver.backend(app.specs["counter"], 0, lambda: True)
        assert isinstance(backend, KafkaBackend)
        await backend._fence()

        async def refuse() -> None:
            raise OSError("no commit")

        with monkeypatch.context() as patch:
            patch.setattr(app.driver, "commit_now", refuse)
            with pytest.raises(OSError, match="no commit"):
                await backend.close()
        assert producers[-1]._closed


async def test_a_producer_whose_start_never_ends_is_closed(
    producers: list[AIOKafkaProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(AIOKafkaProducer, "start", lambda _: asyncio.sleep(3600))
    writer = TransactionalWriter(["127.0.0.1:1"], "id", HostClock())
    starting = asyncio.create_task(writer.start())
    await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    await writer.stop()
    assert producers[0]._closed


@pytest.mark.usefixtures("producers")
async def test_a_writer_that_is_fenced_between_two_tables_of_a_checkpoint_is_fenced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a frozen worker is when it wakes up: it drops the partition and joins again, instead of ending."""
    async with running(bench.app()) as app:
        tables = [TopicPartition(bench.name(topic), 0) for topic in ("answers", "deadletters")]
        frozen = TransactionalWriter(bench.bootstrap, f"{bench.prefix}-writer", HostClock())
        await frozen.start()
        successor = TransactionalWriter(bench.bootstrap, f"{bench.prefix}-writer", HostClock())
        await successor.start()
        partitions_for = AIOKafkaProducer.partitions_for

        async def slowly(producer: AIOKafkaProducer, topic: str) -> Any:
            await until(lambda: topic == tables[0].topic or producer._message_accumulator._exception)
            return await partitions_for(producer, topic)

        with monkeypatch.context() as patch:
            patch.setattr(AIOKafkaProducer, "partitions_for", slowly)
            with pytest.raises(Fenced):
                await frozen.write({tp: [(b"k", b"v", ())] for tp in tables})
        await successor.write({tp: [(b"k", b"v", ())] for tp in tables})
        await frozen.stop()
        await successor.stop()
        assert app.failure is None


async def test_offsets_that_were_not_committed_are_committed_later(bench: Bench) -> None:
    """A rebalance refuses a commit, and the part goes on; without another record its offset must come all the same."""
    app: Any = bench.app()
    driver = app.driver
    tp, committed, answers = TopicPartition("t", 0), list[dict[TopicPartition, int]](), [CommitFailedError(), None]

    async def commit_offsets(offsets: dict[TopicPartition, int]) -> None:
        if answer := answers.pop(0):
            raise answer
        committed.append(dict(offsets))

    app._consumer = SimpleNamespace(joining=False, commit_offsets=commit_offsets)
    driver.commit_soon(tp, 7, driver.era)
    await driver.commit_now()
    await driver.commit_now()
    assert committed == [{tp: 7}]


async def test_offsets_of_a_part_whose_partition_others_had_meanwhile_are_never_committed(bench: Bench) -> None:
    app: Any = bench.app()
    driver = app.driver
    old = driver.era
    driver.commit_soon(TopicPartition("t", 0), 7, old)
    driver.begin_anew()
    driver.commit_soon(TopicPartition("t", 0), 8, old)
    app._consumer = SimpleNamespace(joining=False)  # a commit would raise
    await driver.commit_now()

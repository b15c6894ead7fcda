"""A stream or consumer that answers no: the state names it, the reason and number of the server, and what waits."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig

from bridge.nats import progress
from bridge.nats.events import EventsBridge
from bridge.nats.progress import PartitionProgress, SentMarks, ids_of_partition
from bridge.nats.publish import Nack, read_answer
from bridge.nats.responses import DURABLE, AgentResponses
from streams.transport.sqlite.log import SqliteLog
from tests.bridge.nats.test_events import arrives, bridge, log, server  # noqa: F401 - fixtures
from tests.bridge.nats.world import (
    CLOCK,
    PARTITIONS,
    PREFIX,
    append_events,
    client,
    connection,
    event,
    eventually,
)
from tests.services import NatsServer

pytestmark = pytest.mark.asyncio
EVENTS = StreamConfig(name="CEREMONY", subjects=["ceremony.>"])
ANSWERS = StreamConfig(name="AGENT_RESPONSES", subjects=["agent.response.>"])
SINCE = r"since 20\d\d-\d\d-\d\dT[\d:.]+Z, "


async def says(started: EventsBridge | AgentResponses, *patterns: str) -> None:
    """Wait until the state has all of these in it."""
    await eventually(
        lambda: all(re.search(pattern, started.state) for pattern in (*patterns, SINCE)),
        f"{patterns} in the state",
    )


async def test_a_full_stream_is_named_until_it_takes_messages_again(log: SqliteLog, server: NatsServer) -> None:  # noqa: F811
    # specification 16.10
    async with client(server.url) as other, connection(server.url) as link:
        jetstream = other.jetstream()
        await jetstream.add_stream(EVENTS.evolve(max_msgs=2, discard=DiscardPolicy.NEW))
        async with bridge(log, link) as started:
            await append_events(log, [event(1, number) for number in range(5)])
            await says(started, "stream CEREMONY takes no events: maximum messages exceeded .10077.", "[35] events")
            await jetstream.update_stream(EVENTS)
            await arrives(server, 5)
            await eventually(lambda: started.state == "ok", "the state is ok again")


@pytest.mark.parametrize(("setting", "reason"), [("no_ack", "no_ack"), ("sealed", "is sealed")])
async def test_a_stream_that_cannot_take_events_is_named_at_the_start(
    log: SqliteLog,  # noqa: F811
    server: NatsServer,  # noqa: F811
    setting: str,
    reason: str,
) -> None:
    # specification 16.10
    async with client(server.url) as other, connection(server.url) as link:
        await other.jetstream().add_stream(EVENTS)
        await other.jetstream().update_stream(EVENTS.evolve(**{setting: True}))
        await append_events(log, [event(1, number) for number in range(4)])
        async with bridge(log, link) as started:
            await says(started, "stream CEREMONY", reason, "4 events wait")


async def test_a_stream_that_is_sealed_later_makes_no_dead_letters(log: SqliteLog, server: NatsServer) -> None:  # noqa: F811
    # specification 16.10
    async with client(server.url) as other, connection(server.url) as link, bridge(log, link) as started:
        await append_events(log, [event(1, 0)])
        await arrives(server, 1)
        config = (await other.jetstream().stream_info("CEREMONY")).config
        await other.jetstream().update_stream(config.evolve(sealed=True))
        await append_events(log, [event(1, 1)])
        await says(started, "stream CEREMONY", "sealed", "1 events wait")
        assert not any(end for _, end in await log.ends(f"{PREFIX}.deadletters"))


async def test_a_work_queue_that_cannot_be_read_back_is_named(log: SqliteLog, server: NatsServer) -> None:  # noqa: F811
    # specification 16.10
    async with client(server.url) as other, connection(server.url) as link:
        jetstream = other.jetstream()
        queue = EVENTS.evolve(retention=RetentionPolicy.WORK_QUEUE, duplicate_window=0.1)
        await jetstream.add_stream(queue)
        await jetstream.add_consumer("CEREMONY", ConsumerConfig(durable_name="theirs", filter_subject="ceremony.>"))
        await jetstream.publish("ceremony.started", b"{}")
        await append_events(log, [event(1, 0)])
        async with bridge(log, link) as started:
            await says(started, "stream CEREMONY cannot be read back", r"\(10\d\d\d\)", "1 events wait")


# -- answers of agents


@pytest.fixture
async def answers(log: SqliteLog, server: NatsServer) -> AsyncIterator[Any]:  # noqa: F811
    async with client(server.url) as other, connection(server.url) as link:
        started = AgentResponses(log, link, CLOCK, prefix=PREFIX, partitions=PARTITIONS)
        yield started, other.jetstream()
        await started.stop()


async def test_a_work_queue_with_another_consumer_is_named_until_that_has_gone(answers: Any) -> None:
    # specification 17.8
    started, jetstream = answers
    await jetstream.add_stream(ANSWERS.evolve(retention=RetentionPolicy.WORK_QUEUE))
    await jetstream.add_consumer("AGENT_RESPONSES", ConsumerConfig(durable_name="theirs"))
    for _ in range(3):
        await jetstream.publish("agent.response.completed", b"{}")
    await started.start()
    await says(started, f"stream AGENT_RESPONSES refuses the durable {DURABLE}", r"\(10\d\d\d\)", "3 answers wait")
    await jetstream.delete_consumer("AGENT_RESPONSES", "theirs")
    await eventually(lambda: started.state == "ok", "the durable is made")


@pytest.mark.parametrize(
    ("settings", "reason"), [({"max_deliver": 1}, "max_deliver"), ({"headers_only": True}, "headers_only")]
)
async def test_a_durable_that_would_lose_answers_is_named(answers: Any, settings: Any, reason: str) -> None:
    # specification 17.8
    started, jetstream = answers
    await jetstream.add_stream(ANSWERS)
    config = ConsumerConfig(durable_name=DURABLE, ack_policy="explicit", **settings)  # type: ignore[arg-type]
    await jetstream.add_consumer("AGENT_RESPONSES", config)
    await jetstream.publish("agent.response.completed", b"{}")
    await started.start()
    await says(started, f"durable {DURABLE} of stream AGENT_RESPONSES", reason, "1 answers wait")
    await jetstream.delete_consumer("AGENT_RESPONSES", DURABLE)
    await eventually(lambda: started.state == "ok", "the durable is made anew")


@pytest.mark.parametrize("number", [10002, 10059, 10109, 10158])
async def test_an_error_of_the_stream_is_not_the_fault_of_the_message(number: int) -> None:
    answer = read_answer(b'{"error":{"code":400,"err_code":%d,"description":"no"}}' % number, None)
    assert isinstance(answer, Nack) and not answer.final and str(number) in answer.message


# -- reading back


class Read:
    """Stands in for the stream: gives pieces of ids, and notes from when on they were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pieces: list[str]) -> None:
        self.since: list[float] = []
        self._pieces = pieces

        async def outside(_: Any, since: Any) -> Any:
            self.since.append(since.timestamp() + progress.CLOCK_MARGIN_SECONDS)
            return datetime.fromtimestamp(5_000, UTC)

        async def ids(_: Any, __: Any) -> AsyncIterator[list[str]]:
            for piece in self._pieces:
                yield piece

        monkeypatch.setattr(progress, "_outside_window", outside)
        monkeypatch.setattr(progress, "_read_ids", ids)


async def test_only_ids_of_the_partition_are_kept_and_nothing_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 16.7
    read, nobody = Read(monkeypatch, [f"c{n}:s/1/0@1" for n in range(1000)]), Any
    mine = PartitionProgress(SentMarks(), 100, is_mine=ids_of_partition(lambda key: int(key[1:-2]) % 10, 3))
    await mine.read_back(nobody, 1_000_000, ())  # type: ignore[arg-type]  # the connection is not used
    await mine.read_back(nobody, 1_000_000, ())  # type: ignore[arg-type]
    assert mine.stored == {f"c{n}:s/1/0@1" for n in range(3, 1000, 10)}
    assert read.since == [1_000.0, 5_000.0]


async def test_of_too_many_ids_only_those_of_the_batch_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 16.7
    monkeypatch.setattr(progress, "MOST_STORED", 50)
    Read(monkeypatch, *([f"c{piece}:s/{n}/0@1" for n in range(30)] for piece in range(10)))
    mine, batch = PartitionProgress(SentMarks(), 100), {"c0:s/3/0@1", "c9:s/7/0@1", "c9:s/99/0@1"}
    await mine.read_back(None, 1_000_000, batch)  # type: ignore[arg-type]
    assert mine.stored == {"c0:s/3/0@1", "c9:s/7/0@1"}
    first: Any = type("First", (), {"offset": 3})
    mine.begin_batch(first)
    assert (mine.stored, mine.read_until, mine.read_back_at) == (set(), 0, -float("inf"))


async def test_an_id_of_another_kind_may_belong_to_any_partition() -> None:
    is_mine = ids_of_partition(lambda _: 1, 0)
    assert [is_mine(one) for one in ("c:s/1/0@1", "publish/c:s/one/1", "odd")] == [False, True, True]

"""Pulling agent responses, on a real nats-server and the embedded log."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig

from bridge.nats import metrics
from bridge.nats.connection import NatsConnection
from bridge.nats.response_messages import COMPLETED, FAILED, SUBJECTS
from bridge.nats.responses import DURABLE, AgentResponses
from ports.log import Header, LogUnavailable, Position, RecordTooLarge
from streams import topics
from streams.dead_letters import decode_dead_letter
from streams.transport.sqlite.log import SqliteLog
from tables.commands import AgentResult, decode_command
from tests.bridge.nats.world import CLOCK, PARTITIONS, PREFIX, client, connection, embedded_log, eventually, records
from tests.services import NatsServer


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    async with embedded_log(tmp_path) as opened:
        yield opened


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def responses(log: Any, link: NatsConnection, **options: Any) -> AsyncIterator[AgentResponses]:
    started = AgentResponses(log, link, CLOCK, prefix=PREFIX, partitions=PARTITIONS, **options)
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


def response(ceremony: int, agent: int = 1, **changes: Any) -> bytes:
    payload = {
        "task_id": f"ceremony-c-{ceremony}:story-s-1:role-DEV:step-review:attempt-1",
        "agent_id": f"agent-dev-{agent:03d}",
        "role": "DEV",
        "status": "completed",
        "proposal": f"proposal {ceremony}",
        **changes,
    }
    envelope = {
        "event_type": COMPLETED,
        "payload": payload,
        "idempotency_key": "shared",
        "correlation_id": "random",
        "timestamp": "2026-01-31T12:00:00Z",
        "producer": "ray-executor",
    }
    return json.dumps(envelope).encode()


async def make_stream(link: Client) -> None:
    await link.jetstream().add_stream(StreamConfig(name="AGENT_RESPONSES", subjects=["agent.response.>"]))


async def publish(server: NatsServer, messages: Sequence[tuple[str, bytes]]) -> None:
    async with client(server.url) as link:
        with contextlib.suppress(Exception):
            await make_stream(link)
        for subject, data in messages:
            await link.jetstream().publish(subject, data)


async def settled(server: NatsServer, delivered: int, seconds: float = 30.0) -> None:
    """Wait until this many messages are delivered and acknowledged."""
    async with client(server.url) as link:
        for _ in range(int(seconds / 0.05)):
            with contextlib.suppress(Exception):
                info = await link.jetstream().consumer_info("AGENT_RESPONSES", DURABLE)
                if info.ack_floor is not None and info.ack_floor.stream_seq >= delivered and not info.num_ack_pending:
                    return
            await asyncio.sleep(0.05)
    pytest.fail(f"the durable did not settle {delivered} messages within {seconds} s")


async def commands(log: SqliteLog) -> list[AgentResult]:
    found = [decode_command(record.value) for record in await records(log, topics.COMMANDS)]
    assert all(isinstance(command, AgentResult) for command in found)
    return [command for command in found if isinstance(command, AgentResult)]


async def test_responses_become_commands_in_the_partition_of_their_instance(log: SqliteLog, server: NatsServer) -> None:
    """Each becomes one command with the instance id as key, and is acknowledged."""
    # specification 17.2
    await publish(server, [(COMPLETED, response(ceremony, agent)) for ceremony in range(40) for agent in (1, 2)])
    async with connection(server.url) as link, responses(log, link) as started:
        await settled(server, 80)
        assert started.state == "ok"
    found = await records(log, topics.COMMANDS)
    assert len({(c.instance_id, c.agent_id) for c in await commands(log)}) == len(found) == 80
    for record in found:
        assert record.key is not None
        assert record.partition == log.partition_of(record.key, PARTITIONS)


async def test_the_messages_that_no_worker_has_handled_are_counted(log: SqliteLog, server: NatsServer) -> None:
    """Whoever asks; without the stream, or without NATS, nothing is known."""
    # specification 29.3
    async with connection(server.url) as link:
        asking = AgentResponses(log, link, CLOCK, prefix=PREFIX, partitions=PARTITIONS)
        assert await asking.waiting() is None
        async with responses(log, link):
            await publish(server, [(COMPLETED, response(0))])
            await settled(server, 1)
        assert await asking.waiting() == 0
        await publish(server, [(COMPLETED, response(1)), (COMPLETED, response(2))])
        assert await asking.waiting() == 2
        await asyncio.to_thread(server.kill)
        assert await asking.waiting() is None


async def test_a_single_response_does_not_wait_for_others(log: SqliteLog, server: NatsServer) -> None:
    """A message is handled on arrival, because a ceremony waits for it."""
    await publish(server, [(COMPLETED, response(0))])
    async with connection(server.url) as link, responses(log, link):
        await settled(server, 1)
        async with client(server.url) as other:
            for ceremony in range(1, 6):
                began = asyncio.get_running_loop().time()
                await other.jetstream().publish(COMPLETED, response(ceremony))
                while len(await records(log, topics.COMMANDS)) <= ceremony:
                    await asyncio.sleep(0.002)
                assert asyncio.get_running_loop().time() - began < 0.5


async def test_a_missing_stream_is_waited_for_and_reported(log: SqliteLog, server: NatsServer) -> None:
    """Another service makes it; the durable then has the specified name and four subjects."""
    # specification 17.1
    async with connection(server.url) as link, responses(log, link) as started:
        await eventually(
            lambda: started.state == "waiting for the stream AGENT_RESPONSES", "the state names the stream"
        )
        await publish(server, [(FAILED, response(1, error="e", error_type="T"))])
        await settled(server, 1)
        await eventually(lambda: started.state == "ok", "it is ready")
        async with client(server.url) as other:
            config = (await other.jetstream().consumer_info("AGENT_RESPONSES", DURABLE)).config
    assert config.durable_name == "planning-ceremony-processor-agent-response-completed-v1"
    assert sorted(config.filter_subjects or []) == [
        "agent.response.completed",
        "agent.response.completed.backlog-review.role",
        "agent.response.completed.task-extraction",
        "agent.response.failed",
    ]
    (command,) = await commands(log)
    assert (command.error_code, command.error_message) == ("agent_failed", "T: e")


async def test_foreign_messages_are_acknowledged_and_counted(log: SqliteLog, server: NatsServer) -> None:
    """They give no command and no dead letter."""
    # specification 17.4
    before = metrics.FOREIGN.labels("other_task")._value.get()
    await publish(server, [(COMPLETED, response(1, task_id="job-1"))] * 3)
    async with connection(server.url) as link, responses(log, link):
        await settled(server, 3)
    assert metrics.FOREIGN.labels("other_task")._value.get() - before == 3
    assert await records(log, topics.COMMANDS) == []
    assert await records(log, topics.DEADLETTERS) == []


async def test_malformed_messages_become_dead_letters_and_end(log: SqliteLog, server: NatsServer) -> None:
    """The dead letter has stream and sequence as origin, code, reason, subject and the original bytes."""
    # specification 17.5
    await publish(server, [(COMPLETED, b"{"), (COMPLETED, response(1)), (FAILED, response(1, agent_id=5))])
    async with connection(server.url) as link, responses(log, link):
        await settled(server, 3)
    letters = [decode_dead_letter(r.key, r.value, r.headers) for r in await records(log, topics.DEADLETTERS)]
    assert {(x.origin, x.code, dict(x.headers)[topics.SUBJECT].decode()) for x in letters} == {
        ("AGENT_RESPONSES/0/1", "message_undecodable", COMPLETED),
        ("AGENT_RESPONSES/0/3", "payload_invalid", FAILED),
    }
    assert next(x for x in letters if x.offset == 1).value == b"{"
    assert len(await commands(log)) == 1


class Flaky:
    """A log whose first appends fail as unreachable."""

    def __init__(self, log: SqliteLog, failures: int) -> None:
        self._log = log
        self.failures = failures

    def partition_of(self, key: bytes, partitions: int) -> int:
        return self._log.partition_of(key, partitions)

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("log_unavailable", "away")
        return await self._log.append(topic, partition, key, value, headers)


class Narrow(Flaky):
    """A log whose topic `commands` refuses records of this size."""

    async def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> Position:
        if topic.endswith(topics.COMMANDS):
            raise RecordTooLarge("too large")
        return await self._log.append(topic, partition, key, value, headers)


async def test_a_command_larger_than_a_record_becomes_a_dead_letter(log: SqliteLog, server: NatsServer) -> None:
    """Otherwise it would be delivered again without end."""
    # specification 20.2
    await publish(server, [(COMPLETED, response(1))])
    async with connection(server.url) as link, responses(Narrow(log, 0), link):
        await settled(server, 1)
    (record,) = await records(log, topics.DEADLETTERS)
    assert decode_dead_letter(record.key, record.value, record.headers).code == "record_too_large"


async def test_the_puller_stops_at_once_without_a_server(log: SqliteLog, tmp_path: Path) -> None:
    """Until then the state says that NATS is away."""
    server = NatsServer(tmp_path / "nats")
    async with connection(server.url) as link:
        async with responses(log, link) as started:
            await eventually(lambda: started.state.startswith("unreachable"), "the state says so")
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2


async def test_no_message_is_acknowledged_while_the_log_is_away(log: SqliteLog, server: NatsServer) -> None:
    """The message is delivered again, and appended once the log is back."""
    # specification 17.2
    await publish(server, [(COMPLETED, response(1))])
    flaky = Flaky(log, failures=1)
    async with connection(server.url) as link, responses(flaky, link):
        await settled(server, 1)
    assert flaky.failures == 0
    assert len(await commands(log)) == 1


async def test_a_redelivered_message_becomes_the_same_command(log: SqliteLog, server: NatsServer) -> None:
    """A lost acknowledgement costs a second record with the same bytes."""
    # specification 17.6
    await publish(server, [(COMPLETED, response(1))])
    async with connection(server.url) as link, responses(log, link):
        await settled(server, 1)
    async with client(server.url) as other:
        await other.jetstream().delete_consumer("AGENT_RESPONSES", DURABLE)
    async with connection(server.url) as link, responses(log, link):
        await settled(server, 1)
    first, second = await records(log, topics.COMMANDS)
    assert first.value == second.value


async def test_pulling_continues_after_the_server_was_killed(log: SqliteLog, server: NatsServer) -> None:
    """No message is lost, under load and with more messages afterwards."""
    await publish(server, [(COMPLETED, response(ceremony)) for ceremony in range(300)])
    async with connection(server.url) as link, responses(log, link, in_flight=8) as started:
        await eventually(lambda: metrics.COMMANDS._value.get() > 0, "it has begun")
        server.kill()
        await eventually(lambda: started.state != "ok", "it says that the server is away")
        await asyncio.to_thread(server.start)
        await publish(server, [(COMPLETED, response(ceremony)) for ceremony in range(300, 350)])
        await settled(server, 350)
    assert {c.instance_id for c in await commands(log)} == {f"c-{ceremony}:s-1" for ceremony in range(350)}


async def test_a_deleted_durable_is_made_again(log: SqliteLog, server: NatsServer) -> None:
    """Pulling continues; a message that is delivered twice becomes the same command."""
    await publish(server, [(COMPLETED, response(1))])
    async with connection(server.url) as link, responses(log, link):
        await settled(server, 1)
        async with client(server.url) as other:
            await other.jetstream().delete_consumer("AGENT_RESPONSES", DURABLE)
        await publish(server, [(COMPLETED, response(2))])
        await settled(server, 2)
    assert {c.instance_id for c in await commands(log)} == {"c-1:s-1", "c-2:s-1"}


async def test_the_durable_has_the_specified_settings(log: SqliteLog, server: NatsServer) -> None:
    """It has the name, four subjects, explicit acknowledgements, and starts at the beginning of the stream."""
    # specification 17.1
    await publish(server, [(COMPLETED, response(1))])
    async with connection(server.url) as link, responses(log, link):
        await settled(server, 1)
        async with client(server.url) as other:
            (info,) = await other.jetstream().consumers_info("AGENT_RESPONSES")
    assert info.name == "planning-ceremony-processor-agent-response-completed-v1"
    assert info.config.filter_subjects == [
        "agent.response.completed",
        "agent.response.completed.backlog-review.role",
        "agent.response.completed.task-extraction",
        "agent.response.failed",
    ]
    assert (info.config.ack_policy, info.config.deliver_policy) == (AckPolicy.EXPLICIT, DeliverPolicy.ALL)


async def test_the_durable_of_an_older_engine_gets_the_four_subjects(log: SqliteLog, server: NatsServer) -> None:
    """It has the same name and one subject; acknowledged messages stay acknowledged."""
    # specification 17.1
    await publish(server, [(COMPLETED, response(1))])
    async with client(server.url) as other:
        older = ConsumerConfig(durable_name=DURABLE, filter_subject=COMPLETED, ack_policy=AckPolicy.EXPLICIT)
        await other.jetstream().add_consumer("AGENT_RESPONSES", older)
        subscription = await other.jetstream().pull_subscribe_bind(DURABLE, "AGENT_RESPONSES")
        (message,) = await subscription.fetch(1, timeout=5)
        await message.ack_sync()
        async with connection(server.url) as link, responses(log, link):
            await publish(server, [(FAILED, response(2, status="failed", error="no"))])
            await settled(server, 2)
        found = (await other.jetstream().consumer_info("AGENT_RESPONSES", DURABLE)).config
    assert found.filter_subjects == list(SUBJECTS)
    assert {c.instance_id for c in await commands(log)} == {"c-2:s-1"}


async def test_a_durable_that_cannot_be_changed_is_reported_by_readiness(log: SqliteLog, server: NatsServer) -> None:
    """A push durable cannot become a pull durable."""
    await publish(server, [(COMPLETED, response(1))])
    async with client(server.url) as other:
        pushing = ConsumerConfig(durable_name=DURABLE, deliver_subject="elsewhere", ack_policy=AckPolicy.EXPLICIT)
        await other.jetstream().add_consumer("AGENT_RESPONSES", pushing)
        async with connection(server.url) as link, responses(log, link) as started:
            await eventually(lambda: "delete it" in started.state, "it says what to do")
            await other.jetstream().delete_consumer("AGENT_RESPONSES", DURABLE)
            await settled(server, 1)
            assert started.state == "ok"

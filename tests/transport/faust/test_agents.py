"""Real Faust agents over batches: a batch succeeds only when the agent asks for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import faust
import pytest

from ports.log import AgentSpec, Batch, LogFailed, TableSpec
from streams.transport.app import CeremonyApp
from tests.transport.memory import MemoryLog
from tests.transport.memory_transport import MemoryTransport, memory_app

pytestmark = pytest.mark.timeout(30)
ROWS = TableSpec("rows", lambda row: row, lambda raw: raw)
SPEC = AgentSpec("keeper", "x.commands", tables=[ROWS])


async def keep(stream: AsyncIterable[Batch]) -> None:
    """Keeps the newest value of each key."""
    async for batch in stream:
        for record in batch:
            assert record.key is not None
            if record.value == b"poison":
                raise ValueError("poison")
            batch.put("rows", record.key, record.value)


@asynccontextmanager
async def running(app: CeremonyApp) -> AsyncIterator[CeremonyApp]:
    async with app:
        await until(lambda: app.settled)
        yield app


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


def position(app: CeremonyApp) -> int:
    return sum(part.position for part in app.parts)


async def test_a_batch_passes_through_faust_and_its_rows_are_read_through_the_table() -> None:
    memory = MemoryLog()
    app = memory_app(memory)
    agent = app.attach(SPEC, keep)
    assert isinstance(agent, faust.Agent)
    async with running(app):
        await app.commit_log.append("x.commands", 0, b"a", b"1")
        await app.commit_log.append("x.commands", 1, b"b", b"2")
        await until(lambda: position(app) == 2)
        table: Any = app.tables["rows"]
        assert (table[b"a"], table.get(b"b"), b"c" in table) == (b"1", b"2", False)
        assert app.owner.assigned == {("keeper", 0), ("keeper", 1)}
        assert set(app.views("keeper")) == {0, 1}
        assert app.monitor.events_total == 2, "one event per batch passed Faust's own stream"
    assert memory.rows["rows", 0] == {b"a": b"1"}
    assert isinstance(app.transport, MemoryTransport) and app.transport.closed


async def test_an_agent_that_raises_is_replaced_and_only_one_record_is_dead_lettered() -> None:
    memory = MemoryLog()
    for value in (b"1", b"poison", b"2", b"poison", b"3"):
        memory.append("x.commands", 0, value, value)
    app = memory_app(memory)
    app.attach(SPEC, keep)
    async with running(app):
        await until(lambda: position(app) == 5)
        await app.commit_log.append("x.commands", 0, b"after", b"4")
        await until(lambda: position(app) == 6)
    assert sorted(memory.rows["rows", 0]) == [b"1", b"2", b"3", b"after"]
    assert memory.values("x.deadletters") == [b"poison", b"poison"]
    assert app.failure is None


async def test_an_agent_that_leaves_its_stream_fails() -> None:
    memory = MemoryLog()
    memory.append("x.commands", 0, b"a", b"1")

    async def leave(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            batch.put("rows", b"a", b"1")
            return

    app = memory_app(memory)
    app.attach(SPEC, leave)
    async with running(app):
        await until(lambda: position(app) == 1)
    assert memory.rows["rows", 0] == {}
    assert b"left its stream" in dict(memory.records["x.deadletters", 0][0].headers)["error-message"]


async def test_a_cancelled_actor_gets_the_same_batch_again() -> None:
    memory = MemoryLog()
    memory.append("x.commands", 0, b"a", b"1")
    attempts = 0

    async def stuck_once(stream: AsyncIterable[Batch]) -> None:
        nonlocal attempts
        async for batch in stream:
            attempts += 1
            if attempts == 1:
                await asyncio.sleep(60)
            batch.put("rows", b"a", b"1")

    app = memory_app(memory)
    agent = app.attach(SPEC, stuck_once)
    async with running(app):
        await until(lambda: attempts == 1)
        (actor,) = agent._actors
        actor.actor_task.cancel()
        await until(lambda: position(app) == 1)
    assert attempts == 2
    assert memory.rows["rows", 0] == {b"a": b"1"}
    assert memory.values("x.deadletters") == []


async def test_a_stop_waits_for_the_batch_in_hand() -> None:
    memory = MemoryLog()
    memory.append("x.commands", 0, b"a", b"1")
    begun = asyncio.Event()

    async def slow(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            begun.set()
            await asyncio.sleep(0.2)
            batch.put("rows", b"a", b"1")

    app = memory_app(memory)
    app.attach(SPEC, slow)
    async with running(app):
        await begun.wait()
    assert memory.rows["rows", 0] == {b"a": b"1"}
    assert memory.positions["x.commands", 0].next == 1


async def test_a_refused_write_is_reported_to_the_program_once() -> None:
    memory = MemoryLog(fail_send=ValueError("no"))
    memory.append("x.commands", 0, b"poison", b"poison")
    heard: list[BaseException] = []
    app = memory_app(memory)
    app.on_crash = heard.append
    app.attach(SPEC, keep)
    async with running(app):
        await until(lambda: heard)
    assert isinstance(heard[0], LogFailed)
    assert "send_refused" in str(heard[0])
    assert memory.positions == {}


async def test_records_can_be_sent_to_an_agents_topic_with_fausts_own_send() -> None:
    memory = MemoryLog()
    app = memory_app(memory)
    agent = app.attach(SPEC, keep)
    async with running(app):
        await agent.channel.send(key=b"a", value=b"1", key_serializer="raw", value_serializer="raw")
        await until(lambda: position(app) == 1)
        table: Any = app.tables["rows"]
        assert table[b"a"] == b"1"

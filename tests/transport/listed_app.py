"""A module written like one of a Faust user, for `faust -A tests.transport.listed_app agents`."""

from __future__ import annotations

from collections.abc import AsyncIterable

from bridge.clock import HostClock
from ports.log import AgentSpec, Batch, TableSpec, TopicSpec
from streams.transport.app import create_app


async def ceremony(stream: AsyncIterable[Batch]) -> None:
    """Folds commands into ceremonies."""
    async for _ in stream:
        pass


async def deliberation(stream: AsyncIterable[Batch]) -> None:
    """Calls the agents."""
    async for _ in stream:
        pass


app = create_app(
    "listed",
    "kafka://127.0.0.1:9092",
    clock=HostClock(),
    partitions=2,
    topics=[TopicSpec("x.commands", 2), TopicSpec("x.steps.deliberation", 2), TopicSpec("x.deadletters", 2)],
    prefix="x",
)
ROWS = TableSpec("ceremonies", bytes, bytes)
app.attach(AgentSpec("ceremony", "x.commands", tables=[ROWS]), ceremony)
app.attach(AgentSpec("deliberation", "x.steps.deliberation"), deliberation)

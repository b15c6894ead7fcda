"""Messages in the client's buffer when their partition moves to another bridge."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from bridge.nats.connection import NatsConnection
from bridge.nats.events import outgoing
from bridge.nats.progress import PartitionProgress, SentMarks
from bridge.nats.publish import JetStreamPublisher, Nack
from bridge.nats.streams import ceremony_stream
from bridge.nats.window import READ_BACK_AGAIN_SECONDS, Outgoing, PublishWindow
from ports.log import Record
from steps.secrets.redactor import TextRedactor
from streams.envelope import event_record
from tests.bridge.nats.world import CLOCK, client, connection, count, event, eventually
from tests.services import NatsServer, running

pytestmark = pytest.mark.timeout(60)
EVENTS = 20


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server with the stream CEREMONY."""
    with running(NatsServer(tmp_path / "nats")) as started:
        await make_stream(started.url)
        yield started


async def make_stream(url: str) -> None:
    async with client(url) as other:
        await other.jetstream().add_stream(ceremony_stream(1))


class Membership:
    """A membership that is lost after the batch went to the client, before the client's task writes it."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def fresh(self) -> bool:
        self.left -= 1
        return self.left >= 0


def window(
    link: NatsConnection,
    membership: Membership,
    progress: PartitionProgress | None = None,
    numbers: Sequence[int] = range(EVENTS),
) -> PublishWindow:
    messages: list[tuple[bytes, Outgoing]] = []
    for number in numbers:
        key, value, headers = event_record(event(number, 0), number, 0, 1)
        message = outgoing(Record("t.events", 0, number, 0, key, value, headers), dict(headers))
        assert message is not None
        messages.append((key, message))

    async def reject(message: Outgoing, nack: Nack) -> None:
        pytest.fail(f"{message.id}: {nack}")

    progress = progress or PartitionProgress(SentMarks(), end=0, read_back_at=math.inf)
    return PublishWindow(
        messages,
        link,
        JetStreamPublisher(link),
        CLOCK,
        reject,
        progress=progress,
        fresh=membership.fresh,
        redactor=TextRedactor(),
    )


async def lost_before_the_write(url: str) -> None:
    async with connection(url) as link:
        await link.connected()
        membership = Membership(2)
        task = asyncio.create_task(window(link, membership).run())
        await eventually(lambda: membership.left <= 0, "all is in the client")
        await asyncio.sleep(0.5)
        assert await count(url) == 0
        await eventually(lambda: link.generation > 1 and link.is_connected, "the client connects anew")
        membership.left = 10_000
        await asyncio.wait_for(task, 20)
    assert await count(url) == EVENTS


def test_buffered_messages_are_not_sent_after_the_membership_is_lost(tmp_path: Path) -> None:
    """Without the fence a worker that was frozen, replaced and woken first sent its successor's messages again.

    This runs on the program's event loop.
    """
    with running(NatsServer(tmp_path)) as started:
        uvloop.run(make_stream(started.url))
        uvloop.run(lost_before_the_write(started.url))


async def test_the_next_owner_reads_stored_ids_back_again_after_a_while(server: NatsServer) -> None:
    """Messages that the former owner sent may be stored after the first read-back, and leave the duplicate window."""
    async with connection(server.url) as link:
        async with client(server.url) as other:
            await other.jetstream().update_stream(replace(ceremony_stream(1), duplicate_window=0.1))
            progress = PartitionProgress(SentMarks(), end=EVENTS)
            ours = Membership(10_000)
            await window(link, ours, progress, range(EVENTS // 2)).run()
            late = event(EVENTS - 1, 0)
            await other.jetstream().publish(late.subject, b"{}", headers={"Nats-Msg-Id": late.id})
            await asyncio.sleep(0.3)
        progress.read_back_at -= READ_BACK_AGAIN_SECONDS
        await window(link, ours, progress, range(EVENTS // 2, EVENTS)).run()
    assert await count(server.url) == EVENTS


async def test_publishing_ends_on_a_cancel_that_nats_py_swallowed(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py's `publish` swallows a cancel while it waits for room; the partition could not be given up."""
    swallowed: list[bool] = []

    async def swallows(*_: object) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            swallowed.append(True)
            if len(swallowed) > 1:
                raise

    monkeypatch.setattr(JetStreamPublisher, "send_all", swallows)
    async with connection(server.url) as link:
        task = asyncio.create_task(window(link, Membership(10_000)).run())
        await asyncio.sleep(0.5)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done == {task} and task.cancelled() and swallowed == [True]

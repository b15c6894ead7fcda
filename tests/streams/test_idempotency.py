"""Messages of publish steps: one whose acknowledgement is recorded, in the row or in the store, is not sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from ports.errors import Unreachable
from ports.idempotency import HeldByAnother, IdempotencyStore
from ports.outbound import Published
from streams.idempotency import RECORDED_IN_ROW, STORE_PAUSE_SECONDS, IdempotentOutbound
from streams.metrics import Metrics
from streams.partitions import Partitions
from tables.instance import StepState
from tests.steps.fakes import RecordingOutbound
from tests.streams.fakes import HandClock, MemoryView
from tests.streams.test_timers import row

KEY = "publish/c1:s1/tell/2"
SENT = Published("CEREMONY", 7, duplicate=False)


class OnePartition:
    """As much of a log as the routing of one partition needs."""

    state = "ok"

    def partition_of(self, key: bytes, partitions: int) -> int:
        return 0


class MemoryStore:
    """An idempotency store of one process; `answers` come first, and one that is an error is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []
        self.completed: dict[str, Published] = {}

    async def claim(self, key: str) -> Published | HeldByAnother | None:
        self.calls.append(f"claim {key}")
        answer = self.answers.pop(0) if self.answers else self.completed.get(key)
        if isinstance(answer, Exception):
            raise answer
        claimed: Published | HeldByAnother | None = answer
        return claimed

    async def complete(self, key: str, published: Published) -> None:
        self.calls.append(f"complete {key}")
        self.completed[key] = published


class Site:
    """The outbound port above a recording one, and the row of its ceremony."""

    def __init__(self, store: IdempotencyStore | None = None, *, announced: int = 0) -> None:
        self.clock = HandClock()
        self.nats = RecordingOutbound(SENT)
        self.metrics = Metrics(CollectorRegistry())
        self.view = MemoryView(0)
        self.view.put(msgspec.structs.replace(row(), steps={"tell": StepState(announced=announced)}))
        self.partitions = Partitions(OnePartition(), 1, unserved=dict)  # type: ignore[arg-type]
        self.partitions.taken(self.view)
        self.outbound = IdempotentOutbound(self.nats, self.clock, self.partitions, self.metrics, store)

    async def publish(self, key: str = KEY) -> Published:
        return await self.outbound.publish("a.b", "e", {}, key=key, correlation_id="c")

    def served_by(self, record: str) -> float:
        value = self.metrics.registry.get_sample_value("ceremony_idempotency_total", {"served_by": record})
        return value or 0.0


@contextmanager
def running(site: Site) -> Iterator[asyncio.Task[Published]]:
    task = asyncio.get_running_loop().create_task(site.publish())
    try:
        yield task
    finally:
        task.cancel()


# ---- the row


@pytest.mark.parametrize(("announced", "sent"), [(0, 1), (1, 1), (2, 0), (3, 0)])
async def test_a_message_that_the_row_records_is_not_sent(announced: int, sent: int) -> None:
    """The row keeps the newest visit whose message was acknowledged; the key here is of visit 2."""
    # specification 9.6
    site = Site(announced=announced)
    assert await site.publish() == (RECORDED_IN_ROW if not sent else SENT)
    assert len(site.nats.messages) == sent


async def test_the_row_is_judged_after_the_fold_of_all_commands_before_the_take_over() -> None:
    """The acknowledgement may be in a command that the new owner has yet to fold."""
    # specification 9.6
    site = Site()
    site.view.position, site.view.end_at_take_over = 3, 5
    with running(site) as publishing:
        await asyncio.sleep(0.02)
        assert not publishing.done() and not site.nats.messages
        site.view.put(msgspec.structs.replace(row(), steps={"tell": StepState(announced=2)}))
        site.view.position = 5
        assert await publishing == RECORDED_IN_ROW
    assert not site.nats.messages


async def test_a_publish_waits_for_the_partition_of_its_ceremony() -> None:
    """The agent's partition may be taken before the one of the same number that holds the row."""
    site = Site(announced=2)
    site.partitions.lost(0)
    with running(site) as publishing:
        await asyncio.sleep(0.02)
        assert not publishing.done() and not site.nats.messages
        site.partitions.taken(site.view)
        await site.clock.advance(1)
        assert await publishing == RECORDED_IN_ROW


# ---- the store


async def test_the_result_in_the_store_answers_a_second_publish() -> None:
    # specification 9.11
    store = MemoryStore()
    site = Site(store)
    assert await site.publish() == SENT
    assert await site.publish() == Published("CEREMONY", 7, duplicate=True)
    assert len(site.nats.messages) == 1
    assert site.served_by("store") == 2


async def test_a_holder_that_died_is_waited_for_until_its_lease_ends() -> None:
    # specification 9.11
    site = Site(MemoryStore(HeldByAnother(6.0)))
    with running(site) as publishing:
        await site.clock.advance(5.9)
        assert not site.nats.messages
        await site.clock.advance(0.2)
        assert await publishing == SENT


async def test_a_holder_that_goes_on_publishing_leaves_it_the_message() -> None:
    """The attempt is asked again later and uses up no try."""
    site = Site(MemoryStore(HeldByAnother(0.0), HeldByAnother(6.0)))
    with running(site) as publishing:
        await site.clock.advance(0)
        with pytest.raises(Unreachable, match="another worker"):
            await publishing
    assert not site.nats.messages


async def test_a_store_that_fails_delays_one_publish_and_then_the_row_serves() -> None:
    """It is asked again after a pause; each publish without it is counted."""
    # specification 9.11
    store = MemoryStore(Unreachable("valkey", "no answer within 0.1 s"))
    site = Site(store)
    assert [await site.publish(f"publish/c1:s1/tell/{visit}") for visit in (1, 2, 3)] == [SENT] * 3
    assert store.calls == ["claim publish/c1:s1/tell/1"]
    assert site.served_by("row") == 3
    await site.clock.advance(STORE_PAUSE_SECONDS)
    assert await site.publish("publish/c1:s1/tell/4") == SENT
    assert store.calls[1:] == ["claim publish/c1:s1/tell/4", "complete publish/c1:s1/tell/4"]


async def test_a_refused_message_stays_unrecorded() -> None:
    store = MemoryStore()
    site = Site(store)
    site.nats.answer = Unreachable("nats", "not connected")
    with pytest.raises(Unreachable, match="not connected"):
        await site.publish()
    assert not store.completed

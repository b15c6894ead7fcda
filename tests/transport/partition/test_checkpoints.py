"""Checkpoints save rows, effects and position of one moment, at their interval and limits, and in order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bridge.clock import HostClock
from ports.log import LARGEST_RECORD_BYTES, AgentSpec, Fenced, LogFailed, RowUnwritable, TableSpec
from streams.transport.partition.backend import NewRecord
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.checkpoints import Limits
from tests.transport.memory import MemoryLog
from tests.transport.parts import COUNTS, WORKER, commands, count, crashed, part_of, running, until

pytestmark = pytest.mark.timeout(20)


async def test_rows_effects_and_position_are_durable_after_a_stop() -> None:
    log = MemoryLog()
    commands(log, "a", "b", "a")
    async with running(part_of(log, count)) as part:
        await until(lambda: part.position == 3)
    assert log.rows["counts", 0] == {b"a": b"2", b"b": b"1"}
    assert log.values("answers") == [b"1", b"1", b"2"]
    position = log.positions["commands", 0]
    assert (position.next, position.partitions, position.timestamp) == (3, 4, 1002)
    assert log.committed["commands", 0] == 3


async def test_after_a_crash_the_same_commands_give_the_same_rows() -> None:
    log = MemoryLog()
    commands(log, "a", "a", "b")
    async with running(part_of(log, count)) as part:
        await until(lambda: part.position == 3)
    commands(log, "a", "b", "c")
    await crashed(part_of(log, count))
    assert log.positions["commands", 0].next == 3, "a crash writes no checkpoint"
    async with running(part_of(log, count)) as part:
        await until(lambda: part.position == 6)
    assert log.rows["counts", 0] == {b"a": b"3", b"b": b"2", b"c": b"1"}
    answers = [(record.key, record.value) for record in log.records["answers", 0]]
    assert answers[3:6] == answers[6:9], "effects of a crash's suffix come again, the same ones"


async def test_a_checkpoint_waits_only_for_the_effects_before_it() -> None:
    log = MemoryLog(hold_acks=True)
    commands(log, "a")
    part = part_of(log, count)
    async with running(part):
        await until(lambda: part.position == 1)
        saving = asyncio.create_task(part.checkpoint())
        await asyncio.sleep(0.01)
        assert not log.transactions, "rows must not be durable before the effects are"
        commands(log, "b")
        await until(lambda: part.position == 2)
        log.waiting_acks[0].set_result(None)  # the effect of "b" stays unacknowledged
        await saving
        ((rows, position),) = log.transactions
        assert rows == {"counts": {b"a": b"1"}}, "what was folded after the snapshot belongs to the next checkpoint"
        assert position.next == 1
        log.acknowledge()
        log.hold_acks = False
    assert log.positions["commands", 0].next == 2


async def test_sent_waits_for_effects_with_and_without_a_running_checkpoint() -> None:
    log = MemoryLog(hold_acks=True)
    commands(log, "a")
    part = part_of(log, count)
    async with running(part):
        await until(lambda: part.position == 1)
        saving = asyncio.create_task(part.checkpoint())
        await asyncio.sleep(0.01)
        asked = asyncio.create_task(part.sent())
        await asyncio.sleep(0.01)
        assert not asked.done(), "the effect of a is only on its way"
        log.waiting_acks[0].set_result(None)
        await asyncio.gather(saving, asked)
        commands(log, "b")
        await until(lambda: part.position == 2)
        asked = asyncio.create_task(part.sent())
        await asyncio.sleep(0.01)
        assert not asked.done(), "the effect of b is only on its way"
        log.acknowledge()
        await asked
        log.hold_acks = False


async def test_a_cancelled_checkpoint_does_not_cancel_acknowledgements() -> None:
    """Other partitions may have records in the same produce batch, and wait for the same future."""
    log = MemoryLog(hold_acks=True)
    commands(log, "a")
    part = part_of(log, count)
    await part.take()
    task = asyncio.create_task(part.run())
    await until(lambda: part.position == 1)
    saving = asyncio.create_task(part.checkpoint())
    await asyncio.sleep(0.01)
    saving.cancel()
    await asyncio.wait({saving})
    (ack,) = log.waiting_acks
    assert not ack.done()
    task.cancel()
    await asyncio.wait({task})
    await part.close()


async def test_a_checkpoint_writes_each_row_once_and_is_skipped_without_progress() -> None:
    log = MemoryLog()
    commands(log, *["a"] * 7)
    async with running(part_of(log, count)) as part:
        await until(lambda: part.position == 7)
        await part.checkpoint()
        await part.checkpoint()
    assert [rows for rows, _ in log.transactions] == [{"counts": {b"a": b"7"}}]


async def test_a_deleted_row_is_a_tombstone_and_stays_deleted() -> None:
    log = MemoryLog()
    commands(log, "a", "b")

    async def delete_b(batch: PartBatch) -> None:
        await count(batch)
        batch.put("counts", b"b", None)
        assert batch.get("counts", b"b") is None
        assert batch.rows["counts"][b"b"] is None

    async with running(part_of(log, delete_b)) as part:
        await until(lambda: part.position == 2)
        assert dict(part.rows("counts")) == {b"a": 1}
    assert log.transactions[0][0]["counts"][b"b"] is None
    assert log.rows["counts", 0] == {b"a": b"1"}


@pytest.mark.parametrize("limits", [Limits(commands=20), Limits(bytes=15_000)], ids=["commands", "bytes"])
async def test_many_commands_or_bytes_checkpoint_before_the_interval(limits: Limits) -> None:
    log = MemoryLog()
    for number in range(60):
        log.append("commands", 0, b"k%d" % number, b"x" * 100)
    async with running(part_of(log, count, limits=limits)) as part:
        await until(lambda: part.position == 60 and part.counters.checkpoints >= 2)


async def test_a_slow_log_stops_reading_at_twice_the_limit() -> None:
    log = MemoryLog(hold_acks=True)
    commands(log, *[f"k{number}" for number in range(100)])
    async with running(part_of(log, count, limits=Limits(commands=20))) as part:
        await asyncio.sleep(0.1)
        assert part.position <= 20 + 2 * 20
        log.hold_acks = False
        log.acknowledge()
        await until(lambda: part.position == 100)


async def test_a_failed_checkpoint_blocks_every_later_one() -> None:
    """Its rows and effects are gone: a later checkpoint would save a position above rows that were never written."""
    log = MemoryLog()
    commands(log, "a")
    part = part_of(log, count)
    await part.take()
    task = asyncio.create_task(part.run())
    await until(lambda: part.position == 1)
    log.fail_checkpoint = RuntimeError("broker said no")
    with pytest.raises(RuntimeError, match="broker said no"):
        await part.checkpoint()
    log.fail_checkpoint = None
    commands(log, "b")
    await until(lambda: part.position == 2)
    part.stop()
    with pytest.raises(RuntimeError, match="broker said no"):
        await task
    await part.close()
    assert part.broken
    assert log.transactions == []
    async with running(part_of(log, count)) as successor:
        await until(lambda: successor.position == 2)
    assert log.rows["counts", 0] == {b"a": b"1", b"b": b"1"}


async def test_a_refused_effect_ends_the_part_before_its_position_moves() -> None:
    log = MemoryLog(fail_send=ValueError("too large"))
    commands(log, "a")
    part = part_of(log, count, interval=0.01)
    await part.take()
    with pytest.raises(LogFailed, match=r"send_refused.*ValueError"):
        await part.run()
    assert log.positions == {}


async def test_a_fenced_owner_writes_nothing_more() -> None:
    log = MemoryLog()
    commands(log, "a")
    former = part_of(log, count, interval=0.01)
    await former.take()
    successor = part_of(log, count)
    await successor.take()
    with pytest.raises(Fenced):
        await former.run()
    assert log.transactions == []


async def test_on_saved_gets_the_rows_their_bytes_and_the_seconds_of_each_checkpoint() -> None:
    log = MemoryLog()
    commands(log, "a", "b", "a")
    heard: list[tuple[int, int, float]] = []
    spec = AgentSpec("counter", "commands", tables=[COUNTS], on_saved=lambda *saved: heard.append(saved))
    async with running(part_of(log, count, spec)) as part:
        await until(lambda: part.position == 3)
        await part.checkpoint()
        assert [rows for rows, _, _ in heard] == [2]
        commands(log, "b")
        await until(lambda: part.position == 4)
        await part.checkpoint()
    assert [rows for rows, _, _ in heard] == [2, 1]
    assert [size for _, size, _ in heard] == [len(b"a") + len(b"2") + len(b"b") + len(b"1"), len(b"b") + len(b"2")]
    assert all(0 < took < 5 for _, _, took in heard)


async def test_a_row_that_cannot_be_written_ends_the_worker_before_the_position_moves() -> None:
    log = MemoryLog()
    commands(log, "a")

    async def put_nonsense(batch: PartBatch) -> None:
        batch.put("counts", b"a", object())

    part = part_of(log, put_nonsense, interval=0.01)
    await part.take()
    with pytest.raises(LogFailed, match="row_unwritable"):
        await part.run()
    assert log.positions == {}


async def test_a_row_too_large_for_the_log_ends_the_worker_before_the_broker_sees_it() -> None:
    log = MemoryLog()
    commands(log, "a")

    async def put_much(batch: PartBatch) -> None:
        batch.put("counts", b"a", "x" * LARGEST_RECORD_BYTES)

    part = part_of(log, put_much, interval=0.01)
    await part.take()
    with pytest.raises(LogFailed, match="row_too_large: 'a'"):
        await part.run()
    assert log.transactions == []


# ---- agents without tables


async def test_an_answer_after_the_partition_was_given_up_is_not_sent() -> None:
    log = MemoryLog()
    commands(log, "a", topic="requests")
    held: list[Any] = []

    async def hold(batch: PartBatch) -> None:
        held.extend(batch.hold(record) for record in batch)

    async with running(part_of(log, hold, WORKER, limits=Limits(handover_seconds=0.01))):
        await until(lambda: held)
    held[0].send("answers", b"a", b"late")
    held[0].release()
    await asyncio.sleep(0.01)
    assert log.values("answers") == []


async def test_the_lowest_held_offset_is_committed() -> None:
    log = MemoryLog()
    commands(log, "a", "b", "c", topic="requests")
    held: list[Any] = []

    async def hold(batch: PartBatch) -> None:
        held.extend(batch.hold(record) for record in batch)

    part = part_of(log, hold, WORKER, limits=Limits(handover_seconds=0.01))
    async with running(part):
        await until(lambda: len(held) == 3)
        held[0].send("answers", b"a", b"done")
        held[0].release()
        held[2].release()
    assert log.committed["requests", 0] == 1, "b is not answered: it must come again"
    assert log.values("answers") == [b"done"]
    again: list[bytes | None] = []

    async def see(batch: PartBatch) -> None:
        again.extend(record.key for record in batch)

    async with running(part_of(log, see, WORKER)) as part:
        await until(lambda: part.position == 3)
    assert again == [b"b", b"c"]
    assert log.committed["requests", 0] == 3


async def test_an_answer_is_acknowledged_before_its_request_is_committed() -> None:
    log = MemoryLog(hold_acks=True)
    commands(log, "a", topic="requests")
    held: list[Any] = []

    async def hold(batch: PartBatch) -> None:
        held.extend(batch.hold(record) for record in batch)

    part = part_of(log, hold, WORKER)
    async with running(part):
        await until(lambda: held)
        held[0].send("answers", b"a", b"done")
        held[0].release()
        saving = asyncio.create_task(part.checkpoint())
        await asyncio.sleep(0.01)
        assert not saving.done()
        log.acknowledge()
        await saving
    assert log.committed["requests", 0] == 1


async def test_answers_of_one_turn_of_the_event_loop_go_into_one_produce_batch() -> None:
    log = MemoryLog()
    commands(log, "a", "b", "c", topic="requests")
    sends: list[int] = []

    async def hold(batch: PartBatch) -> None:
        for held in [batch.hold(record) for record in batch]:
            held.send("answers", b"k", b"done")
            held.release()

    part = part_of(log, hold, WORKER)
    backend = part._backend
    send = backend.send

    def counting(topic: str, partition: int, records: list[NewRecord]) -> Any:
        sends.append(len(records))
        return send(topic, partition, records)

    backend.send = counting  # type: ignore[method-assign, assignment]
    async with running(part):
        await until(lambda: sends)
    assert sends == [3]


async def test_a_row_that_cannot_be_written_gets_a_substitute_and_the_partition_flows_on() -> None:
    """The substitute is made of the last written row and the newest one; the agent hears of it by its own topic."""
    # specification 18.16
    log = MemoryLog()

    def encode(row: Any) -> bytes:
        if row == 2:
            raise ValueError("a bug")
        return json.dumps(row).encode()

    seen: list[tuple[Any, Any]] = []

    def substitute(written: Any, newest: Any, error: RowUnwritable) -> tuple[Any, bytes]:
        seen.append((written, newest))
        return 1000, error.code.encode()

    table = TableSpec("counts", encode, json.loads, substitute)
    spec = AgentSpec("counter", "commands", tables=[table], batch=10)
    commands(log, "a", "b")
    async with running(part_of(log, count, spec)) as part:
        await until(lambda: part.position == 2)
        await part.checkpoint()
        commands(log, "a", "c")
        await until(lambda: part.position == 4)
        await part.checkpoint()
        assert seen == [(1, 2)]
        assert log.transactions[-1][0] == {"counts": {b"a": b"1000", b"c": b"1"}}
        await until(lambda: part.position == 5)
        assert dict(part.rows("counts").items()) == {b"a": 1001, b"b": 1, b"c": 1}
    assert [(one.key, one.value) for one in log.records["commands", 0][4:]] == [(b"a", b"row_unwritable")]


async def test_each_of_several_unwritable_rows_of_a_checkpoint_is_reported_before_it_commits() -> None:
    # specification 18.16
    log = MemoryLog()
    commands(log, "a", "b", "c")

    def encode(row: Any) -> bytes:
        return json.dumps(row).encode() if row != 1 else b"x" * LARGEST_RECORD_BYTES

    table = TableSpec("counts", encode, json.loads, lambda _, newest, error: (1000 + newest, error.code.encode()))
    part = part_of(log, count, AgentSpec("counter", "commands", tables=[table], batch=3))
    async with running(part):
        await until(lambda: part.position == 3)
        log.hold_acks = True
        saving = asyncio.create_task(part.checkpoint())
        await until(lambda: log.end("commands", 0) == 6)
        await asyncio.sleep(0.01)
        assert not saving.done()
        assert log.transactions == []
        log.hold_acks = False
        log.acknowledge()
        await saving
        await until(lambda: part.position == 6)
    reports = log.records["commands", 0][3:]
    assert [(one.key, one.value) for one in reports] == [(key, b"row_too_large") for key in (b"a", b"b", b"c")]


async def test_rows_that_only_a_substitute_cannot_mend_end_the_worker() -> None:
    log = MemoryLog()
    commands(log, "a")
    table = TableSpec("counts", lambda row: row.no_such_thing, json.loads, lambda _, newest, __: (newest, b""))
    part = part_of(log, count, AgentSpec("counter", "commands", tables=[table]), interval=0.01)
    await part.take()
    with pytest.raises(LogFailed, match="row_unwritable"):
        await part.run()
    assert log.positions == {}


async def test_the_age_of_a_checkpoint_grows_while_it_hangs_and_ends_with_it() -> None:
    """A partition with nothing to save is as good as one that was just saved."""
    # specification 29.3
    log = MemoryLog()
    commands(log, "a")
    clock = SteppedClock()
    async with running(part_of(log, count, clock=clock)) as part:
        await until(lambda: part.position == 1)
        clock.ahead += 5
        assert part.checkpoint_age_seconds >= 5
        await part.checkpoint()
        assert part.checkpoint_age_seconds < 5
        clock.ahead += 7
        await part.checkpoint()
        assert part.checkpoint_age_seconds < 5, "nothing was unsaved"
        log.hold_acks = True
        commands(log, "a")
        await until(lambda: part.position == 2)
        saving = asyncio.create_task(part.checkpoint())
        await until(lambda: bool(log.waiting_acks))
        clock.ahead += 9
        assert part.checkpoint_age_seconds >= 9
        log.hold_acks = False
        log.acknowledge()
        await saving
        assert part.checkpoint_age_seconds < 5


class SteppedClock(HostClock):
    """The host's clock, which a test sets ahead."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead

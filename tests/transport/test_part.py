"""A part: one batch at a time, success only when the next is asked for, checkpoints that never say too much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bridge.clock import HostClock
from streams import topics
from streams.transport.batch import PartBatch
from streams.transport.contract import (
    LARGEST_RECORD,
    AgentSpec,
    Fenced,
    LogFailed,
    LogUnavailable,
    Out,
    RecordTooLarge,
    TableSpec,
)
from streams.transport.dead_letters import BY_REFERENCE_ABOVE, VALUE_SIZE, DeadLetters
from streams.transport.part import Limits, Part
from streams.transport.row_cache import RowCache
from streams.transport.row_store import MemoryStores
from streams.transport.starting_point import Unserved
from tables.errors import FormatTooNew
from tests.transport.memory import MemoryLog

pytestmark = pytest.mark.timeout(20)

COUNTS = TableSpec("counts", lambda row: json.dumps(row).encode(), json.loads)
COUNTER = AgentSpec("counter", "commands", tables=[COUNTS], batch=10)
WORKER = AgentSpec("worker", "requests", batch=10)
Agent = Callable[[PartBatch], Awaitable[None]]


async def count(batch: PartBatch) -> None:
    """Counts records by key and answers each with its key's new count."""
    for record in batch:
        assert record.key is not None
        number = (batch.get("counts", record.key) or 0) + 1
        batch.put("counts", record.key, number)
        batch.send("answers", record.key, str(number).encode())


def part_of(
    log: MemoryLog,
    agent: Agent,
    spec: AgentSpec = COUNTER,
    *,
    interval: float = 60.0,
    limits: Limits | None = None,
    partitions: int = 4,
) -> Part:
    async def deliver(batch: PartBatch) -> None:
        async def work() -> None:
            try:
                await agent(batch)
            except Exception as failure:  # noqa: BLE001 - as a stream does
                batch.finish(failure)
            else:
                batch.finish()

        tasks.append(asyncio.create_task(work()))

    tasks: list[asyncio.Task[None]] = []
    return Part(
        spec,
        0,
        partitions=partitions,
        backend=log.backend(spec, 0),
        clock=HostClock(),
        deliver=deliver,
        dead_letters=DeadLetters("deadletters", 4),
        cache=RowCache(),
        stores=MemoryStores(),
        interval=lambda: interval,
        limits=limits,
    )


@asynccontextmanager
async def running(part: Part) -> AsyncIterator[Part]:
    """Takes and runs the part, and ends it in good order."""
    await part.take()
    task = asyncio.create_task(part.run())
    try:
        yield part
    finally:
        part.stop()
        try:
            await task
        finally:
            await part.close()


async def crashed(part: Part) -> None:
    """What kill -9 leaves of a running part: no last checkpoint, no close."""
    await part.take()
    task = asyncio.create_task(part.run())
    await until(lambda: part.position >= part.end_at_take_over)
    task.cancel()
    await asyncio.wait({task})


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


def commands(log: MemoryLog, *keys: str, topic: str = "commands") -> None:
    for number, key in enumerate(keys):
        log.append(topic, 0, key.encode(), b"%d" % number)


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


async def test_nothing_of_a_batch_is_visible_before_the_next_is_asked_for() -> None:
    log = MemoryLog()
    commands(log, "a")
    going_on = asyncio.Event()

    async def slow(batch: PartBatch) -> None:
        await count(batch)
        await going_on.wait()

    async with running(part_of(log, slow)) as part:
        await asyncio.sleep(0.02)
        assert (part.position, dict(part.rows("counts")), log.values("answers")) == (0, {}, [])
        going_on.set()
        await until(lambda: part.position == 1)
        assert dict(part.rows("counts")) == {b"a": 1}


async def test_only_one_batch_is_out_at_a_time() -> None:
    log = MemoryLog()
    commands(log, *"abcdefghijklmnopqrstuvwxyz")
    out = 0
    sizes = []

    async def watch(batch: PartBatch) -> None:
        nonlocal out
        out += 1
        sizes.append(len(batch))
        await asyncio.sleep(0.001)
        assert out == 1
        out -= 1

    async with running(part_of(log, watch)) as part:
        await until(lambda: part.position == 26)
    assert sizes == [10, 10, 6]


async def test_a_poison_record_alone_becomes_a_dead_letter() -> None:
    """The batch is handed over record by record; its failed attempt left no trace."""
    log = MemoryLog()
    log.append("commands", 0, b"a", b"fine")
    log.append("commands", 0, b"b", b"poison", [("correlation-id", b"c1")])
    log.append("commands", 0, b"a", b"fine")

    async def picky(batch: PartBatch) -> None:
        await count(batch)
        if any(record.value == b"poison" for record in batch):
            raise ValueError("cannot stand it")

    async with running(part_of(log, picky)) as part:
        await until(lambda: part.position == 3)
    assert log.rows["counts", 0] == {b"a": b"2"}
    assert log.values("answers") == [b"1", b"2"]
    (letter,) = log.records["deadletters", 0]
    headers = dict(letter.headers)
    assert (letter.key, letter.value) == (b"b", b"poison")
    assert headers[topics.ORIGIN] == b"commands/0/1"
    assert headers[topics.ERROR_CODE] == b"agent_failed"
    assert headers["correlation-id"] == b"c1"
    assert b"cannot stand it" in headers[topics.ERROR_MESSAGE]
    assert part.counters.dead_letters == {"agent_failed": 1}


async def test_a_large_dead_letter_goes_by_reference() -> None:
    log = MemoryLog()
    log.append("commands", 0, b"a", b"x" * (BY_REFERENCE_ABOVE + 1))

    async def reject(batch: PartBatch) -> None:
        for record in batch:
            batch.dead_letter(record, "undecodable", "not JSON")

    async with running(part_of(log, reject)) as part:
        await until(lambda: part.position == 1)
    (letter,) = log.records["deadletters", 0]
    assert letter.value == b""
    assert dict(letter.headers)[VALUE_SIZE] == str(BY_REFERENCE_ABOVE + 1).encode()
    assert dict(letter.headers)[topics.ERROR_CODE] == b"undecodable"


async def test_a_checkpoint_waits_for_exactly_the_effects_before_it() -> None:
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


async def test_a_checkpoint_that_is_called_off_leaves_the_acknowledgements_alone() -> None:
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


async def test_a_checkpoint_coalesces_rows_and_skips_when_nothing_moved() -> None:
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
        assert batch.rows_changed("counts")[b"b"] is None

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


async def test_a_slow_log_stops_the_reading_at_twice_the_limit() -> None:
    log = MemoryLog(hold_acks=True)
    commands(log, *[f"k{number}" for number in range(100)])
    async with running(part_of(log, count, limits=Limits(commands=20))) as part:
        await asyncio.sleep(0.1)
        assert part.position <= 20 + 2 * 20
        log.hold_acks = False
        log.acknowledge()
        await until(lambda: part.position == 100)


async def test_a_failed_checkpoint_blocks_every_later_one() -> None:
    """Its rows and effects were taken: a later one would put the position above rows that were never written."""
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


async def test_rows_are_decoded_when_the_partition_is_taken_and_on_taken_sees_them() -> None:
    log = MemoryLog()
    commands(log, "a", "b")
    async with running(part_of(log, count)) as part:
        await until(lambda: part.position == 2)
    seen: dict[bytes, int] = {}
    lost: list[int] = []

    async def on_taken(view: Any) -> None:
        seen.update(view.rows("counts"))
        assert (view.position, view.end_at_take_over, view.number) == (2, 2, 0)

    spec = AgentSpec("counter", "commands", tables=[COUNTS], on_taken=on_taken, on_lost=lost.append)
    async with running(part_of(log, count, spec)):
        assert seen == {b"a": 1, b"b": 1}
        assert lost == []
    assert lost == [0]


async def test_on_applied_finds_the_note_of_the_batch_and_its_rows_visible() -> None:
    log = MemoryLog()
    commands(log, "a")
    heard = []

    async def noting(batch: PartBatch) -> None:
        await count(batch)
        batch.note = "mine"

    def on_applied(batch: Any) -> None:
        heard.append((batch.note, dict(part.rows("counts")), dict(batch.rows_changed("counts"))))

    part = part_of(log, noting, AgentSpec("counter", "commands", tables=[COUNTS], on_applied=on_applied))
    async with running(part):
        await until(lambda: heard)
    assert heard == [("mine", {b"a": 1}, {b"a": 1})]


async def test_on_saved_hears_of_each_checkpoint_how_many_rows_it_wrote_and_how_long_it_took() -> None:
    log = MemoryLog()
    commands(log, "a", "b", "a")
    heard: list[tuple[int, float]] = []
    spec = AgentSpec("counter", "commands", tables=[COUNTS], on_saved=lambda rows, took: heard.append((rows, took)))
    async with running(part_of(log, count, spec)) as part:
        await until(lambda: part.position == 3)
        await part.checkpoint()
        assert [rows for rows, _ in heard] == [2]
        commands(log, "b")
        await until(lambda: part.position == 4)
        await part.checkpoint()
    assert [rows for rows, _ in heard] == [2, 1]
    assert sum(took for _, took in heard) == pytest.approx(part.counters.checkpoint_seconds)


async def test_folded_returns_when_the_position_is_passed_and_fails_when_the_partition_moves() -> None:
    log = MemoryLog()
    async with running(part_of(log, count)) as part:
        waiting = asyncio.create_task(part.folded(1))
        commands(log, "a", "b")
        await asyncio.wait_for(waiting, 5)
        assert part.position == 2
        await part.folded(0)
        never = asyncio.create_task(part.folded(99))
        await asyncio.sleep(0)
    with pytest.raises(LogUnavailable, match="partition_moving"):
        await never
    with pytest.raises(LogUnavailable):
        await part.folded(99)


async def take_again(log: MemoryLog, **options: Any) -> None:
    await part_of(log, count, **options).take()


async def served(log: MemoryLog) -> None:
    commands(log, "a", "b", "c")
    async with running(part_of(log, count)) as part:
        await until(lambda: part.position == 3)


async def test_a_position_below_the_log_start_is_not_served() -> None:
    log = MemoryLog()
    await served(log)
    commands(log, "d", "e", "f")
    log.trim("commands", 0, 5)
    with pytest.raises(Unserved, match="position_below_log_start") as refused:
        await take_again(log)
    assert refused.value.code == "position_below_log_start"
    assert "commands[0]" in refused.value.text


async def test_a_position_beyond_the_log_end_is_not_served() -> None:
    log = MemoryLog()
    await served(log)
    del log.records["commands", 0][1:]
    with pytest.raises(Unserved, match="position_beyond_log_end"):
        await take_again(log)


async def test_another_last_command_is_not_served() -> None:
    log = MemoryLog()
    await served(log)
    last = log.records["commands", 0][-1]
    log.records["commands", 0][-1] = last._replace(value=b"another")
    with pytest.raises(Unserved, match="log_differs"):
        await take_again(log)


async def test_a_last_command_that_retention_took_is_not_compared() -> None:
    log = MemoryLog()
    await served(log)
    log.trim("commands", 0, 3)
    await take_again(log)


async def test_another_partition_count_ends_the_worker() -> None:
    log = MemoryLog()
    await served(log)
    with pytest.raises(LogFailed, match="partition_count_changed"):
        await take_again(log, partitions=8)


async def test_a_record_too_large_is_refused_where_it_is_sent() -> None:
    log = MemoryLog()
    commands(log, "a")
    refused = []

    async def send_much(batch: PartBatch) -> None:
        with pytest.raises(RecordTooLarge) as error:
            batch.send("answers", b"a", b"x" * LARGEST_RECORD)
        refused.append(error)

    async with running(part_of(log, send_much)) as part:
        await until(lambda: part.position == 1)
    assert refused
    assert log.values("answers") == []


async def test_an_unknown_table_is_refused_by_name() -> None:
    log = MemoryLog()
    commands(log, "a")

    async def mistaken(batch: PartBatch) -> None:
        batch.put("other", b"a", 1)

    async with running(part_of(log, mistaken)) as part:
        await until(lambda: part.position == 1)
    assert b"no table 'other'" in dict(log.records["deadletters", 0][0].headers)[topics.ERROR_MESSAGE]


async def test_a_row_that_cannot_be_read_ends_the_worker() -> None:
    """It may be of a newer release: serving the partition without it would fold from nothing."""
    log = MemoryLog()
    await served(log)
    log.rows["counts", 0][b"b"] = b"{"
    commands(log, "b")
    with pytest.raises(LogFailed, match=r"row_unreadable: 'b' of table counts\[0\]"):
        async with running(part_of(log, count)) as part, asyncio.timeout(5):
            await part.folded(3)
    assert log.records["deadletters", 0] == []  # the record is not to blame


async def test_who_looks_at_all_rows_when_the_partition_is_taken_finds_one_that_cannot_be_read() -> None:
    """The timers do: such a partition is never served at all."""
    log = MemoryLog()
    await served(log)
    log.rows["counts", 0][b"b"] = b"{"

    async def on_taken(view: Any) -> None:
        dict(view.scan("counts", json.loads))

    part = part_of(log, count, AgentSpec("counter", "commands", tables=[COUNTS], on_taken=on_taken))
    with pytest.raises(LogFailed, match=r"row_unreadable: 'b' of table counts\[0\]"):
        await part.take()


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
        batch.put("counts", b"a", "x" * LARGEST_RECORD)

    part = part_of(log, put_much, interval=0.01)
    await part.take()
    with pytest.raises(LogFailed, match="row_too_large: 'a'"):
        await part.run()
    assert log.transactions == []


# ---- agents without tables


async def test_an_answer_after_the_partition_was_given_up_goes_nowhere() -> None:
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


async def test_the_lowest_held_offset_is_what_is_committed() -> None:
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


async def test_answers_of_one_turn_go_in_one_produce_batch() -> None:
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

    def counting(topic: str, partition: int, records: list[Out]) -> Any:
        sends.append(len(records))
        return send(topic, partition, records)

    backend.send = counting  # type: ignore[method-assign, assignment]
    async with running(part):
        await until(lambda: sends)
    assert sends == [3]


async def test_held_records_are_bounded() -> None:
    log = MemoryLog()
    commands(log, *[str(number) for number in range(50)], topic="requests")
    held: list[Any] = []

    async def hold(batch: PartBatch) -> None:
        held.extend(batch.hold(record) for record in batch)

    async with running(part_of(log, hold, WORKER, limits=Limits(held=15, handover_seconds=0.01))) as part:
        await asyncio.sleep(0.05)
        assert part.position == 15
        for one in held[:5]:
            one.release()
        await until(lambda: part.position == 20)


async def test_records_held_by_a_failed_batch_are_let_go() -> None:
    log = MemoryLog()
    commands(log, "a", topic="requests")

    async def hold_and_fail(batch: PartBatch) -> None:
        for record in batch:
            batch.hold(record)
        raise ValueError("no")

    async with running(part_of(log, hold_and_fail, WORKER)) as part:
        await until(lambda: part.position == 1)
    assert log.committed["requests", 0] == 1


async def test_an_agent_with_tables_cannot_hold() -> None:
    log = MemoryLog()
    commands(log, "a")

    async def hold(batch: PartBatch) -> None:
        for record in batch:
            batch.hold(record)

    async with running(part_of(log, hold)) as part:
        await until(lambda: part.position == 1)
    assert b"cannot hold" in dict(log.records["deadletters", 0][0].headers)[topics.ERROR_MESSAGE]


async def test_a_request_topic_without_commit_begins_at_the_log_start() -> None:
    log = MemoryLog()
    commands(log, "a", "b", topic="requests")
    log.trim("requests", 0, 1)
    seen: list[bytes | None] = []

    async def see(batch: PartBatch) -> None:
        seen.extend(record.key for record in batch)

    async with running(part_of(log, see, WORKER)) as part:
        await until(lambda: part.position == 2)
    assert seen == [b"b"]


async def test_stopping_gives_the_agent_time_to_finish_and_abort_does_not() -> None:
    log = MemoryLog()
    commands(log, "a")
    going_on = asyncio.Event()

    async def slow(batch: PartBatch) -> None:
        await count(batch)
        await going_on.wait()

    part = part_of(log, slow)
    await part.take()
    task = asyncio.create_task(part.run())
    await asyncio.sleep(0.01)
    part.stop()
    await asyncio.sleep(0.01)
    assert not task.done()
    part.abort()
    await asyncio.wait_for(task, 5)
    await part.close()
    assert log.positions == {}
    going_on.set()


async def test_a_record_of_a_newer_release_ends_the_worker_and_is_no_dead_letter() -> None:
    log = MemoryLog()
    commands(log, "a")

    async def too_old(_: PartBatch) -> None:
        raise FormatTooNew("a command", 2, 1)

    part = part_of(log, too_old)
    await part.take()
    try:
        with pytest.raises(LogFailed, match="format_too_new"):
            await part.run()
    finally:
        await part.close()
    assert not log.records["deadletters", 0]
    assert part.position == 0


async def test_a_part_leaves_nothing_behind_in_the_cache_it_shares() -> None:
    part = part_of(MemoryLog(), count)
    await part.take()
    assert len(part._cache._members) == len(part.spec.tables)
    await part.close()
    assert not part._cache._members

"""A part delivers one batch at a time, recovers its position at take-over, and bounds batches and held records."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from ports.log import LARGEST_RECORD_BYTES, AgentSpec, LogFailed, LogUnavailable, RecordTooLarge
from streams import topics
from streams.transport.partition.backend import PositionRow
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.dead_letters import BY_REFERENCE_ABOVE_BYTES, VALUE_SIZE
from streams.transport.partition.part import FIRST_BATCH_RECORDS
from streams.transport.partition.positions import PartitionNotServed
from tables.errors import FormatTooNew
from tests.transport.memory import MemoryLog
from tests.transport.parts import COUNTER, COUNTS, WORKER, commands, count, part_of, running, until

pytestmark = pytest.mark.timeout(20)
LARGE_BATCHES = replace(COUNTER, batch=500)


async def test_changes_of_a_batch_are_invisible_before_the_agent_asks_for_the_next() -> None:
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


async def test_only_one_batch_is_delivered_at_a_time() -> None:
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
    """The batch is delivered again record by record; its failed attempt leaves no trace."""
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


async def test_a_record_whose_effect_is_too_large_is_a_failure_of_its_agent() -> None:
    """Its dead letter has the code of a failed agent, and the reason in its message."""
    log = MemoryLog()
    log.append("commands", 0, b"a", b"fine")

    async def expansive(batch: PartBatch) -> None:
        batch.send("answers", b"a", b"x" * (LARGEST_RECORD_BYTES + 1))

    async with running(part_of(log, expansive)) as part:
        await until(lambda: part.position == 1)
    (letter,) = log.records["deadletters", 0]
    headers = dict(letter.headers)
    assert headers[topics.ERROR_CODE] == b"agent_failed"
    assert b"record_too_large: " in headers[topics.ERROR_MESSAGE]


async def test_a_large_dead_letter_goes_by_reference() -> None:
    # specification 19.2
    log = MemoryLog()
    log.append("commands", 0, b"a", b"x" * (BY_REFERENCE_ABOVE_BYTES + 1))

    async def reject(batch: PartBatch) -> None:
        for record in batch:
            batch.dead_letter(record, "undecodable", "not JSON")

    async with running(part_of(log, reject)) as part:
        await until(lambda: part.position == 1)
    (letter,) = log.records["deadletters", 0]
    assert letter.value == b""
    assert dict(letter.headers)[VALUE_SIZE] == str(BY_REFERENCE_ABOVE_BYTES + 1).encode()
    assert dict(letter.headers)[topics.ERROR_CODE] == b"undecodable"


async def test_rows_are_recovered_before_on_taken_is_called() -> None:
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


async def test_on_applied_gets_the_batch_with_its_note_and_visible_rows() -> None:
    log = MemoryLog()
    commands(log, "a")
    heard = []

    async def noting(batch: PartBatch) -> None:
        await count(batch)
        batch.note = "mine"

    def on_applied(batch: Any) -> None:
        heard.append((batch.note, dict(part.rows("counts")), dict(batch.rows["counts"])))

    part = part_of(log, noting, AgentSpec("counter", "commands", tables=[COUNTS], on_applied=on_applied))
    async with running(part):
        await until(lambda: heard)
    assert heard == [("mine", {b"a": 1}, {b"a": 1})]


async def test_a_wait_for_a_position_far_ahead_leaves_nothing_behind() -> None:
    # specification 14.7
    log = MemoryLog()
    async with running(part_of(log, count)) as part:
        stays = asyncio.create_task(part.folded(0))
        for _ in range(50):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await part.folded(10**12)
        assert len(part._waiters) <= 2
        log.append("commands", 0, b"a", b"0")
        await stays
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await part.folded(10**12)
        assert part._waiters == []


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
    # specification 18.9
    log = MemoryLog()
    await served(log)
    commands(log, "d", "e", "f")
    log.trim("commands", 0, 5)
    with pytest.raises(PartitionNotServed, match="position_below_log_start") as refused:
        await take_again(log)
    assert refused.value.code == "position_below_log_start"
    assert "commands[0]" in refused.value.text


async def test_a_position_beyond_the_log_end_is_not_served() -> None:
    # specification 18.9
    log = MemoryLog()
    await served(log)
    del log.records["commands", 0][1:]
    with pytest.raises(PartitionNotServed, match="position_beyond_log_end"):
        await take_again(log)


async def test_a_log_with_another_last_command_is_not_served() -> None:
    # specification 18.9
    log = MemoryLog()
    await served(log)
    last = log.records["commands", 0][-1]
    log.records["commands", 0][-1] = last._replace(value=b"another")
    with pytest.raises(PartitionNotServed, match="log_differs"):
        await take_again(log)


async def test_a_last_command_deleted_by_retention_is_not_compared() -> None:
    log = MemoryLog()
    await served(log)
    log.trim("commands", 0, 3)
    await take_again(log)


async def test_another_partition_count_ends_the_worker() -> None:
    # specification 18.10
    log = MemoryLog()
    await served(log)
    with pytest.raises(LogFailed, match="partition_count_changed"):
        await take_again(log, partitions=8)


NEWER = replace(COUNTER, fold=COUNTER.fold + 1)


async def test_a_partition_of_a_newer_fold_ends_an_older_worker_before_it_folds_anything() -> None:
    # specification 24.5
    log = MemoryLog()
    await served(log)
    await part_of(log, count, NEWER).take()
    commands(log, "d")
    with pytest.raises(LogFailed, match=r"fold_too_new: commands\[0\] belongs to fold 1 .* has fold 0"):
        await take_again(log)
    assert log.positions["commands", 0].next == 3


async def test_a_newer_worker_claims_a_partition_before_it_folds_its_first_command() -> None:
    """It may die before its first checkpoint: nobody older folds the same commands, whose effects it has sent."""
    # specification 24.5
    log = MemoryLog()
    await served(log)
    commands(log, "d")
    part = part_of(log, count, NEWER)
    await part.take()
    assert (part.position, log.positions["commands", 0].fold, log.positions["commands", 0].next) == (3, 1, 3)
    with pytest.raises(LogFailed, match="fold_too_new"):
        await take_again(log)


async def test_a_partition_that_nobody_has_folded_is_claimed_too() -> None:
    """Its first commands may be folded, and their effects sent, long before its first checkpoint."""
    # specification 24.5
    log = MemoryLog()
    commands(log, "a")
    await part_of(log, count, NEWER).take()
    assert log.positions["commands", 0] == PositionRow(0, 4, 0, 0, NEWER.fold)
    with pytest.raises(LogFailed, match="fold_too_new"):
        await take_again(log)
    async with running(part_of(log, count, NEWER)) as part:
        await until(lambda: part.position == 1)


async def test_an_older_worker_that_may_takes_the_partition_back() -> None:
    """Then the newer ones may take it again, as in an upgrade."""
    # specification 24.5
    log = MemoryLog()
    await served(log)
    async with running(part_of(log, count, NEWER)):
        pass
    commands(log, "d")
    async with running(part_of(log, count, replace(COUNTER, accepts_newer_fold=True))) as part:
        await until(lambda: part.position == 4)
    assert log.positions["commands", 0].fold == COUNTER.fold
    async with running(part_of(log, count, NEWER)) as part:
        assert dict(part.rows("counts")) == dict.fromkeys((b"a", b"b", b"c", b"d"), 1)


async def test_a_worker_of_the_same_fold_writes_nothing_at_its_take_over() -> None:
    log = MemoryLog()
    await served(log)
    written = len(log.transactions)
    await take_again(log)
    assert len(log.transactions) == written


async def test_a_record_that_is_too_large_is_refused_at_the_send() -> None:
    log = MemoryLog()
    commands(log, "a")
    refused = []

    async def send_much(batch: PartBatch) -> None:
        with pytest.raises(RecordTooLarge) as error:
            batch.send("answers", b"a", b"x" * LARGEST_RECORD_BYTES)
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
    """It may be of a newer release; without it the partition would fold from an empty row."""
    # specification 18.10
    log = MemoryLog()
    await served(log)
    log.rows["counts", 0][b"b"] = b"{"
    commands(log, "b")
    with pytest.raises(LogFailed, match=r"row_unreadable: 'b' of table counts\[0\]"):
        async with running(part_of(log, count)) as part, asyncio.timeout(5):
            await part.folded(3)
    assert log.records["deadletters", 0] == []  # the record is not at fault


async def test_a_scan_at_take_over_finds_an_unreadable_row() -> None:
    """Timers scan all rows, so such a partition is never served."""
    log = MemoryLog()
    await served(log)
    log.rows["counts", 0][b"b"] = b"{"

    async def on_taken(view: Any) -> None:
        dict(view.scan("counts", json.loads))

    part = part_of(log, count, AgentSpec("counter", "commands", tables=[COUNTS], on_taken=on_taken))
    with pytest.raises(LogFailed, match=r"row_unreadable: 'b' of table counts\[0\]"):
        await part.take()


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


async def test_records_held_by_a_failed_batch_are_released() -> None:
    log = MemoryLog()
    commands(log, "a", topic="requests")

    async def hold_and_fail(batch: PartBatch) -> None:
        for record in batch:
            batch.hold(record)
        raise ValueError("no")

    async with running(part_of(log, hold_and_fail, WORKER)) as part:
        await until(lambda: part.position == 1)
    assert log.committed["requests", 0] == 1


async def test_large_rows_limit_the_size_of_a_batch() -> None:
    """Rows may be much larger than commands: 500 rows of 10 KB are 5 MB, with a limit of 40 KB."""
    log, sizes = MemoryLog(), list[int]()
    keys = [f"k{number}" for number in range(200)]
    log.rows["counts", 0] = {key.encode(): b'"%s"' % (b"x" * 10_000) for key in keys}
    commands(log, *keys)

    async def touch(batch: PartBatch) -> None:
        sizes.append(len(batch))
        for record in batch:
            batch.put("counts", record.key or b"", batch.get("counts", record.key or b""))

    async with running(part_of(log, touch, LARGE_BATCHES, limits=Limits(bytes=40_000))) as part:
        await until(lambda: part.position == 200)
    assert sizes[0] == FIRST_BATCH_RECORDS
    assert set(sizes[1:]) <= {1, 2, 3}


async def test_batches_of_small_rows_have_the_agents_batch_size() -> None:
    log, sizes = MemoryLog(), list[int]()
    commands(log, *["a"] * 2_000)

    async def note(batch: PartBatch) -> None:
        sizes.append(len(batch))

    async with running(part_of(log, note, LARGE_BATCHES)) as part:
        await until(lambda: part.position == 2_000)
    assert max(sizes) == part.spec.batch


async def test_an_agent_with_tables_cannot_hold_records() -> None:
    log = MemoryLog()
    commands(log, "a")

    async def hold(batch: PartBatch) -> None:
        for record in batch:
            batch.hold(record)

    async with running(part_of(log, hold)) as part:
        await until(lambda: part.position == 1)
    assert b"cannot hold" in dict(log.records["deadletters", 0][0].headers)[topics.ERROR_MESSAGE]


async def test_an_agent_without_tables_and_commits_begins_at_the_log_start() -> None:
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
    # specification 18.10, 24.1
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


async def test_a_closed_part_leaves_nothing_in_the_shared_cache() -> None:
    part = part_of(MemoryLog(), count)
    await part.take()
    assert len(part._cache._members) == len(part.spec.tables)
    await part.close()
    assert not part._cache._members

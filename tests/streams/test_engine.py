"""Commands, reads and partitions of the engine, on a real log without a fold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

from bridge.clock import HostClock
from ports.log import LogFailed, LogUnavailable, TopicSpec
from steps.registry import all_kinds
from streams import command_log, reads
from streams.admission import Admission
from streams.api import Overloaded, PartitionDiffers, Unavailable
from streams.ceremony_agent import Folding
from streams.engine import Engine
from streams.log_clock import LogClock
from streams.metrics import process_metrics
from streams.topics import DEFINITIONS
from streams.transport.sqlite.log import SqliteLog
from streams.waiters import ACCEPTED, FoldResult, ReplyKey
from tables.commands import Cancel, PutDefinition, Start, decode_command
from tests.streams.fakes import MemoryBatch, MemoryView, settle
from tests.streams.test_ceremony_agent import PROBE, start
from tests.streams.test_timers import row

PARTITIONS = 3


class Site:
    """An engine whose partitions are served, on a log without a fold."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log
        self.unserved: dict[int, tuple[str, str]] = {}
        self.clock = HostClock()
        self.log_clock = LogClock(self.clock)
        self.engine = Engine(
            log=log,
            unserved=lambda: self.unserved,
            clock=self.clock,
            log_clock=self.log_clock,
            kinds=all_kinds(),
            prefix="t",
            partitions=PARTITIONS,
            metrics=process_metrics(),
            max_lag=3,
        )
        self.views = [MemoryView(number) for number in range(PARTITIONS)]

    def home(self, instance_id: str = "c1:s1") -> MemoryView:
        return self.views[self.log.partition_of(instance_id.encode(), PARTITIONS)]

    async def serve(self) -> None:
        for view in self.views:
            await self.engine.taken(view)

    async def commands(self) -> list[Any]:
        found = []
        for partition, (begin, end) in enumerate(await self.log.ends("t.commands")):
            async for records in self.log.read("t.commands", partition, begin, end):
                found += [decode_command(record.value) for record in records]
        return found

    def fold(self, command: Cancel, result: FoldResult) -> None:
        """Apply a batch with this result, as if the command was folded."""
        batch = MemoryBatch(self.home(), [])
        batch.note = Folding(replies={ReplyKey.of(command): result})
        self.engine.applied(batch)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(command_log, "FOLD_SECONDS", 0.1)
    monkeypatch.setattr(reads, "FOLD_SECONDS", 0.1)
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec("t.commands", PARTITIONS), TopicSpec("t.deadletters", PARTITIONS)])
    made = Site(log)
    await made.serve()
    yield made
    await log.stop()


async def test_a_start_that_is_durable_but_not_folded_is_accepted(site: Site) -> None:
    """The reply has its position, and says that it is not folded yet."""
    # specification 10.3
    answer = await site.engine.commands.start(PROBE, start())
    assert (answer.code, answer.folded) == ("", False)
    assert answer.partition == site.home().number and answer.offset >= 0
    assert [type(command) for command in await site.commands()] == [PutDefinition, Start]
    assert site.log_clock.now() > 0


async def test_a_start_is_refused_while_its_partition_lags_and_an_operation_is_not(site: Site) -> None:
    """The definition and two starts reach the limit. A refused start appends nothing."""
    # specification 22.6
    site.home().put(row())
    for _ in range(2):
        await site.engine.commands.start(PROBE, start())
    with pytest.raises(Overloaded):
        await site.engine.commands.start(PROBE, start())
    with pytest.raises(Unavailable, match="durable"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    assert [type(command) for command in await site.commands()] == [PutDefinition, Start, Start, Cancel]


async def test_concurrent_starts_count_before_their_definition_is_put(site: Site) -> None:
    """The limit is 3: one puts the definition, two wait for it, and the next ones are refused at once."""
    starts = [asyncio.create_task(site.engine.commands.start(PROBE, start())) for _ in range(20)]
    answers = await asyncio.gather(*starts, return_exceptions=True)
    assert [isinstance(answer, Overloaded) for answer in answers].count(True) >= 16


async def test_an_operation_that_is_not_folded_in_time_is_unavailable_and_names_its_id(site: Site) -> None:
    """Repeating it with that request id returns the reply."""
    # specification 14.4
    site.home().put(row())
    with pytest.raises(Unavailable, match="request_id 'mine'"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    assert not site.engine.commands.replies._waiting


@pytest.mark.parametrize("said", [ACCEPTED, FoldResult("paused", "resume it first")])
async def test_an_operation_returns_the_folds_result(site: Site, said: FoldResult) -> None:
    site.home().put(row())
    command = Cancel(instance_id="c1:s1", command_id="mine", actor="anna")
    asked = asyncio.create_task(site.engine.commands.operate(command))
    while not await site.commands():
        await settle()
    site.fold(command, said)
    answer = await asked
    assert (answer.code, answer.message, answer.folded) == (said.code, said.message, True)


async def test_an_operation_on_a_start_that_is_not_folded_yet_waits_for_the_fold(site: Site) -> None:
    """The start was answered `accepted`, so the ceremony is not unknown."""
    # specification 13.4
    reply = await site.engine.commands.start(PROBE, start())
    command = Cancel(instance_id="c1:s1", command_id="mine", actor="anna")
    asked = asyncio.create_task(site.engine.commands.operate(command))
    await asyncio.sleep(0.02)
    site.home().put(row())
    site.home().position = reply.offset + 1
    while not any(isinstance(one, Cancel) for one in await site.commands()):
        await settle()
    site.fold(command, ACCEPTED)
    assert (await asked).code == ""


async def test_an_operation_on_a_start_that_is_not_folded_in_time_is_unavailable_and_names_its_id(site: Site) -> None:
    # specification 13.4, 14.4
    await site.engine.commands.start(PROBE, start())
    with pytest.raises(Unavailable, match="request_id 'mine'"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    with pytest.raises(Unavailable, match="not folded"):
        await site.engine.reads.find("c1:s1")
    assert not any(isinstance(one, Cancel) for one in await site.commands())


@pytest.mark.parametrize("error", [TimeoutError(), LogUnavailable("c", "m"), LogFailed("c", "m")], ids=repr)
async def test_an_operation_whose_write_is_not_acknowledged_names_its_id(site: Site, error: Exception) -> None:
    """It may be in the log all the same: repeated under another id it would be done twice."""
    # specification 14.4
    site.home().put(row())
    with (
        mock.patch.object(site.log, "append", side_effect=error),
        pytest.raises(Unavailable, match="request_id 'mine'"),
    ):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))


async def test_an_operation_on_a_partition_that_moves_names_its_id(site: Site) -> None:
    # specification 14.4
    site.engine.lost(site.home().number)
    with pytest.raises(Unavailable, match=r"moving.*request_id 'mine'"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))


async def test_a_row_is_shown_once_the_commands_below_it_are_committed(site: Site) -> None:
    """On the embedded log the fold runs ahead of the commit, and a crash would take the row back."""
    # specification 18.1
    home = site.home()
    home.put(row())
    home.position, home.durable = 7, 5
    found = asyncio.create_task(site.engine.reads.find("c1:s1"))
    watching = site.engine.reads.watch("c1:s1")
    first = asyncio.ensure_future(anext(watching))
    listed = asyncio.create_task(site.engine.reads.committed())
    await asyncio.sleep(0.02)
    assert not found.done() and not first.done() and not listed.done()
    home.durable = 7
    shown = await found
    assert shown is not None and shown.position == (home.number, 7)
    assert (await first).row == shown.row
    await listed


async def test_an_operation_on_an_unknown_ceremony_is_not_appended(site: Site) -> None:
    answer = await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    assert answer.code == "unknown_instance"
    assert await site.commands() == []


async def test_a_definition_is_put_once_per_partition(site: Site) -> None:
    """Also by concurrent starts; and again after the partition was lost and taken."""
    site.engine.commands.admission = Admission(0, HostClock())  # without a limit
    names = [f"c{n}" for n in range(12)]
    await asyncio.gather(*(site.engine.commands.start(PROBE, start(name)) for name in names))
    partitions = {site.home(f"{name}:s1").number for name in names}
    puts = [command for command in await site.commands() if isinstance(command, PutDefinition)]
    assert len(puts) == len(partitions)
    site.engine.lost(site.home().number)
    await site.engine.taken(site.home())
    await site.engine.commands.start(PROBE, start("c1"))
    puts = [command for command in await site.commands() if isinstance(command, PutDefinition)]
    assert len(puts) == len(partitions) + 1


async def test_a_partition_that_is_being_taken_over_is_not_served(site: Site) -> None:
    """Nothing is appended or read before it has folded to the log end at take-over."""
    site.home().put(row())
    site.home().end_at_take_over = 5
    with pytest.raises(Unavailable, match="moving"):
        site.engine.reads.get("c1:s1")
    with pytest.raises(Unavailable, match="moving"):
        await site.engine.commands.start(PROBE, start())
    with pytest.raises(Unavailable, match="moving"):
        await site.engine.reads.newest(bool, 10)
    assert await site.commands() == []
    assert site.engine.partitions.readiness()["tables"] == "1 of 3 partitions not recovered yet"
    site.home().position = 5
    found = site.engine.reads.get("c1:s1")
    assert found is not None and found.instance_id == "c1:s1"
    assert site.engine.partitions.readiness() == {"log": "ok", "tables": "ok"}


async def test_a_partition_that_is_not_served_names_the_reason(site: Site) -> None:
    # specification 18.9
    site.engine.lost(site.home().number)
    site.unserved[site.home().number] = ("log_truncated", "the log begins above the position")
    with pytest.raises(Unavailable, match="log_truncated"):
        site.engine.reads.get("c1:s1")
    assert "log_truncated: the log begins above the position" in site.engine.partitions.readiness()["tables"]


async def test_a_watch_ends_as_unavailable_when_its_partition_is_lost(site: Site) -> None:
    site.home().put(row())
    watching = site.engine.reads.watch("c1:s1")
    assert (await anext(watching)).row.instance_id == "c1:s1"
    waiting = asyncio.ensure_future(anext(watching))
    await settle()
    site.engine.lost(site.home().number)
    with pytest.raises(Unavailable):
        await waiting


async def test_a_ceremony_with_a_pinned_definition_that_is_refused_now_stays_readable(site: Site) -> None:
    """Without its gates and the reasons why it waits, which need the definition."""
    found = row()
    site.home().put(found)
    site.home().tables[DEFINITIONS][b"h"] = "states: []"
    assert site.engine.reads.definition_of(found) is None
    assert list(site.engine.reads.waiting_for(found)) == []


async def test_dead_letters_of_one_millisecond_are_listed_newest_first_too(site: Site) -> None:
    """All dead letters of one batch have the same time."""
    appends = [site.log.append("t.deadletters", 1, None, b"%d" % n, (("origin", b"t/1/%d" % n),)) for n in range(30)]
    await asyncio.gather(*appends)
    letters, total = await site.engine.reads.dead_letters(100, 0)
    assert total == 30
    assert [letter.offset for letter in letters] == list(reversed(range(30)))
    assert len({letter.timestamp for letter in letters}) < 30


async def test_foreign_records_among_the_dead_letters_are_shown_too(site: Site) -> None:
    await site.log.append("t.deadletters", 0, None, b"what is this")
    (letter,), total = await site.engine.reads.dead_letters(10, 0)
    assert (letter.topic, letter.code, letter.size, total) == (
        "t.deadletters",
        "unknown",
        12,
        1,
    )  # its own place is its origin


async def test_calls_on_a_stopped_log_are_unavailable(site: Site) -> None:
    await site.log.stop()
    with pytest.raises(Unavailable, match="repeating the call is safe"):
        await site.engine.commands.start(PROBE, start())
    with pytest.raises(Unavailable, match="cannot be reached"):
        await site.engine.reads.dead_letters(10, 0)


async def test_a_worker_that_may_have_been_replaced_answers_nothing(tmp_path: Path) -> None:
    """It returns no old value and appends nothing; readiness names the reason."""
    # specification 14.16
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec("t.commands", PARTITIONS)])
    site = Site(log)
    await site.serve()
    site.home().put(row())
    site.engine.partitions._fresh = lambda: False
    with pytest.raises(Unavailable, match="membership_not_confirmed"):
        site.engine.reads.get("c1:s1")
    with pytest.raises(Unavailable, match="membership_not_confirmed"):
        await site.engine.commands.start(PROBE, start())
    assert await site.commands() == []
    assert site.engine.partitions.readiness()["tables"].startswith("membership not confirmed")
    await log.stop()


async def test_nothing_is_appended_while_partitions_move(site: Site) -> None:
    """Reads still work, because the owner has not given its partitions up yet."""
    site.home().put(row())
    site.engine.partitions._held = lambda: None
    with pytest.raises(Unavailable, match="moving"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    assert await site.commands() == []
    assert site.engine.reads.get("c1:s1") is not None
    assert site.engine.partitions.readiness()["tables"] == "the partitions of this worker are being settled"


async def test_a_read_waits_until_its_position_is_folded(site: Site) -> None:
    """Everything before the position must be folded; the position after the last record needs no wait."""
    # specification 14.7
    home = site.home()
    home.position = 7
    await site.engine.reads.reached("c1:s1", home.number, 7)
    assert site.engine.reads.position_of("c1:s1") == (home.number, 7)
    with pytest.raises(PartitionDiffers):
        await site.engine.reads.reached("c1:s1", home.number + 1, 1)


async def test_rows_of_some_partitions_are_read_by_number(site: Site) -> None:
    """A partition that is not served here is refused, never left out."""
    site.home().put(row())
    assert await site.engine.reads.newest(bool, 10, [site.home().number]) == (1, [(-row().created_at, "c1:s1")])
    other = (site.home().number + 1) % PARTITIONS
    assert await site.engine.reads.newest(bool, 10, [other]) == (0, [])
    site.engine.lost(other)
    with pytest.raises(Unavailable):
        await site.engine.reads.newest(bool, 10, [other])


async def test_a_partition_lost_while_its_rows_are_read_is_refused_not_left_out(site: Site) -> None:
    site.home().put(row())

    def lose(_row: object) -> bool:
        site.engine.lost(site.home().number)
        return True

    with pytest.raises(Unavailable, match="moving"):
        await site.engine.reads.newest(lose, 10)


async def test_only_the_keys_of_the_newest_rows_are_returned_in_order(site: Site) -> None:
    """All matching rows are counted."""
    ages = random.Random(7).sample(range(10_000), 4_000)
    for age in ages:
        site.home().put(msgspec.structs.replace(row(), instance_id=f"c{age}:s1", created_at=age))
    total, keys = await site.engine.reads.newest(lambda one: one.created_at % 2 == 0, 25)
    even = sorted((age for age in ages if age % 2 == 0), reverse=True)
    assert total == len(even)
    assert list(keys) == [(-age, f"c{age}:s1") for age in even[:25]]

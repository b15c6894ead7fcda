"""Commands are appended, put their definition first, and return the fold's result or the reason why not."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from bridge.clock import HostClock
from ports.log import LogFailed, LogUnavailable
from streams.admission import Admission
from streams.api import Overloaded, Unavailable
from streams.waiters import ACCEPTED, FoldResult
from tables.commands import Cancel, PutDefinition, Start
from tests.streams.engine_site import EngineSite
from tests.streams.fakes import settle
from tests.streams.test_ceremony_agent import PROBE, start
from tests.streams.test_timers import row


async def test_a_start_that_is_durable_but_not_folded_is_accepted(site: EngineSite) -> None:
    """The reply has its position, and says that it is not folded yet."""
    # specification 10.3
    answer = await site.engine.commands.start(PROBE, start())
    assert (answer.code, answer.folded) == ("", False)
    assert answer.partition == site.home().number and answer.offset >= 0
    assert [type(command) for command in await site.commands()] == [PutDefinition, Start]
    assert site.log_clock.now() > 0


async def test_a_start_is_refused_while_its_partition_lags_and_an_operation_is_not(site: EngineSite) -> None:
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


async def test_concurrent_starts_count_before_their_definition_is_put(site: EngineSite) -> None:
    """The limit is 3: one puts the definition, two wait for it, and the next ones are refused at once."""
    starts = [asyncio.create_task(site.engine.commands.start(PROBE, start())) for _ in range(20)]
    answers = await asyncio.gather(*starts, return_exceptions=True)
    assert [isinstance(answer, Overloaded) for answer in answers].count(True) >= 16


async def test_an_operation_that_is_not_folded_in_time_is_unavailable_and_names_its_id(site: EngineSite) -> None:
    """Repeating it with that request id returns the reply."""
    # specification 14.4
    site.home().put(row())
    with pytest.raises(Unavailable, match="request_id 'mine'"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    assert not site.engine.commands.replies._waiting


@pytest.mark.parametrize("said", [ACCEPTED, FoldResult("paused", "resume it first")])
async def test_an_operation_returns_the_folds_result(site: EngineSite, said: FoldResult) -> None:
    site.home().put(row())
    command = Cancel(instance_id="c1:s1", command_id="mine", actor="anna")
    asked = asyncio.create_task(site.engine.commands.operate(command))
    while not await site.commands():
        await settle()
    site.fold(command, said)
    answer = await asked
    assert (answer.code, answer.message, answer.folded) == (said.code, said.message, True)


async def test_an_operation_on_a_start_that_is_not_folded_yet_waits_for_the_fold(site: EngineSite) -> None:
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


async def test_an_operation_on_a_start_not_folded_in_time_is_unavailable_and_names_its_id(site: EngineSite) -> None:
    # specification 13.4, 14.4
    await site.engine.commands.start(PROBE, start())
    with pytest.raises(Unavailable, match="request_id 'mine'"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    with pytest.raises(Unavailable, match="not folded"):
        await site.engine.reads.find("c1:s1")
    assert not any(isinstance(one, Cancel) for one in await site.commands())


@pytest.mark.parametrize("error", [TimeoutError(), LogUnavailable("c", "m"), LogFailed("c", "m")], ids=repr)
async def test_an_operation_whose_write_is_not_acknowledged_names_its_id(site: EngineSite, error: Exception) -> None:
    """It may be in the log all the same: repeated under another id it would be done twice."""
    # specification 14.4
    site.home().put(row())
    with (
        mock.patch.object(site.log, "append", side_effect=error),
        pytest.raises(Unavailable, match="request_id 'mine'"),
    ):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))


async def test_an_operation_on_a_partition_that_moves_names_its_id(site: EngineSite) -> None:
    # specification 14.4
    site.engine.lost(site.home().number)
    with pytest.raises(Unavailable, match=r"moving.*request_id 'mine'"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))


async def test_an_operation_on_an_unknown_ceremony_is_not_appended(site: EngineSite) -> None:
    answer = await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    assert answer.code == "unknown_instance"
    assert await site.commands() == []


async def test_a_definition_is_put_once_per_partition(site: EngineSite) -> None:
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


async def test_nothing_is_appended_while_partitions_move(site: EngineSite) -> None:
    """Reads still work, because the owner has not given its partitions up yet."""
    site.home().put(row())
    site.engine.partitions._held = lambda: None
    with pytest.raises(Unavailable, match="moving"):
        await site.engine.commands.operate(Cancel(instance_id="c1:s1", command_id="mine", actor="anna"))
    assert await site.commands() == []
    assert site.engine.reads.get("c1:s1") is not None
    assert site.engine.partitions.readiness()["tables"] == "the partitions of this worker are being settled"

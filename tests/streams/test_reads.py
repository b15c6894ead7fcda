"""Reads return rows, dead letters and keys of served partitions, and refuse the others."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from streams.api import PartitionDiffers, Query, Unavailable
from streams.topics import DEFINITIONS
from tests.streams.engine_site import PARTITIONS, EngineSite
from tests.streams.fakes import settle
from tests.streams.test_ceremony_agent import PROBE, start
from tests.streams.test_timers import row


async def test_a_watch_ends_as_unavailable_when_its_partition_is_lost(site: EngineSite) -> None:
    site.home().put(row())
    watching = site.engine.reads.watch("c1:s1")
    assert (await anext(watching)).row.instance_id == "c1:s1"
    waiting = asyncio.ensure_future(anext(watching))
    await settle()
    site.engine.lost(site.home().number)
    with pytest.raises(Unavailable):
        await waiting


async def test_a_row_is_shown_once_the_commands_below_it_are_committed(site: EngineSite) -> None:
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


async def test_a_ceremony_with_a_pinned_definition_that_is_refused_now_stays_readable(site: EngineSite) -> None:
    """Without its gates and the reasons why it waits, which need the definition."""
    found = row()
    site.home().put(found)
    site.home().tables[DEFINITIONS][b"h"] = "states: []"
    assert site.engine.reads.definition_of(found) is None
    assert list(site.engine.reads.waiting_for(found)) == []


async def test_dead_letters_of_one_millisecond_are_listed_newest_first_too(site: EngineSite) -> None:
    """All dead letters of one batch have the same time."""
    appends = [site.log.append("t.deadletters", 1, None, b"%d" % n, (("origin", b"t/1/%d" % n),)) for n in range(30)]
    await asyncio.gather(*appends)
    letters, total = await site.engine.reads.dead_letters(100, 0)
    assert total == 30
    assert [letter.offset for letter in letters] == list(reversed(range(30)))
    assert len({letter.timestamp for letter in letters}) < 30


async def test_foreign_records_among_the_dead_letters_are_shown_too(site: EngineSite) -> None:
    await site.log.append("t.deadletters", 0, None, b"what is this")
    (letter,), total = await site.engine.reads.dead_letters(10, 0)
    assert (letter.topic, letter.code, letter.size, total) == (
        "t.deadletters",
        "unknown",
        12,
        1,
    )  # its own place is its origin


async def test_calls_on_a_stopped_log_are_unavailable(site: EngineSite) -> None:
    await site.log.stop()
    with pytest.raises(Unavailable, match="repeating the call is safe"):
        await site.engine.commands.start(PROBE, start())
    with pytest.raises(Unavailable, match="cannot be reached"):
        await site.engine.reads.dead_letters(10, 0)


async def test_a_read_waits_until_its_position_is_folded(site: EngineSite) -> None:
    """Everything before the position must be folded; the position after the last record needs no wait."""
    # specification 14.7
    home = site.home()
    home.position = 7
    await site.engine.reads.reached("c1:s1", home.number, 7)
    assert site.engine.reads.position_of("c1:s1") == (home.number, 7)
    with pytest.raises(PartitionDiffers):
        await site.engine.reads.reached("c1:s1", home.number + 1, 1)


async def test_rows_of_some_partitions_are_read_by_number(site: EngineSite) -> None:
    """A partition that is not served here is refused, never left out."""
    site.home().put(row())
    found = await site.engine.reads.search(Query(), 10, [site.home().number])
    assert (found.total, list(found.keys)) == (1, [(-row().created_at, "c1:s1")])
    other = (site.home().number + 1) % PARTITIONS
    assert (await site.engine.reads.search(Query(), 10, [other])).total == 0
    site.engine.lost(other)
    with pytest.raises(Unavailable):
        await site.engine.reads.search(Query(), 10, [other])


async def test_a_partition_lost_while_its_rows_are_read_is_refused_not_left_out(site: EngineSite) -> None:
    for number in range(300):
        site.home().put(msgspec.structs.replace(row(), instance_id=f"c{number}:s1"))
    searching = asyncio.create_task(site.engine.reads.search(Query(), 10))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not searching.done()
    site.engine.lost(site.home().number)
    with pytest.raises(Unavailable, match="not served"):
        await searching


async def test_only_the_keys_of_the_newest_rows_are_returned_in_order(site: EngineSite) -> None:
    """All matching rows are counted."""
    ages = random.Random(7).sample(range(10_000), 4_000)
    for age in ages:
        site.home().put(msgspec.structs.replace(row(), instance_id=f"c{age}:s1", created_at=age))
    found = await site.engine.reads.search(Query(story="s1", created_before=5_000), 25)
    young = sorted((age for age in ages if age < 5_000), reverse=True)
    assert found.total == len(young)
    assert list(found.keys) == [(-age, f"c{age}:s1") for age in young[:25]]

"""Workers that are killed, stopped, frozen or slow lose nothing and count nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
from collections.abc import AsyncIterable
from pathlib import Path

import pytest

from ports.log import AgentSpec, Batch, Fenced, Record
from streams.transport.partition.backend import PositionRow
from tests.transport.conformance.harness import (
    COUNTS,
    PARTITIONS,
    Place,
    Worker,
    beside,
    eventually,
    everything,
    load,
    serving,
    worker,
)
from tests.transport.memory import read_back

pytestmark = pytest.mark.uncounted
KEYS = 100
RECORDS = 6000


async def loaded(place: Place) -> None:
    """Append RECORDS numbered commands to `in`, the same number for each key."""
    async with beside(place) as app:
        await load(app, place.topic("in"), [(b"k%02d" % (i % KEYS), b"%d" % i) for i in range(RECORDS)])


async def folded(place: Place) -> tuple[dict[bytes, int], list[Record]]:
    """Return the rows that a new owner finds, and all effects; no command may be left."""
    more: list[Record] = []

    async def count(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            more.extend(batch)

    async with serving(place.app(), (AgentSpec("count", place.topic("in"), tables=[COUNTS]), count)) as app:
        rows = {key: row for view in app.views("count").values() for key, row in view.rows("counts").items()}
        effects = await everything(app, place.topic("out"))
    assert not more, "commands were not folded"
    return rows, effects


def check(rows: dict[bytes, int], effects: list[Record]) -> int:
    """Check that rows are exact, every effect is there, and repeated ones are equal; return the number of repeats."""
    assert rows == {b"k%02d" % key: RECORDS // KEYS for key in range(KEYS)}
    by_id: dict[bytes, set[bytes | None]] = {}
    for effect in effects:
        by_id.setdefault(dict(effect.headers)["effect-id"], set()).add(effect.value)
    assert set(by_id) == {b"k%02d/%d" % (key, n) for key in range(KEYS) for n in range(1, RECORDS // KEYS + 1)}
    assert all(len(values) == 1 for values in by_id.values()), "a repeated effect has another content"
    return len(effects) - len(by_id)


async def untouched(stream: AsyncIterable[Batch]) -> None:
    async for _ in stream:
        raise AssertionError("this test delivers nothing")


async def finish(place: Place) -> None:
    """Let a worker fold the remaining commands, and end it in good order."""
    async with worker(place, "count") as last:
        await last.reaches("position", RECORDS)
        assert await last.end(signal.SIGTERM) == 0, last.errors()


async def test_nothing_is_lost_when_workers_are_killed(place: Place) -> None:
    """After four kill -9 in the middle of folding, rows are exact and no effect is lost; repeats have the same id."""
    # specification 18.1, 18.2, 18.12
    await loaded(place)
    for _ in range(4):
        async with worker(place, "count") as victim:
            await victim.reaches("folded", 600 + random.randrange(300))
            assert await victim.end(signal.SIGKILL) == -signal.SIGKILL
    await finish(place)
    check(*await folded(place))


async def test_a_stopped_worker_hands_over_without_repeating_anything(place: Place) -> None:
    """After SIGTERM in the middle of folding, the batch in hand is finished and saved, so each effect comes once."""
    await loaded(place)
    for _ in range(2):
        async with worker(place, "count") as leaving:
            await leaving.reaches("folded", 800)
            assert await leaving.end(signal.SIGTERM) == 0, leaving.errors()
    await finish(place)
    assert check(*await folded(place)) == 0


async def freeze(owner: Worker, place: Place) -> None:
    """Send SIGSTOP, but not within a transaction on the embedded log, whose lock would keep all others out."""
    owner.send(signal.SIGSTOP)
    while place.embedded and locked(place.folder / "log.db"):
        owner.send(signal.SIGCONT)
        await asyncio.sleep(0.01)
        owner.send(signal.SIGSTOP)


def locked(file: Path) -> bool:
    with contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


async def test_a_frozen_owner_that_wakes_up_is_fenced(place: Place) -> None:
    """Its successor continues; the late checkpoint of the former owner is refused and does no harm.

    On the embedded log that ends the former owner. On Kafka it joins the group again.
    """
    # specification 18.5, 18.12
    await loaded(place)
    async with worker(place, "count", static=False) as frozen:
        await frozen.reaches("folded", 800)
        await freeze(frozen, place)
        async with worker(place, "count", url=place.taking_over(), static=False) as successor:
            await successor.reaches("position", RECORDS // 2)
            frozen.send(signal.SIGCONT)
            await eventually(lambda: "fenced" in frozen.errors())
            if place.embedded:
                assert await frozen.ended() == 3
            else:
                assert await frozen.end(signal.SIGTERM) == 0, frozen.errors()
            await successor.reaches("position", RECORDS)
            assert await successor.end(signal.SIGTERM) == 0, successor.errors()
    check(*await folded(place))


async def test_the_checkpoint_of_a_former_owner_is_refused(place: Place) -> None:
    """Only the last owner of a partition may write it; the former one gets Fenced, and its rows are not written."""
    spec = AgentSpec("count", place.topic("in"), tables=[COUNTS])
    position = PositionRow(0, PARTITIONS, 0, 0)
    async with serving(place.app(), (spec, untouched)) as app:
        first, second, third = (app.driver.backend(spec, 0, lambda: True) for _ in range(3))
        await read_back(first, "counts")
        await first.checkpoint({"counts": {b"a": b"1"}}, position)
        assert (await read_back(second, "counts"))[0] == {"counts": {b"a": b"1"}}
        with pytest.raises(Fenced):
            await first.checkpoint({"counts": {b"a": b"2", b"b": b"2"}}, position)
        await second.checkpoint({"counts": {b"c": b"3"}}, position)
        assert (await read_back(third, "counts"))[0] == {"counts": {b"a": b"1", b"c": b"3"}}
        for backend in (first, second, third):
            await backend.close()


async def test_a_held_record_is_delivered_again_after_a_kill(place: Place) -> None:
    """Answered requests may come twice and held ones come again, so every request is answered in the end."""
    # specification 18.4, 18.12
    requests = [b"stick" if i % 50 == 7 else b"%d" % i for i in range(400)]
    async with beside(place) as app:
        await load(app, place.topic("requests"), [(b"k%d" % (i % 9), value) for i, value in enumerate(requests)])
    async with worker(place, "hold") as victim:
        await victim.reaches("answered", 392)
        await asyncio.sleep(1.0)  # time for a checkpoint or two
        await victim.end(signal.SIGKILL)
    async with worker(place, "answer") as last:
        await last.reaches("stuck", 8)
        assert await last.end(signal.SIGTERM) == 0, last.errors()
    async with beside(place) as app:
        answers = [record.value for record in await everything(app, place.topic("out"))]
    assert set(answers) == set(requests)
    assert answers.count(b"stick") == 8


async def test_a_slow_agent_does_not_fill_the_memory(place: Place) -> None:
    """With a backlog of 96 MiB and a stuck agent, the worker fetches only a bounded part ahead."""
    value = b"x" * 512 * 1024
    async with beside(place) as app:
        for first in range(0, 192, 16):
            await asyncio.gather(
                *(
                    app.commit_log.append(place.topic("in"), i % PARTITIONS, b"k", value)
                    for i in range(first, first + 16)
                )
            )
    async with worker(place, "stuck") as slow:
        await slow.reaches("got", 1)
        await asyncio.sleep(3.0)
        begun = int(slow.said[0][1])
        grown = max(int(words[1]) for words in slow.said if words[0] == "kilobytes") - begun
        assert grown < 64 * 1024, f"{grown} KiB more than before it started"

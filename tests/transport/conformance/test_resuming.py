"""A new owner resumes from positions, rows, held records and followers' offsets; poison does not stop it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence

from ports.log import AgentSpec, Batch, Held, PartitionView, Record
from streams import topics as names
from streams.transport.partition.checkpoints import Limits
from tests.transport.conformance.harness import (
    COUNTS,
    PARTITIONS,
    Place,
    at_least,
    beside,
    eventually,
    everything,
    load,
    serving,
)


async def test_rows_and_position_are_recovered_before_the_first_batch(place: Place) -> None:
    """A new owner has every row that was not deleted, begins at the position, and knows the log's end."""
    topic = place.topic("in")
    taken: dict[int, tuple[dict[bytes, int], int, int]] = {}
    seen: list[Record] = []

    async def fold(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                seen.append(record)
                assert record.key is not None
                value = int(record.value or b"0")
                batch.put("counts", record.key, None if value < 0 else value)

    async def on_taken(view: PartitionView) -> None:
        taken[view.number] = (dict(view.rows("counts")), view.position, view.end_at_take_over)

    spec = AgentSpec("fold", topic, tables=[COUNTS], on_taken=on_taken)
    keys = [b"key-%04d" % i for i in range(1000)]
    async with serving(place.app(), (spec, fold)) as app:
        assert {number: view[:2] for number, view in taken.items()} == {n: ({}, 0) for n in range(PARTITIONS)}
        await load(app, topic, [(key, b"%d" % i) for i, key in enumerate(keys)])
        await load(app, topic, [(key, b"-1") for key in keys[:100]])
        await eventually(lambda: len(seen) == 1100)
    seen.clear()
    taken.clear()
    async with serving(place.app(), (spec, fold)) as app:
        rows = {key: row for view in taken.values() for key, row in view[0].items()}
        assert rows == {key: i for i, key in enumerate(keys) if i >= 100}
        assert sum(position for _, position, _ in taken.values()) == 1100
        assert all(position == end for _, position, end in taken.values())
        await app.commit_log.append(topic, 0, b"new", b"5")
        await eventually(lambda: seen)
        assert [record.key for record in seen] == [b"new"], "only what was not folded is delivered"


async def test_a_step_agent_resumes_at_its_committed_offset(place: Place) -> None:
    """After a stop in good order no answered request is delivered again."""
    topic = place.topic("requests")
    seen: list[bytes | None] = []

    async def answer(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            seen.extend(record.value for record in batch)

    spec = AgentSpec("answer", topic)
    async with serving(place.app(), (spec, answer)) as app:
        await load(app, topic, [(b"%d" % i, b"%d" % i) for i in range(100)])
        await eventually(lambda: len(seen) == 100)
    seen.clear()
    async with serving(place.app(), (spec, answer)) as app:
        await app.commit_log.append(topic, 0, b"new", b"new")
        await eventually(lambda: seen)
        assert seen == [b"new"]


async def test_the_committed_offset_does_not_pass_a_held_record(place: Place) -> None:
    """A record held at the stop is delivered again, with all after it; released ones before it are not."""
    topic = place.topic("requests")
    seen: list[bytes | None] = []
    held: dict[bytes | None, Held] = {}

    async def hold(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                held[record.value] = batch.hold(record)
                seen.append(record.value)

    spec = AgentSpec("hold", topic, batch=3)
    limits = Limits(handover_seconds=0.1)
    async with serving(place.app(limits=limits), (spec, hold)) as app:
        for i in range(10):
            await app.commit_log.append(topic, 0, b"k", b"%d" % i)
        await eventually(lambda: len(seen) == 10)
        for i in (0, 1, 2, 3, 5, 6, 7, 8, 9):
            held[b"%d" % i].send(place.topic("out"), b"k", b"answer %d" % i)
            held[b"%d" % i].release()
    seen.clear()
    held.clear()
    async with serving(place.app(limits=limits), (spec, hold)) as app:
        await eventually(lambda: len(seen) == 6)
        assert seen == [b"%d" % i for i in range(4, 10)]
        answers = [record.value for record in await everything(app, place.topic("out"))]
        assert answers == [b"answer %d" % i for i in (0, 1, 2, 3, 5, 6, 7, 8, 9)], "sent before the hand-over ended"


async def test_a_follower_has_a_group_of_its_own_and_resumes_at_its_committed_offset(place: Place) -> None:
    """It gets committed records from the log start, in batches of one partition; after a restart only new ones."""
    topic = place.topic("out")
    seen: list[Record] = []
    other: list[Record] = []

    async def follow(records: Sequence[Record]) -> None:
        assert len({record.partition for record in records}) == 1
        seen.extend(records)

    async def follow_too(records: Sequence[Record]) -> None:
        other.extend(records)

    first, second = place.topic("first"), place.topic("second")
    async with beside(place) as app:
        await load(app, topic, [(b"%d" % i, b"%d" % i) for i in range(300)])
        follower = await app.commit_log.follow(first, topic, follow, batch=50)
        await eventually(lambda: len(seen) == 300)
        await follower.stop()
        for partition in range(PARTITIONS):
            offsets = [record.offset for record in seen if record.partition == partition]
            assert offsets == list(range(len(offsets)))
        await app.commit_log.append(topic, 1, b"late", b"late")
    seen.clear()
    async with beside(place) as app:
        followers = [
            await app.commit_log.follow(first, topic, follow),
            await app.commit_log.follow(second, topic, follow_too),
        ]
        await eventually(lambda: len(other) == 301)
        await eventually(lambda: seen)
        for follower in followers:
            await follower.stop()
        assert [record.value for record in seen] == [b"late"]


async def test_a_follower_continues_where_it_is_told_to(place: Place) -> None:
    """It may seek while it waits at the end, and while a batch is in hand, whose successor then comes from there."""
    topic = place.topic("out")
    seen: list[int] = []
    seek_in_hand: list[int] = []

    async def follow(records: Sequence[Record]) -> None:
        if records[0].partition == 1:
            seen.extend(record.offset for record in records)
            if seek_in_hand:
                follower.seek(1, seek_in_hand.pop())

    async with beside(place) as app:
        for number in range(20):
            await app.commit_log.append(topic, 1, b"k", b"%d" % number)
        follower = await app.commit_log.follow(place.topic("group"), topic, follow, batch=50)
        await eventually(lambda: len(seen) >= 20 and follower.places.get(1) == 20)
        seen.clear()
        follower.seek(1, 15)
        await eventually(lambda: seen == list(range(15, 20)) and follower.places.get(1) == 20)
        seen.clear()
        seek_in_hand.append(18)
        await app.commit_log.append(topic, 1, b"k", b"20")
        await eventually(lambda: seen == [20, 18, 19, 20])
        await follower.stop()


async def test_a_poison_record_is_dead_lettered_and_its_neighbours_are_folded_once(place: Place) -> None:
    """The dead letter has origin, code, key, value and headers; the partition continues."""
    topic = place.topic("in")

    async def fold(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                assert record.key is not None
                assert record.value is not None
                if record.value.startswith(b"boom"):
                    raise ValueError("it does not like this one")
                batch.put("counts", record.key, (batch.get("counts", record.key) or 0) + 1)
                batch.send(place.topic("out"), record.key, record.value)

    values = [b"boom" if i in (0, 17, 18, 59) else b"%d" % i for i in range(60)]
    spec = AgentSpec("fold", topic, tables=[COUNTS], batch=20)
    async with beside(place) as app:
        await asyncio.gather(*(app.commit_log.append(topic, 2, b"k", value, [("h", b"1")]) for value in values))
    async with serving(place.app(), (spec, fold)) as app:
        await app.commit_log.append(topic, 2, b"k", b"after")
        await eventually(lambda: app.views("fold")[2].position == 61)
        assert app.views("fold")[2].rows("counts") == {b"k": 57}
        good = [value for value in values if value != b"boom"]
        out = [record.value for record in await at_least(app, place.topic("out"), len(good) + 1)]
        assert out == [*good, b"after"], "each neighbour once, in order"
        letters = await at_least(app, place.topic("deadletters"), 4)
    assert [(letter.key, letter.value) for letter in letters] == [(b"k", b"boom")] * 4
    assert [dict(letter.headers)[names.ORIGIN].decode() for letter in letters] == [
        f"{topic}/2/{offset}" for offset in (0, 17, 18, 59)
    ]
    for letter in letters:
        headers = dict(letter.headers)
        assert headers["h"] == b"1"
        assert headers[names.ERROR_CODE] == b"agent_failed"
        assert b"it does not like this one" in headers[names.ERROR_MESSAGE]

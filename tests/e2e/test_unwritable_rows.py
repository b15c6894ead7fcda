"""Ceremonies whose rows no checkpoint can write: each ends or pauses with an event and a dead letter of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import topology
from tables.instance import CeremonyStatus, Instance, encode_instance
from tests.e2e.world import World, until
from tests.services import KafkaServer

pytestmark = pytest.mark.timeout(120)
LIVE = (CeremonyStatus.RUNNING, CeremonyStatus.WAITING_FOR_HUMAN)


class Encoder:
    """Fails on live rows of the ceremonies `bad-…`, and on those of `later` once it was resumed, as a bug would."""

    def __init__(self) -> None:
        self.written: set[str] = set()

    def __call__(self, row: Instance) -> bytes:
        resumed = row.ceremony_id == "later" and len(row.command_ids) > 1
        if row.status in LIVE and (row.ceremony_id.startswith("bad") or resumed):
            raise ValueError("a bug")
        self.written.add(row.instance_id)
        return encode_instance(row)


@pytest.mark.parametrize("driver", ["sqlite", "kafka"])
async def test_each_ceremony_that_cannot_be_written_fails_or_pauses_with_one_event(
    driver: str, kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that were never written fail; one whose newest row cannot be written is PAUSED; the others go on."""
    # specification 18.16, 19.3
    encode = Encoder()
    monkeypatch.setattr(topology, "TABLES", (replace(topology.TABLES[0], encode=encode), *topology.TABLES[1:]))
    url = f"kafka://{kafka.bootstrap}" if driver == "kafka" else f"sqlite://{tmp_path}/log.db"
    more: dict[str, Any] = {"CEREMONY_PARTITIONS": 1, "CEREMONY_TOPIC_PREFIX": f"unwritable-{uuid4().hex[:8]}"}
    async with World(tmp_path / "world", url, **more) as world:
        later = await world.start("approval", "later")
        await until(lambda: later in encode.written, "a checkpoint has written it")
        await world.client.pause(later, actor="ana")
        await world.client.resume(later, actor="ana")
        bad = [await world.start("approval", f"bad-{number}") for number in range(2)]
        good = await world.start("approval", "good")
        await until(lambda: announced(world, [*bad, later]), "both have failed, and the other is paused")
        assert (await world.finish(good)).status == "COMPLETED"
        await assert_each_is_announced(world, good, later, bad)
        await world.restart_worker()
        await assert_each_is_announced(world, good, later, bad)
        assert (await world.client.resume(later, actor="ana")).status == "WAITING_FOR_HUMAN"


async def announced(world: World, ids: list[str]) -> bool:
    """Return whether each has failed, or was paused by somebody and then by the engine."""
    events = await subjects(world)
    return all(events["ceremony.failed", one] or events["ceremony.paused", one] > 1 for one in ids)


async def subjects(world: World) -> Counter[tuple[str, str]]:
    return Counter((one.subject, one.envelope["payload"].get("instance_id", "")) for one in await world.messages())


async def assert_each_is_announced(world: World, good: str, later: str, bad: list[str]) -> None:
    """Each failure and each pause was heard once, and each unwritable row has a dead letter of its own."""
    events = await subjects(world)
    assert [events["ceremony.failed", one] for one in (*bad, good, later)] == [1, 1, 0, 0]
    assert events["ceremony.paused", later] == 2
    assert [(await world.get(one)).status for one in (*bad, good, later)] == ["FAILED", "FAILED", "COMPLETED", "PAUSED"]
    letters = await world.dead_letters("row_unwritable")
    assert sorted(letter.key for letter in letters) == sorted([*bad, later])
    assert len({(letter.origin, letter.partition, letter.offset) for letter in letters}) == len(letters)
    await until(lambda: deadletters(world, len(letters)), "each dead letter is announced")


async def deadletters(world: World, number: int) -> bool:
    return (await subjects(world))["ceremony.deadletter", ""] == number

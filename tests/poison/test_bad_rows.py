"""A bad row in a changelog is set aside and announced, and the worker runs on; one of a newer release ends it."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from bridge.clock import HostClock
from ports.log import LogFailed
from streams.topics import CEREMONIES, DEFINITIONS, changelog, prefixed
from streams.topology import TABLES
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStore
from streams.transport.partition.rows import Rows
from tables.commands import UnreadableRow, decode_command
from tables.instance import decode_instance, encode_instance
from tests.e2e.world import World, until
from tests.poison.shapes import FIELDS, VALUES, Shape, Written
from tests.services import KafkaServer

PARTITION = 2
# A row has no type.
SHAPES = [shape for shape in (*VALUES, *FIELDS) if not shape.name.startswith(("unknown_type", "type_is"))]
TEXTS = [
    "ceremony_id",
    "story_id",
    "definition_name",
    "definition_hash",
    "correlation_id",
    "requested_by",
    "start_digest",
    "state",
]
GOOD = decode_instance(
    json.dumps(
        dict.fromkeys(TEXTS, "x")
        | {"instance_id": "poisoned:S1", "status": "RUNNING", "created_at": 1, "updated_at": 1}
    ).encode()
)


def rows_with(value: bytes) -> Rows:
    store = MemoryStore({CEREMONIES: {b"bad:S1": value, b"poisoned:S1": encode_instance(GOOD)}, DEFINITIONS: {}})
    return Rows(TABLES, PARTITION, HostClock(), RowCache(), store)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_an_unreadable_row_counts_as_absent_and_is_reported_once(shape: Shape) -> None:
    """By look-up and by scan; the report names what is broken, and has the bytes."""
    # specification 28.7
    bad = shape.spoil(Written(b"bad:S1", encode_instance(GOOD))).value or b""
    for read in (lambda table: table.get(b"bad:S1"), lambda table: list(table.scan())):
        rows = rows_with(bad)
        table = rows.tables[CEREMONIES]
        read(table)
        assert (table.get(b"bad:S1"), b"bad:S1" in table, [key for key, _ in table.scan()]) == (
            None,
            False,
            [b"poisoned:S1"],
        )
        assert len(table) == 1
        (found,) = rows.take_unreadable()
        assert rows.take_unreadable() == []
        report = decode_command(found.report)
        assert isinstance(report, UnreadableRow)
        assert (found.key, report.instance_id) == (b"bad:S1", "bad:S1")
        assert report.message.startswith("the row of bad:S1 cannot be read, and is set aside: ")
        assert base64.b64decode(report.row) in (bad, b"")
        assert "\n" not in report.message


def test_a_ceremony_that_is_written_again_takes_the_place_of_its_unreadable_row() -> None:
    rows = rows_with(b"rubbish")
    table = rows.tables[CEREMONIES]
    assert table.get(b"bad:S1") is None
    rows.apply(CEREMONIES, {b"bad:S1": GOOD})
    assert (table.get(b"bad:S1"), len(table)) == (GOOD, 2)


def test_a_row_of_a_newer_release_is_never_set_aside() -> None:
    """Also one of a form that this release does not know."""
    # specification 24.1
    for newer in (b'{"format": 99}', encode_instance(GOOD).replace(b"{", b'{"format":99,', 1)):
        with pytest.raises(LogFailed, match="row_unreadable: 'bad:S1'"):
            rows_with(newer).tables[CEREMONIES].get(b"bad:S1")


def spoil_embedded(file: Path, key: bytes) -> None:
    with sqlite3.connect(file) as connection:
        found = connection.execute("UPDATE rows SET value = ? WHERE key = ?", (b'{"instance_id": 7}', key))
    assert found.rowcount == 1
    connection.close()


async def spoil_kafka(bootstrap: str, topic: str, partition: int, key: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(topic, b'{"instance_id": 7}', key, partition=partition)
    finally:
        await producer.stop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("driver", ["sqlite", "kafka"])
async def test_a_worker_sets_a_bad_row_aside_announces_it_once_and_runs_on(
    driver: str, kafka: KafkaServer, tmp_path: Path
) -> None:
    """Over restarts too; other ceremonies go on, and doctor names the dead letter."""
    # specification 28.7
    file = tmp_path / "log.db"
    url = f"kafka://{kafka.bootstrap}" if driver == "kafka" else f"sqlite://{file}"
    prefix = f"rows-{uuid4().hex[:8]}"
    async with World(tmp_path / "world", url, CEREMONY_TOPIC_PREFIX=prefix) as world:
        spoiled, other = await world.start("approval", "spoiled"), await world.start("approval", "other")
        key = spoiled.encode()
        partition = world.worker.app.driver.log.partition_of(key, world.worker.settings.partitions)
        await world.stop_worker()
        if driver == "kafka":
            await spoil_kafka(kafka.bootstrap, prefixed(prefix, changelog(CEREMONIES)), partition, key)
        else:
            await asyncio.to_thread(spoil_embedded, file, key)
        for _ in range(2):
            await world.start_worker()
            await until(lambda: world.dead_letters("row_unreadable"), "it is set aside")
            assert await world.client.get(spoiled) is None
            await world.stop_worker()
        await world.start_worker()
        assert (await world.finish(other)).status == "COMPLETED"
        (letter,) = await world.dead_letters("row_unreadable")
        assert letter.key == spoiled and "property_invalid: instance_id: " in letter.message
        assert (await world.client.diagnose()).dead_letters["row_unreadable"] == 1

        async def announced() -> bool:
            found = [m.envelope["payload"] for m in await world.messages() if m.subject == "ceremony.deadletter"]
            return [one["code"] for one in found] == ["row_unreadable"]

        await until(announced, "it is announced once")
        await world.start("approval", "spoiled")
        assert (await world.finish(spoiled)).status == "COMPLETED"

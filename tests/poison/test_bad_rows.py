"""A changelog holds state: a bad row is never skipped but ends the worker with a line that names it."""

from __future__ import annotations

import asyncio
import json
import re
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
from tables.instance import decode_instance, encode_instance
from tests.e2e.world import WorkerProcess, World, until, worker_settings
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
LONGEST_LINE = 500


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_an_unreadable_row_is_named(shape: Shape) -> None:
    """The error has topic, partition and key, and not the row itself."""
    bad = shape.spoil(Written(b"bad:S1", encode_instance(GOOD))).value or b""
    store = MemoryStore({CEREMONIES: {b"bad:S1": bad}, DEFINITIONS: {}})
    rows = Rows(TABLES, PARTITION, HostClock(), RowCache(), store)
    with pytest.raises(
        LogFailed, match=r"^row_unreadable: 'bad:S1' of table ceremonies\[2\] .*ceremonies\.changelog\[2\]"
    ) as failed:
        rows.tables[CEREMONIES].get(b"bad:S1")
    assert len(str(failed.value)) < LONGEST_LINE
    assert "\n" not in str(failed.value)


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
async def test_a_worker_that_finds_a_bad_row_ends_and_names_its_place(
    driver: str, kafka: KafkaServer, tmp_path: Path
) -> None:
    """Exit code 1, and a line with topic, partition and key in the log and at the end of stderr; no traceback."""
    # specification 18.10
    file = tmp_path / "log.db"
    url = f"kafka://{kafka.bootstrap}" if driver == "kafka" else f"sqlite://{file}"
    prefix = f"rows-{uuid4().hex[:8]}"
    async with World(tmp_path / "world", url, CEREMONY_TOPIC_PREFIX=prefix) as world:
        instance_id = await world.start("approval", "spoiled")
        key = instance_id.encode()
        partition = world.worker.app.driver.log.partition_of(key, world.worker.settings.partitions)
        await world.stop_worker()
        if driver == "kafka":
            await spoil_kafka(kafka.bootstrap, prefixed(prefix, changelog(CEREMONIES)), partition, key)
        else:
            await asyncio.to_thread(spoil_embedded, file, key)
        settings = worker_settings(url, world.nats.url, f"127.0.0.1:{world.ray_port}", CEREMONY_TOPIC_PREFIX=prefix)
        process = WorkerProcess(tmp_path, settings)
        process.start()
        try:
            code = await until(lambda: (process.returncode,) if process.returncode is not None else None, "it ends")
        finally:
            process.kill()
    output = (tmp_path / "worker.log").read_text()
    assert code == (1,)
    assert "Traceback" not in output
    named = (
        rf"row_unreadable: '{instance_id}' of table ceremonies\[{partition}\] .*ceremonies\.changelog\[{partition}\]"
    )
    assert re.search(f"^worker_failed: {named}", output, re.MULTILINE), output
    assert len(output.splitlines()[-1]) < LONGEST_LINE

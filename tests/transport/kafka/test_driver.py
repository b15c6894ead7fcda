"""The Kafka driver on a real broker: fencing, groups, topic settings; tests for both logs are in conformance."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from bridge.clock import HostClock
from ports.log import AgentSpec, Batch, LogFailed, LogUnavailable, Record, TableSpec, TopicSpec
from streams.transport.app import CeremonyApp, create_app
from streams.transport.kafka.driver import KafkaBackend
from streams.transport.kafka.log import KafkaLog
from streams.transport.partition.backend import NewRecord

pytestmark = pytest.mark.timeout(90)
COUNTS = TableSpec("counts", lambda row: json.dumps(row).encode(), json.loads)
PARTITIONS = 2


@dataclass
class Bench:
    """Topics of one test, and workers on them."""

    url: str
    prefix: str = field(default_factory=lambda: "t" + uuid.uuid4().hex[:8])

    @property
    def bootstrap(self) -> list[str]:
        return [self.url.removeprefix("kafka://")]

    def name(self, topic: str) -> str:
        return f"{self.prefix}.{topic}"

    def app(self, *, worker_id: str | None = None, partitions: int = PARTITIONS) -> CeremonyApp:
        """A worker that counts records of `commands` by key and answers each on `answers`."""
        names = ("commands", "answers", "deadletters")
        app = create_app(
            self.prefix,
            self.url,
            clock=HostClock(),
            partitions=partitions,
            topics=[TopicSpec(self.name(topic), partitions) for topic in names],
            prefix=self.prefix,
            worker_id=worker_id,
        )

        async def count(stream: AsyncIterable[Batch]) -> None:
            async for batch in stream:
                for record in batch:
                    assert record.key is not None
                    if record.value == b"poison":
                        raise ValueError("poison")
                    number = (batch.get("counts", record.key) or 0) + 1
                    batch.put("counts", record.key, number)
                    batch.send(self.name("answers"), record.key, str(number).encode())

        app.attach(AgentSpec("counter", self.name("commands"), tables=[COUNTS]), count)
        return app

    async def send(self, app: CeremonyApp, *keys: str, value: bytes = b"x") -> None:
        log = app.commit_log
        for key in keys:
            partition = log.partition_of(key.encode(), PARTITIONS)
            await log.append(self.name("commands"), partition, key.encode(), value)

    async def read(self, app: CeremonyApp, topic: str) -> list[Record]:
        records: list[Record] = []
        for number, (start, end) in enumerate(await app.commit_log.ends(self.name(topic))):
            async for some in app.commit_log.read(self.name(topic), number, start, end):
                records += some
        return records


@pytest.fixture
def bench(kafka: Any) -> Bench:
    return Bench(f"kafka://{kafka.bootstrap}")


@asynccontextmanager
async def running(app: CeremonyApp) -> AsyncIterator[CeremonyApp]:
    try:
        await app.start()
        await until(lambda: app.settled and app.owner.assigned)
        yield app
    finally:
        await app.stop()


async def until(true: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def rows(*apps: CeremonyApp) -> dict[bytes, int]:
    return {key: row for app in apps for part in app.parts for key, row in part.rows("counts").items() if part.stateful}


async def test_a_worker_continues_where_the_last_one_stopped(bench: Bench) -> None:
    async with running(bench.app()) as app:
        await bench.send(app, *"abcabc")
        await until(lambda: rows(app) == {b"a": 2, b"b": 2, b"c": 2})
    async with running(bench.app()) as app:
        assert rows(app) == {b"a": 2, b"b": 2, b"c": 2}
        assert sum(view.position for view in app.views("counter").values()) == 6
        await bench.send(app, "a")
        await until(lambda: rows(app)[b"a"] == 3)
        answers = await bench.read(app, "answers")
    assert len(answers) == 7, "a stop in good order repeats nothing"


async def test_records_carry_the_logs_time_and_their_headers(bench: Bench) -> None:
    async with running(bench.app()) as app:
        position = await app.commit_log.append(bench.name("answers"), 1, b"k", b"v", [("h", b"1")])
        (record,) = await bench.read(app, "answers")
    assert (record.partition, record.offset, record.timestamp) == position
    assert list(record.headers) == [("h", b"1")]
    assert position.timestamp > 1_600_000_000_000


async def test_a_poison_record_is_dead_lettered_and_its_batch_is_not_lost(bench: Bench) -> None:
    async with running(bench.app()) as app:
        await bench.send(app, "a")
        await bench.send(app, "a", value=b"poison")
        await bench.send(app, "a")
        await until(lambda: rows(app) == {b"a": 2})
        await until(lambda: all(not part._saves._pending for part in app.parts))
        (letter,) = await bench.read(app, "deadletters")
    assert letter.value == b"poison"


async def test_partitions_move_to_a_second_worker_and_back(bench: Bench) -> None:
    async with running(bench.app()) as first:
        await bench.send(first, *"abcdefgh")
        await until(lambda: len(rows(first)) == 8)
        async with running(bench.app()) as second:
            await until(lambda: len(first.parts) == 1 and len(second.parts) == 1)
            await bench.send(first, *"abcdefgh")
            await until(lambda: rows(first, second) == {bytes([key]): 2 for key in b"abcdefgh"})
        await until(lambda: len(first.parts) == 2 and first.settled)
        assert rows(first) == {bytes([key]): 2 for key in b"abcdefgh"}
        assert len(await bench.read(first, "answers")) == 16


async def test_a_fenced_owner_drops_its_partition_and_recovers_it(bench: Bench) -> None:
    """Another producer took the transactional id and left; the owner recovers and nothing is lost."""
    async with running(bench.app()) as app:
        await bench.send(app, "a")
        await until(lambda: rows(app) == {b"a": 1})
        number = app.commit_log.partition_of(b"a", PARTITIONS)
        before = app.views("counter")[number]
        intruder = app.driver.backend(app.specs["counter"], number, lambda: True)
        assert isinstance(intruder, KafkaBackend)
        await intruder._fence()
        await bench.send(app, "a")
        await until(lambda: app.views("counter").get(number) not in (None, before))
        assert intruder._writer is not None
        await intruder._writer.stop()
        await until(lambda: rows(app) == {b"a": 2})
        assert app.failure is None
    async with running(bench.app()) as app:
        assert rows(app) == {b"a": 2}


async def test_a_position_beyond_the_log_is_reported_and_the_other_partitions_are_served(bench: Bench) -> None:
    # specification 18.9
    async with running(bench.app()) as app:
        await bench.send(app, *"abcdefgh")
        await until(lambda: len(rows(app)) == 8)
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap)
    await admin.start()
    await admin.delete_topics([bench.name("commands")])
    await asyncio.sleep(0.5)
    await admin.close()
    async with running(bench.app()) as app:
        assert {code for code, _ in app.unserved.values()} == {"position_beyond_log_end"}
        assert set(app.unserved) == {0, 1}
        assert app.parts == []
        assert app.failure is None


async def test_another_partition_count_is_refused_at_the_start(bench: Bench) -> None:
    # specification 22.9
    async with running(bench.app()):
        pass
    app = bench.app(partitions=3)
    with pytest.raises(LogFailed, match="partition_count_wrong"):
        await app.start()
    await app.stop()


async def test_topics_have_their_settings(bench: Bench) -> None:
    async with running(bench.app()):
        pass
    wanted = {
        bench.name("commands"): {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"},
        bench.name("counts.changelog"): {
            "cleanup.policy": "compact",
            "segment.bytes": "16777216",
            "segment.ms": "600000",
            "max.message.bytes": "4194304",
        },
    }
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap)
    await admin.start()
    described = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted])
    await admin.close()
    for response in described:
        for resource in response.resources:
            settings = {entry[0]: entry[1] for entry in resource[4]}
            assert wanted[resource[3]].items() <= settings.items()


async def test_a_topic_with_the_senders_time_is_refused(bench: Bench) -> None:
    # specification 22.9
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(bench.name("commands"), PARTITIONS, 1)])
    await admin.close()
    app = bench.app()
    with pytest.raises(LogFailed, match=r"topic_settings_wrong.*LogAppendTime is needed"):
        await app.start()
    await app.stop()


async def test_a_static_member_returns_without_a_rebalance_of_the_others(bench: Bench) -> None:
    # specification 22.7
    async with running(bench.app(worker_id="w1")) as app:
        await bench.send(app, *"abab")
        await until(lambda: rows(app) == {b"a": 2, b"b": 2})
    async with asyncio.timeout(5):
        app = bench.app(worker_id="w1")
        await app.start()
        await until(lambda: app.settled and app.owner.assigned)
    assert rows(app) == {b"a": 2, b"b": 2}
    await app.stop()


async def test_one_of_two_workers_with_the_same_id_ends(bench: Bench) -> None:
    # specification 22.7
    first, second = bench.app(worker_id="w1"), bench.app(worker_id="w1")
    async with running(first):
        await second.start()
        await until(lambda: first.failure or second.failure)
        await second.stop()
    assert "worker_id_taken" in str(first.failure or second.failure)


async def test_a_follower_resumes_at_its_committed_offset(bench: Bench) -> None:
    seen: list[bytes | None] = []

    async def handle(records: Sequence[Record]) -> None:
        assert len({record.partition for record in records}) == 1
        seen.extend(record.value for record in records)

    async with running(bench.app()) as app:
        log, topic = app.commit_log, bench.name("answers")
        for number in range(5):
            await log.append(topic, 0, b"k", b"%d" % number)
        follower = await log.follow(f"{bench.prefix}-bridge", topic, handle)
        await until(lambda: len(seen) == 5)
        await follower.stop()
        await log.append(topic, 0, b"k", b"5")
        follower = await log.follow(f"{bench.prefix}-bridge", topic, handle)
        await until(lambda: len(seen) == 6)
        await follower.stop()
    assert seen == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_follower_that_fails_ends_the_worker(bench: Bench) -> None:
    async def handle(_: Sequence[Record]) -> None:
        raise ValueError("cannot")

    async with running(bench.app()) as app:
        await app.commit_log.append(bench.name("answers"), 0, b"k", b"v")
        follower = await app.commit_log.follow(f"{bench.prefix}-bridge", bench.name("answers"), handle)
        await until(lambda: app.failure is not None)
        await follower.stop()
    assert isinstance(app.failure, ValueError)


async def test_large_records_are_sent_and_batches_stay_small(bench: Bench) -> None:
    large = b"x" * (3 * 1024 * 1024)
    async with running(bench.app()) as app:
        await bench.send(app, "a", value=large)
        await bench.send(app, "a", value=large)
        await until(lambda: rows(app) == {b"a": 2})
        assert [len(record.value or b"") for record in await bench.read(app, "commands")] == [len(large)] * 2


async def test_effects_of_many_megabytes_arrive_in_order(bench: Bench) -> None:
    """Their produce batches have at most 1 MiB or one record, because `max.message.bytes` limits the batch."""
    values = [
        bytes([65 + number]) * size
        for number, size in enumerate([10, 300_000, 400_000, 3_900_000, 20, 600_000, 900_000])
    ]
    app = create_app(
        bench.prefix,
        bench.url,
        clock=HostClock(),
        partitions=1,
        topics=[TopicSpec(bench.name(topic), 1) for topic in ("commands", "answers", "deadletters")],
        prefix=bench.prefix,
    )

    async def answer_much(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                for number, value in enumerate(values):
                    batch.send(bench.name("answers"), record.key, value)
                    batch.put("counts", b"%d" % number, value.decode())

    app.attach(AgentSpec("counter", bench.name("commands"), tables=[COUNTS]), answer_much)
    async with running(app):
        await app.commit_log.append(bench.name("commands"), 0, b"k", b"x")
        await until(lambda: app.parts and app.parts[0].counters.checkpoints == 1)
        answers = await bench.read(app, "answers")
        assert app.failure is None
        changelog = await bench.read(app, "counts.changelog")
    assert [record.value for record in answers] == values
    assert len(changelog) == len(values) + 1, "rows of many batches are in one transaction, with the position row"


async def test_an_effect_to_an_undeclared_topic_ends_the_worker(bench: Bench) -> None:
    # specification 18.10
    async with running(bench.app()) as app:
        backend = app.driver.backend(app.specs["counter"], 0, lambda: True)
        with pytest.raises(LogFailed, match=r"topic_unknown: no partition nowhere\[0\]"):
            backend.send("nowhere", 0, [NewRecord(b"k", b"v")])
        with pytest.raises(LogFailed, match="topic_unknown"):
            backend.send(bench.name("answers"), 99, [NewRecord(b"k", b"v")])


async def test_a_missing_kafka_is_reported_at_once() -> None:
    log = KafkaLog(["127.0.0.1:1"], HostClock())
    with pytest.raises(LogUnavailable, match="no Kafka at 127"):
        await log.start()
    with pytest.raises(LogUnavailable, match="not connected"):
        await log.ends("x")

"""Topics of a Kafka that somebody else runs: nothing is created by looking, and every needed setting is checked."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from bridge.clock import HostClock
from ports.log import LogFailed, LogUnavailable, TopicSpec
from streams.transport.kafka import log as kafka_log
from streams.transport.kafka.client import new_reader
from streams.transport.kafka.log import KafkaLog
from streams.transport.kafka.topics import rules, topic_settings
from tests.services import KafkaServer, running

pytestmark = pytest.mark.timeout(90)
WEEK_MS = 7 * 24 * 3600 * 1000


@pytest.fixture(scope="module")
def with_defaults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker as it is unpacked: it creates topics that somebody asks for."""
    with running(KafkaServer(tmp_path_factory.mktemp("kafka"), defaults=True)) as server:
        yield server


@pytest.fixture(params=["kafka", "with_defaults"])
def bootstrap(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param).bootstrap)


def specs() -> list[TopicSpec]:
    prefix = "t" + uuid.uuid4().hex[:8]
    return [
        TopicSpec(f"{prefix}.commands", 3, WEEK_MS, queue=True),
        TopicSpec(f"{prefix}.audit", 3),
        TopicSpec(f"{prefix}.rows.changelog", 3, compacted=True),
    ]


@asynccontextmanager
async def admin_of(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def log_on(bootstrap: str, **options: Any) -> AsyncIterator[KafkaLog]:
    log = KafkaLog([bootstrap], HostClock(), **options)
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


async def topics_on(bootstrap: str) -> list[str]:
    async with admin_of(bootstrap) as admin:
        return list(await admin.list_topics())


async def test_a_fresh_worker_makes_its_topics_with_their_partitions(bootstrap: str) -> None:
    # specification 22.11
    wanted = specs()
    async with log_on(bootstrap) as log:
        await log.create(wanted)
        assert [len(await log.ends(spec.name)) for spec in wanted] == [3, 3, 3]
    async with log_on(bootstrap) as log:
        await log.create(wanted)  # a second start finds nothing wrong


async def test_no_client_creates_a_topic_by_looking(bootstrap: str) -> None:
    # specification 22.11
    missing = "t" + uuid.uuid4().hex[:8]
    group = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=missing)
    reader = new_reader([bootstrap])
    async with log_on(bootstrap) as log:
        with pytest.raises((KafkaError, TimeoutError)):
            async with asyncio.timeout(1):
                await log.producer.partitions_for(missing)
        try:
            await group.start()
            group.subscribe([missing])
            await reader.start()
            await reader._client.add_topic(missing)
            await asyncio.sleep(0.5)
        finally:
            await group.stop()
            await reader.stop()
        async with admin_of(bootstrap) as admin:
            await admin.describe_topics([missing])
    assert missing not in await topics_on(bootstrap)


async def test_hand_made_topics_are_refused_with_all_commands_and_accepted_after_them(bootstrap: str) -> None:
    # specification 22.9
    wanted = specs()
    async with admin_of(bootstrap) as admin:
        await admin.create_topics([NewTopic(spec.name, spec.partitions, 1) for spec in wanted])
        async with log_on(bootstrap) as log:
            with pytest.raises(LogFailed) as refused:
                await log.create(wanted)
            assert refused.value.code == "topic_settings_wrong"
            lines = commands_of(refused.value.remedy, bootstrap)
            assert lines.keys() == {spec.name for spec in wanted}
            assert lines[wanted[2].name]["cleanup.policy"] == "compact"
            assert lines[wanted[1].name]["retention.ms"] == "-1"
            await alter(admin, lines)
            await accepted(log, wanted)


async def accepted(log: KafkaLog, wanted: list[TopicSpec]) -> None:
    """Return once the topics are accepted: a broker shows altered settings some moments later."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await log.create(wanted)
            except LogFailed:
                await asyncio.sleep(0.05)


def commands_of(remedy: str, bootstrap: str) -> dict[str, dict[str, str]]:
    """Return the settings by topic that the remedy's lines would set."""
    head, *lines = remedy.splitlines()
    assert head.endswith(":")
    form = (
        rf"kafka-configs --bootstrap-server {bootstrap} --alter --entity-type topics"
        r" --entity-name (\S+) --add-config (\S+)"
    )
    found = [re.fullmatch(form, line) for line in lines]
    return {one[1]: dict(pair.split("=") for pair in one[2].split(",")) for one in found if one}


async def alter(admin: AIOKafkaAdminClient, settings: Mapping[str, Mapping[str, str]]) -> None:
    await admin.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name, dict(some)) for name, some in settings.items()]
    )


@pytest.mark.parametrize(
    ("number", "setting", "value"),
    [
        (2, "cleanup.policy", "delete"),
        (2, "cleanup.policy", "compact,delete"),
        (2, "delete.retention.ms", "1000"),
        (0, "cleanup.policy", "compact"),
        (0, "retention.ms", "3600000"),
        (0, "retention.bytes", "1000000"),
        (1, "retention.ms", str(WEEK_MS)),
        (0, "max.message.bytes", "1048588"),
        (0, "min.insync.replicas", "2"),
        (0, "message.timestamp.type", "CreateTime"),
    ],
)
async def test_each_setting_that_breaks_a_promise_is_refused(kafka: Any, number: int, setting: str, value: str) -> None:
    # specification 22.9
    wanted = specs()
    async with log_on(kafka.bootstrap) as log, admin_of(kafka.bootstrap) as admin:
        settings = [topic_settings(spec, 1, {}) for spec in wanted]
        settings[number][setting] = value
        await admin.create_topics(
            [NewTopic(spec.name, 3, 1, topic_configs=some) for spec, some in zip(wanted, settings, strict=True)]
        )
        with pytest.raises(LogFailed, match=rf"topic_settings_wrong: topic {wanted[number].name} has {setting}="):
            await log.create(wanted)


async def test_stricter_settings_are_accepted(kafka: Any) -> None:
    wanted = specs()
    more = {"retention.ms": "-1", "max.message.bytes": "16777216"}
    async with log_on(kafka.bootstrap) as log, admin_of(kafka.bootstrap) as admin:
        await admin.create_topics(
            [NewTopic(spec.name, 3, 1, topic_configs=topic_settings(spec, 1, more)) for spec in wanted]
        )
        await log.create(wanted)


@pytest.mark.parametrize(
    ("replicas", "value", "holds"),
    [(1, 1, True), (1, 2, False), (2, 1, True), (2, 2, True), (3, 1, False), (3, 2, True), (3, 3, True), (3, 4, False)],
)
def test_replicas_in_sync_fit_the_replication_factor(replicas: int, value: int, holds: bool) -> None:  # noqa: FBT001
    (rule,) = [rule for rule in rules(specs()[0], replicas) if rule.setting == "min.insync.replicas"]
    assert rule.holds(str(value)) is holds


async def test_fewer_replicas_than_wished_are_a_warning_with_the_command(kafka: Any) -> None:
    """Before, a worker that asked for three replicas took topics with one, and nobody knew."""
    # specification 22.16
    wanted = specs()
    async with log_on(kafka.bootstrap) as log:
        await log.create(wanted)
        assert log.warnings == []
    async with log_on(kafka.bootstrap, replication=3, topic_config={"flush.messages": "1"}) as log:
        await log.create(wanted)
        few, differing = log.warnings
    assert (few.code, differing.code) == ("topic_replicas_few", "topic_settings_differ")
    assert all(spec.name in few.message and spec.name in differing.message for spec in wanted)
    assert "have 1 replicas of a partition, CEREMONY_REPLICATION_FACTOR is 3" in few.message
    assert f"kafka-reassign-partitions --bootstrap-server {kafka.bootstrap} " in few.remedy
    assert "min.insync.replicas=2" in few.remedy
    assert "--add-config flush.messages=1" in differing.remedy


async def test_a_shortcoming_is_looked_for_hourly_and_logged_once(
    kafka: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # specification 22.16
    monkeypatch.setattr(kafka_log, "CHECK_SECONDS", 0.05)
    wanted = specs()
    async with log_on(kafka.bootstrap, topic_config={"flush.messages": "1"}) as log, admin_of(kafka.bootstrap) as admin:
        await log.create(wanted)
        assert list(log.warnings) == []
        await alter(admin, {wanted[1].name: topic_settings(wanted[1], 1, {"flush.messages": "7"})})
        async with asyncio.timeout(10):
            while not log.warnings:
                await asyncio.sleep(0.02)
            first = log.warnings
            while log.warnings is first:  # another look
                await asyncio.sleep(0.02)
        assert log.warnings == first
    said = [one for one in caplog.records if "topic_settings_differ" in one.getMessage()]
    assert len(said) == 1 and wanted[1].name in said[0].getMessage()


async def test_a_setting_changed_later_ends_the_worker(kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 22.9
    monkeypatch.setattr(kafka_log, "CHECK_SECONDS", 0.1)
    failed: asyncio.Queue[BaseException] = asyncio.Queue()
    wanted = specs()
    async with log_on(kafka.bootstrap, fail=failed.put_nowait) as log, admin_of(kafka.bootstrap) as admin:
        await log.create(wanted)
        await alter(admin, {wanted[2].name: {"cleanup.policy": "delete"}})
        async with asyncio.timeout(10):
            failure = await failed.get()
    assert isinstance(failure, LogFailed) and failure.code == "topic_settings_wrong"


async def test_a_topic_deleted_later_ends_the_worker(kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_log, "CHECK_SECONDS", 0.1)
    failed: asyncio.Queue[BaseException] = asyncio.Queue()
    wanted = specs()
    async with log_on(kafka.bootstrap, fail=failed.put_nowait) as log, admin_of(kafka.bootstrap) as admin:
        await log.create(wanted)
        await admin.delete_topics([wanted[1].name])
        async with asyncio.timeout(10):
            failure = await failed.get()
    assert isinstance(failure, LogFailed) and failure.code == "topic_deleted"
    assert wanted[1].name in failure.message


async def test_a_refused_creation_lists_the_commands_that_create_all(kafka: Any) -> None:
    # specification 22.9
    wanted = specs()
    async with log_on(kafka.bootstrap, replication=3) as log:
        with pytest.raises(LogFailed) as refused:
            await log.create(wanted)
    assert refused.value.code == "topic_refused"
    _, *lines = refused.value.remedy.splitlines()
    assert [line.split(" --topic ")[1].split()[0] for line in lines] == [spec.name for spec in wanted]
    assert all("--replication-factor 3 " in line and "min.insync.replicas=2" in line for line in lines)


async def test_a_log_that_is_gone_is_no_wrong_topic() -> None:
    log = KafkaLog(["127.0.0.1:1"], HostClock())
    with pytest.raises(LogUnavailable):
        await log.create(specs())

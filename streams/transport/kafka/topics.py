"""Topics on Kafka: creates missing ones with their settings, and checks existing ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ports.clock import Clock
from ports.log import LARGEST_RECORD_BYTES, LogFailed, LogUnavailable, TopicSpec

# Kafka's error codes.
_UNKNOWN_TOPIC, _TOPIC_EXISTS = 3, 36
_SECONDS_TO_APPEAR = 20.0


def topic_settings(spec: TopicSpec, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the broker settings of a topic; `extra` overrides them."""
    settings = {
        "message.timestamp.type": "LogAppendTime",  # the fold uses no other clock than the log's
        "max.message.bytes": str(LARGEST_RECORD_BYTES),
        "cleanup.policy": "compact" if spec.compacted else "delete",
    }
    if spec.compacted:  # the active segment is never compacted, so it is small, but above max.message.bytes
        settings |= {"segment.bytes": str(16 * 1024 * 1024), "segment.ms": "600000", "min.cleanable.dirty.ratio": "0.3"}
    else:
        settings["retention.ms"] = str(spec.retention_ms)
    return {**settings, **extra}


async def ensure_topics(
    admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec], *, replication: int, extra: Mapping[str, str], clock: Clock
) -> None:
    """Create missing topics and wait until they can be written; check existing ones.

    Raises LogFailed for another partition count or a timestamp type other than LogAppendTime, and when creation is
    refused; LogUnavailable when topics do not appear in time.
    """
    wanted = {spec.name: spec for spec in specs}
    present = await _present(admin, wanted)
    missing = [spec for name, spec in wanted.items() if name not in present]
    if missing:
        await _create(admin, missing, replication, extra)
        present = await _appeared(admin, wanted, clock)
    for name, partitions in present.items():
        if len(partitions) != wanted[name].partitions:
            raise LogFailed(
                "partition_count_wrong",
                f"topic {name} has {len(partitions)} partitions, {wanted[name].partitions} are declared; keys would"
                " change their partition",
            )
    await _check_timestamps(admin, [name for name in present if wanted[name] not in missing])


async def _present(admin: AIOKafkaAdminClient, wanted: Mapping[str, TopicSpec]) -> dict[str, list[Any]]:
    described = await admin.describe_topics(list(wanted))
    return {topic["topic"]: topic["partitions"] for topic in described if topic["error_code"] == 0}


async def _create(
    admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec], replication: int, extra: Mapping[str, str]
) -> None:
    response = await admin.create_topics(
        [NewTopic(spec.name, spec.partitions, replication, topic_configs=topic_settings(spec, extra)) for spec in specs]
    )
    for name, code, *message in response.topic_errors:
        if code not in (0, _TOPIC_EXISTS):
            reason = message[0] if message else ""
            raise LogFailed("topic_refused", f"Kafka does not create {name} (error {code}): {reason}")


async def _appeared(admin: AIOKafkaAdminClient, wanted: Mapping[str, TopicSpec], clock: Clock) -> dict[str, list[Any]]:
    """Wait until brokers know the created topics and their leaders."""
    deadline = clock.monotonic() + _SECONDS_TO_APPEAR
    while True:
        present = await _present(admin, wanted)
        if len(present) == len(wanted) and all(
            partition["leader"] >= 0 for partitions in present.values() for partition in partitions
        ):
            return present
        if clock.monotonic() > deadline:
            raise LogUnavailable("topics_not_ready", f"no leaders yet for {sorted(set(wanted) - set(present))}")
        await clock.sleep(0.05)


async def _check_timestamps(admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
    if not names:
        return
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, {"message.timestamp.type": None}) for name in names]
    for response in await admin.describe_configs(resources):
        for resource in response.resources:
            name, entries = resource[3], resource[4]
            values = {entry[0]: entry[1] for entry in entries}
            if values.get("message.timestamp.type") != "LogAppendTime":
                raise LogFailed(
                    "timestamp_type_wrong",
                    f"topic {name} has message.timestamp.type={values.get('message.timestamp.type')}, LogAppendTime is"
                    " needed",
                    remedy=f"kafka-configs --alter --topic {name} --add-config message.timestamp.type=LogAppendTime",
                )

"""Topics on Kafka: creates missing ones with their settings, and checks existing ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ports.clock import Clock
from ports.log import LARGEST_RECORD_BYTES, LogFailed, LogUnavailable, LogWarning, TopicSpec

# Kafka's error codes.
_UNKNOWN_TOPIC, _TOPIC_AUTHORIZATION_FAILED, _TOPIC_EXISTS = 3, 29, 36
_APPEAR_SECONDS = 20.0
# From so many replicas on, a record must be on two of them before it is acknowledged.
_SAFE_REPLICAS, _SAFE_IN_SYNC = 3, 2
# Time in which a new owner reads a changelog; until it is over, the mark of a deleted row must not be compacted away.
_LONGEST_RECOVERY_MS = 3_600_000
# Kafka's own value of `delete.retention.ms`.
_DAY_MS = 86_400_000
_IN_SYNC = "min.insync.replicas"
# Checked, but not set on a new topic: some managed clusters refuse a topic that names it.
_NOT_SET = frozenset({"unclean.leader.election.enable"})


@dataclass(frozen=True, slots=True)
class Rule:
    """A setting of an existing topic without which the engine cannot keep its promises."""

    setting: str
    needed: str
    """The value that the remedy sets."""
    holds: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Fault:
    """A topic that breaks a promise, and the command that mends it."""

    message: str
    remedy: str


def topic_settings(spec: TopicSpec, replication: int, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the broker settings of a new topic; `extra` overrides them."""
    settings = {rule.setting: rule.needed for rule in rules(spec, replication) if rule.setting not in _NOT_SET}
    if 1 < replication < _SAFE_REPLICAS:
        del settings[_IN_SYNC]  # the cluster's own value may be stricter
    if spec.compacted:  # the active segment is never compacted, so it is small, but above max.message.bytes
        settings |= {"segment.bytes": str(16 * 1024 * 1024), "segment.ms": "600000", "min.cleanable.dirty.ratio": "0.3"}
    return {**settings, **extra}


def rules(spec: TopicSpec, replicas: int) -> list[Rule]:
    """Return the settings that this topic needs with so many replicas of each partition."""
    return [
        Rule("message.timestamp.type", "LogAppendTime", "LogAppendTime".__eq__),  # the fold uses only the log's clock
        _at_least("max.message.bytes", LARGEST_RECORD_BYTES),
        *_kept(spec),
        *_replicated(replicas),
    ]


def _kept(spec: TopicSpec) -> list[Rule]:
    """Return the rules that keep records as long as they are needed."""
    if spec.compacted:
        return [
            Rule("cleanup.policy", "compact", "compact".__eq__),
            Rule("delete.retention.ms", str(_DAY_MS), lambda value: int(value) >= _LONGEST_RECOVERY_MS),
        ]
    return [
        Rule("cleanup.policy", "delete", "delete".__eq__),
        _at_least("retention.ms", spec.retention_ms),
        _at_least("retention.bytes", -1),
    ]


def _replicated(replicas: int) -> list[Rule]:
    """Return the rules that let an acknowledged record outlive a broker, and that let it be acknowledged at all."""
    least = _SAFE_IN_SYNC if replicas >= _SAFE_REPLICAS else 1
    in_sync = Rule(_IN_SYNC, str(least), lambda value: least <= int(value) <= replicas)
    if replicas == 1:
        return [in_sync]
    return [in_sync, *(Rule(setting, "false", "false".__eq__) for setting in _NOT_SET)]


def _at_least(setting: str, least: int) -> Rule:
    """Return the rule of a number of which -1 is the largest."""
    return Rule(setting, str(least), lambda value: int(value) == -1 or (least != -1 and int(value) >= least))


async def ensure_topics(
    admin: AIOKafkaAdminClient,
    specs: Sequence[TopicSpec],
    *,
    replication: int,
    extra: Mapping[str, str],
    clock: Clock,
    bootstrap: str,
) -> list[LogWarning]:
    """Create missing topics and wait until they can be written; check all of them, and return what is short of wishes.

    Raises LogFailed for topics that break a promise, with the commands that mend all of them (`bootstrap` stands in
    them), and when creation is refused; LogUnavailable when topics do not appear in time.
    """
    wanted = {spec.name: spec for spec in specs}
    present = await _present(admin, wanted)
    values = await _check(admin, wanted, present, bootstrap)
    missing = [spec for name, spec in wanted.items() if name not in present]
    if missing:
        await _create(admin, missing, replication, extra, bootstrap)
        present = await _appeared(admin, wanted, clock)
        values = await _check(admin, wanted, present, bootstrap)
    return list(_short(present, values, replication, extra, bootstrap))


async def check_topics(
    admin: AIOKafkaAdminClient,
    specs: Sequence[TopicSpec],
    *,
    replication: int,
    extra: Mapping[str, str],
    bootstrap: str,
) -> list[LogWarning]:
    """Return the shortcomings of topics that keep every promise.

    Raises LogFailed when a topic has gone, or with the commands that mend all topics that break a promise.
    """
    wanted = {spec.name: spec for spec in specs}
    present = await _present(admin, wanted)
    if missing := sorted(wanted.keys() - present.keys()):
        raise LogFailed(
            "topic_deleted",
            f"Kafka has {', '.join(missing)} no longer",
            remedy="restore it from a backup; a worker that starts creates an empty one",
        )
    values = await _check(admin, wanted, present, bootstrap)
    return list(_short(present, values, replication, extra, bootstrap))


async def _check(
    admin: AIOKafkaAdminClient, wanted: Mapping[str, TopicSpec], present: Mapping[str, Sequence[Any]], bootstrap: str
) -> Mapping[str, Mapping[str, str]]:
    """Return the settings of the topics. Raises LogFailed for those that break a promise."""
    if not present:
        return {}
    _refuse("partition_count_wrong", _miscounted(wanted, present, bootstrap))
    values = await _settings(admin, list(present))
    found = [
        _misconfigured(wanted[name], values.get(name, {}), _replicas(partitions), bootstrap)
        for name, partitions in present.items()
    ]
    _refuse("topic_settings_wrong", [fault for fault in found if fault is not None])
    return values


def _short(
    present: Mapping[str, Sequence[Any]],
    values: Mapping[str, Mapping[str, str]],
    replication: int,
    extra: Mapping[str, str],
    bootstrap: str,
) -> Iterator[LogWarning]:
    """The topics with fewer replicas, or other settings, than this worker would create them with."""
    fewer: dict[int, list[str]] = defaultdict(list)
    for name, partitions in present.items():
        if (replicas := _replicas(partitions)) < replication:
            fewer[replicas].append(name)
    for replicas, names in sorted(fewer.items()):
        in_sync = f", then set {_IN_SYNC}={_SAFE_IN_SYNC} with kafka-configs" if replication >= _SAFE_REPLICAS else ""
        yield LogWarning(
            "topic_replicas_few",
            f"{', '.join(sorted(names))} have {replicas} replicas of a partition, CEREMONY_REPLICATION_FACTOR is"
            f" {replication}",
            f"kafka-reassign-partitions --bootstrap-server {bootstrap} --reassignment-json-file FILE --execute, where"
            f" FILE lists {replication} brokers for each partition{in_sync}",
        )
    for setting, value in extra.items():
        if other := sorted(name for name in present if values.get(name, {}).get(setting, value) != value):
            yield LogWarning(
                "topic_settings_differ",
                f"{', '.join(other)} do not have {setting}={value}, with which this worker creates topics",
                f"kafka-configs --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name TOPIC"
                f" --add-config {setting}={value}",
            )


def _refuse(code: str, faults: Sequence[Fault]) -> None:
    """Raise LogFailed for faults of one kind; the remedies stand on a line each, ready to be copied."""
    if faults:
        raise LogFailed(
            code,
            "; ".join(fault.message for fault in faults),
            remedy="\n".join(["the worker starts again after:", *(fault.remedy for fault in faults)]),
        )


def _miscounted(wanted: Mapping[str, TopicSpec], present: Mapping[str, Sequence[Any]], bootstrap: str) -> list[Fault]:
    return [
        Fault(
            f"topic {name} has {len(partitions)} partitions, {wanted[name].partitions} are declared; keys would change"
            " their partition",
            f"kafka-topics --bootstrap-server {bootstrap} --delete --topic {name}  # only if it holds no records",
        )
        for name, partitions in present.items()
        if len(partitions) != wanted[name].partitions
    ]


def _misconfigured(spec: TopicSpec, values: Mapping[str, str], replicas: int, bootstrap: str) -> Fault | None:
    """Return the fault of a topic with these settings; a setting that this broker does not have breaks nothing."""
    wrong = [rule for rule in rules(spec, replicas) if rule.setting in values and not rule.holds(values[rule.setting])]
    if not wrong:
        return None
    found = ", ".join(f"{rule.setting}={values[rule.setting]}, {rule.needed} is needed" for rule in wrong)
    settings = ",".join(f"{rule.setting}={rule.needed}" for rule in wrong)
    return Fault(
        f"topic {spec.name} has {found}",
        f"kafka-configs --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {spec.name}"
        f" --add-config {settings}",
    )


def _replicas(partitions: Sequence[Mapping[str, Any]]) -> int:
    return min((len(partition["replicas"]) for partition in partitions), default=1)


async def _present(admin: AIOKafkaAdminClient, wanted: Mapping[str, TopicSpec]) -> dict[str, list[Any]]:
    """Return the partitions of existing topics. Raises LogFailed for topics that this client may not look at."""
    described = await admin.describe_topics(list(wanted))
    _allowed("Describe", [one["topic"] for one in described if one["error_code"] == _TOPIC_AUTHORIZATION_FAILED])
    return {one["topic"]: one["partitions"] for one in described if one["error_code"] == 0}


async def _settings(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the settings of topics that the broker knows already. Raises LogFailed where they may not be read."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = [one for response in await admin.describe_configs(resources) for one in response.resources]
    _allowed("DescribeConfigs", [name for code, _, _, name, _ in found if code == _TOPIC_AUTHORIZATION_FAILED])
    return {
        name: {entry[0]: entry[1] for entry in entries if entry[1] is not None}
        for code, _, _, name, entries in found
        if code == 0
    }


def _allowed(operation: str, hidden: Sequence[str]) -> None:
    """Raise LogFailed for topics for which Kafka refused this operation."""
    if hidden:
        raise LogFailed(
            "topic_not_authorized",
            f"Kafka refuses {operation} of {', '.join(hidden)}",
            remedy="allow the engine Describe, DescribeConfigs, Read and Write of its topics",
        )


async def _create(
    admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec], replication: int, extra: Mapping[str, str], bootstrap: str
) -> None:
    settings = {spec.name: topic_settings(spec, replication, extra) for spec in specs}
    response = await admin.create_topics(
        [NewTopic(spec.name, spec.partitions, replication, topic_configs=settings[spec.name]) for spec in specs]
    )
    refused = {
        name: f"error {code}: {(message and message[0]) or 'no reason given'}"
        for name, code, *message in response.topic_errors
        if code not in (0, _TOPIC_EXISTS)
    }
    _refuse(
        "topic_refused",
        [
            Fault(
                f"Kafka does not create {spec.name} ({refused[spec.name]})",
                _creating(spec, replication, settings[spec.name], bootstrap),
            )
            for spec in specs
            if spec.name in refused
        ],
    )


def _creating(spec: TopicSpec, replication: int, settings: Mapping[str, str], bootstrap: str) -> str:
    """Return the command with which somebody who may create topics creates this one."""
    configs = " ".join(f"--config {setting}={value}" for setting, value in settings.items())
    return (
        f"kafka-topics --bootstrap-server {bootstrap} --create --topic {spec.name} --partitions {spec.partitions}"
        f" --replication-factor {replication} {configs}"
    )


async def _appeared(admin: AIOKafkaAdminClient, wanted: Mapping[str, TopicSpec], clock: Clock) -> dict[str, list[Any]]:
    """Wait until brokers know the created topics and their leaders."""
    deadline = clock.monotonic() + _APPEAR_SECONDS
    while True:
        present = await _present(admin, wanted)
        if len(present) == len(wanted) and all(
            partition["leader"] >= 0 for partitions in present.values() for partition in partitions
        ):
            return present
        if clock.monotonic() > deadline:
            raise LogUnavailable("topics_not_ready", f"no leaders yet for {sorted(set(wanted) - set(present))}")
        await clock.sleep(0.05)

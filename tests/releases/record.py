"""Records the archive of this release: `python -m tests.releases.record tests/releases/<version>`.

Runs the engine of this checkout against a real Kafka and again on a SQLite file, each with a real nats-server and the
simulated Ray executor, brings ceremonies into every status and every kind of step into flight, stops the worker, and
writes down the whole log. Copies of `specs/` and `proto/` are put beside it; README.md is written by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from fleet.planning_ceremony.client import PlanningCeremonyError

from bridge.clock import HostClock
from ceremony.dev.ray_simulation import Knobs
from ceremony.worker import Worker
from steps import registry
from streams.transport.app import open_log
from tests.e2e import world as worlds
from tests.e2e.world import RecordingRay, World, until
from tests.releases.archive import DRIVERS, PREFIX, ArchivedLog, ArchivedRecord, write_records
from tests.services import KafkaServer, end_orphans, running

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "specs"
OWN_CEREMONIES = Path(__file__).parent / "ceremonies"
COMMANDS = f"{PREFIX}.commands"
# A reader of the embedded log that never moves on, so that consumed records stay until they are written down.
READER = "archive"
DAY_MS = 86_400_000
# A checkpoint comes every half second.
SETTLE_SECONDS = 2.0

SILENT = Knobs(latency=0.02, jitter=0.01, silence_rate=1.0)
HALF_SILENT = Knobs(latency=0.02, jitter=0.01, silence_rate=0.5)
TWICE = Knobs(latency=0.02, jitter=0.01, duplicate_rate=0.5)
FAILING = Knobs(latency=0.02, jitter=0.01, failure_rate=1.0)

PAYLOAD: dict[str, Any] = {"payload": {"a": 1, "b": [True, None, "é"]}}
DELIBERATIONS: dict[str, Any] = {
    "agent_deliberations": [{"agent_id": "agent-thinker-001", "role": "THINKER", "proposal": "Start with the door."}]
}
STATUSES = frozenset({"RUNNING", "WAITING_FOR_HUMAN", "PAUSED", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
# Kinds of steps, each with a phase that a row of the archive shows it in.
IN_FLIGHT = frozenset(
    {
        ("deliberation", "submitted"),
        ("task_extraction", "submitted"),
        ("aggregation", "asked"),
        ("human_gate", "gate"),
        ("publish", "asked"),
        ("deliberation", "backoff"),
        ("deliberation", "unreachable"),
    }
)
# Without `noop`: an owner sends one only if no other record has shown it the log's clock.
COMMAND_TYPES = frozenset(
    {
        "put_definition", "start", "step_outcome", "agent_result", "trigger", "gate_decision", "timer_fired",
        "cancel", "pause", "resume", "retry_step", "run_step", "restore",
    }
)  # fmt: skip


# -- the run


async def play(world: World) -> None:
    """Bring ceremonies into every status, and steps of every kind into flight."""
    await ended(world)
    await live(world)
    await operators(world)
    await retention(world)
    await change_ray(world, HALF_SILENT)
    for number in range(1, 4):
        await phase(world, await begin(world, "backlog_review", f"half-answered-{number}"), "submitted")
    await asyncio.sleep(SETTLE_SECONDS)
    await change_ray(world, SILENT)
    with hung_agents():
        await world.restart_worker()
        await in_flight(world)
        await asyncio.sleep(SETTLE_SECONDS)
        await world.stop_worker()


async def begin(world: World, definition: str, name: str, **more: Any) -> str:
    return await world.start(definition, f"{definition}-{name}", **more)


async def ended(world: World) -> None:
    """Every definition of `specs/` to its end, and each way of ending otherwise."""
    for name in sorted(path.stem for path in (SPECS / "ceremonies").glob("*.yaml")):
        await world.finish(await begin(world, name, "completed"))
    await world.finish(await begin(world, "publish_only", "completed", inputs={"text": "a note, grün"}))
    await world.finish(await begin(world, "wide_merge", "completed", inputs=PAYLOAD))
    await until_status(world, await begin(world, "missing_source", "failed"), "FAILED")
    cancelled = await begin(world, "approval", "cancelled")
    await until_status(world, cancelled, "WAITING_FOR_HUMAN")
    await world.client.cancel(cancelled, actor="otto", role="OPERATOR", reason="nobody needs it")
    await until_status(world, await begin(world, "short_life", "timed-out"), "TIMED_OUT")
    declined = await begin(world, "approval", "declined")
    await until_status(world, declined, "WAITING_FOR_HUMAN")
    await world.client.decide(declined, approved=False, actor="anna", role="APPROVER", step_id="ask", comment="no")


async def live(world: World) -> None:
    """Gates that are open: one untouched, one with the first of two approvals, one in its second round; and a guard."""
    await until_status(world, await begin(world, "approval", "open-gate"), "WAITING_FOR_HUMAN")
    half = await begin(world, "refinement", "half-approved")
    await until_status(world, half, "WAITING_FOR_HUMAN")
    await world.client.decide(half, approved=True, actor="anna", role="REVIEWER", step_id="agree")
    again = await begin(world, "refinement", "second-round")
    await until_status(world, again, "WAITING_FOR_HUMAN")
    await world.client.decide(again, approved=False, actor="anna", role="REVIEWER", step_id="agree")
    await until(lambda: row(world, again).visits["AGREEING"] == 2, "the second round waits for people")
    low_score = {"title": "Pay by card", "score": {"value": 0.2}}
    guarded = await begin(world, "planning", "open-guard", inputs=low_score)
    await until(lambda: row(world, guarded).state == "JUDGING", "the guard waits for people")


async def operators(world: World) -> None:
    """Each operation once; its answer may be a refusal, which is a record as well."""
    client = world.client
    paused = await begin(world, "approval", "paused")
    await until_status(world, paused, "WAITING_FOR_HUMAN")
    await client.pause(paused, actor="otto", role="OPERATOR", reason="lunch")
    resumed = await begin(world, "approval", "resumed")
    await until_status(world, resumed, "WAITING_FOR_HUMAN")
    await client.pause(resumed, actor="otto", role="OPERATOR")
    await client.resume(resumed, actor="otto", role="OPERATOR")
    triggered = await begin(world, "approval", "triggered")
    await until_status(world, triggered, "WAITING_FOR_HUMAN")
    await client.trigger(triggered, "approve", actor="anna", role="APPROVER", reason="by word of mouth")
    optional = await begin(world, "optional_step", "step-run", inputs=PAYLOAD, step_ids=["ask"])
    await until_status(world, optional, "WAITING_FOR_HUMAN")
    await client.run_step(optional, "merge", actor="otto", role="OPERATOR")
    retried = await begin(world, "missing_source", "retried")
    await until_status(world, retried, "FAILED")
    await client.retry_step(retried, "merge", actor="otto", role="OPERATOR")
    with suppress(PlanningCeremonyError):
        await client.trigger(retried, "merged", actor="otto", role="OPERATOR")
    await dead_letter(world)


async def dead_letter(world: World) -> None:
    """A record that is no command: it is set aside, and sent back by an operator, which the audit tells."""
    position = await world.worker.app.driver.log.append(COMMANDS, 0, b"nobody:S1", b"\xff no command", ())

    async def found() -> bool:
        return bool((await world.client.dead_letters()).dead_letters)

    await until(found, "the dead letter is there")
    await world.client.replay_dead_letter(COMMANDS, 0, position.offset, actor="otto", reason="try again")


async def retention(world: World) -> None:
    """A stub: a restored row that ended 31 days ago, because the clock of Kafka cannot be moved."""
    instance_id = await begin(world, "merge_chain", "expired")
    await world.finish(instance_id)
    log = world.worker.app.driver.log
    partition = log.partition_of(instance_id.encode(), world.worker.settings.partitions)
    body = long_ago(row_json(world, instance_id))
    command = {"type": "restore", "instance_id": instance_id, "command_id": "archive/restore", "instance": body}
    await log.append(COMMANDS, partition, instance_id.encode(), json.dumps(command).encode(), ())
    await until(lambda: row(world, instance_id).expired, "the restored row is a stub")


def long_ago(body: dict[str, Any]) -> dict[str, Any]:
    """The row of a ceremony that ended 31 days before, one version on."""
    earlier = 31 * DAY_MS
    moved = {name: body[name] - earlier for name in ("created_at", "updated_at", "ended_at")}
    timers = {name: {**timer, "due": timer["due"] - earlier} for name, timer in body["timers"].items()}
    return {**body, **moved, "timers": timers, "version": body["version"] + 1}


async def in_flight(world: World) -> None:
    """Steps without an answer: silent agents of Ray, step agents that hang, failing agents, Ray out of reach."""
    for name in ("backlog_review", "refinement"):
        await phase(world, await begin(world, name, "silent"), "submitted")
    await phase(
        world, await begin(world, "extract_only", "silent", inputs=DELIBERATIONS, step_ids=["extract"]), "submitted"
    )
    await phase(world, await begin(world, "wide_merge", "asked", inputs=PAYLOAD), "asked")
    await phase(world, await begin(world, "publish_only", "asked", inputs={"text": "not out yet"}), "asked")
    stopped = await begin(world, "backlog_review", "paused-in-flight")
    await phase(world, stopped, "submitted")
    await world.client.pause(stopped, actor="otto", role="OPERATOR")
    await change_ray(world, FAILING)
    await phase(world, await begin(world, "slow_retry", "backing-off"), "backoff")
    await world.stop_ray()
    await phase(world, await begin(world, "refinement", "unreachable"), "unreachable")


async def change_ray(world: World, knobs: Knobs) -> None:
    """Another executor at the same address; answers that the last one still owed are lost."""
    await world.stop_ray()
    address = f"127.0.0.1:{world.ray_port}"
    world.ray = RecordingRay(grpc_address=address, nats_url=world.nats.url, clock=world.clock, knobs=knobs)
    await world.ray.start()
    await until(lambda: world.ok("ray_executor"), "the worker has found the executor again")


def row(world: World, instance_id: str) -> Any:
    return world.worker.engine.reads.get(instance_id)


def row_json(world: World, instance_id: str) -> dict[str, Any]:
    """The row as JSON."""
    found: dict[str, Any] = json.loads(msgspec.json.encode(row(world, instance_id)))
    return found


async def until_status(world: World, instance_id: str, status: str) -> None:
    await until(lambda: row(world, instance_id).status == status, f"{instance_id} is {status}")


async def phase(world: World, instance_id: str, wanted: str) -> None:
    """Wait until a step of the ceremony is in this phase, and none is asked that will still move on."""

    def reached() -> bool:
        phases = {step.phase for step in row(world, instance_id).steps.values()}
        return wanted in phases and not phases & {"asked", "submitted"} - {wanted}

    await until(reached, f"a step of {instance_id} is {wanted}")


# -- a worker as the recording needs it


@contextmanager
def hung_agents() -> Iterator[None]:
    """Workers made inside have agents of aggregation and publish steps that take requests and never answer."""

    async def hung(batches: AsyncIterable[Any]) -> None:
        async for batch in batches:
            for record in batch:
                batch.hold(record)

    entries = [
        entry._replace(agent=lambda _ports: hung) if entry.kind.name in {"aggregation", "publish"} else entry
        for entry in registry.REGISTRY
    ]
    with mock.patch.object(registry, "REGISTRY", tuple(entries)):
        yield


def keeping_worker(settings: Any) -> Worker:
    """A worker whose embedded log keeps consumed records, as Kafka does anyway."""
    worker = Worker(settings)
    log: Any = worker.app.driver.log
    if hasattr(log, "register"):
        create = log.create

        async def create_and_keep(specs: Sequence[Any]) -> None:
            await create(specs)
            for spec in specs:
                for partition in range(spec.partitions if spec.queue else 0):
                    log.register(READER, spec.name, partition)

        log.create = create_and_keep
    return worker


async def played(folder: Path, log_url: str) -> None:
    """Run the engine on this log from its first record to a worker that was stopped in good order."""
    ceremonies = folder / "ceremonies"
    ceremonies.mkdir(parents=True)
    for source in (SPECS / "ceremonies", OWN_CEREMONIES):
        shutil.copytree(source, ceremonies, dirs_exist_ok=True)
    with mock.patch.object(worlds, "Worker", keeping_worker):
        async with World(folder, log_url, knobs=TWICE, CEREMONIES_DIR=str(ceremonies)) as world:
            await play(world)


# -- writing down the log


async def record_kafka(folder: Path, target: Path) -> None:
    with running(KafkaServer(folder / "kafka")) as server:
        await played(folder, f"kafka://{server.bootstrap}")
        admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
        await admin.start()
        try:
            topics = sorted(name for name in await admin.list_topics() if name.startswith(f"{PREFIX}."))
            partitions = {found["topic"]: len(found["partitions"]) for found in await admin.describe_topics(topics)}
            groups = await committed(admin)
        finally:
            await admin.close()
        about: dict[str, Any] = {"driver": "kafka", "groups": groups, "topics": {}}
        for topic in topics:
            records, about["topics"][topic] = await read_kafka(server.bootstrap, topic, partitions[topic])
            write_records(target / f"{short(topic)}.jsonl.gz", records)
        write_json(target / "log.json", about)


async def committed(admin: AIOKafkaAdminClient) -> dict[str, Any]:
    """Committed offset and note of each group, by `<topic>/<partition>`."""
    groups: dict[str, Any] = {}
    for group, *_ in sorted(await admin.list_consumer_groups()):
        offsets = await admin.list_consumer_group_offsets(group)
        groups[group] = {
            f"{place.topic}/{place.partition}": {"next": offset.offset, "note": offset.metadata}
            for place, offset in sorted(offsets.items())
        }
    return groups


async def read_kafka(bootstrap: str, topic: str, partitions: int) -> tuple[list[ArchivedRecord], list[dict[str, int]]]:
    """Every committed record of a topic, and start and end of each of its partitions."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="none",
        enable_auto_commit=False,
    )
    places = [TopicPartition(topic, number) for number in range(partitions)]
    records: list[ArchivedRecord] = []
    await consumer.start()
    try:
        consumer.assign(places)
        starts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, starts[place])
        while [place for place in places if await consumer.position(place) < ends[place]]:
            for found in (await consumer.getmany(timeout_ms=200)).values():
                records += [
                    ArchivedRecord(topic, one.partition, one.offset, one.timestamp, one.key, one.value, one.headers)
                    for one in found
                ]
    finally:
        await consumer.stop()
    return records, [{"start": starts[place], "end": ends[place]} for place in places]


async def record_sqlite(folder: Path, target: Path) -> None:
    path = folder / "log.db"
    await played(folder, f"sqlite://{path}")
    pack(path, target / "log.db.gz")
    about = about_file(path)
    log: Any = open_log(f"sqlite://{path}", HostClock())
    await log.start()
    try:
        for topic, ends in about["topics"].items():  # all before the first record is read: retention comes every second
            for number in range(len(ends)):
                log.register(READER, topic, number)
        for topic, ends in about["topics"].items():
            records: list[ArchivedRecord] = []
            for number, place in enumerate(ends):
                async for found in log.read(topic, number, place["start"], place["end"]):
                    records += [ArchivedRecord(*one) for one in found]
            write_records(target / f"{short(topic)}.jsonl.gz", records)
    finally:
        await log.stop()
    write_json(target / "log.json", about)


def pack(path: Path, packed: Path) -> None:
    """Compress the SQLite file; the connection that closed it last has moved the write-ahead log into it."""
    if beside := [name for name in (f"{path}-wal", f"{path}-shm") if Path(name).exists()]:
        raise SystemExit(f"the file was not closed in good order: {', '.join(beside)} is there")
    with packed.open("wb") as target, gzip.GzipFile("", "wb", mtime=0, fileobj=target) as compressed:
        compressed.write(path.read_bytes())


def about_file(path: Path) -> dict[str, Any]:
    """Topics with their ends, committed offsets with their notes, and position rows, as the file has them."""
    file = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        topics = {at: (name, count) for at, name, count in file.execute("SELECT id, name, partitions FROM topics")}
        ends = {(at, number): (start, end) for at, number, start, end in file.execute("SELECT * FROM ends")}
        notes = {tuple(place): note for *place, note in file.execute("SELECT * FROM notes")}
        groups: dict[str, Any] = {}
        for *place, offset in file.execute("SELECT * FROM offsets ORDER BY reader, topic, partition"):
            reader, at, number = place
            stands = {"next": offset, "note": notes.get(tuple(place), "")}
            groups.setdefault(reader, {})[f"{topics[at][0]}/{number}"] = stands
        positions: dict[str, Any] = {}
        for reader, at, number, *row in file.execute("SELECT * FROM positions ORDER BY reader, topic, partition"):
            stands = dict(zip(("next", "partitions", "timestamp", "checksum", "fold"), row, strict=True))
            positions.setdefault(reader, {})[f"{topics[at][0]}/{number}"] = stands
    finally:
        file.close()
    listed = {
        name: [dict(zip(("start", "end"), ends.get((at, number), (0, 0)), strict=True)) for number in range(count)]
        for at, (name, count) in sorted(topics.items(), key=lambda item: item[1])
    }
    return {"driver": "sqlite", "groups": groups, "positions": positions, "topics": listed}


def short(topic: str) -> str:
    """The name without its prefix."""
    return topic.removeprefix(f"{PREFIX}.")


def write_json(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", "utf-8")


# -- the archive as a whole


def missing(log: ArchivedLog) -> list[str]:
    """Statuses, steps in flight and types of commands that this log does not hold."""
    rows = log.ceremonies()
    lacking = [
        *sorted(STATUSES - {row["status"] for row in rows}),
        *(f"{kind} {phase}" for kind, phase in sorted(IN_FLIGHT - log.in_flight())),
        *sorted(COMMAND_TYPES - log.command_types()),
    ]
    return lacking if any(row.get("expired") for row in rows) else [*lacking, "an expired stub"]


def copy_contract(target: Path) -> None:
    """Copy `specs/`, and from `proto/` the `.proto` files with their `buf.yaml`."""
    shutil.copytree(SPECS, target / "specs", dirs_exist_ok=True)
    for source in [ROOT / "proto" / "buf.yaml", *(ROOT / "proto").rglob("*.proto")]:
        copy = target / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


RECORDERS: Mapping[str, Callable[[Path, Path], Coroutine[Any, Any, None]]] = {
    "kafka": record_kafka,
    "sqlite": record_sqlite,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the archive of the release in this checkout."""
    parser = argparse.ArgumentParser(prog="python -m tests.releases.record", description=main.__doc__)
    parser.add_argument("outdir", type=Path, help="folder of the archive, named after the release")
    parser.add_argument("--driver", choices=DRIVERS, action="append", help="only this log (default: both)")
    options = parser.parse_args(arguments)
    end_orphans()
    copy_contract(options.outdir)
    for driver in options.driver or DRIVERS:
        target = options.outdir / driver
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ceremony-record-") as folder:
            asyncio.run(RECORDERS[driver](Path(folder), target))
        lacking = missing(ArchivedLog(target))
        if lacking:
            print(f"{driver}: the log does not hold {', '.join(lacking)}", file=sys.stderr)
            return 1
        print(f"{driver}: recorded")
    return 0


if __name__ == "__main__":
    sys.exit(main())

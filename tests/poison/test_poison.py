"""Poison: no bad record in a topic stops a partition or a worker; each is found in the dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from streams.dead_letters import dead_letter_record
from streams.topics import AUDIT, COMMANDS, DEADLETTERS, EVENTS, STEP_KINDS, prefixed, step_topic
from tests.e2e.world import World, until
from tests.poison.shapes import good, shapes
from tests.services import KafkaServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120), pytest.mark.uncounted]
# All topics but `owners`, which only workers that share a log read; tests/workers covers it.
TOPICS = (COMMANDS, *map(step_topic, STEP_KINDS), EVENTS, DEADLETTERS, AUDIT)
CODES = {
    COMMANDS: {"command_undecodable", "key_mismatch", "definition_refused"},
    EVENTS: {"event_undecodable", "subject_invalid", "header_invalid", "message_too_large"},
    DEADLETTERS: {"unknown", "\ufffd"},
    AUDIT: {"audit_undecodable"},
    **{step_topic(kind): {"request_undecodable"} for kind in STEP_KINDS},
}
PAGE = 1000
ASIDE_SECONDS = 20
# Topic, partition and offset.
Origin = tuple[str, int, int]
# It uses every step kind, so a good ceremony passes every topic.
DEFINITION = "backlog_review"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "kafka"])
async def world(
    request: pytest.FixtureRequest, kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("poison")
    url = f"kafka://{kafka.bootstrap}" if request.param == "kafka" else f"sqlite://{folder}/log.db"
    async with World(folder, url, CEREMONY_TOPIC_PREFIX=f"poison-{uuid4().hex[:8]}") as made:
        yield made


async def listed(world: World) -> list[pb.DeadLetter]:
    """Return all dead letters, page by page."""
    found: list[pb.DeadLetter] = []
    while True:
        page = await world.client.dead_letters(limit=PAGE, offset=len(found))
        found += page.dead_letters
        if not page.dead_letters or len(found) >= page.total_count:
            return found


def prefix(world: World) -> str:
    return world.worker.settings.topic_prefix


async def poison(world: World, topic: str) -> dict[str, set[Origin]]:
    """Write every shape, into all partitions in turn; return for each the origins that its dead letter may name."""
    name, partitions = prefixed(prefix(world), topic), world.worker.settings.partitions
    written = {}
    for number, shape in enumerate(shapes(topic)):
        instance_id = f"poisoned-{number}:S1"
        record = shape.spoil(good(topic, instance_id))
        position = await world.worker.app.driver.log.append(name, number % partitions, *record)
        written[shape.name] = {(name, position.partition, position.offset)}
        if topic == DEADLETTERS:  # a letter with a readable origin is listed under that origin
            written[shape.name].add((f"of-{instance_id}", 0, 0))
    return written


async def audited(world: World) -> None:
    """Ask for a dead letter of each partition: `audit` is read when an operator looks or replays."""
    topic, there = prefixed(prefix(world), COMMANDS), 10**9
    for partition in range(world.worker.settings.partitions):
        letter = dead_letter_record(topic, partition, there, "unknown", "m", key=b"poisoned:S1", value=b"{}")
        await world.worker.app.driver.log.append(prefixed(prefix(world), DEADLETTERS), partition, *letter)
        sent = [
            await world.client.replay_dead_letter(topic, partition, there, actor="ana", request_id="r")
            for _ in range(2)
        ]
        assert [one.repeated_request for one in sent] == [False, True]
        shown = await world.client.dead_letter(topic, partition, there)
        assert len(shown.replays) == 1


@pytest.mark.parametrize("topic", TOPICS)
async def test_poison_stops_no_worker_and_is_found_in_the_dead_letters(world: World, topic: str) -> None:
    """More than thirty shapes in each topic, among good ceremonies: each has a dead letter with its reason."""
    # specification 19.1
    assert len(shapes(topic)) >= 30
    before = [await world.start(DEFINITION, f"before-{topic}-{n}") for n in range(2)]
    written = await poison(world, topic)
    if topic == AUDIT:
        await audited(world)
    behind = [await world.start(DEFINITION, f"behind-{topic}-{n}") for n in range(6)]
    ended = await asyncio.gather(*(world.finish(instance_id) for instance_id in (*before, *behind)))
    assert {one.status for one in ended} == {"COMPLETED"}
    letters: dict[Origin, pb.DeadLetter] = {}

    async def all_aside() -> bool:
        letters.update({(one.origin, one.partition, one.offset): one for one in await listed(world)})
        return not missing()

    def missing() -> list[str]:
        return [shape for shape, origins in written.items() if not origins & letters.keys()]

    try:
        await until(all_aside, f"poison of {topic} is aside", ASIDE_SECONDS)
    except AssertionError:
        pytest.fail(f"not in the dead letters: {missing()}; the worker: {world.worker.failure}")
    for shape, origins in written.items():
        (letter,) = (letters[origin] for origin in origins & letters.keys())
        assert letter.code in CODES[topic], (shape, letter.code)
        assert letter.message, shape
    assert world.worker.failure is None
    assert world.ok("log", "tables", "nats")

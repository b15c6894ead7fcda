"""The calls of operators over a real socket, on the real engine: operations, history, dead letters, diagnosis."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.refusals import LONGEST_NAME
from streams.topics import COMMANDS, prefixed
from tables.limits import MAX_TEXT_CHARACTERS
from tests.bridge.grpc.world import HEAD, definitions_folder, refused
from tests.e2e.world import World, until
from tests.services import KafkaServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

GUARDED = """
inputs: {required: [payload], optional: [more]}
states:
  - {id: JOINING, description: joins, initial: true}
  - {id: JOINED, description: joined, terminal: true}
transitions:
  - {from: JOINING, to: JOINED, trigger: joined, description: d}
steps:
  - {id: join, state: JOINING, handler: aggregation_step, config: {sources: [payload], aggregation_type: concat}}
  - {id: late, state: JOINING, handler: aggregation_step, config: {sources: [payload], aggregation_type: list}}
roles:
  - {id: OPERATOR, description: operates, allowed_actions: [join, late, cancel, pause, resume]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("grpc-operators")
    definitions = definitions_folder(folder / "definitions")
    (definitions / "guarded.yaml").write_text(HEAD.format(name="guarded") + GUARDED)
    async with World(folder, f"sqlite://{folder}/log.db", CEREMONIES_DIR=str(definitions)) as made:
        yield made


def fresh() -> str:
    return f"c-{uuid4().hex[:12]}"


async def failed(world: World) -> str:
    """A FAILED ceremony: its input is no text."""
    instance_id = await world.start("guarded", fresh(), inputs={"payload": {"no": "text"}}, step_ids=["join"])
    await until(lambda: at(world, instance_id, "FAILED"), "it failed")
    return instance_id


async def at(world: World, instance_id: str, status: str) -> bool:
    return (await world.get(instance_id)).status == status


async def opened(world: World) -> str:
    instance_id = await world.start("doors", fresh())
    await until(lambda: at(world, instance_id, "WAITING_FOR_HUMAN"), "its gate is open")
    return instance_id


def calls(world: World, instance_id: str, **who: str) -> dict[str, Any]:
    """All operations, not awaited yet."""
    stub = world.stub
    return {
        "cancel": lambda: stub.CancelCeremony(pb.CancelCeremonyRequest(instance_id=instance_id, **who)),
        "pause": lambda: stub.PauseCeremony(pb.PauseCeremonyRequest(instance_id=instance_id, **who)),
        "resume": lambda: stub.ResumeCeremony(pb.ResumeCeremonyRequest(instance_id=instance_id, **who)),
        "retry": lambda: stub.RetryStep(pb.RetryStepRequest(instance_id=instance_id, step_id="join", **who)),
        "run": lambda: stub.RunStep(pb.RunStepRequest(instance_id=instance_id, step_id="late", **who)),
    }


OPERATIONS = ("cancel", "pause", "resume", "retry", "run")


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_without_a_field_or_an_allowed_role_is_refused(world: World, name: str) -> None:
    # specification 13.1, 13.3, 13.4, 14.17
    instance_id = await failed(world)
    wrong: list[tuple[dict[str, str], str, str]] = [
        ({}, "INVALID_ARGUMENT", "field_required"),
        ({"actor": "a" * (LONGEST_NAME + 1)}, "INVALID_ARGUMENT", "field_too_long"),
        ({"actor": "ana", "reason": "r" * (MAX_TEXT_CHARACTERS + 1)}, "INVALID_ARGUMENT", "field_too_long"),
        ({"actor": "ana"}, "PERMISSION_DENIED", "role_required"),
        ({"actor": "ana", "role": "GUARD"}, "PERMISSION_DENIED", "role_not_allowed"),
    ]
    for who, status, code in wrong:
        with refused(status, code):
            await calls(world, instance_id, **who)[name]()
    with refused("NOT_FOUND", "unknown_instance"):
        await calls(world, "no:body", actor="ana")[name]()


@pytest.mark.parametrize("name", ["retry", "run"])
async def test_an_operation_on_a_step_needs_a_known_step(world: World, name: str) -> None:
    kinds: dict[str, tuple[Any, Any]] = {
        "retry": (pb.RetryStepRequest, world.stub.RetryStep),
        "run": (pb.RunStepRequest, world.stub.RunStep),
    }
    request, call = kinds[name]
    instance_id = await opened(world)
    with refused("INVALID_ARGUMENT", "field_required"):
        await call(request(instance_id=instance_id, actor="ana"))
    with refused("INVALID_ARGUMENT", "step_unknown"):
        await call(request(instance_id=instance_id, actor="ana", step_id="nothing"))


async def test_cancel_returns_the_ended_ceremony_and_may_be_repeated(world: World) -> None:
    # specification 13.4, 13.6, 14.4
    instance_id = await opened(world)
    answer = await calls(world, instance_id, actor="ana", reason="enough")["cancel"]()
    assert (answer.ceremony.status, answer.ceremony.step_status["let_in"]) == ("CANCELLED", "CANCELLED")
    assert answer.request_id
    assert (await calls(world, instance_id, actor="ana")["cancel"]()).ceremony.status == "CANCELLED"
    with refused("FAILED_PRECONDITION", "already_ended"):
        await calls(world, instance_id, actor="ana")["pause"]()


async def test_pause_and_resume_count_once_for_each_request_id(world: World) -> None:
    # specification 13.7, 13.8, 13.12
    instance_id = await opened(world)
    with refused("FAILED_PRECONDITION", "not_paused"):
        await calls(world, instance_id, actor="ana")["resume"]()
    paused = await calls(world, instance_id, actor="ana", request_id="p-1")["pause"]()
    assert (paused.ceremony.status, paused.request_id) == ("PAUSED", "p-1")
    resumed = await calls(world, instance_id, actor="ana", request_id="r-1")["resume"]()
    assert resumed.ceremony.status == "WAITING_FOR_HUMAN"
    again = await calls(world, instance_id, actor="ana", request_id="r-1")["resume"]()
    assert again.ceremony.version == resumed.ceremony.version


async def test_a_retry_reopens_a_failed_ceremony_and_a_run_starts_an_unselected_step(world: World) -> None:
    # specification 13.9
    instance_id = await failed(world)
    who = {"actor": "ana", "role": "OPERATOR", "reason": "again"}
    retried = await calls(world, instance_id, request_id="again", **who)["retry"]()
    assert retried.ceremony.step_attempts["join"] == 2
    await until(lambda: at(world, instance_id, "FAILED"), "it failed again")
    repeated = await calls(world, instance_id, request_id="again", **who)["retry"]()
    assert repeated.ceremony.step_attempts["join"] == 2
    with refused("FAILED_PRECONDITION", "already_ended"):
        await calls(world, instance_id, **who)["run"]()


async def test_list_filters_by_status(world: World) -> None:
    # specification 14.8
    instance_id = await opened(world)
    story = "only-this-story"
    await world.client.start("doors", ceremony_id="c-status", story_id=story, requested_by="a")
    await calls(world, instance_id, actor="ana")["pause"]()
    found = await world.client.list(status="PAUSED")
    assert instance_id in [one.instance_id for one in found.ceremonies]
    assert {one.status for one in found.ceremonies} == {"PAUSED"}
    assert (await world.client.list(status="PAUSED", story_id=story)).total_count == 0


# -- history


async def test_history_has_the_events_that_nats_has(world: World) -> None:
    """Subjects, ids and payloads equal those of the stream CEREMONY, in the same order, with the actor of a pause."""
    # specification 14.13
    instance_id = await opened(world)
    await calls(world, instance_id, actor="ana", role="X", reason="lunch")["pause"]()
    await calls(world, instance_id, actor="ben")["cancel"]()

    async def whole() -> Any:
        history = await world.client.history(instance_id)
        return history if history.events and history.events[-1].subject == "ceremony.cancelled" else None

    found = await until(whole, "the log has the events of the last operation")

    async def sent() -> list[Any]:
        messages = await world.messages(instance_id)
        return messages if len(messages) >= len(found.events) else []

    messages = await until(sent, "NATS has heard all")
    told = [(event.subject, event.effect_id, json.loads(event.payload)) for event in found.events]
    assert told == [(m.subject, m.envelope["idempotency_key"], m.envelope["payload"]) for m in messages]
    assert found.complete
    paused = next(json.loads(event.payload) for event in found.events if event.subject == "ceremony.paused")
    assert (paused["actor"], paused["role"], paused["reason"]) == ("ana", "X", "lunch")
    newest = await world.client.history(instance_id, limit=2)
    assert [event.effect_id for event in newest.events] == [event.effect_id for event in found.events[-2:]]
    assert not newest.complete


async def test_the_whole_history_comes_in_pages_and_a_token_is_for_one_ceremony(world: World) -> None:
    # specification 26.1
    one, other = await opened(world), await opened(world)
    await calls(world, one, actor="ben")["cancel"]()
    pages = [page async for page in world.client.history_pages(one, limit=2)]
    subjects = [event.subject for page in pages for event in page.events]
    assert (subjects[0], subjects[-1]) == ("ceremony.started", "ceremony.cancelled")
    assert [page.complete for page in pages] == [False] * (len(pages) - 1) + [True]
    newest = await world.client.history(one)
    assert [event.effect_id for page in pages for event in page.events] == [e.effect_id for e in newest.events]
    token = pages[0].next_page_token
    for instance_id, wrong in ((other, token), (one, "rubbish"), (one, "é"), (one, token[:-4]), (one, "AAAA" * 64)):
        with refused("INVALID_ARGUMENT", "page_token_invalid"):
            await world.stub.GetHistory(pb.GetHistoryRequest(instance_id=instance_id, page_token=wrong))


async def test_history_of_an_unknown_ceremony_is_not_found(world: World) -> None:
    with refused("NOT_FOUND", "unknown_instance"):
        await world.stub.GetHistory(pb.GetHistoryRequest(instance_id="no:body"))
    with refused("INVALID_ARGUMENT", "field_required"):
        await world.stub.GetHistory(pb.GetHistoryRequest())


# -- dead letters


async def test_a_dead_letter_is_shown_and_replayed(world: World) -> None:
    """A record that is still malformed becomes a new dead letter, with the target of the replay as its origin."""
    # specification 19.4, 19.5
    body = b'{"type": "nonsense"}'
    log = world.worker.app.driver.log
    position = await log.append("ceremony.commands", 1, b"c:s", body, [("correlation-id", b"corr")])
    origin: dict[str, Any] = {"origin": "ceremony.commands", "partition": 1, "offset": position.offset}

    async def set_aside() -> bool:
        return any(one.offset == position.offset for one in await world.dead_letters("command_undecodable"))

    await until(set_aside, "it is set aside")
    shown = await world.stub.ShowDeadLetter(pb.ShowDeadLetterRequest(**origin))
    assert (shown.body, shown.body_from, shown.dead_letter.key) == (body, "dead_letter", "c:s")
    assert [(header.name, header.value) for header in shown.headers] == [("correlation-id", b"corr")]
    with refused("INVALID_ARGUMENT", "field_required"):
        await world.stub.ReplayDeadLetter(pb.ReplayDeadLetterRequest(**origin))
    before = await replayed(world)
    request = pb.ReplayDeadLetterRequest(actor="ana", reason="try again", request_id="x", **origin)
    answer = await world.stub.ReplayDeadLetter(request)
    assert not answer.repeated_request
    again = await world.stub.ReplayDeadLetter(request)
    assert (again.repeated_request, again.replay.sent_to) == (True, answer.replay.sent_to)
    sent_to = int(answer.replay.sent_to.rpartition("/")[2])

    async def came_back() -> bool:
        return any(one.offset == sent_to for one in await world.dead_letters("command_undecodable"))

    await until(came_back, "it is set aside again")
    (replay,) = (await world.stub.ShowDeadLetter(pb.ShowDeadLetterRequest(**origin))).replays
    assert (replay.actor, replay.reason, replay.request_id) == ("ana", "try again", "x")
    assert await replayed(world) == before + 1


async def replayed(world: World) -> float:
    """The metric of this process, which other tests count up too."""
    _, metrics = await world.http("/metrics")
    found = re.search(r'ceremony_dead_letters_replayed_total\{origin="ceremony.commands"\} (\S+)', metrics)
    return 0.0 if found is None else float(found[1])


async def test_an_unknown_dead_letter_is_not_found(world: World) -> None:
    # specification 14.2
    for call in (
        world.stub.ShowDeadLetter(pb.ShowDeadLetterRequest(origin="ceremony.commands", offset=10**9)),
        world.stub.ReplayDeadLetter(pb.ReplayDeadLetterRequest(origin="ceremony.commands", offset=10**9, actor="ana")),
    ):
        with refused("NOT_FOUND", "dead_letter_unknown"):
            await call


# -- diagnosis


async def test_diagnosis_of_a_ceremony_has_reasons_and_remedies(world: World) -> None:
    # specification 14.14
    instance_id = await opened(world)
    found = await world.client.diagnose(instance_id)
    (one,) = found.ceremonies
    assert (found.healthy, one.verdict, one.status) == (True, "waiting_for_human", "WAITING_FOR_HUMAN")
    assert list(one.todo) == [f"ceremony approve {instance_id} let_in --role GUARD"]
    (gate,) = [wait for wait in one.waits if wait.kind == "gate"]
    assert (gate.subject, bool(gate.since)) == ("let_in", True)
    assert {way.trigger: way.guards[0].reason for way in one.ways_out} == {
        "go_on": "step `let_in` is WAITING_FOR_HUMAN",
        "shut": "step `let_in` is WAITING_FOR_HUMAN",
    }
    with refused("NOT_FOUND", "unknown_instance"):
        await world.stub.Diagnose(pb.DiagnoseRequest(instance_id="no:body"))


async def test_diagnosis_of_the_engine_covers_neighbours_partitions_definitions_and_dead_letters(world: World) -> None:
    # specification 14.14
    await world.worker.app.driver.log.append("ceremony.commands", 0, b"c:s", b"rubbish")

    async def counted() -> bool:
        return (await world.client.diagnose()).dead_letters.get("command_undecodable", 0) > 0

    await until(counted, "the dead letter is counted")
    instance_id = await failed(world)
    found = await world.client.diagnose()
    assert {one.name for one in found.neighbours} == {"log", "tables", "nats", "publications", "ray_executor"}
    assert [one.state for one in found.partitions] == ["served"] * 3
    assert sum(one.ceremonies for one in found.partitions) == sum(found.statuses.values())
    codes = {(finding.severity, finding.code, finding.subject) for finding in found.findings}
    assert ("warning", "dead_letters", "command_undecodable") in codes
    assert ("warning", "definition_invalid", "broken") in codes
    assert all(finding.todo and finding.message for finding in found.findings)
    assert instance_id in [one.instance_id for one in found.ceremonies if one.verdict == "failed"]
    assert found.healthy and not found.incomplete


async def test_diagnosis_is_not_healthy_while_a_partition_is_not_served(world: World, monkeypatch: Any) -> None:
    """The finding has a code and a remedy."""
    reason = ("log_differs", "ceremony.commands/1/7 is not the command that was folded last")
    monkeypatch.setattr(world.worker.engine.partitions, "_unserved", lambda: {1: reason})
    found = await world.client.diagnose()
    assert not found.healthy
    assert [(one.state, one.code) for one in found.partitions if one.partition == 1] == [("not_served", "log_differs")]
    first = next(finding for finding in found.findings if finding.code == "log_differs")
    assert (first.severity, first.subject) == ("error", "partition 1")
    assert "CEREMONY_TOPIC_PREFIX" in first.todo
    assert [finding.severity for finding in found.findings] == sorted(finding.severity for finding in found.findings)


async def test_metrics_count_stuck_ceremonies_and_ceremonies_by_status(world: World) -> None:
    # specification 12.11
    instance_id = await opened(world)
    await calls(world, instance_id, actor="ana")["pause"]()

    async def counted() -> bool:
        _, text = await world.http("/metrics")
        return "ceremony_stuck 0.0" in text and 'status="PAUSED"} 0.0' not in text

    await until(counted, "the sweep has come by")


async def test_history_and_replay_work_the_same_on_kafka(kafka: KafkaServer, tmp_path: Path) -> None:
    """Both use the log's protocol, so the same calls give the same answers on Kafka."""
    prefix = f"operators-{uuid4().hex[:8]}"
    commands = prefixed(prefix, COMMANDS)
    async with World(tmp_path, f"kafka://{kafka.bootstrap}", CEREMONY_TOPIC_PREFIX=prefix) as world:
        instance_id = await world.start("approval", fresh())
        await until(lambda: at(world, instance_id, "WAITING_FOR_HUMAN"), "its gate is open")
        await world.client.cancel(instance_id, actor="ana", reason="enough")
        found = await world.client.history(instance_id)
        subjects = [event.subject for event in found.events]
        assert (subjects[0], subjects[-1], found.complete) == ("ceremony.started", "ceremony.cancelled", True)
        whole = [
            event.subject async for page in world.client.history_pages(instance_id, limit=1) for event in page.events
        ]
        assert whole == subjects
        newest = await world.client.history(instance_id, limit=1)
        assert ([event.subject for event in newest.events], newest.complete) == (["ceremony.cancelled"], False)
        position = await world.worker.app.driver.log.append(commands, 1, b"c:s", b"rubbish")

        async def letters() -> int:
            return len(await world.dead_letters("command_undecodable"))

        await until(letters, "it is set aside")
        for repeated in (False, True):
            answer = await world.client.replay_dead_letter(commands, 1, position.offset, actor="ana", request_id="once")
            assert answer.repeated_request is repeated
        assert (await world.client.diagnose()).healthy

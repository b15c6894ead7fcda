"""Decisions, triggers, reads and watching over a real socket, on the real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bridge.grpc.messages import LARGEST_ANSWER_BYTES
from bridge.grpc.server import SERVICE
from tables.definitions import step_rules
from tables.limits import MAX_TEXT_CHARACTERS
from tests.bridge.grpc.world import HEAD, TWICE, definitions_folder, refused
from tests.e2e.world import World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("grpc-operations")
    definitions = definitions_folder(folder / "definitions")
    async with World(folder, f"sqlite://{folder}/log.db", CEREMONIES_DIR=str(definitions)) as made:
        yield made


async def opened(world: World, definition: str = "doors", **more: Any) -> str:
    """A new ceremony with an open gate."""
    instance_id = await world.start(definition, f"c-{uuid4().hex[:12]}", **more)

    async def gates() -> bool:
        return bool((await world.get(instance_id)).open_gates)

    await until(gates, f"the gate of {instance_id} is open")
    return instance_id


def decision(instance_id: str, **more: Any) -> pb.DecideGateRequest:
    fields: dict[str, Any] = {"step_id": "let_in", "approved": True, "actor": "gus", "role": "GUARD"}
    fields.update(more)
    if "guard" in more:
        del fields["step_id"]
    return pb.DecideGateRequest(instance_id=instance_id, **fields)


def trigger(instance_id: str, name: str, **more: Any) -> pb.TriggerTransitionRequest:
    return pb.TriggerTransitionRequest(
        instance_id=instance_id, trigger=name, **{"actor": "gus", "role": "GUARD", **more}
    )


async def test_an_instance_id_of_a_megabyte_is_unknown(world: World) -> None:
    """The message that names the unknown instance has an ordinary length."""
    for huge in ("x" * 1_000_000, "😀" * 2000):
        with refused("NOT_FOUND", "unknown_instance"):
            await world.stub.DecideGate(decision(huge))
        with refused("NOT_FOUND", "unknown_instance"):
            await world.stub.TriggerTransition(trigger(huge, "shut"))
        found = await world.stub.GetPlanningCeremonyInstance(pb.GetPlanningCeremonyInstanceRequest(instance_id=huge))
        assert not found.success and len(found.message) < 1000


@pytest.mark.parametrize("prefix", ["nats/", "timer/", "fold_failed/", "engine/"])
async def test_a_request_id_that_begins_like_the_engines_own_is_refused(world: World, prefix: str) -> None:
    """Else a client could take the place of an agent's answer before it comes."""
    # specification 13.14
    instance_id = await opened(world)
    with refused("INVALID_ARGUMENT", "request_id_reserved"):
        await world.stub.DecideGate(decision(instance_id, request_id=f"{prefix}1"))
    with refused("INVALID_ARGUMENT", "request_id_reserved"):
        await world.stub.TriggerTransition(trigger(instance_id, "shut", request_id=f"{prefix}1"))
    with refused("INVALID_ARGUMENT", "request_id_reserved"):
        await world.stub.PauseCeremony(
            pb.PauseCeremonyRequest(instance_id=instance_id, actor="gus", request_id=f"{prefix}1")
        )


async def test_an_id_that_the_server_drew_may_come_back_from_its_client(world: World) -> None:
    # specification 13.14, 14.5
    instance_id = await opened(world)
    drawn = (await world.stub.DecideGate(decision(instance_id))).request_id
    again = await world.stub.DecideGate(decision(instance_id, request_id=drawn))
    assert (again.request_id, again.ceremony.open_gates[0].approvals) == (drawn, 1)


async def test_a_gate_name_that_is_too_long_is_refused(world: World) -> None:
    with refused("INVALID_ARGUMENT", "field_too_long"):
        await world.stub.DecideGate(decision(await opened(world), step_id="x" * 100_000))


# -- gates


async def test_a_quorum_counts_distinct_actors(world: World) -> None:
    """Two approvals of one actor count as one; the second person completes the quorum."""
    # specification 8.4
    instance_id = await opened(world)
    for _ in range(2):
        answer = await world.stub.DecideGate(decision(instance_id))
        (gate,) = answer.ceremony.open_gates
        assert (gate.approvals, gate.quorum, answer.ceremony.current_state) == (1, 2, "OPEN")
    answer = await world.stub.DecideGate(decision(instance_id, actor="gil", comment="fine"))
    assert (answer.ceremony.current_state, answer.ceremony.step_status["let_in"]) == ("NEXT", "COMPLETED")
    assert json.loads(answer.ceremony.step_outputs["let_in"])["approved"] is True


async def test_one_person_under_several_spellings_counts_once_and_is_answered_with_the_count(world: World) -> None:
    # specification 8.4, 8.9, 13.15
    instance_id = await opened(world)
    for spelling in ("Ren\u00e9", " Rene\u0301 ", "REN\u00c9"):
        answer = await world.stub.DecideGate(decision(instance_id, actor=spelling, role=" GUARD "))
        assert (answer.message, answer.ceremony.open_gates[0].approvals) == ("recorded: 1 of 2 approvals", 1)
    answer = await world.stub.DecideGate(decision(instance_id, actor="gil"))
    assert (answer.message, answer.ceremony.current_state) == ("recorded", "NEXT")
    assert json.loads(answer.ceremony.step_outputs["let_in"])["decided_by"] == "Ren\u00e9, gil"


@pytest.mark.parametrize("field", ["actor", "role"])
async def test_a_hidden_character_in_a_name_is_refused(world: World, field: str) -> None:
    # specification 13.15
    instance_id = await opened(world)
    with refused("INVALID_ARGUMENT", "actor_invalid"):
        await world.stub.DecideGate(decision(instance_id, **{field: "GU\u200bARD"}))
    with refused("INVALID_ARGUMENT", "actor_invalid"):
        await world.stub.TriggerTransition(trigger(instance_id, "shut", **{field: "GU\u200bARD"}))
    with refused("INVALID_ARGUMENT", "actor_invalid"):
        more = {"actor": "gus", field: "GU\u200bARD"}
        await world.stub.CancelCeremony(pb.CancelCeremonyRequest(instance_id=instance_id, **more))


async def test_a_request_id_that_was_used_for_another_operation_is_refused(world: World) -> None:
    # specification 13.12
    instance_id = await opened(world)
    await world.stub.DecideGate(decision(instance_id, request_id="mine"))
    with refused("INVALID_ARGUMENT", "request_id_reused"):
        await world.stub.CancelCeremony(
            pb.CancelCeremonyRequest(instance_id=instance_id, actor="gus", request_id="mine")
        )
    with refused("PERMISSION_DENIED", "role_required"):
        await world.stub.TriggerTransition(trigger(instance_id, "shut", role="", request_id="mine"))
    other = await opened(world)
    assert (await world.stub.DecideGate(decision(other, request_id="mine"))).ceremony.instance_id == other


async def test_two_ceremonies_under_one_request_id_are_answered_from_their_own_operations(world: World) -> None:
    """A pause that is allowed never answers a trigger that is forbidden."""
    # specification 13.12
    pairs = [(await opened(world), await opened(world)) for _ in range(5)]

    async def shut(instance_id: str, request_id: str) -> str:
        try:
            await world.stub.TriggerTransition(trigger(instance_id, "shut", role="CLERK", request_id=request_id))
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    calls: list[Any] = []
    for number, (first, second) in enumerate(pairs):
        pause = pb.PauseCeremonyRequest(instance_id=first, actor="gus", request_id=f"shared-{number}")
        calls += [world.stub.PauseCeremony(pause), shut(second, f"shared-{number}")]
    answers = await asyncio.gather(*calls)
    assert answers[1::2] == ["PERMISSION_DENIED"] * len(pairs)
    assert [answer.ceremony.status for answer in answers[::2]] == ["PAUSED"] * len(pairs)


@pytest.mark.parametrize(("role", "code"), [("", "role_required"), ("CLERK", "role_not_allowed")])
async def test_a_decision_needs_an_allowed_role(world: World, role: str, code: str) -> None:
    # specification 13.1
    instance_id = await opened(world)
    before = (await world.get(instance_id)).version
    with refused("PERMISSION_DENIED", code):
        await world.stub.DecideGate(decision(instance_id, role=role))
    assert (await world.get(instance_id)).version == before


async def test_a_decision_for_another_visit_is_refused(world: World) -> None:
    """An approval for one visit never approves the next."""
    # specification 8.3
    instance_id = await opened(world)
    with refused("FAILED_PRECONDITION", "stale_visit"):
        await world.stub.DecideGate(decision(instance_id, visit=2))
    await world.stub.DecideGate(decision(instance_id, visit=1))
    await world.stub.DecideGate(decision(instance_id, visit=1, actor="gil"))
    await world.stub.DecideGate(decision(instance_id, guard="clerk_sends_back", actor="cleo", role="CLERK"))

    async def second_visit() -> bool:
        gates = (await world.get(instance_id)).open_gates
        return bool(gates) and gates[0].visit == 2

    await until(second_visit, "the door is asked for again")
    with refused("FAILED_PRECONDITION", "stale_visit"):
        await world.stub.DecideGate(decision(instance_id, visit=1, actor="gil"))


async def test_a_repeated_request_id_is_the_same_decision(world: World) -> None:
    """Before, during and after its fold it gets the same answer, and counts once."""
    # specification 13.12
    instance_id = await opened(world)
    made = decision(instance_id, request_id=uuid4().hex)
    await asyncio.gather(*(world.stub.DecideGate(made) for _ in range(4)))
    version = (await world.get(instance_id)).version
    answer = await world.stub.DecideGate(made)
    assert (answer.request_id, answer.ceremony.version) == (made.request_id, version)
    await world.finish(instance_id)
    answer = await world.stub.DecideGate(made)
    assert answer.ceremony.status == "COMPLETED"


async def test_the_answer_names_the_request_id_that_the_engine_made(world: World) -> None:
    # specification 14.5
    answer = await world.stub.DecideGate(decision(await opened(world)))
    assert answer.request_id


async def test_a_human_guard_is_decided_by_name(world: World) -> None:
    # specification 8.3, 8.7
    instance_id = await opened(world)
    with refused("FAILED_PRECONDITION", "gate_not_open"):
        await world.stub.DecideGate(decision(instance_id, guard="clerk_agrees", role="CLERK"))
    for actor in ("gus", "gil"):
        await world.stub.DecideGate(decision(instance_id, actor=actor))
    found = await world.get(instance_id)
    assert [(g.guard, g.role) for g in found.open_gates] == [("clerk_agrees", "CLERK"), ("clerk_sends_back", "CLERK")]
    with refused("PERMISSION_DENIED", "role_not_allowed"):
        await world.stub.DecideGate(decision(instance_id, guard="clerk_agrees", role="GUARD"))
    answer = await world.stub.DecideGate(decision(instance_id, guard="clerk_agrees", role="CLERK"))
    assert (answer.ceremony.status, answer.ceremony.current_state) == ("COMPLETED", "DONE")


async def test_a_guard_and_a_gate_of_one_name_are_decided_as_the_request_calls_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The definition is one of an older release, so the rule against it is left out while it is started."""
    # specification 8.3, 24.4
    monkeypatch.setattr(step_rules, "_report_shared_names", lambda *_: None)
    (world.folder / "definitions" / "twice.yaml").write_text(HEAD.format(name="twice") + TWICE)
    instance_id = await opened(world, "twice")
    with refused("PERMISSION_DENIED", "role_not_allowed"):
        await world.stub.DecideGate(decision(instance_id, step_id="agreed", role="CLERK"))
    answer = await world.stub.DecideGate(decision(instance_id, guard="agreed", role="CLERK"))
    assert (answer.message, [gate.step_id for gate in answer.ceremony.open_gates]) == ("recorded", ["agreed"])
    answer = await world.stub.DecideGate(decision(instance_id, step_id="agreed"))
    assert answer.message == "recorded: 1 of 2 approvals"
    answer = await world.stub.DecideGate(decision(instance_id, step_id="agreed", actor="gil"))
    assert answer.ceremony.status == "COMPLETED"


async def test_a_rejection_fails_the_step_and_keeps_its_output(world: World) -> None:
    # specification 8.5
    instance_id = await opened(world)
    answer = await world.stub.DecideGate(decision(instance_id, approved=False, comment="no"))
    found = answer.ceremony
    assert (found.status, found.step_status["let_in"]) == ("FAILED", "FAILED")
    assert json.loads(found.step_outputs["let_in"])["approved"] is False
    assert found.step_errors["let_in"].startswith("rejected: ")


async def test_an_ended_ceremony_refuses_decisions(world: World) -> None:
    # specification 13.4
    instance_id = await opened(world)
    await world.stub.TriggerTransition(trigger(instance_id, "shut"))
    with refused("FAILED_PRECONDITION", "already_ended"):
        await world.stub.DecideGate(decision(instance_id))


@pytest.mark.parametrize("field", ["instance_id", "actor", "step_id"])
@pytest.mark.parametrize("blank", ["", "  "])
async def test_a_decision_without_a_required_field_is_refused(world: World, field: str, blank: str) -> None:
    # specification 13.3
    made = decision("c:s")
    setattr(made, field, blank)
    with refused("INVALID_ARGUMENT", "field_required"):
        await world.stub.DecideGate(made)


@pytest.mark.parametrize(("field", "longest"), [("comment", 4096), ("actor", 256), ("role", 256), ("request_id", 256)])
async def test_a_decision_with_a_field_that_is_too_long_is_refused(world: World, field: str, longest: int) -> None:
    """If an actor or a request id were shortened, another with the same beginning would be equal to it."""
    # specification 14.17
    made = decision(await opened(world))
    setattr(made, field, "x" * (longest + 1))
    with refused("INVALID_ARGUMENT", "field_too_long") as seen:
        await world.stub.DecideGate(made)
    assert field in seen.details


async def test_a_decision_for_an_unknown_gate_is_not_found(world: World) -> None:
    with refused("NOT_FOUND", "gate_unknown"):
        await world.stub.DecideGate(decision(await opened(world), step_id="nothing"))


async def test_operations_on_an_unknown_instance_are_not_found(world: World) -> None:
    # specification 13.4
    with refused("NOT_FOUND", "unknown_instance"):
        await world.stub.DecideGate(decision("nobody:s"))
    with refused("NOT_FOUND", "unknown_instance"):
        await world.stub.TriggerTransition(trigger("nobody:s", "shut"))
    with refused("NOT_FOUND", "unknown_instance"):
        async for _ in world.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id="nobody:s")):
            raise AssertionError("an answer about nobody")


# -- triggers


async def test_a_trigger_moves_the_ceremony(world: World) -> None:
    # specification 13.5, 14.4
    instance_id = await opened(world)
    made = trigger(instance_id, "shut", request_id=uuid4().hex)
    answer = await world.stub.TriggerTransition(made)
    assert (answer.ceremony.status, answer.ceremony.current_state) == ("COMPLETED", "SHUT")
    again = await world.stub.TriggerTransition(made)
    assert again.ceremony.version == answer.ceremony.version


@pytest.mark.parametrize(("role", "code"), [("", "role_required"), ("CLERK", "role_not_allowed")])
async def test_a_trigger_needs_an_allowed_role(world: World, role: str, code: str) -> None:
    with refused("PERMISSION_DENIED", code):
        await world.stub.TriggerTransition(trigger(await opened(world), "shut", role=role))


async def test_a_trigger_of_another_state_is_refused(world: World) -> None:
    # specification 13.5
    with refused("FAILED_PRECONDITION", "trigger_unknown"):
        await world.stub.TriggerTransition(trigger(await opened(world), "finish", role="CLERK"))


async def test_a_trigger_is_refused_while_its_guards_do_not_hold(world: World) -> None:
    # specification 13.5
    instance_id = await opened(world)
    for actor in ("gus", "gil"):
        await world.stub.DecideGate(decision(instance_id, actor=actor))
    with refused("FAILED_PRECONDITION", "guards_not_met") as seen:
        await world.stub.TriggerTransition(trigger(instance_id, "finish", role="CLERK"))
    assert "clerk_agrees" in seen.details


@pytest.mark.parametrize("field", ["instance_id", "actor", "trigger"])
async def test_a_trigger_without_a_required_field_is_refused(world: World, field: str) -> None:
    made = trigger("c:s", "shut")
    setattr(made, field, " ")
    with refused("INVALID_ARGUMENT", "field_required"):
        await world.stub.TriggerTransition(made)


async def test_a_trigger_with_a_reason_that_is_too_long_is_refused(world: World) -> None:
    # specification 14.17
    made = trigger(await opened(world), "shut", reason="r" * (MAX_TEXT_CHARACTERS + 1))
    with refused("INVALID_ARGUMENT", "field_too_long"):
        await world.stub.TriggerTransition(made)


# -- reads


async def test_get_of_an_unknown_instance_is_ok_without_success(world: World) -> None:
    # specification 14.6
    answer = await world.stub.GetPlanningCeremonyInstance(pb.GetPlanningCeremonyInstanceRequest(instance_id="nobody:s"))
    assert (answer.success, answer.HasField("ceremony")) == (False, False)
    assert "nobody:s" in answer.message


async def test_get_needs_an_instance_id(world: World) -> None:
    with refused("INVALID_ARGUMENT", "field_required"):
        await world.stub.GetPlanningCeremonyInstance(pb.GetPlanningCeremonyInstanceRequest())


async def test_get_shows_an_open_gate(world: World) -> None:
    # specification 14.10
    instance_id = await opened(world)
    found = await world.get(instance_id)
    assert (found.status, found.step_status["let_in"]) == ("WAITING_FOR_HUMAN", "WAITING_FOR_HUMAN")
    assert json.loads(found.step_outputs["let_in"]) == {"role": "GUARD", "message": "Let it in?", "waiting": True}
    (gate,) = found.open_gates
    assert (gate.step_id, gate.role, gate.message, gate.visit, gate.quorum) == ("let_in", "GUARD", "Let it in?", 1, 2)
    assert found.waiting_for
    assert found.created_at.endswith("Z") and found.updated_at >= found.created_at


async def listed(world: World, **fields: Any) -> pb.ListPlanningCeremonyInstancesResponse:
    return await world.stub.ListPlanningCeremonyInstances(pb.ListPlanningCeremonyInstancesRequest(**fields))


async def test_list_returns_pages_of_all_matches(world: World) -> None:
    """Newest first, then by id; limit ≤ 0 is 100, offset < 0 is 0, and the total counts all matches."""
    # specification 14.8, 14.9
    await asyncio.gather(*(world.start("approval", f"many-{n:03d}", story_id="MANY") for n in range(101)))
    first = await listed(world, story_id="MANY", limit=0, offset=-5)
    rest = await listed(world, story_id="MANY", limit=5000, offset=100)
    assert (len(first.ceremonies), len(rest.ceremonies)) == (100, 1)
    assert (first.total_count, rest.total_count, first.success) == (101, 101, True)
    everything = [*first.ceremonies, *rest.ceremonies]
    assert sorted(everything, key=lambda c: c.instance_id) == sorted(
        (await listed(world, story_id="MANY", limit=1000)).ceremonies, key=lambda c: c.instance_id
    )
    by_id = sorted(everything, key=lambda c: c.instance_id)
    assert everything == sorted(by_id, key=lambda c: c.created_at, reverse=True)
    beyond = await listed(world, story_id="MANY", offset=101)
    assert (len(beyond.ceremonies), beyond.total_count) == (0, 101)


async def test_list_filters_by_state_definition_and_story(world: World) -> None:
    """Filters work alone and together; an empty filter matches everything."""
    # specification 14.8
    story = f"story-{uuid4().hex[:8]}"
    waiting = await opened(world, story_id=story)
    shut = await opened(world, story_id=story)
    await world.stub.TriggerTransition(trigger(shut, "shut"))
    await world.start("merge_chain", "c-other", story_id=story)

    async def ids(**fields: Any) -> set[str]:
        return {c.instance_id for c in (await listed(world, **fields)).ceremonies}

    assert await ids(story_id=story, state_filter="OPEN") == {waiting}
    assert await ids(story_id=story, definition_filter="doors") == {waiting, shut}
    assert await ids(story_id=story, definition_filter="doors", state_filter="SHUT") == {shut}
    assert await ids(story_id=story, state_filter="", definition_filter="") == {waiting, shut, f"c-other:{story}"}
    assert await ids(story_id=story, state_filter="NOWHERE") == set()


async def test_list_filters_by_input_time_correlation_role_error_and_subject(world: World) -> None:
    # specification 14.21
    story = f"story-{uuid4().hex[:8]}"
    red = await opened(world, story_id=story, inputs={"note": "red"})
    await opened(world, story_id=story, inputs={"note": "blue"})
    agreed = await opened(world, story_id=story, inputs={"note": "red"})
    await world.stub.TriggerTransition(trigger(agreed, "shut"))
    rejected = await opened(world, story_id=story, inputs={"note": "blue"})
    await world.stub.DecideGate(decision(rejected, approved=False))

    async def ids(**fields: Any) -> set[str]:
        return {c.instance_id for c in (await listed(world, story_id=story, **fields)).ceremonies}

    found = await world.client.get(red)
    assert found is not None
    assert await ids(input_filters={"note": "red"}) == {red, agreed}
    assert await ids(input_filters={"note": "red"}, gate_role_filter="GUARD") == {red}
    assert await ids(correlation_filter=red) == {red}
    assert await ids(error_code_filter="rejected") == {rejected}
    assert red in await ids(created_from=found.created_at) and red not in await ids(created_before=found.created_at)
    assert await ids(subject_filter="nothing.was.published") == set()
    unknown = await listed(world, input_filters={"colour": "red"})
    note = "no present definition names colour in `inputs.searchable`; searchable are note, title, urgent"
    assert unknown.message == note and not unknown.ceremonies
    other = await listed(world, input_filters={"note": "red"}, definition_filter="planning")
    note = "definition planning does not name note in `inputs.searchable`; searchable are title, urgent"
    assert other.message == note and not other.ceremonies


async def test_the_pages_of_a_list_stay_in_place_while_ceremonies_start(world: World) -> None:
    # specification 14.22
    story = f"story-{uuid4().hex[:8]}"
    started = {await world.start("approval", f"stay-{number}", story_id=story) for number in range(5)}
    found: list[str] = []
    token = ""
    while True:
        page = await listed(world, story_id=story, limit=2, page_token=token)
        found += [one.instance_id for one in page.ceremonies]
        token = page.next_page_token
        if not token:
            break
        await world.start("approval", f"new-{len(found)}", story_id=story)
    assert sorted(found) == sorted(started)
    with refused("INVALID_ARGUMENT", "page_token_invalid"):
        await listed(world, story_id=story, page_token="nonsense")


async def test_a_page_ends_before_three_mebibytes(world: World) -> None:
    """The other rows are left for the next page, and the total counts them."""
    # specification 14.9
    payload = {"text": "x" * 200_000}
    started = [
        await world.start("selecting", f"big-{n}", story_id="BIG", inputs={"payload": payload}) for n in range(9)
    ]

    async def all_held() -> bool:
        return (await listed(world, story_id="BIG", state_filter="HELD", limit=1)).total_count == len(started)

    await until(all_held, "the large ceremonies wait at their gate")
    answer = await listed(world, story_id="BIG")
    assert 0 < len(answer.ceremonies) < len(started)
    assert answer.ByteSize() <= LARGEST_ANSWER_BYTES + 64
    rest = await listed(world, story_id="BIG", offset=len(answer.ceremonies))
    assert len(answer.ceremonies) + len(rest.ceremonies) == answer.total_count == len(started)


async def test_watch_streams_each_change_until_the_end(world: World) -> None:
    # specification 14.11
    instance_id = await opened(world)
    seen: list[pb.PlanningCeremonyInstance] = []

    async def follow() -> None:
        async for ceremony in world.client.watch(instance_id):
            seen.append(ceremony)  # noqa: PERF401 - one by one, on arrival

    following = asyncio.create_task(follow())
    await until(lambda: seen, "the present row is shown")
    await world.finish(instance_id)
    await asyncio.wait_for(following, 30)
    versions = [ceremony.version for ceremony in seen]
    assert versions == sorted(set(versions)) and len(versions) > 2
    assert (seen[0].status, seen[-1].status) == ("WAITING_FOR_HUMAN", "COMPLETED")


async def test_watch_of_an_ended_ceremony_streams_its_last_row(world: World) -> None:
    # specification 14.11
    instance_id = await opened(world)
    await world.stub.TriggerTransition(trigger(instance_id, "shut"))
    found = [ceremony.status async for ceremony in world.client.watch(instance_id)]
    assert found == ["COMPLETED"]


async def test_a_watcher_is_removed_when_its_client_leaves(world: World) -> None:
    instance_id = await opened(world)
    call = world.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id=instance_id))
    await call.read()
    call.cancel()
    watchers = world.worker.engine.reads._watchers
    await until(lambda: instance_id.encode() not in watchers._events, "the watcher is forgotten")


# -- reads of operators


async def test_dead_letters_are_listed_newest_first(world: World) -> None:
    """Entries have origin, code and size; with a topic only its dead letters are listed."""
    # specification 19.4
    engine, topic = world.worker.engine, f"{world.worker.settings.topic_prefix}.commands"
    await engine.commands.send(1, b"some key", b"no JSON")
    await engine.commands.send(1, b"another key", b'{"type":"cancel","instance_id":"c:s","actor":"a"}')

    async def both() -> pb.ListDeadLettersResponse | None:
        found = await world.stub.ListDeadLetters(pb.ListDeadLettersRequest(topic_filter=topic))
        return found if found.total_count == 2 else None

    found = await until(both, "both are dead letters")
    mismatch, undecodable = found.dead_letters
    assert (mismatch.code, mismatch.key) == ("key_mismatch", "another key")
    assert (undecodable.code, undecodable.key, undecodable.size) == ("command_undecodable", "some key", 7)
    assert (undecodable.origin, undecodable.partition) == (topic, 1)
    one = await world.stub.ListDeadLetters(pb.ListDeadLettersRequest(topic_filter=topic, limit=1, offset=1))
    assert ([letter.code for letter in one.dead_letters], one.total_count) == (["command_undecodable"], 2)
    none = await world.stub.ListDeadLetters(pb.ListDeadLettersRequest(topic_filter="elsewhere"))
    assert (len(none.dead_letters), none.total_count) == (0, 0)


async def test_definitions_are_listed_with_their_problems(world: World) -> None:
    # specification 2.15, 14.12
    found = {summary.name: summary for summary in await world.client.definitions()}
    assert found["doors"].valid and found["doors"].hash and not found["doors"].problems
    assert not found["broken"].valid and not found["broken"].hash
    assert all(problem.startswith("broken.yaml:") for problem in found["broken"].problems)
    assert list(found) == sorted(found)


# -- health and reflection


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_serving_when_the_worker_is_ready(world: World, service: str) -> None:
    # specification 14.18
    stub: Any = health_pb2_grpc.HealthStub(world.channel)

    async def serving() -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    await until(serving, f"health of {service!r} is SERVING")


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_can_be_watched(world: World, service: str) -> None:
    """The watcher hears of each change. A service without a name of ours is unknown until it has one."""
    # specification 14.18
    stub: Any = health_pb2_grpc.HealthStub(world.channel)
    watching = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    while (await watching.read()).status != health_pb2.HealthCheckResponse.SERVING:
        pass
    watching.cancel()
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="somebody.else"))
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


async def test_health_of_an_unknown_service_is_not_found(world: World) -> None:
    stub: Any = health_pb2_grpc.HealthStub(world.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="somebody.else"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_service_and_its_file(world: World) -> None:
    # specification 14.18
    channel: Any = world.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    assert SERVICE in {service.name for service in answer.list_services_response.service}
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
    answer = await call.read()
    files = [FileDescriptorProto.FromString(f) for f in answer.file_descriptor_response.file_descriptor_proto]
    assert any(service.name == "PlanningCeremonyProcessor" for file in files for service in file.service)
    await call.done_writing()

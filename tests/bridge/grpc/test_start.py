"""StartPlanningCeremony over a real socket, on the real engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc import servicer
from streams.turns import LONGEST_REST_SECONDS
from tables.commands import PutDefinition, Start, encode_command
from tests.bridge.grpc.world import definitions_folder, refused
from tests.e2e.world import World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("grpc-start")
    definitions = definitions_folder(folder / "definitions")
    async with World(folder, f"sqlite://{folder}/log.db", CEREMONIES_DIR=str(definitions)) as made:
        yield made


def fresh() -> str:
    return f"c-{uuid4().hex[:12]}"


def request(ceremony_id: str = "", **more: Any) -> pb.StartPlanningCeremonyRequest:
    fields: dict[str, Any] = {
        "ceremony_id": ceremony_id or fresh(),
        "story_id": "S1",
        "definition_name": "selecting",
        "requested_by": "anna",
        "inputs": {"payload": '{"a": 1}'},
    }
    fields.update(more)
    struct: Mapping[str, Any] | None = fields.pop("inputs_json", None)
    made = pb.StartPlanningCeremonyRequest(**fields)
    if struct is not None:
        made.inputs_json.update(struct)
    return made


async def stored_inputs(world: World, ceremony_id: str) -> dict[str, Any]:
    row = world.worker.engine.reads.get(f"{ceremony_id}:S1")
    assert row is not None
    return row.inputs


async def test_an_accepted_start_returns_the_instance_id(world: World) -> None:
    # specification 1.1, 10.3
    answer = await world.stub.StartPlanningCeremony(request("c-plain"))
    assert (answer.instance_id, answer.status) == ("c-plain:S1", "accepted")
    found = await world.get("c-plain:S1")
    assert (found.ceremony_id, found.story_id, found.definition_name) == ("c-plain", "S1", "selecting")
    assert found.correlation_id == "c-plain:S1"


async def test_large_starts_are_spaced_by_the_work_to_fold_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several that end their conversion at once would be folded in one batch, and every other call waits for it."""
    # specification 14.20
    monkeypatch.setattr(servicer, "FOLDING_SECONDS_PER_BYTE", 1.0)  # the longest rest after each
    large = {"payload": json.dumps(["x" * servicer.LARGE_INPUTS_BYTES])}
    began = time.monotonic()
    await asyncio.gather(*(world.stub.StartPlanningCeremony(request(inputs=large)) for _ in range(11)))
    assert time.monotonic() - began >= 10 * LONGEST_REST_SECONDS * 0.9


@pytest.mark.parametrize("field", ["ceremony_id", "story_id", "definition_name", "requested_by"])
@pytest.mark.parametrize("value", ["", "  "])
async def test_a_start_without_a_required_field_is_refused(world: World, field: str, value: str) -> None:
    """An empty or blank field is INVALID_ARGUMENT, and the message names it."""
    # specification 10.1
    made = request()
    setattr(made, field, value)
    code = "invalid_id" if value and field.endswith("_id") else "field_required"
    with refused("INVALID_ARGUMENT", code) as seen:
        await world.stub.StartPlanningCeremony(made)
    assert field in seen.details


@pytest.mark.parametrize("bad", [":", "a:b", "-a", ".a", "a b", "ä", "a" * 129, "a\n", "../a"])
@pytest.mark.parametrize("field", ["ceremony_id", "story_id"])
async def test_ids_that_would_make_an_ambiguous_instance_id_are_refused(world: World, field: str, bad: str) -> None:
    # specification 1.1, 10.1
    made = request()
    setattr(made, field, bad)
    with refused("INVALID_ARGUMENT", "invalid_id"):
        await world.stub.StartPlanningCeremony(made)


@pytest.mark.parametrize("name", ["nowhere", "../specs/approval", "approval.yaml", "", "a/b"])
async def test_an_unknown_definition_is_not_found(world: World, name: str) -> None:
    """A path is NOT_FOUND too; no file outside the folder is read."""
    # specification 2.1, 10.2
    made = request(definition_name=name or "x" * 5000)
    with refused("NOT_FOUND", "definition_unknown"):
        await world.stub.StartPlanningCeremony(made)


@pytest.mark.parametrize(("name", "rule"), [("broken", "states"), ("selfish", "subject_not_allowed")])
async def test_an_invalid_definition_is_refused_with_its_problems(world: World, name: str, rule: str) -> None:
    """Both rules of the language and the server's publish allowlist lead to INVALID_ARGUMENT."""
    # specification 9.4, 10.2
    with refused("INVALID_ARGUMENT", "definition_invalid") as seen:
        await world.stub.StartPlanningCeremony(request(definition_name=name, inputs={}))
    assert rule in seen.details
    assert f"{name}.yaml" in seen.details


async def test_a_repeated_start_gets_the_first_answer(world: World) -> None:
    """Correlation id, requested_by, the notation of JSON and the order of step ids make no difference."""
    # specification 10.4, 10.5
    await world.stub.StartPlanningCeremony(request("c-again", step_ids=["one", "two"], correlation_id="first"))
    again = request(
        "c-again",
        step_ids=["two", "one", "two"],
        correlation_id="second",
        requested_by="bert",
        inputs={"payload": '{ "a" : 1.0 }'.replace("1.0", "1")},
    )
    answer = await world.stub.StartPlanningCeremony(again)
    assert (answer.instance_id, answer.status) == ("c-again:S1", "accepted")
    assert (await world.get("c-again:S1")).correlation_id == "first"


async def test_selecting_all_steps_equals_selecting_none(world: World) -> None:
    # specification 10.4
    await world.stub.StartPlanningCeremony(request("c-all"))
    answer = await world.stub.StartPlanningCeremony(request("c-all", step_ids=["hold", "one", "two"]))
    assert answer.status == "accepted"


async def test_inputs_as_texts_and_as_a_struct_are_equal(world: World) -> None:
    await world.stub.StartPlanningCeremony(request("c-struct"))
    answer = await world.stub.StartPlanningCeremony(request("c-struct", inputs={}, inputs_json={"payload": {"a": 1}}))
    assert answer.status == "accepted"


@pytest.mark.parametrize(
    "other",
    [
        {"inputs": {"payload": '{"a": 2}'}},
        {"inputs": {"payload": '{"a": 1}', "more": ""}},
        {"inputs": {"payload": '{"a": true}'}},
        {"step_ids": ["one"]},
        {"definition_name": "merge_chain"},
    ],
    ids=["value", "one more input", "true is not 1", "step_ids", "definition"],
)
async def test_the_same_id_with_other_content_already_exists(world: World, other: dict[str, Any]) -> None:
    # specification 10.5
    ceremony_id = fresh()
    await world.stub.StartPlanningCeremony(request(ceremony_id))
    with refused("ALREADY_EXISTS", "already_exists"):
        await world.stub.StartPlanningCeremony(request(ceremony_id, **other))


async def test_an_edit_of_the_file_does_not_change_a_repeated_start(world: World) -> None:
    """It gets the first answer, and the instance keeps its definition."""
    # specification 1.2, 10.4
    file = world.worker.definitions.folder / "edited.yaml"
    text = (world.worker.definitions.folder / "selecting.yaml").read_text().replace("name: selecting", "name: edited")
    file.write_text(text)
    await world.stub.StartPlanningCeremony(request("c-edited", definition_name="edited"))
    before = await world.get("c-edited:S1")
    file.write_text(text + "# a comment changes the hash\n")
    answer = await world.stub.StartPlanningCeremony(request("c-edited", definition_name="edited"))
    assert answer.status == "accepted"
    assert (await world.get("c-edited:S1")).definition_hash == before.definition_hash
    await world.stub.StartPlanningCeremony(request("c-edited-2", definition_name="edited"))
    assert (await world.get("c-edited-2:S1")).definition_hash != before.definition_hash


@pytest.mark.parametrize(
    "edit", ["required", "step", "broken", "gone"], ids=["another input", "another step id", "invalid", "deleted"]
)
async def test_a_repeated_start_gets_the_same_answer_after_its_file_changed(world: World, edit: str) -> None:
    """The pinned definition of the ceremony decides; for another ceremony the file decides."""
    # specification 1.2, 10.4
    folder, name = world.worker.definitions.folder, f"edited_{edit}"
    text = (folder / "selecting.yaml").read_text().replace("name: selecting", f"name: {name}")
    file = folder / f"{name}.yaml"
    file.write_text(text)
    made = request(f"c-{edit}", definition_name=name, step_ids=["one"])
    await world.stub.StartPlanningCeremony(made)
    match edit:
        case "required":
            file.write_text(text.replace("required: [payload]", "required: [payload, more_of_it]"))
        case "step":
            file.write_text(text.replace("id: one,", "id: first,"))
        case "broken":
            file.write_text("states: []\n")
        case "gone":
            file.unlink()
    assert (await world.stub.StartPlanningCeremony(made)).status == "accepted"
    made.ceremony_id = fresh()
    with pytest.raises(grpc.aio.AioRpcError):
        await world.stub.StartPlanningCeremony(made)


async def test_the_log_decides_between_racing_starts(world: World) -> None:
    """Exactly one of many different starts with one id is accepted; the others are ALREADY_EXISTS."""
    # specification 10.6
    ceremony_id = fresh()
    calls = [
        world.stub.StartPlanningCeremony(request(ceremony_id, inputs={"payload": json.dumps({"n": n})}))
        for n in range(8)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    codes = [o.code().name for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert codes == ["ALREADY_EXISTS"] * 7


async def test_a_late_start_without_a_waiting_client_is_refused_by_an_event(world: World) -> None:
    """It stands behind another start with the same id, as if a worker had already answered `accepted`."""
    # specification 10.6
    ceremony_id = fresh()
    instance_id = f"{ceremony_id}:S1"
    await world.stub.StartPlanningCeremony(request(ceremony_id))
    definition = world.worker.definitions.get("selecting")
    log, engine = world.worker.app.commit_log, world.worker.engine
    partition = log.partition_of(instance_id.encode(), 3)
    late = Start(
        instance_id=instance_id,
        ceremony_id=ceremony_id,
        story_id="S1",
        definition_name="selecting",
        definition_hash=definition.hash,
        correlation_id="late",
        requested_by="bert",
        inputs={"payload": {"b": 2}, "ceremony_id": ceremony_id, "story_id": "S1"},
        command_id="somebody else's",
    )
    put = encode_command(PutDefinition(hash=definition.hash, text=definition.text))
    await engine.commands.send(partition, definition.hash.encode(), put)
    await engine.commands.send(partition, instance_id.encode(), encode_command(late))

    async def event() -> Any:
        found = await world.messages(instance_id)
        return [m for m in found if m.subject == "ceremony.start.refused"]

    (message,) = await until(event, "ceremony.start.refused")
    assert message.envelope["payload"]["code"] == "already_exists"
    assert message.envelope["correlation_id"] == "late"


async def test_the_correlation_id_may_come_as_metadata(world: World) -> None:
    # specification 10.14
    await world.stub.StartPlanningCeremony(request("c-meta"), metadata=(("x-correlation-id", "from-metadata"),))
    assert (await world.get("c-meta:S1")).correlation_id == "from-metadata"


async def test_the_field_takes_precedence_over_the_metadata(world: World) -> None:
    # specification 10.14
    made = request("c-field", correlation_id="from-field")
    await world.stub.StartPlanningCeremony(made, metadata=(("x-correlation-id", "from-metadata"),))
    assert (await world.get("c-field:S1")).correlation_id == "from-field"


async def test_a_blank_correlation_id_is_replaced_by_the_instance_id(world: World) -> None:
    # specification 10.14
    made = request("c-blank", correlation_id="   ")
    await world.stub.StartPlanningCeremony(made, metadata=(("x-correlation-id", "  "),))
    assert (await world.get("c-blank:S1")).correlation_id == "c-blank:S1"


async def test_every_answer_carries_the_correlation_id(world: World) -> None:
    """A repeated start is answered with the first one's, which is the ceremony's."""
    # specification 1.7
    made = request("c-told", correlation_id="größe", definition_name="selecting")
    get = pb.GetPlanningCeremonyInstanceRequest(instance_id="c-told:S1")
    first = world.stub.StartPlanningCeremony(made)
    await first
    again = world.stub.StartPlanningCeremony(request("c-told", correlation_id="another"))
    await again
    read = world.stub.GetPlanningCeremonyInstance(get)
    await read
    watched = world.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id="c-told:S1"))
    for call in (first, again, read, watched):
        assert dict(await call.initial_metadata())["x-correlation-id"] == "gr%C3%B6%C3%9Fe"
    watched.cancel()


async def test_inputs_that_are_json_objects_or_arrays_are_parsed(world: World) -> None:
    # specification 10.8
    ceremony_id = fresh()
    await world.stub.StartPlanningCeremony(request(ceremony_id, inputs={"payload": "[1, {}]", "more": '"text"'}))
    found = await stored_inputs(world, ceremony_id)
    assert found == {"payload": [1, {}], "more": '"text"', "ceremony_id": ceremony_id, "story_id": "S1"}


async def test_an_undeclared_input_is_kept(world: World) -> None:
    # specification 10.10
    ceremony_id = fresh()
    await world.stub.StartPlanningCeremony(request(ceremony_id, inputs={"payload": "{}", "unheard_of": "[1]"}))
    assert (await stored_inputs(world, ceremony_id))["unheard_of"] == [1]


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({}, "input_missing"),
        ({"payload": "{}", "story_id": "S2"}, "inputs_invalid"),
        ({"payload": "{}", "ceremony_id": "another"}, "inputs_invalid"),
        ({"payload": "[" * 65 + "]" * 65}, "inputs_too_deep"),
        ({"payload": json.dumps({"a": "x" * (256 * 1024)})}, "inputs_too_large"),
        ({"payload": "[" + "[]," * (1024 * 1024) + "1]"}, "inputs_too_large"),
    ],
    ids=["missing", "story_id", "ceremony_id", "deep", "large", "huge"],
)
async def test_invalid_inputs_are_refused(world: World, inputs: dict[str, str], code: str) -> None:
    # specification 10.9, 10.10, 10.11
    with refused("INVALID_ARGUMENT", code):
        await world.stub.StartPlanningCeremony(request(inputs=inputs))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
async def test_a_struct_that_is_not_json_is_refused(world: World, number: float) -> None:
    with refused("INVALID_ARGUMENT", "inputs_invalid"):
        await world.stub.StartPlanningCeremony(request(inputs={}, inputs_json={"payload": [number]}))


async def test_a_struct_value_without_a_kind_is_refused(world: World) -> None:
    made = request(inputs={})
    made.inputs_json.fields["payload"].SetInParent()
    with refused("INVALID_ARGUMENT", "inputs_invalid"):
        await world.stub.StartPlanningCeremony(made)


async def test_an_undecodable_request_is_refused(world: World) -> None:
    """So is a Struct that nests deeper than protobuf reads: INVALID_ARGUMENT without the library's text."""
    # specification 14.17
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    made = request(inputs={})
    made.inputs_json.update({"payload": deep})
    with refused("INVALID_ARGUMENT", "request_undecodable"):
        await world.stub.StartPlanningCeremony(made)
    call: Any = world.channel.unary_unary("/fleet.planning_ceremony.v1.PlanningCeremonyProcessor/StartPlanningCeremony")
    with refused("INVALID_ARGUMENT", "request_undecodable"):
        await call(b"\xff\xff\xff")
    watch: Any = world.channel.unary_stream(
        "/fleet.planning_ceremony.v1.PlanningCeremonyProcessor/WatchPlanningCeremony"
    )
    with refused("INVALID_ARGUMENT", "request_undecodable"):
        async for _ in watch(b"\xff\xff\xff"):
            raise AssertionError("an answer to nothing")


async def test_an_undecodable_message_of_a_stream_is_refused(world: World) -> None:
    """Reflection is a stream of requests; grpc.aio itself would answer with the text of protobuf's exception."""
    call: Any = world.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with refused("INVALID_ARGUMENT", "request_undecodable"):
        async for _ in call(iter([b"\xff\xff\xff"])):
            raise AssertionError("an answer to nothing")


async def test_an_input_given_as_text_and_in_the_struct_is_refused(world: World) -> None:
    # specification 10.8
    with refused("INVALID_ARGUMENT", "input_twice"):
        await world.stub.StartPlanningCeremony(request(inputs_json={"payload": {"a": 1}}))


async def test_an_unknown_step_is_refused(world: World) -> None:
    # specification 10.12
    with refused("INVALID_ARGUMENT", "step_unknown") as seen:
        await world.stub.StartPlanningCeremony(request(step_ids=["one", "three"]))
    assert "three" in seen.details and "one, two, hold" in seen.details


@pytest.mark.parametrize("names", [["x" * 100_000], [f"s{n}" for n in range(10_000)], ["é" * 50] * 30, ["😀" * 3000]])
async def test_every_refusal_fits_into_the_trailers(world: World, names: list[str]) -> None:
    """A client that sends much gets a message of limited length; a longer one would arrive as RESOURCE_EXHAUSTED."""
    # specification 14.2
    with refused("INVALID_ARGUMENT", "step_unknown"):
        await world.stub.StartPlanningCeremony(request(step_ids=names))
    with refused("NOT_FOUND", "definition_unknown"):
        await world.stub.StartPlanningCeremony(request(definition_name="".join(names)))


async def test_only_selected_steps_run(world: World) -> None:
    # specification 10.12, 10.13
    ceremony_id = fresh()
    await world.stub.StartPlanningCeremony(request(ceremony_id, step_ids=["two", "hold", "two"]))
    found = await world.finish(f"{ceremony_id}:S1")
    assert (found.status, dict(found.step_status)) == (
        "COMPLETED",
        {"one": "PENDING", "two": "COMPLETED", "hold": "COMPLETED"},
    )


async def test_every_call_in_a_burst_of_one_start_is_answered(world: World) -> None:
    """By default gRPC limits waiting calls, and ends random calls of a burst as CANCELLED."""
    ceremony_id = fresh()
    starts = [world.stub.StartPlanningCeremony(request(ceremony_id)) for _ in range(2500)]
    answers = await asyncio.gather(*starts)
    assert {(answer.instance_id, answer.status) for answer in answers} == {(f"{ceremony_id}:S1", "accepted")}


@pytest.mark.parametrize("field", ["requested_by", "correlation_id"])
async def test_texts_that_are_too_long_are_refused(world: World, field: str) -> None:
    # specification 10.1
    made = request()
    setattr(made, field, "x" * 257)
    with refused("INVALID_ARGUMENT", "field_too_long"):
        await world.stub.StartPlanningCeremony(made)


async def test_refused_starts_leave_no_instance(world: World) -> None:
    """Also after other starts List returns accepted ceremonies only."""
    # specification 10.7
    page = await world.client.list(story_id="S2", limit=1000)
    assert page.total_count == 0

"""Nothing that leaves a running engine holds a secret or a raw prompt, whatever inputs, agents and people bring in."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony import logs
from ceremony.dev.ray_simulation import answers
from tests.bridge.nats.world import client, stored
from tests.e2e.world import World, until
from tests.steps.secrets.planted import planted

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLANTED = list(planted(7))
SECRETS = sorted({one.secret for one in PLANTED})
TEXTS = [one.text for one in PLANTED]
TOKEN = PLANTED[0].secret
MARKER = f"[redacted:{PLANTED[0].rule}]"
PROMPT = "Weigh every risk of the story below as a patient architect would do it"
EXTRACTION = "Cut the deliberations into tasks that one person finishes in a day"
RAW_PARTS = (PROMPT[10:60], EXTRACTION[5:50])
DEFINITION = f"""
version: "1.0"
name: leaky
description: Every kind of step gets secrets.
inputs: {{required: [texts, note]}}
states:
  - {{id: WORK, description: All work, initial: true}}
  - {{id: ASKED, description: People are asked}}
  - {{id: TOLD, description: The world is told}}
  - {{id: DONE, description: Done, terminal: true}}
  - {{id: STOPPED, description: A payload was refused, terminal: true}}
transitions:
  - {{from: WORK, to: ASKED, trigger: worked, description: All is there}}
  - {{from: ASKED, to: TOLD, trigger: agreed, description: They agree}}
  - {{from: TOLD, to: DONE, trigger: told, description: It is told}}
  - {{from: TOLD, to: STOPPED, trigger: refused, description: It must not be told}}
steps:
  - id: collect
    state: WORK
    handler: aggregation_step
    config: {{sources: [texts], aggregation_type: list}}
  - id: weigh
    state: WORK
    handler: deliberation_step
    config: {{prompt: "{PROMPT}: ${{inputs.note}}", role: ARCHITECT, num_agents: 1}}
  - id: cut
    state: WORK
    handler: task_extraction_step
    config: {{source: "deliberation:weigh", extraction_prompt: "{EXTRACTION}."}}
  - {{id: ask, state: ASKED, handler: human_gate_step, config: {{role: OWNER, message: "Agree to ${{inputs.note}}?"}}}}
  - id: publish_all
    state: TOLD
    handler: publish_step
    on_failure: refused
    config:
      subject: ceremony.told
      event_type: told
      payload_template: {{note: "${{inputs.note}}", collected: "${{steps.collect}}", echo: "${{steps.weigh}}"}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Agents answer with a secret and a phrase of their prompt."""
    folder = tmp_path_factory.mktemp("exits")
    (folder / "leaky.yaml").write_text(DEFINITION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "proposal", lambda *_: f"They said «{PROMPT}», and so I used {TOKEN}. {TEXTS}")
        patch.setattr(
            answers, "tasks", lambda *_: [{"title": f"{EXTRACTION}: {TOKEN}", "description": " ".join(TEXTS)}]
        )
        async with World(folder, f"sqlite://{folder}/log.db", CEREMONIES_DIR=str(folder)) as made:
            yield made


@pytest.fixture(autouse=True)
def log_lines(capsys: pytest.CaptureFixture[str], world: World) -> Iterator[pytest.CaptureFixture[str]]:
    """Log to stderr as `serve` does."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("DEBUG", "json")
    structlog.configure(cache_logger_on_first_use=False)  # else these loggers would outlive the test
    logs.redact_with(world.worker.engine.redactor)
    yield capsys
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def unescaped(text: str) -> str:
    """Undo the escapes of JSON, however deep."""
    for _ in range(6):
        text = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), text)
        text = text.replace("\\n", "\n").replace('\\"', '"').replace("\\/", "/").replace("\\\\", "\\")
    return text


def assert_clean(exit_name: str, data: bytes | str) -> None:
    text = unescaped(data.decode(errors="replace") if isinstance(data, bytes) else data)
    for secret in SECRETS:
        assert secret not in text, f"{exit_name}: {text[max(0, text.index(secret) - 200) :][:260]}"
    for part in RAW_PARTS:
        assert part not in text, f"{exit_name}: {text[max(0, text.index(part) - 200) :][:260]}"


async def ended(world: World, name: str) -> str:
    """Start a ceremony with all planted secrets, and decide its gate with a secret in the comment."""
    note = f"use {TOKEN} please"
    instance_id = await world.start("leaky", name, inputs={"texts": json.dumps(TEXTS), "note": note})

    async def gate() -> Any:
        return (await world.get(instance_id)).open_gates

    await until(gate, "the gate is open")
    await world.client.decide(
        instance_id, approved=True, actor="anna", role="OWNER", step_id="ask", comment=f"{PROMPT} {TOKEN}"
    )
    return instance_id


async def test_no_event_answer_or_log_line_holds_a_secret(world: World, log_lines: pytest.CaptureFixture[str]) -> None:
    # specification 27.8, 27.9, 27.10, 27.11, 27.12
    log_lines.readouterr()
    instance_id = await ended(world, "c1")

    async def over() -> Any:
        return (await world.get(instance_id)).current_state == "STOPPED"

    await until(over, "the publish step is refused")
    row = world.worker.engine.reads.get(instance_id)
    assert row is not None
    assert row.inputs["texts"] == TEXTS  # the table keeps the original
    assert TOKEN in str(row.steps["weigh"].output)
    assert any(TOKEN in request.task_description for _, request in world.ray.calls)  # and so does the task of agents
    refused = row.steps["publish_all"]
    assert refused.error_code == "payload_rejected"
    assert refused.attempt == 1
    assert "$.note (aws_access_key_id)" in refused.error_message
    assert_clean("the table's own error", refused.error_message)

    for message in await stored(world.nats.url):
        if not message.subject.startswith("agent."):
            assert_clean(message.subject, message.data)
            assert not message.subject.startswith("ceremony.told")
    for name, answer in (await answers_of(world, instance_id)).items():
        assert_clean(name, answer.SerializeToString())
        assert MARKER in str(answer) or name in ("definitions", "dead letters"), name
    assert_clean("readyz", (await world.http("/readyz"))[1])
    assert_clean("metrics", (await world.http("/metrics"))[1])
    said = log_lines.readouterr().err
    assert "payload_rejected" in said
    assert_clean("log", said)


async def answers_of(world: World, instance_id: str) -> dict[str, Any]:
    """Ask for everything that the service can tell of a ceremony."""
    stub = world.stub
    watched = stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id=instance_id))
    return {
        "get": await stub.GetPlanningCeremonyInstance(pb.GetPlanningCeremonyInstanceRequest(instance_id=instance_id)),
        "list": await stub.ListPlanningCeremonyInstances(pb.ListPlanningCeremonyInstancesRequest()),
        "watch": await anext(aiter(watched)),
        "history": await stub.GetHistory(pb.GetHistoryRequest(instance_id=instance_id)),
        "definitions": await stub.ListDefinitions(pb.ListDefinitionsRequest()),
        "dead letters": await stub.ListDeadLetters(pb.ListDeadLettersRequest()),
    }


async def test_a_watch_and_an_open_gate_show_no_secret(world: World) -> None:
    # specification 27.9
    instance_id = await world.start("leaky", "c2", inputs={"texts": json.dumps(TEXTS), "note": f"use {TOKEN} please"})
    shown = []
    async for one in world.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id=instance_id)):
        assert_clean("watch", one.SerializeToString())
        shown.append(one)
        if one.ceremony.open_gates:
            break
    assert shown[-1].ceremony.open_gates[0].message == f"Agree to use {MARKER} please?"
    diagnosed = await world.stub.Diagnose(pb.DiagnoseRequest(instance_id=instance_id))
    assert_clean("diagnose", diagnosed.SerializeToString())
    cancelled = await world.stub.CancelCeremony(
        pb.CancelCeremonyRequest(instance_id=instance_id, actor="anna", reason=f"it showed {TOKEN}")
    )
    assert_clean("cancel", cancelled.SerializeToString())


async def test_dead_letters_show_and_announce_no_secret(world: World) -> None:
    # specification 27.8, 27.9
    body = {"event_type": "agent.response.completed", "payload": {"task_id": 7, "proposal": [TOKEN, PROMPT, *TEXTS]}}
    async with client(world.nats.url) as nats:
        await nats.jetstream().publish("agent.response.completed", json.dumps(body).encode())

    async def letter() -> Any:
        return (await world.client.dead_letters(limit=10)).dead_letters

    (found,) = await until(letter, "the message is set aside")
    shown = await world.stub.ShowDeadLetter(
        pb.ShowDeadLetterRequest(origin=found.origin, partition=found.partition, offset=found.offset)
    )
    assert_clean("dead letter", shown.SerializeToString())
    assert MARKER in shown.body.decode()
    assert "[redacted:raw_prompt]" in shown.body.decode()


async def test_errors_and_metadata_of_calls_hold_no_secret(world: World) -> None:
    # specification 27.9
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub.GetHistory(pb.GetHistoryRequest(instance_id=f"no {TOKEN}"))
    assert MARKER in (refused.value.details() or "")
    assert_clean("error", refused.value.details() or "")
    trailing = dict(refused.value.trailing_metadata() or ())
    assert MARKER.encode() in trailing["grpc-status-details-bin"]
    assert_clean("details", trailing["grpc-status-details-bin"])


@pytest.mark.parametrize("field", ["ceremony_id", "story_id", "correlation_id"])
async def test_an_id_with_a_secret_is_refused(world: World, field: str) -> None:
    # specification 27.13
    ids: dict[str, Any] = {"ceremony_id": "c3", "story_id": "S1", "correlation_id": "c", field: f"x.{TOKEN}"}
    request = pb.StartPlanningCeremonyRequest(definition_name="leaky", requested_by="anna", **ids)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.stub.StartPlanningCeremony(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith(f"secret_in_id: {field} ")
    assert_clean("error", refused.value.details() or "")


async def test_a_clean_payload_is_published_as_it_is(world: World) -> None:
    # specification 27.11
    text = DEFINITION.replace("leaky", "clean").replace(', collected: "${steps.collect}", echo: "${steps.weigh}"', "")
    (Path(world.worker.definitions.folder) / "clean.yaml").write_text(text)
    instance_id = await world.start("clean", "c4", inputs={"texts": "[]", "note": "the password is in the vault"})
    found = await world.finish(instance_id)
    assert found.current_state == "DONE"
    (message,) = [one for one in await world.messages(instance_id) if one.subject == "ceremony.told"]
    assert message.envelope["payload"] == {"note": "the password is in the vault"}

"""Every answer is redacted: texts, maps, bytes and nested messages, also those that another worker encoded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.redaction import AnswerRedaction, CleanBytes, RedactingContext, encoded
from bridge.grpc.server import SERVICE
from steps.secrets.redactor import TextRedactor
from tests.steps.secrets.planted import planted

REDACTOR = TextRedactor()
SECRETS = [one for one in planted() if not one.text.startswith("{")]
SECRET, MARKER = SECRETS[0].secret, "[redacted:aws_access_key_id]"
GET = f"/{SERVICE}/GetPlanningCeremonyInstance"


@pytest.mark.parametrize("one", SECRETS, ids=lambda one: one.rule)
def test_a_secret_in_any_field_is_redacted(one: Any) -> None:
    answer = pb.PlanningCeremonyInstance(
        instance_id="c1:s1",
        error_message=one.text,
        step_errors={"a": one.text},
        waiting_for=["b", one.text],
        open_gates=[pb.OpenGate(message=one.text)],
    )
    found = pb.PlanningCeremonyInstance.FromString(encoded(answer, REDACTOR))
    clean = one.text.replace(one.secret, f"[redacted:{one.rule}]")
    assert found == pb.PlanningCeremonyInstance(
        instance_id="c1:s1",
        error_message=clean,
        step_errors={"a": clean},
        waiting_for=["b", clean],
        open_gates=[pb.OpenGate(message=clean)],
    )


def test_bytes_and_keys_of_maps_are_redacted() -> None:
    letter = pb.ShowDeadLetterResponse(
        body=f'\xff{{"a": "{SECRET}"'.encode("latin-1"), headers=[pb.RecordHeader(name="n", value=SECRET.encode())]
    )
    found = pb.ShowDeadLetterResponse.FromString(encoded(letter, REDACTOR))
    assert found.body == f'\xff{{"a": "{MARKER}"'.encode("latin-1")
    assert found.headers[0].value == MARKER.encode()
    request = pb.StartPlanningCeremonyRequest(inputs={SECRET: "x", "password": "hunter2!hunter"})
    kept = pb.StartPlanningCeremonyRequest.FromString(encoded(request, REDACTOR))
    assert dict(kept.inputs) == {MARKER: "x", "password": "[redacted:generic_password]"}
    rich = pb.StartPlanningCeremonyRequest()
    rich.inputs_json.update({"deep": {"list": [SECRET]}})
    assert encoded(rich, REDACTOR).find(SECRET.encode()) == -1


def test_step_outputs_stay_json() -> None:
    answer = pb.PlanningCeremonyInstance(step_outputs={"a": f'{{"x":["{SECRET}",1e5],"y":"\\u0041{SECRET[1:]}"}}'})
    found = pb.PlanningCeremonyInstance.FromString(encoded(answer, REDACTOR))
    assert found.step_outputs["a"] == f'{{"x":["{MARKER}",100000.0],"y":"{MARKER}"}}'


def test_a_clean_answer_is_encoded_as_protobuf_does() -> None:
    answer = pb.PlanningCeremonyInstance(instance_id="c1:s1", step_outputs={"a": '{"token":null}'})
    assert encoded(answer, REDACTOR) == answer.SerializeToString()


def handler_of(answer: Any, *, streaming: bool = False) -> Any:
    async def unary(_: Any, context: Any) -> Any:
        context.set_details(f"no {SECRET}")
        context.set_trailing_metadata((("x", SECRET), ("y-bin", SECRET.encode())))
        await context.send_initial_metadata((("x", SECRET),))
        return answer

    async def stream(_: Any, context: Any) -> AsyncIterator[Any]:
        yield answer
        await context.abort(grpc.StatusCode.ABORTED, f"no {SECRET}")

    if streaming:
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(unary)


class Sent:
    """Records what a handler sends through its context."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def set_details(self, details: str) -> None:
        self.sent.append(details)

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.sent.append(metadata)

    async def send_initial_metadata(self, metadata: Any) -> None:
        self.sent.append(metadata)

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        self.sent.append((code, details, metadata))

    def peer(self) -> str:
        return "somebody"


async def intercepted(handler: Any, method: str = GET) -> Any:
    async def continuation(_: Any) -> Any:
        return handler

    return await AnswerRedaction(SERVICE, REDACTOR).intercept_service(
        continuation,
        SimpleNamespace(method=method),
    )


WHOLE = pb.GetPlanningCeremonyInstanceResponse(message=f"see {SECRET}")


@pytest.mark.parametrize("answer", [WHOLE, WHOLE.SerializeToString(), None], ids=["message", "bytes of a peer", "none"])
async def test_answer_details_and_metadata_of_a_call_are_redacted(answer: Any) -> None:
    # specification 27.9
    context = Sent()
    handler = await intercepted(handler_of(answer))
    sent = await handler.unary_unary(None, context)
    assert handler.response_serializer is None
    if answer is not None:
        assert type(sent) is bytes
        assert pb.GetPlanningCeremonyInstanceResponse.FromString(sent).message == f"see {MARKER}"
    assert context.sent == [f"no {MARKER}", (("x", MARKER), ("y-bin", MARKER.encode())), (("x", MARKER),)]


async def test_a_part_that_was_redacted_as_it_was_encoded_is_not_looked_at_again() -> None:
    handler = await intercepted(handler_of(CleanBytes(WHOLE.SerializeToString())))
    assert await handler.unary_unary(None, Sent()) == WHOLE.SerializeToString()


async def test_each_answer_of_a_stream_and_its_end_are_redacted() -> None:
    context = Sent()
    handler = await intercepted(handler_of(WHOLE, streaming=True))
    (sent,) = [one async for one in handler.unary_stream(None, context)]
    assert pb.GetPlanningCeremonyInstanceResponse.FromString(sent).message == f"see {MARKER}"
    assert context.sent == [(grpc.StatusCode.ABORTED, f"no {MARKER}", ())]


async def test_other_services_are_left_alone() -> None:
    handler = handler_of(WHOLE)
    assert await intercepted(handler, "/grpc.health.v1.Health/Check") is handler
    assert await intercepted(None) is None


def test_the_context_is_otherwise_that_of_the_call() -> None:
    assert RedactingContext(Sent(), REDACTOR).peer() == "somebody"

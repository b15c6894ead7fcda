"""The details of refusals: built, bounded, redacted, and read by gRPC's own reader from calls of the real engine."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from bridge.grpc import error_details
from bridge.grpc.error_details import (
    LARGEST_BYTES,
    LONGEST_TEXT_BYTES,
    MORE_VIOLATIONS,
    encoded_status,
    fitted,
    fitting_text,
    repacked,
    unpacked,
)
from bridge.grpc.redaction import redacted_status, redacted_text
from bridge.grpc.refusals import details_and_trailers, refusal_of, require, require_short
from bridge.grpc.violation import Violation
from steps.secrets.redactor import TextRedactor
from streams.api import Overloaded, Unavailable
from tables.errors import DefinitionInvalid, Problem
from tests.bridge.grpc.world import definitions_folder, refused
from tests.e2e.world import World
from tests.steps.secrets.planted import Planted, planted

REDACTOR = TextRedactor()
SECRETS = [one for one in planted() if not one.text.startswith("{")]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
# The bound of the trailers of a client, less those that are neither text nor details.
ROOM = 8 * 1024 - 500


def of(encoded: bytes) -> tuple[ErrorInfo, list[BadRequest.FieldViolation]]:
    found = unpacked(Status.FromString(encoded))
    (info,) = [one for one in found if isinstance(one, ErrorInfo)]
    return info, [one for bad in found if isinstance(bad, BadRequest) for one in bad.field_violations]


def travelling(encoded: bytes) -> int:
    """Bytes of the text and the details in the trailers of HTTP/2."""
    return len(quote(Status.FromString(encoded).message)) + len(base64.b64encode(encoded))


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀", "\ud800", '"'])
@pytest.mark.parametrize("count", [1, 16, 300])
def test_text_and_details_fit_the_trailers_whatever_they_hold(letter: str, count: int) -> None:
    # specification 14.2, 14.26
    violations = [Violation(letter * 300, "some_rule", letter * 900) for _ in range(count)]
    text = fitting_text(f"some_rule: {letter * 9000}")
    encoded = encoded_status(
        INVALID, "some_rule", text, violations=violations, named={"instance_id": letter * 999, "request_id": letter}
    )
    assert travelling(encoded) <= ROOM
    info, shown = of(encoded)
    assert info.reason == "SOME_RULE"
    assert len(shown) + int(info.metadata.get(MORE_VIOLATIONS, "0")) in (count, len(shown))


def test_every_violation_is_listed_while_there_is_room() -> None:
    """Of the others the details give the number."""
    # specification 14.25, 14.26
    problems = [Problem("review.yaml", line, "unknown_key", f"there is no key `k{line}`") for line in range(1, 201)]
    for count in (1, 10, 200):
        refusal = refusal_of(DefinitionInvalid(problems[:count]))
        text, trailing = details_and_trailers(refusal)
        encoded = dict(trailing)["grpc-status-details-bin"]
        assert isinstance(encoded, bytes)
        assert travelling(encoded) <= LARGEST_BYTES
        assert Status.FromString(encoded).message == text
        info, shown = of(encoded)
        more = int(info.metadata.get(MORE_VIOLATIONS, "0"))
        assert len(shown) + more == count
        assert bool(more) is (count == 200)
        assert (shown[0].field, shown[0].reason) == ("review.yaml:1", "UNKNOWN_KEY")
        assert shown[0].description == "there is no key `k1`"


def test_a_refusal_with_thousands_of_violations_is_packed_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop makes it, while all other calls wait."""
    # specification 14.26
    packed: list[int] = []

    def counted(status: Status, details: Any) -> Status:
        packed.append(len(packed))
        return repacked(status, details)

    monkeypatch.setattr(error_details, "repacked", counted)
    problems = [Problem("review.yaml", line, "unknown_key", f"there is no key `k{line}`") for line in range(1, 2001)]
    encoded = dict(details_and_trailers(refusal_of(DefinitionInvalid(problems)))[1])["grpc-status-details-bin"]
    assert isinstance(encoded, bytes)
    info, shown = of(encoded)
    assert len(shown) + int(info.metadata[MORE_VIOLATIONS]) == 2000
    assert len(packed) <= 10
    assert LARGEST_BYTES - 150 < travelling(encoded) <= LARGEST_BYTES


def test_a_text_below_the_bound_is_as_it_was() -> None:
    # specification 14.2
    text = "x" * LONGEST_TEXT_BYTES
    assert fitting_text(text) == text
    assert fitting_text(f"{text}x") == f"{text}…"


@pytest.mark.parametrize("error", [Unavailable("moving", 2.5), Overloaded("full", 2.5)], ids=["moving", "full"])
def test_a_refusal_that_may_be_repeated_tells_when(error: Exception) -> None:
    # specification 14.3, 14.24
    text, trailing = details_and_trailers(refusal_of(error))
    status = Status.FromString(dict(trailing)["grpc-status-details-bin"])  # type: ignore[arg-type]
    (delay,) = [one.retry_delay.ToMilliseconds() for one in unpacked(status) if hasattr(one, "retry_delay")]
    assert delay == int(dict(trailing)["retry-after-ms"]) == 2500
    assert status.message == text


def test_the_id_that_the_engine_drew_is_named() -> None:
    # specification 14.4, 14.24
    refusal = refusal_of(Unavailable("moving").repeatable_under("drawn-1"))
    info, _ = of(dict(details_and_trailers(refusal)[1])["grpc-status-details-bin"])  # type: ignore[arg-type]
    assert dict(info.metadata) == {"request_id": "drawn-1"}


def test_each_check_names_all_fields_at_fault() -> None:
    """The text is about the first, as ever."""
    # specification 14.25
    with pytest.raises(Exception, match="a is required") as blank:
        require(a="", b="x", c=" ")
    assert [one.field for one in blank.value.violations] == ["a", "c"]  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="a has 3 characters") as long:
        require_short(2, a="xxx", b="xx", c="xxxx")
    assert [one.field for one in long.value.violations] == ["a", "c"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("one", SECRETS, ids=lambda one: one.rule)
def test_no_planted_secret_is_in_details(one: Planted) -> None:
    """Text, ids, fields and descriptions are redacted; text and details stay equal, and within the bound."""
    # specification 27.9
    text = fitting_text(f"some_rule: {one.text}")
    violations = [Violation(f"inputs.{number}.{one.text}", "some_rule", one.text) for number in range(40)]
    named = {"instance_id": one.text, "request_id": one.text}
    clean = redacted_status(encoded_status(INVALID, "some_rule", text, violations=violations, named=named), REDACTOR)
    assert one.secret.encode() not in clean
    assert f"[redacted:{one.rule}]".encode() in clean
    assert travelling(clean) <= LARGEST_BYTES
    assert Status.FromString(clean).message == redacted_text(text, REDACTOR)
    assert redacted_status(clean, REDACTOR) == clean


def test_redaction_that_lengthens_a_refusal_keeps_it_within_the_bound() -> None:
    """A marker is longer than a short password."""
    # specification 14.26
    text = fitting_text("rule: " + " ".join(f"password=Ab1{n:05}!x" for n in range(2000)))
    violations = [Violation("f", "rule", text[:500])] * 9
    clean = redacted_status(encoded_status(INVALID, "rule", text, violations=violations), REDACTOR)
    assert travelling(clean) <= ROOM
    assert Status.FromString(clean).message == redacted_text(text, REDACTOR)


def test_what_is_no_status_is_not_passed_on() -> None:
    """An owner of another kind cannot bring anything past the redaction."""
    unknown = Status(code=3, message="m")
    unknown.details.add(type_url="type.googleapis.com/some.Other", value=SECRETS[0].secret.encode())
    clean = redacted_status(unknown.SerializeToString(), REDACTOR)
    assert Status.FromString(clean) == Status(code=3, message="m")
    assert redacted_status(b"\xff" + SECRETS[0].secret.encode(), REDACTOR) == b""


def test_a_status_of_unusual_size_loses_its_ids_at_last() -> None:
    status = repacked(Status(code=3, message="m"), [ErrorInfo(reason="R", metadata={"instance_id": "x" * 9000})])
    info, _ = of(fitted(status))
    assert info == ErrorInfo(reason="R")


# -- from the real engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("grpc-details")
    definitions = definitions_folder(folder / "definitions")
    async with World(folder, f"sqlite://{folder}/log.db", CEREMONIES_DIR=str(definitions)) as made:
        yield made


def start(**more: Any) -> pb.StartPlanningCeremonyRequest:
    fields = {"ceremony_id": "c1", "story_id": "s1", "definition_name": "selecting", "requested_by": "anna"} | more
    return pb.StartPlanningCeremonyRequest(**fields)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_start_with_many_mistakes_lists_them_all(world: World) -> None:
    # specification 14.24, 14.25
    with refused("INVALID_ARGUMENT", "invalid_id") as seen:
        await world.stub.StartPlanningCeremony(start(ceremony_id="a b", story_id="", requested_by=" ", request_id="r1"))
    assert [(field, reason) for field, reason, _ in seen.rich.violations] == [
        ("ceremony_id", "INVALID_ID"),
        ("story_id", "FIELD_REQUIRED"),
        ("requested_by", "FIELD_REQUIRED"),
    ]
    assert seen.rich.named == {"request_id": "r1"}
    with refused("INVALID_ARGUMENT", "input_missing") as seen:
        await world.stub.StartPlanningCeremony(start())
    assert seen.rich.violations == [("inputs.payload", "INPUT_MISSING", "selecting requires it")]
    assert seen.rich.named == {"instance_id": "c1:s1"}
    with refused("INVALID_ARGUMENT", "step_unknown") as seen:
        await world.stub.StartPlanningCeremony(start(inputs={"payload": "{}"}, step_ids=["y", "one", "x"]))
    assert [field for field, _, _ in seen.rich.violations] == ["step_ids.x", "step_ids.y"]


@pytest.mark.asyncio(loop_scope="module")
async def test_an_invalid_definition_lists_its_problems_by_line(world: World) -> None:
    # specification 10.2, 14.25
    with refused("INVALID_ARGUMENT", "definition_invalid") as seen:
        await world.stub.StartPlanningCeremony(start(definition_name="broken"))
    assert len(seen.rich.violations) == len(seen.details.splitlines())
    for (field, reason, description), line in zip(seen.rich.violations, seen.details.splitlines(), strict=True):
        assert line.removeprefix("definition_invalid: ") == f"{field}: {reason.lower()}: {description}"


@pytest.mark.asyncio(loop_scope="module")
async def test_operations_streams_and_undecodable_requests_have_details(world: World) -> None:
    # specification 14.24
    with refused("NOT_FOUND", "unknown_instance") as seen:
        await world.stub.CancelCeremony(pb.CancelCeremonyRequest(instance_id="no:ne", actor="a", request_id="r2"))
    assert seen.rich.named == {"instance_id": "no:ne", "request_id": "r2"}
    with refused("INVALID_ARGUMENT", "field_required") as seen:
        await world.stub.RunStep(pb.RunStepRequest(reason="x" * 2001, role="\0", request_id="timer/1"))
    assert [(field, reason) for field, reason, _ in seen.rich.violations] == [
        ("step_id", "FIELD_REQUIRED"),
        ("reason", "FIELD_TOO_LONG"),
        ("instance_id", "FIELD_REQUIRED"),
        ("actor", "FIELD_REQUIRED"),
        ("request_id", "REQUEST_ID_RESERVED"),
        ("role", "ACTOR_INVALID"),
    ]
    with refused("INVALID_ARGUMENT", "field_required") as seen:
        await world.stub.DecideGate(pb.DecideGateRequest(comment="x" * 4097))
    assert [field for field, _, _ in seen.rich.violations] == ["instance_id", "actor", "gate", "comment"]
    with refused("INVALID_ARGUMENT", "field_required") as seen:
        await world.stub.TriggerTransition(pb.TriggerTransitionRequest(instance_id="c:s", reason="x" * 2001))
    assert [field for field, _, _ in seen.rich.violations] == ["actor", "trigger", "reason"]
    with refused("NOT_FOUND", "unknown_instance") as seen:
        async for _ in world.stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id="no:ne")):
            pass
    assert seen.rich.named == {"instance_id": "no:ne"}
    raw: Any = world.channel.unary_unary("/fleet.planning_ceremony.v1.PlanningCeremonyProcessor/CancelCeremony")
    with refused("INVALID_ARGUMENT", "request_undecodable"):
        await raw(b"\xff")


@pytest.mark.asyncio(loop_scope="module")
async def test_an_id_with_a_secret_is_in_no_detail(world: World) -> None:
    # specification 27.9, 27.13
    secret = SECRETS[0].secret
    with refused("INVALID_ARGUMENT", "secret_in_id") as seen:
        await world.stub.StartPlanningCeremony(start(ceremony_id=f"x.{secret}", correlation_id=secret))
    assert [field for field, _, _ in seen.rich.violations] == ["ceremony_id", "correlation_id"]
    assert secret.encode() not in seen.trailing["grpc-status-details-bin"]
    assert "[redacted:" in seen.rich.named["instance_id"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_start_that_is_turned_away_unread_has_details(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intake answers it before any interceptor."""
    # specification 14.3, 14.24
    commands = world.worker.engine.commands
    monkeypatch.setattr(commands, "overload", lambda _: Overloaded("no room", 1.5))
    with refused("RESOURCE_EXHAUSTED", "overloaded") as seen:
        await asyncio.wait_for(world.stub.StartPlanningCeremony(start(inputs={"payload": "{}"})), 20)
    assert seen.rich.retry_ms == 1500

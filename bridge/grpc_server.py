"""The gRPC front: checks requests, hands them to the engine, and answers from the fold and the tables."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import (
    PlanningCeremonyProcessorServicer,
    add_PlanningCeremonyProcessorServicer_to_server,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bridge import grpc_messages
from bridge.definitions_dir import DefinitionsDir, DefinitionUnknown
from bridge.grpc_decoding import Undecodable
from bridge.grpc_metadata import correlation_in, correlation_metadata
from bridge.start_request import StartInvalid, check_ids, start_command
from streams.front import Answer, Engine, Operation, Unavailable
from streams.transport.contract import RecordTooLarge
from tables.commands import GateDecision, Start, Trigger
from tables.definition import Definition
from tables.errors import DefinitionInvalid
from tables.instance import Instance
from tables.limits import MAX_ID
from tables.refusals import CLASS_OF

log = structlog.get_logger(__name__)

RETRY_KEY = "retry-after-ms"
"""Trailing metadata of UNAVAILABLE: when asking again makes sense."""
LARGEST_ANSWER = 3 * 1024 * 1024
LARGEST_MESSAGE = 4 * 1024 * 1024
PENDING_CALLS = 20_000
"""Calls that may wait to be taken up. gRPC's own bound of 1,000 ends some of a burst as CANCELLED, by lot."""
DEFAULT_LIMIT, LARGEST_LIMIT = 100, 1000
LONGEST_TEXT = 4096
"""Characters of a comment, and of a gate or trigger that is looked up only."""
LONGEST_NAME = MAX_ID
"""Characters of who asks, in which role, under which request id: what a row keeps, so that none is shortened."""
LONGEST_DETAILS = 6000
"""Bytes of a status message as it travels, percent-encoded: clients refuse trailers above 8 KiB."""
SERVICE = "fleet.planning_ceremony.v1.PlanningCeremonyProcessor"
STATUS_OF = {code: grpc.StatusCode[kind] for code, kind in CLASS_OF.items()} | {"fold_failed": grpc.StatusCode.INTERNAL}
"""Status of each code of the fold; `fold_failed` is what the ceremony agent says where the fold raised."""

Context = grpc.aio.ServicerContext
Call = TypeVar("Call", bound=Callable[..., Awaitable[Any]])


class Refusal(Exception):
    """Ends a call with this status; `code` is stable."""

    def __init__(self, status: grpc.StatusCode, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def invalid(code: str, message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, code, message)


def refusal_of(error: Exception) -> Refusal:
    """The refusal an error means to a client; what is unexpected is logged and says nothing of itself."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, DefinitionUnknown):
        return Refusal(grpc.StatusCode.NOT_FOUND, error.code, error.message)
    if isinstance(error, (StartInvalid, DefinitionInvalid)):
        return invalid(error.code, error.message)
    if isinstance(error, RecordTooLarge):
        return invalid("request_too_large", "the request is larger than a record of the log may be")
    if isinstance(error, Unavailable):
        return Refusal(grpc.StatusCode.UNAVAILABLE, "unavailable", error.message, error.retry_after_seconds)
    log.error("grpc_internal_error", exc_info=error)
    return Refusal(grpc.StatusCode.INTERNAL, "internal", "an error of ours; the engine's log has the details")


def details(text: str) -> str:
    """A status message that every client can receive: a longer one would reach it as RESOURCE_EXHAUSTED."""
    clean = text.encode(errors="replace").decode()
    kept = clean[:LONGEST_DETAILS]
    while len(quote(kept)) > LONGEST_DETAILS:
        kept = kept[: len(kept) * 3 // 4]
    return kept if len(kept) == len(clean) else f"{kept}…"


async def abort(context: Context[Any, Any], error: Exception) -> NoReturn:
    refusal = refusal_of(error)
    trailing = () if refusal.retry_after is None else ((RETRY_KEY, str(int(refusal.retry_after * 1000))),)
    await context.abort(refusal.status, details(f"{refusal.code}: {refusal.message}"), trailing)


def answers_errors(call: Call) -> Call:
    """Every error of the wrapped call becomes a status with a stable code."""

    @wraps(call)
    async def wrapped(self: Any, request: Any, context: Context[Any, Any]) -> Any:
        try:
            return await call(self, request, context)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status with a code
            await abort(context, error)

    return wrapped  # type: ignore[return-value]  # a decorator that keeps the signature


class Front(PlanningCeremonyProcessorServicer):
    """The service of contract §3."""

    def __init__(self, engine: Engine, definitions: DefinitionsDir, new_id: Callable[[], str]) -> None:
        """`new_id` draws a command id for a client that gave none."""
        self._engine = engine
        self._definitions = definitions
        self._new_id = new_id

    # -- the three fixed calls

    @answers_errors
    async def StartPlanningCeremony(
        self, request: pb.StartPlanningCeremonyRequest, context: Context[Any, Any]
    ) -> pb.StartPlanningCeremonyResponse:
        correlation_id = request.correlation_id.strip() or correlation_in(context.invocation_metadata() or ())
        check_ids(
            ceremony_id=request.ceremony_id,
            story_id=request.story_id,
            definition_name=request.definition_name,
            requested_by=request.requested_by,
            correlation_id=correlation_id,
        )
        definition = self._begun_with(request) or self._definitions.get(request.definition_name)
        command = start_command(
            definition,
            ceremony_id=request.ceremony_id,
            story_id=request.story_id,
            correlation_id=correlation_id,
            inputs=request.inputs,
            rich_inputs=grpc_messages.plain(request.inputs_json),
            step_ids=request.step_ids,
            requested_by=request.requested_by,
            command_id=self._new_id(),
        )
        answer = await self._engine.start(definition, command)
        accepted(answer)
        await tell(context, self._correlation_of(command))
        message = "" if answer.folded else "durable; the fold has not come to it yet"
        return pb.StartPlanningCeremonyResponse(instance_id=command.instance_id, status="accepted", message=message)

    @answers_errors
    async def GetPlanningCeremonyInstance(
        self, request: pb.GetPlanningCeremonyInstanceRequest, context: Context[Any, Any]
    ) -> pb.GetPlanningCeremonyInstanceResponse:
        if not request.instance_id:
            raise invalid("field_required", "instance_id is required")
        row = self._engine.get(request.instance_id)
        if row is None:
            return pb.GetPlanningCeremonyInstanceResponse(success=False, message=unknown(request.instance_id))
        await tell(context, row.correlation_id)
        return pb.GetPlanningCeremonyInstanceResponse(ceremony=self._message(row), success=True)

    @answers_errors
    async def ListPlanningCeremonyInstances(
        self, request: pb.ListPlanningCeremonyInstancesRequest, context: Context[Any, Any]
    ) -> pb.ListPlanningCeremonyInstancesResponse:
        rows = [row for row in self._engine.instances() if matches(row, request)]
        rows.sort(key=lambda row: (-row.created_at, row.instance_id))
        limit, offset = page(request.limit, request.offset)
        found = within(map(self._message, rows[offset : offset + limit]))
        return pb.ListPlanningCeremonyInstancesResponse(ceremonies=found, total_count=len(rows), success=True)

    # -- operations

    @answers_errors
    async def DecideGate(self, request: pb.DecideGateRequest, context: Context[Any, Any]) -> pb.DecideGateResponse:
        gate = request.step_id or request.guard
        required(instance_id=request.instance_id, actor=request.actor, gate=gate)
        bounded(LONGEST_TEXT, gate=gate, comment=request.comment)
        bounded(LONGEST_NAME, actor=request.actor, role=request.role, request_id=request.request_id)
        command = GateDecision(
            instance_id=request.instance_id,
            command_id=request.request_id or self._new_id(),
            gate=gate,
            approved=request.approved,
            actor=request.actor,
            role=request.role,
            comment=request.comment,
            visit=request.visit,
        )
        row = await self._operate(command)
        await tell(context, row.correlation_id)
        return pb.DecideGateResponse(ceremony=self._message(row), request_id=command.command_id, message="recorded")

    @answers_errors
    async def TriggerTransition(
        self, request: pb.TriggerTransitionRequest, context: Context[Any, Any]
    ) -> pb.TriggerTransitionResponse:
        required(instance_id=request.instance_id, actor=request.actor, trigger=request.trigger)
        bounded(LONGEST_TEXT, trigger=request.trigger)
        bounded(LONGEST_NAME, actor=request.actor, role=request.role, request_id=request.request_id)
        command = Trigger(
            instance_id=request.instance_id,
            command_id=request.request_id or self._new_id(),
            trigger=request.trigger,
            actor=request.actor,
            role=request.role,
        )
        row = await self._operate(command)
        await tell(context, row.correlation_id)
        return pb.TriggerTransitionResponse(
            ceremony=self._message(row), request_id=command.command_id, message="recorded"
        )

    # -- what an operator looks at

    @answers_errors
    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Context[Any, Any]
    ) -> pb.ListDeadLettersResponse:
        limit, offset = page(request.limit, request.offset)
        letters, total = await self._engine.dead_letters(limit, offset, request.topic_filter)
        return pb.ListDeadLettersResponse(
            dead_letters=within(map(grpc_messages.dead_letter, letters)), total_count=total
        )

    @answers_errors
    async def ListDefinitions(
        self, request: pb.ListDefinitionsRequest, context: Context[Any, Any]
    ) -> pb.ListDefinitionsResponse:
        found = [
            pb.DefinitionSummary(
                name=loaded.name,
                hash=loaded.definition.hash if loaded.definition is not None else "",
                valid=loaded.definition is not None,
                problems=[str(problem) for problem in loaded.problems],
            )
            for loaded in self._definitions.all()
        ]
        return pb.ListDefinitionsResponse(definitions=within(found))

    async def WatchPlanningCeremony(
        self, request: pb.WatchPlanningCeremonyRequest, context: Context[Any, Any]
    ) -> AsyncIterator[pb.WatchPlanningCeremonyResponse]:
        try:
            await tell(context, self._known(request.instance_id).correlation_id)
            async for row in self._engine.watch(request.instance_id):
                yield pb.WatchPlanningCeremonyResponse(ceremony=self._message(row))
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status with a code
            await abort(context, error)

    # -- beneath

    def _begun_with(self, request: pb.StartPlanningCeremonyRequest) -> Definition | None:
        """What a ceremony of this id is pinned to: the same start is judged by it, whatever became of the file."""
        row = self._engine.get(f"{request.ceremony_id}:{request.story_id}")
        if row is None or row.definition_name != request.definition_name:
            return None
        return self._engine.definition_of(row)

    def _correlation_of(self, command: Start) -> str:
        """The ceremony's, which a repeated start does not change; its own where the row cannot be read now."""
        with contextlib.suppress(Unavailable):
            if (row := self._engine.get(command.instance_id)) is not None:
                return row.correlation_id
        return command.correlation_id

    async def _operate(self, command: Operation) -> Instance:
        accepted(await self._engine.operate(command))
        row = self._engine.get(command.instance_id)
        if row is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "unknown_instance", unknown(command.instance_id))
        return row

    def _known(self, instance_id: str) -> Instance:
        required(instance_id=instance_id)
        row = self._engine.get(instance_id)
        if row is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "unknown_instance", unknown(instance_id))
        return row

    def _message(self, row: Instance) -> pb.PlanningCeremonyInstance:
        definition = self._engine.definition_of(row)
        return grpc_messages.ceremony(row, definition, self._engine.waiting_for(row))


async def tell(context: Context[Any, Any], correlation_id: str) -> None:
    """The ceremony's correlation id travels with the answer, before its body."""
    await context.send_initial_metadata(correlation_metadata(correlation_id))


def unknown(instance_id: str) -> str:
    return f"there is no ceremony {instance_id[:300]!r}"


def accepted(answer: Answer) -> None:
    """Raises the refusal the fold gave."""
    if answer.code:
        status = STATUS_OF.get(answer.code, grpc.StatusCode.FAILED_PRECONDITION)
        raise Refusal(status, answer.code, answer.message)


def required(**fields: str) -> None:
    for name, value in fields.items():
        if not value.strip():
            raise invalid("field_required", f"{name} is required")


def bounded(longest: int, **fields: str) -> None:
    for name, value in fields.items():
        if len(value) > longest:
            raise invalid("field_too_long", f"{name} has {len(value)} characters, at most {longest} are taken")


def page(limit: int, offset: int) -> tuple[int, int]:
    return min(limit, LARGEST_LIMIT) if limit > 0 else DEFAULT_LIMIT, max(offset, 0)


def within(messages: Iterable[Any]) -> list[Any]:
    """As many as fit an answer of 3 MiB; always the first, so that a page is never empty for size."""
    taken: list[Any] = []
    size = 0
    for message in messages:
        size += message.ByteSize() + 8
        if taken and size > LARGEST_ANSWER:
            break
        taken.append(message)
    return taken


def matches(row: Instance, request: pb.ListPlanningCeremonyInstancesRequest) -> bool:
    return (
        (not request.state_filter or row.state == request.state_filter)
        and (not request.definition_filter or row.definition_name == request.definition_filter)
        and (not request.story_id or row.story_id == request.story_id)
    )


class GrpcServer:
    """The server with health and reflection; `start` binds, `stop` lets calls in flight end."""

    def __init__(self, engine: Engine, definitions: DefinitionsDir, address: str, new_id: Callable[[], str]) -> None:
        self._address = address
        self.port = 0
        self.health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[Undecodable()],
            options=[
                ("grpc.max_receive_message_length", LARGEST_MESSAGE),
                ("grpc.max_send_message_length", 2 * LARGEST_MESSAGE),
                ("grpc.so_reuseport", 0),
                ("grpc.server.max_pending_requests", PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
            ],
        )
        add_PlanningCeremonyProcessorServicer_to_server(Front(engine, definitions, new_id), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Raises OSError where the address cannot be bound."""
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise OSError(f"cannot listen on {self._address} for gRPC: is the port in use?") from None
        await self._server.start()

    async def serving(self, *, ready: bool) -> None:
        """What `grpc.health.v1` answers, for the server and the service."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set("", status)
        await self.health.set(SERVICE, status)

    async def stop(self, grace: float = 2.0) -> None:
        await self._server.stop(grace)

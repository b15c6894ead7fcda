"""The gRPC front: checks requests, hands them to the engine, and answers from the fold and the tables."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import (
    PlanningCeremonyProcessorServicer,
    add_PlanningCeremonyProcessorServicer_to_server,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bridge.dead_letter_office import DeadLetterOffice
from bridge.definitions_dir import DefinitionsDir
from bridge.grpc import messages, wakeups
from bridge.grpc.decoding import RequestDecoding
from bridge.grpc.diagnosing import Diagnosing, DiagnosingHandler
from bridge.grpc.forwarding import Forwarding
from bridge.grpc.intake import CallLimit, Intake
from bridge.grpc.listing import Listing, ListingHandler, Own
from bridge.grpc.metadata import correlation_in, tell
from bridge.grpc.operations import LONGEST_REASON, OperatorCalls, States
from bridge.grpc.peers import Peers
from bridge.grpc.refusals import (
    LONGEST_NAME,
    LONGEST_TEXT,
    CallRefused,
    abort,
    accepted,
    answers_errors,
    bounded,
    invalid,
    page,
    refusal_of,
    required,
    unknown,
)
from bridge.grpc.start_request import check_ids, start_command
from ports.clock import Clock
from streams.api import CommandApi, Directory, PartitionDiffers, ReadApi, Unavailable
from tables.commands import GateDecision, Start, Trigger
from tables.definition import Definition
from tables.instance import Instance

LARGEST_MESSAGE = 4 * 1024 * 1024
PENDING_CALLS = 20_000
"""Calls that may wait to be taken up, for a turn of the loop or two: each takes 12 KiB. Past it gRPC ends some as
CANCELLED, by lot and without a hint; its own bound is 1,000."""
PENDING_SECONDS = 120
"""How long they may: gRPC's own bound is 30 s, which 20,000 calls on a starved machine do wait."""
STARTS_AT_ONCE = 1_024
"""Starts that are taken up, let in or refused, in one turn of the loop."""
SERVICE = "fleet.planning_ceremony.v1.PlanningCeremonyProcessor"
Context = grpc.aio.ServicerContext


class Front(OperatorCalls, PlanningCeremonyProcessorServicer):
    """The service (specification 14.1) for this worker's partitions; `listing` and `diagnosing` ask the others too."""

    def __init__(
        self,
        commands: CommandApi,
        reads: ReadApi,
        definitions: DefinitionsDir,
        office: DeadLetterOffice,
        states: States,
        new_id: Callable[[], str],
    ) -> None:
        """`states`: of the neighbours; `new_id` draws a command id for a client that gave none."""
        self.own = Own(reads, self._message)
        """What other workers ask of this one."""
        self.listing: Listing | None = None
        self._commands = commands
        self._reads = reads
        self._definitions = definitions
        self._office = office
        self._states = states
        self._new_id = new_id

    def closed(self, inside: int) -> CallRefused | None:
        """Why no start at all is taken now, with so many calls unanswered; None while they are."""
        overloaded = self._commands.closed(inside)
        return None if overloaded is None else refusal_of(overloaded)

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
            rich_inputs=messages.plain(request.inputs_json),
            step_ids=request.step_ids,
            requested_by=request.requested_by,
            command_id=self._new_id(),
        )
        answer = await self._commands.start(definition, command)
        accepted(answer)
        await tell(context, self._correlation_of(command))
        message = "" if answer.folded else "durable; the fold has not come to it yet"
        return pb.StartPlanningCeremonyResponse(
            instance_id=command.instance_id,
            status="accepted",
            message=message,
            position=pb.LogPosition(partition=answer.partition, offset=answer.offset + 1),
        )

    @answers_errors
    async def GetPlanningCeremonyInstance(
        self, request: pb.GetPlanningCeremonyInstanceRequest, context: Context[Any, Any]
    ) -> pb.GetPlanningCeremonyInstanceResponse:
        if not request.instance_id:
            raise invalid("field_required", "instance_id is required")
        if request.HasField("at_least"):
            await self._reach(request.instance_id, request.at_least)
        row = self._reads.get(request.instance_id)
        if row is None:
            return pb.GetPlanningCeremonyInstanceResponse(success=False, message=unknown(request.instance_id))
        message = self._message(row)
        await tell(context, row.correlation_id)
        return pb.GetPlanningCeremonyInstanceResponse(ceremony=message, success=True)

    @answers_errors
    async def ListPlanningCeremonyInstances(
        self, request: pb.ListPlanningCeremonyInstancesRequest, context: Context[Any, Any]
    ) -> pb.ListPlanningCeremonyInstancesResponse:
        if self.listing is not None:
            return await self.listing.answer(request)
        limit, offset = page(request.limit, request.offset)
        total, keys = await self.own.keys(None, request, offset + limit)
        rows = (self._reads.get(instance_id) for _, instance_id in keys[offset:])
        found = messages.within(self._message(row) for row in rows if row is not None)
        return pb.ListPlanningCeremonyInstancesResponse(ceremonies=found, total_count=total, success=True)

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
        message = self._message(row)
        await tell(context, row.correlation_id)
        return pb.DecideGateResponse(ceremony=message, request_id=command.command_id, message="recorded")

    @answers_errors
    async def TriggerTransition(
        self, request: pb.TriggerTransitionRequest, context: Context[Any, Any]
    ) -> pb.TriggerTransitionResponse:
        required(instance_id=request.instance_id, actor=request.actor, trigger=request.trigger)
        bounded(LONGEST_TEXT, trigger=request.trigger)
        bounded(LONGEST_NAME, actor=request.actor, role=request.role, request_id=request.request_id)
        bounded(LONGEST_REASON, reason=request.reason)
        command = Trigger(
            instance_id=request.instance_id,
            command_id=request.request_id or self._new_id(),
            trigger=request.trigger,
            actor=request.actor,
            role=request.role,
            reason=request.reason,
        )
        row = await self._operate(command)
        message = self._message(row)
        await tell(context, row.correlation_id)
        return pb.TriggerTransitionResponse(ceremony=message, request_id=command.command_id, message="recorded")

    # -- what else there is to see

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
        return pb.ListDefinitionsResponse(definitions=messages.within(found))

    async def WatchPlanningCeremony(
        self, request: pb.WatchPlanningCeremonyRequest, context: Context[Any, Any]
    ) -> AsyncIterator[pb.WatchPlanningCeremonyResponse]:
        try:
            await tell(context, self._known(request.instance_id).correlation_id)
            async for row in self._reads.watch(request.instance_id):
                yield pb.WatchPlanningCeremonyResponse(ceremony=self._message(row))
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status with a code
            await abort(context, error)

    # -- beneath

    def _begun_with(self, request: pb.StartPlanningCeremonyRequest) -> Definition | None:
        """What a ceremony of this id is pinned to: the same start is judged by it, whatever became of the file."""
        row = self._reads.get(f"{request.ceremony_id}:{request.story_id}")
        if row is None or row.definition_name != request.definition_name:
            return None
        return self._reads.definition_of(row)

    def _correlation_of(self, command: Start) -> str:
        """The ceremony's, which a repeated start does not change; its own where the row cannot be read now."""
        with contextlib.suppress(Unavailable):
            if (row := self._reads.get(command.instance_id)) is not None:
                return row.correlation_id
        return command.correlation_id

    def _known(self, instance_id: str) -> Instance:
        required(instance_id=instance_id)
        row = self._reads.get(instance_id)
        if row is None:
            raise CallRefused(grpc.StatusCode.NOT_FOUND, "unknown_instance", unknown(instance_id))
        return row

    async def _reach(self, instance_id: str, position: pb.LogPosition) -> None:
        """Wait until everything before the position is folded."""
        try:
            await self._reads.reached(instance_id, position.partition, position.offset)
        except PartitionDiffers as error:
            raise invalid("position_differs", f"at_least: {error.message}") from None


@dataclass(frozen=True, slots=True)
class Sharing:
    """Other workers own some of the ceremonies: calls about those go to them."""

    directory: Directory
    new_id: Callable[[], str]
    """Draws a request id for a forwarded operation that brings none."""


class GrpcServer:
    """The server with health and reflection; `start` binds, `stop` lets calls in flight end."""

    def __init__(self, front: Front, address: str, clock: Clock, sharing: Sharing | None = None) -> None:
        wakeups.take_all()
        self._address = address
        interceptors: list[grpc.aio.ServerInterceptor] = [RequestDecoding()]
        self.peers: Peers | None = None
        if sharing is not None:
            self.peers = Peers(sharing.directory.addresses)
            front.listing = Listing(sharing.directory, self.peers, clock, front.own)
            front.diagnosing = Diagnosing(sharing.directory, self.peers, front.look)
            interceptors.append(Forwarding(SERVICE, sharing.directory, self.peers, sharing.new_id))
        self.port = 0
        self.health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", LARGEST_MESSAGE),
                ("grpc.max_send_message_length", 2 * LARGEST_MESSAGE),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.max_ping_strikes", 0),  # other workers ping to see that we live
                ("grpc.server.max_pending_requests", PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
                ("grpc.server_max_unrequested_time_in_server", PENDING_SECONDS),
            ],
        )
        self._intake = Intake(
            self._server,
            interceptors,
            clock,
            [CallLimit(f"/{SERVICE}/StartPlanningCeremony", STARTS_AT_ONCE, front.closed)],
        )
        add_PlanningCeremonyProcessorServicer_to_server(front, self._intake)  # type: ignore[arg-type]  # for the server
        if self.peers is not None:
            self._server.add_generic_rpc_handlers((ListingHandler(front.own), DiagnosingHandler(front.look)))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Raises OSError where the address cannot be bound."""
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise OSError(f"cannot listen on {self._address} for gRPC: is the port in use?") from None
        await self._server.start()
        self._intake.start()

    async def serving(self, *, ready: bool) -> None:
        """What `grpc.health.v1` answers, for the server and the service."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set("", status)
        await self.health.set(SERVICE, status)
        if self.peers is not None:
            await self.peers.prune()

    async def stop(self, grace: float = 2.0) -> None:
        await self._server.stop(grace)
        if self.peers is not None:
            await self.peers.close()

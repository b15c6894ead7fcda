"""The calls of the gRPC service: check a request, hand it to the engine, answer from the fold and the tables."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import grpc
import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorServicer
from msgspec.structs import replace

from bridge.dead_letters import DeadLetters
from bridge.definitions import DefinitionFolder
from bridge.grpc import messages
from bridge.grpc.actors import actor_key, normal_name
from bridge.grpc.callers import Callers, one_at_a_time, was_forwarded
from bridge.grpc.encoding import with_repeated
from bridge.grpc.large_starts import EncodedStart, LargeStarts
from bridge.grpc.listing import AllWorkersListing, LocalRows, Page
from bridge.grpc.metadata import correlation_in, send_correlation_id, trace_in
from bridge.grpc.operations import OperatorCalls
from bridge.grpc.refusals import (
    LONGEST_TEXT,
    CallRefused,
    abort,
    check_all,
    errors_become_statuses,
    invalid,
    refusal_of,
    require,
    require_accepted,
    require_no_secret,
    require_short,
    unknown_ceremony,
)
from bridge.grpc.start_request import check_ids, start_pieces
from ports.health import WorkerHealth
from ports.redaction import Redactor
from streams.api import CommandApi, PartitionDiffers, ReadApi, Unavailable
from streams.turns import Turns
from tables.commands import GateDecision, Start, Trigger
from tables.definition import Definition

Context = grpc.aio.ServicerContext
# A start with inputs of more bytes counts with its folding as heavy work, so that several are not folded in one batch.
LARGE_INPUTS_BYTES = 64 * 1024
FOLDING_SECONDS_PER_BYTE = 5e-8
# A start that a worker refuses because it ends: another worker takes it, or this one's successor.
ENDING, ENDING_RETRY_SECONDS = "this worker ends and takes no new ceremony; another one does", 1.0


class Servicer(OperatorCalls, PlanningCeremonyProcessorServicer):
    """The service (specification 14.1) for this worker's partitions; two of its parts can ask all workers."""

    def __init__(
        self,
        commands: CommandApi,
        reads: ReadApi,
        definitions: DefinitionFolder,
        dead_letters: DeadLetters,
        health: WorkerHealth,
        new_id: Callable[[], str],
        turns: Turns,
        redactor: Redactor,
    ) -> None:
        """`new_id` makes a command id when the client sent none."""
        self.local_rows = LocalRows(reads, self._listed, turns, redactor)
        """This worker's share of a list, also for other workers."""
        self.all_workers_listing: AllWorkersListing | None = None
        """Lists the rows of all workers, if there are others."""
        self._commands = commands
        self._reads = reads
        self._definitions = definitions
        self._dead_letters = dead_letters
        self._health = health
        self._new_id = new_id
        self._turns = turns
        self._redactor = redactor
        self.callers = Callers()
        self._large_starts = LargeStarts(turns)

    def refuse_start(self, unanswered: int) -> CallRefused | None:
        """The refusal of every start while too many calls are unanswered; None when starts are accepted."""
        overloaded = self._commands.overload(unanswered)
        return None if overloaded is None else refusal_of(overloaded)

    # -- start, get, list

    @errors_become_statuses
    async def StartPlanningCeremony(
        self, request: pb.StartPlanningCeremonyRequest | EncodedStart, context: Context[Any, Any]
    ) -> pb.StartPlanningCeremonyResponse:
        if self._health.is_draining and not was_forwarded(context):
            raise Unavailable(ENDING, ENDING_RETRY_SECONDS)
        definition, command = await self._start_command(request, context)
        if command.inputs_size > LARGE_INPUTS_BYTES:
            await self._turns.next()
            self._turns.owe(command.inputs_size * FOLDING_SECONDS_PER_BYTE)
        reply = await self._commands.start(definition, command)
        require_accepted(reply)
        await send_correlation_id(context, self._correlation_of(command))
        message = reply.message if reply.folded else "durable; the fold has not come to it yet"
        return pb.StartPlanningCeremonyResponse(
            instance_id=command.instance_id,
            status="accepted",
            message=message,
            position=pb.LogPosition(partition=reply.partition, offset=reply.offset + 1),
        )

    @errors_become_statuses
    async def GetPlanningCeremonyInstance(
        self, request: pb.GetPlanningCeremonyInstanceRequest, context: Context[Any, Any]
    ) -> pb.GetPlanningCeremonyInstanceResponse:
        if not request.instance_id:
            raise invalid("field_required", "instance_id is required", "instance_id")
        if request.HasField("at_least"):
            await self._wait_for_position(request.instance_id, request.at_least)
        found = await self._reads.find(request.instance_id)
        if found is None:
            return pb.GetPlanningCeremonyInstanceResponse(
                success=False, message=unknown_ceremony(request.instance_id).message
            )
        await send_correlation_id(context, found.row.correlation_id)
        return pb.GetPlanningCeremonyInstanceResponse(ceremony=self._message(found), success=True)

    @errors_become_statuses
    @one_at_a_time
    async def ListPlanningCeremonyInstances(
        self, request: pb.ListPlanningCeremonyInstancesRequest, context: Context[Any, Any]
    ) -> Any:  # encoded, as the other lists
        page = Page(request, self._unsearchable(request.input_filters, request.definition_filter))
        if self.all_workers_listing is not None:
            return await self.all_workers_listing.answer(page)
        page.matches = await self.local_rows.search(None, page.query, page.most)
        return await self.local_rows.whole(page, await self.local_rows.rows(page.ids))

    # -- operations

    @errors_become_statuses
    async def DecideGate(self, request: pb.DecideGateRequest, context: Context[Any, Any]) -> pb.DecideGateResponse:
        gate = request.step_id or request.guard
        fields = self._signed_fields(
            request,
            lambda: require(instance_id=request.instance_id, actor=request.actor, gate=gate),
            lambda: require_short(LONGEST_TEXT, gate=gate, comment=request.comment),
        )
        command = GateDecision(
            gate=gate,
            approved=request.approved,
            actor_key=actor_key(fields["actor"]),
            comment=request.comment,
            visit=request.visit,
            names_guard=bool(request.guard),
            **fields,
        )
        answer = pb.DecideGateResponse(**await self._operate_and_answer(command, context))
        for still_open in answer.ceremony.open_gates:
            if request.approved and still_open.step_id == request.step_id != "":
                answer.message = f"recorded: {still_open.approvals} of {still_open.quorum} approvals"
        return answer

    @errors_become_statuses
    async def TriggerTransition(
        self, request: pb.TriggerTransitionRequest, context: Context[Any, Any]
    ) -> pb.TriggerTransitionResponse:
        fields = self._command_fields(
            request,
            lambda: require(instance_id=request.instance_id, actor=request.actor, trigger=request.trigger),
            lambda: require_short(LONGEST_TEXT, trigger=request.trigger),
        )
        command = Trigger(trigger=request.trigger, **fields)
        return pb.TriggerTransitionResponse(**await self._operate_and_answer(command, context))

    # -- reads

    @errors_become_statuses
    async def ListDefinitions(self, request: pb.ListDefinitionsRequest, context: Context[Any, Any]) -> Any:
        found = (
            pb.DefinitionSummary(
                name=loaded.name,
                hash=loaded.definition.hash if loaded.definition is not None else "",
                valid=loaded.definition is not None,
                problems=[str(problem) for problem in loaded.problems],
            )
            for loaded in self._definitions.all()
        )
        shown = await self._turns.run(messages.encoded_pieces(found, self._redactor))
        return with_repeated(pb.ListDefinitionsResponse(), "definitions", shown)

    async def WatchPlanningCeremony(
        self, request: pb.WatchPlanningCeremonyRequest, context: Context[Any, Any]
    ) -> AsyncIterator[pb.WatchPlanningCeremonyResponse]:
        try:
            require(instance_id=request.instance_id)
            found = await self._existing(request.instance_id)
            await send_correlation_id(context, found.row.correlation_id)
            async with contextlib.aclosing(self._reads.watch(request.instance_id)) as rows:
                async for found in rows:
                    yield pb.WatchPlanningCeremonyResponse(ceremony=self._message(found))
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status with a code
            await abort(context, error, request)

    # -- helpers

    def _unsearchable(self, names: Collection[str], definition_name: str) -> str:
        """A note for people about inputs that no present definition names as searchable; empty without one.

        `definition_name`: the only definition that counts; empty for all.
        """
        if not names:
            return ""
        present = [one.definition for one in self._definitions.all() if definition_name in ("", one.name)]
        searchable = {name for one in present if one is not None for name in one.searchable_inputs}
        wanted = ", ".join(sorted(set(names) - searchable))
        which = f"definition {definition_name} does not name" if definition_name else "no present definition names"
        known = f"searchable are {', '.join(sorted(searchable))}" if searchable else "none is searchable"
        return f"{which} {wanted} in `inputs.searchable`; {known}" if wanted else ""

    async def _start_command(
        self, encoded: pb.StartPlanningCeremonyRequest | EncodedStart, context: Context[Any, Any]
    ) -> tuple[Definition, Start]:
        """Check a start and make its command. The decoded request is gone when it returns."""
        async with self._large_starts.decoded(encoded, context) as request:
            correlation_id = request.correlation_id.strip() or correlation_in(context.invocation_metadata() or ())
            self._check_ids(request, correlation_id)
            requested_by = normal_name("requested_by", request.requested_by)
            definition = self._pinned_definition(request) or self._definitions.get(request.definition_name)
            pieces = start_pieces(
                definition,
                ceremony_id=request.ceremony_id,
                story_id=request.story_id,
                correlation_id=correlation_id,
                inputs=request.inputs,
                rich_inputs=request.inputs_json,
                step_ids=request.step_ids,
                requested_by=requested_by,
                command_id=self._new_id(),
            )
            command = await self._turns.run(pieces)
            traceparent = trace_in(context.invocation_metadata() or ())
            return definition, replace(command, traceparent=traceparent) if traceparent else command

    def _check_ids(self, request: pb.StartPlanningCeremonyRequest, correlation_id: str) -> None:
        """Check all that a start has beside definition, inputs and steps."""
        check_all(
            lambda: check_ids(
                ceremony_id=request.ceremony_id,
                story_id=request.story_id,
                definition_name=request.definition_name,
                requested_by=request.requested_by,
                correlation_id=correlation_id,
            ),
            lambda: normal_name("requested_by", request.requested_by),
        )
        require_no_secret(  # after the bounds of their lengths
            self._redactor,
            ceremony_id=request.ceremony_id,
            story_id=request.story_id,
            correlation_id=correlation_id,
        )

    def _pinned_definition(self, request: pb.StartPlanningCeremonyRequest) -> Definition | None:
        """The definition of an existing ceremony with this id; a repeated start is checked against it, not the file."""
        row = self._reads.get(f"{request.ceremony_id}:{request.story_id}")
        if row is None or row.definition_name != request.definition_name:
            return None
        return self._reads.definition_of(row)

    def _correlation_of(self, command: Start) -> str:
        """The correlation id of the ceremony, which a repeated start keeps; the command's if no row can be read."""
        with contextlib.suppress(Unavailable):
            if (row := self._reads.get(command.instance_id)) is not None:
                return row.correlation_id
        return command.correlation_id

    async def _wait_for_position(self, instance_id: str, position: pb.LogPosition) -> None:
        """Wait until every command before the position is folded."""
        try:
            await self._reads.reached(instance_id, position.partition, position.offset)
        except PartitionDiffers as error:
            raise invalid("position_differs", f"at_least: {error.message}", "at_least") from None

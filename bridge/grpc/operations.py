"""The calls of operators: cancel, pause, resume, retry, run; history, dead letters, diagnosis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.dead_letters import DeadLetters, LetterOrigin
from bridge.definitions import DefinitionFolder
from bridge.grpc import diagnosis, history, messages
from bridge.grpc.actors import normal_name
from bridge.grpc.callers import Callers, one_at_a_time
from bridge.grpc.diagnosis import AllWorkersDiagnosis
from bridge.grpc.encoding import sent_in_turn
from bridge.grpc.metadata import send_correlation_id, trace_in
from bridge.grpc.refusals import (
    LONGEST_NAME,
    LONGEST_TEXT,
    check_all,
    errors_become_statuses,
    page,
    repeatable_under,
    require,
    require_accepted,
    require_own_id,
    require_short,
    unknown_ceremony,
)
from ports.health import WorkerHealth
from ports.redaction import Redactor
from streams.api import CommandApi, Found, Operation, ReadApi
from streams.turns import Turns
from tables.commands import Cancel, Pause, Resume, RetryStep, RunStep
from tables.instance import CeremonyStatus, Instance
from tables.limits import MAX_TEXT_CHARACTERS

# Characters of a reason; events keep as many, so none is shortened.
LONGEST_REASON = MAX_TEXT_CHARACTERS

Context = grpc.aio.ServicerContext
WholeRequest = pb.CancelCeremonyRequest | pb.PauseCeremonyRequest | pb.ResumeCeremonyRequest
StepRequest = pb.RetryStepRequest | pb.RunStepRequest


class OperatorCalls:
    """The operators' half of the servicer; `Servicer` sets its attributes."""

    _commands: CommandApi
    _reads: ReadApi
    _definitions: DefinitionFolder
    _new_id: Callable[[], str]
    _dead_letters: DeadLetters
    _health: WorkerHealth
    callers: Callers
    _turns: Turns
    _redactor: Redactor
    all_workers_diagnosis: AllWorkersDiagnosis | None = None
    """Diagnoses all workers, if there are others."""

    # -- operations

    @errors_become_statuses
    async def CancelCeremony(
        self, request: pb.CancelCeremonyRequest, context: Context[Any, Any]
    ) -> pb.CancelCeremonyResponse:
        command = Cancel(**self._command_fields(request))
        return pb.CancelCeremonyResponse(**await self._operate_and_answer(command, context))

    @errors_become_statuses
    async def PauseCeremony(
        self, request: pb.PauseCeremonyRequest, context: Context[Any, Any]
    ) -> pb.PauseCeremonyResponse:
        command = Pause(**self._command_fields(request))
        return pb.PauseCeremonyResponse(**await self._operate_and_answer(command, context))

    @errors_become_statuses
    async def ResumeCeremony(
        self, request: pb.ResumeCeremonyRequest, context: Context[Any, Any]
    ) -> pb.ResumeCeremonyResponse:
        command = Resume(**self._command_fields(request))
        return pb.ResumeCeremonyResponse(**await self._operate_and_answer(command, context))

    @errors_become_statuses
    async def RetryStep(self, request: pb.RetryStepRequest, context: Context[Any, Any]) -> pb.RetryStepResponse:
        fields = self._command_fields(request)
        with repeatable_under(fields["command_id"]):
            if request.step_id or not await self._timed_out(request.instance_id):
                _check_step(request)
        command = RetryStep(step_id=request.step_id, **fields)
        return pb.RetryStepResponse(**await self._operate_and_answer(command, context))

    @errors_become_statuses
    async def RunStep(self, request: pb.RunStepRequest, context: Context[Any, Any]) -> pb.RunStepResponse:
        command = RunStep(step_id=request.step_id, **self._command_fields(request, lambda: _check_step(request)))
        return pb.RunStepResponse(**await self._operate_and_answer(command, context))

    # -- reads

    @errors_become_statuses
    @one_at_a_time
    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context[Any, Any]) -> pb.GetHistoryResponse:
        require(instance_id=request.instance_id)
        place = history.place_of(request)
        found = await self._reads.history(request.instance_id, history.limit_of(request), place)
        if found is None:
            raise unknown_ceremony(request.instance_id)
        return history.response(request.instance_id, found)

    @errors_become_statuses
    @one_at_a_time
    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context[Any, Any]) -> Any:
        limit, offset = page(request.limit, request.offset)
        letters, total = await self._reads.dead_letters(limit, offset, request.topic_filter)
        shown = await self._turns.run(messages.encoded_pieces(map(messages.dead_letter, letters), self._redactor))
        return await sent_in_turn(pb.ListDeadLettersResponse(total_count=total), "dead_letters", shown, self._turns)

    @errors_become_statuses
    @one_at_a_time
    async def ShowDeadLetter(
        self, request: pb.ShowDeadLetterRequest, context: Context[Any, Any]
    ) -> pb.ShowDeadLetterResponse:
        return messages.dead_letter_details(await self._dead_letters.show(_origin(request)))

    @errors_become_statuses
    async def ReplayDeadLetter(
        self, request: pb.ReplayDeadLetterRequest, context: Context[Any, Any]
    ) -> pb.ReplayDeadLetterResponse:
        origin = _origin(request)
        require(actor=request.actor)
        actor = normal_name("actor", request.actor)
        require_short(LONGEST_NAME, request_id=request.request_id)
        require_short(LONGEST_REASON, reason=request.reason)
        request_id = request.request_id or self._new_id()
        with repeatable_under(request_id):
            replay, repeated = await self._dead_letters.replay(origin, actor, request.reason, request_id)
        return pb.ReplayDeadLetterResponse(
            replay=messages.replay(replay),
            repeated_request=repeated,
            message=f"sent to {replay.sent_to}; if it is still wrong, it comes back as a new dead letter",
        )

    @errors_become_statuses
    @one_at_a_time
    async def Diagnose(self, request: pb.DiagnoseRequest, context: Context[Any, Any]) -> pb.DiagnoseResponse:
        if request.instance_id:
            found = await self._reads.diagnose(request.instance_id)
            if not found.ceremonies:
                raise unknown_ceremony(request.instance_id)
            return diagnosis.ceremony_answer(found)
        answer = await (
            self.diagnose_here() if self.all_workers_diagnosis is None else self.all_workers_diagnosis.diagnose()
        )
        all_asked = self.all_workers_diagnosis is not None
        return await diagnosis.add_findings(answer, self._reads, self._definitions, all_asked=all_asked)

    async def diagnose_here(self) -> pb.DiagnoseResponse:
        """Diagnose this worker's ceremonies, partitions and neighbours."""
        return await diagnosis.worker_answer(self._reads, self._health.neighbours(), self._turns)

    # -- helpers

    def _command_fields(
        self, request: WholeRequest | StepRequest | pb.TriggerTransitionRequest, *checks: Callable[[], object]
    ) -> dict[str, Any]:
        """The fields of an operation with a reason. Raises CallRefused when one is missing or invalid."""
        fields = self._signed_fields(request, *checks, lambda: require_short(LONGEST_REASON, reason=request.reason))
        return {**fields, "reason": request.reason}

    def _signed_fields(
        self,
        request: WholeRequest | StepRequest | pb.TriggerTransitionRequest | pb.DecideGateRequest,
        *checks: Callable[[], object],
    ) -> dict[str, Any]:
        """The fields that every operation has. Raises CallRefused when one is missing or invalid.

        `checks` of other fields are made before, and refused together with these.
        """
        check_all(
            *checks,
            lambda: require(instance_id=request.instance_id, actor=request.actor),
            lambda: require_short(LONGEST_NAME, request_id=request.request_id),
            lambda: require_own_id(request.request_id),
            lambda: normal_name("actor", request.actor),
            lambda: normal_name("role", request.role),
        )
        return {
            "instance_id": request.instance_id,
            "command_id": request.request_id or self._new_id(),
            "actor": normal_name("actor", request.actor),
            "role": normal_name("role", request.role),
        }

    async def _operate_and_answer(self, command: Operation, context: Context[Any, Any]) -> dict[str, Any]:
        found = await self._operate(command, trace_in(context.invocation_metadata() or ()))
        await send_correlation_id(context, found.row.correlation_id)
        return {"ceremony": self._message(found), "request_id": command.command_id, "message": "recorded"}

    async def _operate(self, command: Operation, traceparent: str) -> Found:
        """Let the fold decide on the operation; return the ceremony as it is then."""
        with repeatable_under(command.command_id):
            require_accepted(await self._commands.operate(command, traceparent))
            return await self._existing(command.instance_id)

    async def _timed_out(self, instance_id: str) -> bool:
        """Return whether a retry need not name a step: it is for each step that the time-out cancelled."""
        found = await self._reads.find(instance_id)
        return found is not None and found.row.status is CeremonyStatus.TIMED_OUT

    async def _existing(self, instance_id: str) -> Found:
        found = await self._reads.find(instance_id)
        if found is None:
            raise unknown_ceremony(instance_id)
        return found

    def _message(self, found: Found) -> pb.PlanningCeremonyInstance:
        row = found.row
        definition = self._reads.definition_of(row)
        return messages.ceremony(row, definition, self._reads.waiting_for(row), found.position)

    def _listed(self, row: Instance) -> pb.PlanningCeremonyInstance:
        """The message of a row without a position, which stays the same while the row does."""
        return messages.ceremony(row, self._reads.definition_of(row), self._reads.waiting_for(row))


def _check_step(request: StepRequest) -> None:
    require(step_id=request.step_id)
    require_short(LONGEST_TEXT, step_id=request.step_id)


def _origin(request: pb.ShowDeadLetterRequest | pb.ReplayDeadLetterRequest) -> LetterOrigin:
    require(origin=request.origin)
    return LetterOrigin(request.origin, request.partition, request.offset)

"""The client for threads: `with PlanningCeremonyClient("localhost:50057") as ceremonies: ...`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from fleet.planning_ceremony.client import requests
from fleet.planning_ceremony.client.backoff import Attempts
from fleet.planning_ceremony.client.channel import sync_channel
from fleet.planning_ceremony.client.delivery import DeliveryOptions, never_raising, starts_of
from fleet.planning_ceremony.client.errors import client_closed, error_of
from fleet.planning_ceremony.client.stats import StartStats
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

Request = TypeVar("Request")
Response = TypeVar("Response")

TIMEOUT_SECONDS = 15.0
CLOSE_SECONDS = 5.0


class PlanningCeremonyClient:
    """Calls the engine at `address` (`host:port`); methods raise PlanningCeremonyError.

    Threads may share it; `close` it, or use `with`. A call is repeated with the same request id while the
    engine is UNAVAILABLE or overloaded, for `timeout` seconds.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = TIMEOUT_SECONDS,
        credentials: grpc.ChannelCredentials | None = None,
        delivery: DeliveryOptions | None = None,
    ) -> None:
        """`timeout`: of each call that names none. `credentials`: for TLS. Raises OutboxError.

        `delivery`: of the starts that `start_planning_ceremony` takes.
        """
        self._delivery = delivery or DeliveryOptions()
        self._starts = starts_of(address, credentials, self._delivery)
        self._channel = sync_channel(address, credentials)
        self._stub = PlanningCeremonyProcessorStub(self._channel)
        self._timeout = timeout

    # -- starting

    @never_raising
    def start_planning_ceremony(
        self,
        definition_name: str,
        *,
        ceremony_id: str,
        story_id: str,
        requested_by: str,
        inputs: Mapping[str, Any] | None = None,
        step_ids: Iterable[str] = (),
        correlation_id: str | None = None,
        deadline: float | None = None,
    ) -> bool:
        """Accept a start and send it in the background; never raises, and does not wait for the engine.

        Returns False if it was dropped at once; `stats` counts why. It is repeated for `deadline` seconds, `math.inf`
        for ever; by default as long as the client's `delivery` says. With an outbox it is on disk when this returns.
        """
        request = requests.start(
            definition_name,
            ceremony_id=ceremony_id,
            story_id=story_id,
            requested_by=requested_by,
            inputs=inputs,
            step_ids=step_ids,
            correlation_id=correlation_id,
        )
        seconds = self._delivery.deadline if deadline is None else deadline
        return self._starts.offer(request, seconds)

    @property
    def stats(self) -> StartStats:
        """Counts of the starts that `start_planning_ceremony` was given."""
        return self._starts.stats

    def flush(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Wait until no accepted start is pending; False after `timeout` seconds."""
        return self._starts.flush(timeout)

    def start(
        self,
        definition_name: str,
        *,
        ceremony_id: str,
        story_id: str,
        requested_by: str,
        inputs: Mapping[str, Any] | None = None,
        step_ids: Iterable[str] = (),
        correlation_id: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Start a ceremony and return its instance id. Inputs other than strings are sent as JSON values.

        A whole number beyond 2^53 stays exact inside a list or an object; alone it must be given as text.
        """
        response = self.start_response(
            definition_name,
            ceremony_id=ceremony_id,
            story_id=story_id,
            requested_by=requested_by,
            inputs=inputs,
            step_ids=step_ids,
            correlation_id=correlation_id,
            timeout=timeout,
        )
        return response.instance_id

    def start_response(
        self,
        definition_name: str,
        *,
        ceremony_id: str,
        story_id: str,
        requested_by: str,
        inputs: Mapping[str, Any] | None = None,
        step_ids: Iterable[str] = (),
        correlation_id: str | None = None,
        timeout: float | None = None,
    ) -> pb.StartPlanningCeremonyResponse:
        """Start a ceremony as `start` does; the message says so when this start came again and it has ended."""
        request = requests.start(
            definition_name,
            ceremony_id=ceremony_id,
            story_id=story_id,
            requested_by=requested_by,
            inputs=inputs,
            step_ids=step_ids,
            correlation_id=correlation_id,
        )
        return self._call(self._stub.StartPlanningCeremony, request, timeout)

    # -- reading

    def get(self, instance_id: str, *, timeout: float | None = None) -> pb.PlanningCeremonyInstance | None:
        """The present ceremony, or None if it does not exist."""
        request = pb.GetPlanningCeremonyInstanceRequest(instance_id=instance_id)
        response = self._call(self._stub.GetPlanningCeremonyInstance, request, timeout)
        return response.ceremony if response.success else None

    def list(
        self,
        *,
        state: str | None = None,
        definition_name: str | None = None,
        story_id: str | None = None,
        status: str | None = None,
        inputs: Mapping[str, str] | None = None,
        created_from: str | None = None,
        created_before: str | None = None,
        correlation_id: str | None = None,
        gate_role: str | None = None,
        error_code: str | None = None,
        subject: str | None = None,
        limit: int = 100,
        offset: int = 0,
        page_token: str | None = None,
        timeout: float | None = None,
    ) -> pb.ListPlanningCeremonyInstancesResponse:
        """A page, newest first: `ceremonies`, the `total_count` of all matches, and the `next_page_token`.

        `inputs` are values of searchable inputs by name, times are ISO-8601. A page token belongs to the same filters.
        """
        request = requests.listing(
            state=state,
            definition_name=definition_name,
            story_id=story_id,
            status=status,
            inputs=inputs,
            created_from=created_from,
            created_before=created_before,
            correlation_id=correlation_id,
            gate_role=gate_role,
            error_code=error_code,
            subject=subject,
            limit=limit,
            offset=offset,
            page_token=page_token,
        )
        return self._call(self._stub.ListPlanningCeremonyInstances, request, timeout)

    def watch(self, instance_id: str) -> Iterator[pb.PlanningCeremonyInstance]:
        """The ceremony now and after each change, until it has ended."""
        call = self._stub.WatchPlanningCeremony(pb.WatchPlanningCeremonyRequest(instance_id=instance_id))
        try:
            for response in call:
                yield response.ceremony
        except grpc.RpcError as error:
            raise error_of(error) from None
        finally:
            call.cancel()

    def history(self, instance_id: str, *, limit: int = 200, timeout: float | None = None) -> pb.GetHistoryResponse:
        """The newest events of a ceremony, oldest first, at most 1,000; `complete` is True if these are all."""
        request = pb.GetHistoryRequest(instance_id=instance_id, limit=limit)
        return self._call(self._stub.GetHistory, request, timeout)

    def history_pages(
        self, instance_id: str, *, limit: int = 200, timeout: float | None = None
    ) -> Iterator[pb.GetHistoryResponse]:
        """All events of a ceremony from its first on, in pages of at most `limit`; a page may be empty.

        On the last page `complete` is True if nothing is missing.
        """
        token = ""
        while True:
            request = requests.history_page(instance_id, limit, token)
            page = self._call(self._stub.GetHistory, request, timeout)
            yield page
            token = page.next_page_token
            if not token:
                return

    def diagnose(self, instance_id: str | None = None, *, timeout: float | None = None) -> pb.DiagnoseResponse:
        """Diagnose one ceremony or the whole engine: everything stuck or waiting, with reasons and remedies."""
        return self._call(self._stub.Diagnose, pb.DiagnoseRequest(instance_id=instance_id), timeout)

    def definitions(self, *, timeout: float | None = None) -> Sequence[pb.DefinitionSummary]:
        """The present definitions of the engine, by name; invalid ones with their problems."""
        response = self._call(self._stub.ListDefinitions, pb.ListDefinitionsRequest(), timeout)
        return response.definitions

    # -- operations

    def decide(
        self,
        instance_id: str,
        *,
        approved: bool,
        actor: str,
        role: str,
        step_id: str | None = None,
        guard: str | None = None,
        visit: int | None = None,
        comment: str = "",
        timeout: float | None = None,
    ) -> pb.PlanningCeremonyInstance:
        """Approve or reject either a gate step or a human guard; returns the ceremony after the decision."""
        request = requests.decision(
            instance_id,
            approved=approved,
            actor=actor,
            role=role,
            step_id=step_id,
            guard=guard,
            visit=visit,
            comment=comment,
        )
        return (self._call(self._stub.DecideGate, request, timeout)).ceremony

    def trigger(
        self,
        instance_id: str,
        trigger: str,
        *,
        actor: str,
        role: str,
        reason: str = "",
        timeout: float | None = None,
    ) -> pb.PlanningCeremonyInstance:
        """Fire a transition; returns the ceremony after it."""
        request = pb.TriggerTransitionRequest(
            instance_id=instance_id,
            trigger=trigger,
            actor=actor,
            role=role,
            reason=reason,
            request_id=requests.new_request_id(),
        )
        return (self._call(self._stub.TriggerTransition, request, timeout)).ceremony

    def cancel(
        self,
        instance_id: str,
        *,
        actor: str,
        role: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> pb.PlanningCeremonyInstance:
        """End a ceremony as CANCELLED; returns the ended ceremony."""
        request = pb.CancelCeremonyRequest(
            instance_id=instance_id,
            actor=actor,
            role=role,
            reason=reason,
            request_id=requests.new_request_id(),
        )
        return (self._call(self._stub.CancelCeremony, request, timeout)).ceremony

    def pause(
        self,
        instance_id: str,
        *,
        actor: str,
        role: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> pb.PlanningCeremonyInstance:
        """Pause a ceremony: answers are recorded, nothing starts."""
        request = pb.PauseCeremonyRequest(
            instance_id=instance_id,
            actor=actor,
            role=role,
            reason=reason,
            request_id=requests.new_request_id(),
        )
        return (self._call(self._stub.PauseCeremony, request, timeout)).ceremony

    def resume(
        self,
        instance_id: str,
        *,
        actor: str,
        role: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> pb.PlanningCeremonyInstance:
        """Resume a paused ceremony; returns it after the changes that followed at once."""
        request = pb.ResumeCeremonyRequest(
            instance_id=instance_id,
            actor=actor,
            role=role,
            reason=reason,
            request_id=requests.new_request_id(),
        )
        return (self._call(self._stub.ResumeCeremony, request, timeout)).ceremony

    def retry_step(
        self,
        instance_id: str,
        step_id: str,
        *,
        actor: str,
        role: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> pb.PlanningCeremonyInstance:
        """Give a FAILED step a new budget of attempts; opens a FAILED or TIMED_OUT ceremony again.

        An empty `step_id` is for each step that the time-out of a TIMED_OUT ceremony cancelled.
        """
        request = pb.RetryStepRequest(
            instance_id=instance_id,
            step_id=step_id,
            actor=actor,
            role=role,
            reason=reason,
            request_id=requests.new_request_id(),
        )
        return (self._call(self._stub.RetryStep, request, timeout)).ceremony

    def run_step(
        self,
        instance_id: str,
        step_id: str,
        *,
        actor: str,
        role: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> pb.PlanningCeremonyInstance:
        """Run a step that the start did not select."""
        request = pb.RunStepRequest(
            instance_id=instance_id,
            step_id=step_id,
            actor=actor,
            role=role,
            reason=reason,
            request_id=requests.new_request_id(),
        )
        return (self._call(self._stub.RunStep, request, timeout)).ceremony

    # -- dead letters

    def dead_letters(
        self, *, topic: str | None = None, limit: int = 100, offset: int = 0, timeout: float | None = None
    ) -> pb.ListDeadLettersResponse:
        """A page of dead letters, newest first: `dead_letters`, and the `total_count` of all matches.

        With `topic` only dead letters from this topic or NATS stream.
        """
        request = pb.ListDeadLettersRequest(topic_filter=topic, limit=limit, offset=offset)
        return self._call(self._stub.ListDeadLetters, request, timeout)

    def dead_letter(
        self, origin: str, partition: int, offset: int, *, timeout: float | None = None
    ) -> pb.ShowDeadLetterResponse:
        """One dead letter with headers and body, by the position of its original."""
        request = pb.ShowDeadLetterRequest(origin=origin, partition=partition, offset=offset)
        return self._call(self._stub.ShowDeadLetter, request, timeout)

    def replay_dead_letter(
        self,
        origin: str,
        partition: int,
        offset: int,
        *,
        actor: str,
        reason: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> pb.ReplayDeadLetterResponse:
        """Send a dead letter's original back to its topic, once for each request id (default: a new id)."""
        request = requests.replay(origin, partition, offset, actor=actor, reason=reason, request_id=request_id)
        return self._call(self._stub.ReplayDeadLetter, request, timeout)

    # -- life

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Send pending starts for at most `timeout` seconds, then end; False if some were left.

        Those are dropped, or stay in the outbox.
        """
        flushed = self._starts.close(timeout)
        self._channel.close()
        return flushed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float | None
    ) -> Response:
        attempts = Attempts(self._timeout if timeout is None else timeout)
        while True:
            try:
                return method(request, timeout=attempts.left)
            except grpc.RpcError as error:
                refused = error_of(error)
            except ValueError:  # of gRPC, for a closed channel
                raise client_closed() from None
            time.sleep(attempts.pause_after(refused))

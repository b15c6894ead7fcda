"""A thin client of the ceremony engine: `async with PlanningCeremonyClient("localhost:50057") as ceremonies: ...`.

Every operation may be repeated safely: it carries a request id, and gRPC itself sends it again, with that same id,
while the engine is UNAVAILABLE (a worker that starts, a partition that moves). A start that the engine has no room for
now (RESOURCE_EXHAUSTED) is sent again by the client, about when the engine says, until its time is up.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import grpc
import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

Request = TypeVar("Request")
Response = TypeVar("Response")

TIMEOUT_SECONDS = 15.0
RETRY_KEY = "retry-after-ms"
"""Trailing metadata: milliseconds after which asking again makes sense."""
SERVICE = "fleet.planning_ceremony.v1.PlanningCeremonyProcessor"

RETRY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": SERVICE}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 2.5,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
CHANNEL_OPTIONS = (
    ("grpc.service_config", RETRY),
    ("grpc.enable_retries", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class PlanningCeremonyError(Exception):
    """The engine said no, or could not be reached in time."""

    def __init__(self, status: grpc.StatusCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status.name}: {message}")
        self.retry_after = retry_after
        """Seconds after which asking again makes sense, where the engine has said so."""
        self.status = status
        """NOT_FOUND, ALREADY_EXISTS, INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION, UNAVAILABLE, …"""
        self.message = message
        """What was wrong, where, and what would be right; begins with a stable code."""


class PlanningCeremonyClient:
    """Calls the engine at `address` (`host:port`); methods raise PlanningCeremonyError.

    Make it where the event loop runs; `close` it, or use `async with`.
    """

    def __init__(self, address: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = PlanningCeremonyProcessorStub(self._channel)
        self._timeout = timeout

    async def start(
        self,
        definition_name: str,
        *,
        ceremony_id: str,
        story_id: str,
        requested_by: str,
        inputs: Mapping[str, Any] | None = None,
        step_ids: Iterable[str] = (),
        correlation_id: str | None = None,
    ) -> str:
        """Start a ceremony and return its instance id. Inputs that are no strings travel as JSON values."""
        request = pb.StartPlanningCeremonyRequest(
            ceremony_id=ceremony_id,
            definition_name=definition_name,
            story_id=story_id,
            correlation_id=correlation_id,
            inputs={name: value for name, value in (inputs or {}).items() if isinstance(value, str)},
            step_ids=step_ids,
            requested_by=requested_by,
            request_id=_request_id(),
        )
        richer = {name: value for name, value in (inputs or {}).items() if not isinstance(value, str)}
        if richer:
            request.inputs_json.update(richer)
        return (await self._call(self._stub.StartPlanningCeremony, request)).instance_id

    async def get(self, instance_id: str) -> pb.PlanningCeremonyInstance | None:
        """The ceremony as it stands, or None where there is none."""
        request = pb.GetPlanningCeremonyInstanceRequest(instance_id=instance_id)
        response = await self._call(self._stub.GetPlanningCeremonyInstance, request)
        return response.ceremony if response.success else None

    async def list(
        self,
        *,
        state: str | None = None,
        definition_name: str | None = None,
        story_id: str | None = None,
        status: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> pb.ListPlanningCeremonyInstancesResponse:
        """A page, newest first: `ceremonies`, and `total_count` of all that match."""
        request = pb.ListPlanningCeremonyInstancesRequest(
            state_filter=state,
            definition_filter=definition_name,
            story_id=story_id,
            status_filter=status,
            limit=limit,
            offset=offset,
        )
        return await self._call(self._stub.ListPlanningCeremonyInstances, request)

    async def decide(
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
    ) -> pb.PlanningCeremonyInstance:
        """Approve or reject a gate step or a human guard (one of them); returns the ceremony after it."""
        if (step_id is None) == (guard is None):
            raise ValueError("name the gate by step_id or by guard, exactly one of them")
        request = pb.DecideGateRequest(
            instance_id=instance_id,
            approved=approved,
            visit=visit,
            actor=actor,
            role=role,
            comment=comment,
            request_id=_request_id(),
        )
        # A oneof takes what is set last, an empty string too: set the one that was given.
        if step_id is not None:
            request.step_id = step_id
        elif guard is not None:
            request.guard = guard
        return (await self._call(self._stub.DecideGate, request)).ceremony

    async def trigger(
        self, instance_id: str, trigger: str, *, actor: str, role: str, reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Ask for a transition; returns the ceremony after it."""
        request = pb.TriggerTransitionRequest(
            instance_id=instance_id,
            trigger=trigger,
            actor=actor,
            role=role,
            reason=reason,
            request_id=_request_id(),
        )
        return (await self._call(self._stub.TriggerTransition, request)).ceremony

    async def cancel(
        self, instance_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """End a ceremony as CANCELLED; returns it as it ended."""
        request = pb.CancelCeremonyRequest(
            instance_id=instance_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.CancelCeremony, request)).ceremony

    async def pause(
        self, instance_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Pause a ceremony: answers are recorded, nothing starts."""
        request = pb.PauseCeremonyRequest(
            instance_id=instance_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.PauseCeremony, request)).ceremony

    async def resume(
        self, instance_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Let a paused ceremony go on; returns it after what followed at once."""
        request = pb.ResumeCeremonyRequest(
            instance_id=instance_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.ResumeCeremony, request)).ceremony

    async def retry_step(
        self, instance_id: str, step_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Give a FAILED step a new budget of attempts; opens a FAILED ceremony again."""
        request = pb.RetryStepRequest(
            instance_id=instance_id, step_id=step_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.RetryStep, request)).ceremony

    async def run_step(
        self, instance_id: str, step_id: str, *, actor: str, role: str = "", reason: str = ""
    ) -> pb.PlanningCeremonyInstance:
        """Run a step that the start did not select."""
        request = pb.RunStepRequest(
            instance_id=instance_id, step_id=step_id, actor=actor, role=role, reason=reason, request_id=_request_id()
        )
        return (await self._call(self._stub.RunStep, request)).ceremony

    async def history(self, instance_id: str, *, limit: int = 200) -> pb.GetHistoryResponse:
        """The newest events of a ceremony, oldest first, at most 200; the answer says whether these are all."""
        return await self._call(self._stub.GetHistory, pb.GetHistoryRequest(instance_id=instance_id, limit=limit))

    async def dead_letter(self, origin: str, partition: int, offset: int) -> pb.ShowDeadLetterResponse:
        """One dead letter with headers and body, by where its original stood."""
        request = pb.ShowDeadLetterRequest(origin=origin, partition=partition, offset=offset)
        return await self._call(self._stub.ShowDeadLetter, request)

    async def replay_dead_letter(
        self, origin: str, partition: int, offset: int, *, actor: str, reason: str = "", request_id: str | None = None
    ) -> pb.ReplayDeadLetterResponse:
        """Send a dead letter's original back to where it came from; once for each request id (default: a new one)."""
        request = pb.ReplayDeadLetterRequest(
            origin=origin,
            partition=partition,
            offset=offset,
            actor=actor,
            reason=reason,
            request_id=request_id or _request_id(),
        )
        return await self._call(self._stub.ReplayDeadLetter, request)

    async def diagnose(self, instance_id: str | None = None) -> pb.DiagnoseResponse:
        """What is stuck or waiting, why, and what to do: of one ceremony, or of the engine as a whole."""
        return await self._call(self._stub.Diagnose, pb.DiagnoseRequest(instance_id=instance_id))

    async def watch(self, instance_id: str) -> AsyncIterator[pb.PlanningCeremonyInstance]:
        """The ceremony now and after each change, until it has ended."""
        try:
            async for response in self._stub.WatchPlanningCeremony(
                pb.WatchPlanningCeremonyRequest(instance_id=instance_id)
            ):
                yield response.ceremony
        except grpc.aio.AioRpcError as error:
            raise PlanningCeremonyError(error.code(), error.details() or "") from None

    async def dead_letters(
        self, *, topic: str | None = None, limit: int = 100, offset: int = 0
    ) -> pb.ListDeadLettersResponse:
        """A page of what was set aside, newest first: `dead_letters`, and `total_count` of all that match.

        `topic`: only what came from this topic or NATS stream.
        """
        request = pb.ListDeadLettersRequest(topic_filter=topic, limit=limit, offset=offset)
        return await self._call(self._stub.ListDeadLetters, request)

    async def definitions(self) -> Sequence[pb.DefinitionSummary]:
        """The definitions that the engine sees now, by name; the invalid ones with their problems."""
        response = await self._call(self._stub.ListDefinitions, pb.ListDefinitionsRequest())
        return response.definitions

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return await method(request, timeout=max(deadline - time.monotonic(), 0.001))
            except grpc.aio.AioRpcError as error:
                refused = _refused(error)
            pause = _pause(refused)
            if pause is None or time.monotonic() + pause >= deadline:
                raise refused
            await asyncio.sleep(pause)


def _refused(error: grpc.aio.AioRpcError) -> PlanningCeremonyError:
    hint = next((str(value) for key, value in error.trailing_metadata() or () if key == RETRY_KEY), "")
    return PlanningCeremonyError(error.code(), error.details() or "", int(hint) / 1000 if hint.isdigit() else None)


def _pause(refused: PlanningCeremonyError) -> float | None:
    """Seconds until the call is worth repeating; those who were refused together do not come back together."""
    if refused.status is not grpc.StatusCode.RESOURCE_EXHAUSTED or refused.retry_after is None:
        return None
    return refused.retry_after * random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def _request_id() -> str:
    return uuid4().hex

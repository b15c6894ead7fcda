"""The client of the Ray executor: submits tasks by gRPC; their results arrive later, on NATS."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import grpc
import grpc.aio
import structlog
from fleet.ray_executor.v1 import ray_executor_pb2 as pb
from fleet.ray_executor.v1.ray_executor_pb2_grpc import RayExecutorServiceStub

from bridge.grpc.intake import read_all_wakeups
from bridge.grpc.metadata import correlation_metadata, trace_metadata
from ports.errors import Unreachable
from ports.masking import masked, masked_address
from ports.ray import RayAnswer, RayTask
from streams.outages import NeighbourOutage

NEIGHBOUR = "ray_executor"
CALL_TIMEOUT_SECONDS = 10.0
PROBE_TIMEOUT_SECONDS = 1.0
MESSAGE_CHARACTERS = 300

# By default a channel waits up to two minutes before it connects again to an executor that was down.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

# With these statuses the executor has not decided on the task: the call or its answer was lost, or the executor is
# overloaded. Every other status is the executor's answer to the task, and uses up an attempt.
UNDECIDED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)

log = structlog.get_logger(__name__)


class RayExecutorClient:
    """The RayExecutor port on one open channel. Create it in the event loop; `close` it, or use `async with`."""

    def __init__(
        self,
        url: str,
        *,
        call_timeout_seconds: float = CALL_TIMEOUT_SECONDS,
        outage: NeighbourOutage | None = None,
    ) -> None:
        """`outage`: hears of each call, and tells the log."""
        self.url = url
        """`host:port` of the executor (RAY_EXECUTOR_URL)."""
        self._shown = masked_address(url)
        self.call_timeout_seconds = call_timeout_seconds
        """Deadline of a call (RAY_CALL_TIMEOUT_SECONDS)."""
        self._outage = outage
        read_all_wakeups()
        self._channel = grpc.aio.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = RayExecutorServiceStub(self._channel)

    async def execute(self, task: RayTask) -> RayAnswer:
        """Submit a task; returns `submitted` with its deliberation id, or `failed` with a code. Raises Unreachable.

        Codes: `ray_refused` (the executor answered `failed`), `ray_unknown_status`, `ray_<gRPC status in lower case>`.
        """
        metadata = (*correlation_metadata(task.correlation_id), *trace_metadata(task.traceparent))
        try:
            if task.backlog_review:
                response = await self._stub.ExecuteBacklogReviewDeliberation(
                    backlog_review_request(task), timeout=self.call_timeout_seconds, metadata=metadata
                )
            else:
                response = await self._stub.ExecuteDeliberation(
                    deliberation_request(task), timeout=self.call_timeout_seconds, metadata=metadata
                )
        except grpc.aio.AioRpcError as error:
            return self._failed(error, task.task_id)
        except grpc.aio.UsageError:
            raise Unreachable(NEIGHBOUR, "the channel is closed") from None
        self._answered()
        return to_answer(response)

    async def probe(self) -> None:
        """Check that the executor answers within a second. Raises Unreachable."""
        try:
            await self._stub.GetStatus(pb.GetStatusRequest(), timeout=PROBE_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in UNDECIDED:
                raise self._unreachable(error) from None
        except grpc.aio.UsageError:
            raise Unreachable(NEIGHBOUR, "the channel is closed") from None
        self._answered()

    async def close(self) -> None:
        """Close the channel; running calls end as Unreachable."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _failed(self, error: grpc.aio.AioRpcError, task_id: str) -> RayAnswer:
        if error.code() in UNDECIDED:
            raise self._unreachable(error) from None
        # The details may hold an exception's text from the executor: log them, and keep them from clients.
        details = self._details(error)
        log.debug("ray_call_failed", task_id=task_id, grpc_status=error.code().name, details=details)
        self._call_failed(error, f"the Ray executor at {self._shown} answered {error.code().name}: {details}")
        return RayAnswer(
            "failed",
            code=f"ray_{error.code().name.lower()}",
            message=f"the Ray executor at {self._shown} answered {error.code().name}; see its own log",
        )

    def _details(self, error: grpc.aio.AioRpcError) -> str:
        """The details for the log; gRPC's own name the address."""
        return masked((error.details() or "").replace(self.url, self._shown))

    def _unreachable(self, error: grpc.aio.AioRpcError) -> Unreachable:
        log.debug("ray_unreachable", url=self._shown, grpc_status=error.code().name, details=self._details(error))
        unreachable = Unreachable(NEIGHBOUR, f"{self._shown} gave no answer ({error.code().name})")
        self._call_failed(error, unreachable.reason)
        return unreachable

    def _call_failed(self, error: grpc.aio.AioRpcError, reason: str) -> None:
        if self._outage is not None:
            self._outage.failed(f"ray_{error.code().name.lower()}", reason)

    def _answered(self) -> None:
        if self._outage is not None:
            self._outage.answered()


def to_answer(response: pb.ExecuteDeliberationResponse) -> RayAnswer:
    """The answer for the attempt: `submitted`, or `failed` for every other status."""
    reason = one_line(response.message)
    match response.status:
        case "submitted":
            return RayAnswer("submitted", deliberation_id=response.deliberation_id, message=reason)
        case "failed":
            code, message = "ray_refused", f"the Ray executor refused the task: {reason or 'no reason was given'}"
        case other:
            code = "ray_unknown_status"
            message = f"the Ray executor answered status {one_line(other)!r}; expected submitted or failed"
    return RayAnswer("failed", deliberation_id=response.deliberation_id, code=code, message=message)


def backlog_review_request(task: RayTask) -> pb.ExecuteBacklogReviewDeliberationRequest:
    """The request for a backlog review; its constraints have no plan id, so the metadata carries it."""
    metadata = {"plan_id": task.plan_id, **task.metadata} if task.plan_id else task.metadata
    return pb.ExecuteBacklogReviewDeliberationRequest(
        task_id=task.task_id,
        task_description=task.task_description,
        role=task.role,
        constraints=pb.BacklogReviewTaskConstraints(
            story_id=task.story_id,
            timeout_seconds=task.timeout_seconds,
            max_retries=task.max_retries,
            metadata=metadata,
        ),
        agents=agents(task),
        vllm_url=task.vllm_url,
        vllm_model=task.vllm_model,
    )


def deliberation_request(task: RayTask) -> pb.ExecuteDeliberationRequest:
    """The request for any other deliberation, including task extraction."""
    return pb.ExecuteDeliberationRequest(
        task_id=task.task_id,
        task_description=task.task_description,
        role=task.role,
        constraints=pb.TaskConstraints(
            story_id=task.story_id,
            plan_id=task.plan_id,
            timeout_seconds=task.timeout_seconds,
            max_retries=task.max_retries,
            metadata=task.metadata,
        ),
        agents=agents(task),
        vllm_url=task.vllm_url,
        vllm_model=task.vllm_model,
    )


def agents(task: RayTask) -> list[pb.Agent]:
    """The task's agents as messages."""
    return [
        pb.Agent(id=agent.id, role=agent.role, model=agent.model, prompt_template=agent.prompt_template)
        for agent in task.agents
    ]


def one_line(text: str) -> str:
    """A neighbour's text on one line, shortened."""
    return "".join(c if c.isprintable() else " " for c in text[:MESSAGE_CHARACTERS]).strip()

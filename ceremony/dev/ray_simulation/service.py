"""The executor's gRPC service over the simulation: accepts, refuses and reports as the real one does."""

from __future__ import annotations

from itertools import islice
from typing import Any

import grpc
from fleet.ray_executor.v1 import ray_executor_pb2 as pb
from fleet.ray_executor.v1.ray_executor_pb2_grpc import RayExecutorServiceServicer

from bridge.grpc.metadata import TRACE_KEY, trace_in
from ceremony.dev.ray_simulation import answers
from ceremony.dev.ray_simulation.jobs import Job, JobBook, JobKind
from ceremony.dev.ray_simulation.knobs import Fate, Knobs
from ceremony.dev.ray_simulation.outbox import Outbox
from ports.clock import Clock

LISTED_JOBS = 1_000
HANG_SECONDS = 3_600.0
AnyRequest = pb.ExecuteDeliberationRequest | pb.ExecuteBacklogReviewDeliberationRequest


class DueAnswer:
    """The letter of one agent, or the second copy of it."""

    __slots__ = ("_agent_id", "_body", "_copy", "_service", "fate", "job")

    def __init__(self, service: RayExecutorService, job: Job, agent_id: str, fate: Fate) -> None:
        self.job = job
        self.fate = fate
        self._service = service
        self._agent_id = agent_id
        self._body: tuple[str, bytes] | None = None
        self._copy = False

    def compose(self) -> tuple[str, bytes] | None:
        """Subject and body, the same at every call; None if the agent stays silent."""
        if self._body is None and self.fate.kind != "silent":
            dice = self._service.knobs.random(self.job.task_id, f"{self._agent_id}\0text")
            clock = self._service.clock
            took = clock.monotonic() - self.job.started
            self._body = answers.message(self.job, self._agent_id, self.fate, dice, clock.wall(), took)
        return self._body

    @property
    def headers(self) -> dict[str, str] | None:
        """An executor without spans of its own passes the trace on."""
        return {TRACE_KEY: self.job.traceparent} if self.job.traceparent else None

    def delivered(self) -> None:
        """Settle the job with the first copy; a second copy does not count."""
        if self._copy:
            return
        now = self._service.clock.monotonic()
        self._service.book.settle(self.job, self.fate.kind, now)
        if self.fate.repeat_after is not None and self._body is not None:
            self._copy = True
            self._service.outbox.put(max(now, self.job.started + self.fate.repeat_after), self)
        else:
            self._body = None


class RayExecutorService(RayExecutorServiceServicer):
    """All RPCs of fleet.ray_executor.v1. A task id that was accepted is never run twice."""

    def __init__(self, knobs: Knobs, book: JobBook, outbox: Outbox, clock: Clock) -> None:
        self.knobs = knobs
        self.book = book
        self.outbox = outbox
        self.clock = clock
        self._started = clock.monotonic()

    async def ExecuteDeliberation(
        self, request: pb.ExecuteDeliberationRequest, context: Any
    ) -> pb.ExecuteDeliberationResponse:
        """Accept a generic deliberation, or a task extraction if the metadata names one."""
        extraction = request.constraints.metadata.get("task_type") == "TASK_EXTRACTION"
        return await self._execute(request, "task_extraction" if extraction else "generic", context)

    async def ExecuteBacklogReviewDeliberation(
        self, request: pb.ExecuteBacklogReviewDeliberationRequest, context: Any
    ) -> pb.ExecuteDeliberationResponse:
        """Accept a role's part of a backlog review."""
        return await self._execute(request, "backlog_review", context)

    async def GetDeliberationStatus(
        self, request: pb.GetDeliberationStatusRequest, context: Any
    ) -> pb.GetDeliberationStatusResponse:
        """`running`, `completed` (with the first agent's proposal), `failed` or `not_found`."""
        job = self.book.find_deliberation(request.deliberation_id)
        if job is None:
            return pb.GetDeliberationStatusResponse(status="not_found", error_message="no such deliberation")
        if job.status == "completed":
            return pb.GetDeliberationStatusResponse(status=job.status, result=self._result(job))
        problem = f"{job.failed} failed and {job.lost} gave no answer" if job.status == "failed" else ""
        return pb.GetDeliberationStatusResponse(status=job.status, error_message=problem)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """`healthy`, and the counts of this run if requested."""
        response = pb.GetStatusResponse(status="healthy", uptime_seconds=int(self.clock.monotonic() - self._started))
        if request.include_stats:
            ended = self.book.completed + self.book.failed
            response.stats.CopyFrom(
                pb.RayExecutorStats(
                    total=self.book.total,
                    active=self.book.active,
                    completed=self.book.completed,
                    failed=self.book.failed,
                    average_execution_time_ms=self.book.seconds * 1_000 / ended if ended else 0.0,
                )
            )
        return response

    async def GetActiveJobs(self, request: pb.GetActiveJobsRequest, context: Any) -> pb.GetActiveJobsResponse:
        """The running jobs, oldest first, a thousand at most."""
        now = self.clock.monotonic()
        return pb.GetActiveJobsResponse(jobs=[job_info(job, now) for job in islice(self.book.running(), LISTED_JOBS)])

    async def _execute(self, request: AnyRequest, kind: JobKind, context: Any) -> pb.ExecuteDeliberationResponse:
        known = self.book.find(request.task_id)
        if known is not None:
            return submitted(known, "already accepted")
        problem = refusal(request, kind)
        if not problem and self.knobs.rejects(request.task_id):
            problem = "no worker of the cluster takes this task"
        if problem:
            return pb.ExecuteDeliberationResponse(task_id=request.task_id, status="failed", message=problem)
        if self.book.full:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many running jobs")
        job = self._accept(request, kind)
        job.traceparent = trace_in(context.invocation_metadata() or ())
        if self.knobs.hangs(request.task_id):
            await self.clock.sleep(HANG_SECONDS)  # ended by the caller's deadline
        return submitted(job, f"{len(request.agents)} agents at work")

    def _accept(self, request: AnyRequest, kind: JobKind) -> Job:
        agent_ids = tuple(agent.id for agent in request.agents)
        job = Job(
            task_id=request.task_id,
            deliberation_id=f"deliberation-{answers.hex_id(self.knobs.random(request.task_id, 'deliberation'))}",
            kind=kind,
            role=request.role,
            agent_ids=agent_ids,
            model=request.vllm_model,
            words=answers.words_of(request.task_description),
            voices=answers.voices_of(request.task_description),
            constraints=constraints(request),
            accepted_at=self.clock.wall(),
            started=self.clock.monotonic(),
        )
        # An extraction has one result, however many agents work on it.
        speakers = agent_ids[:1] if kind == "task_extraction" else agent_ids
        job.waiting = len(speakers)
        self.book.accept(job)
        for agent_id in speakers:
            fate = Fate.draw(self.knobs, self.knobs.random(job.task_id, agent_id))
            self.outbox.put(job.started + fate.delay, DueAnswer(self, job, agent_id, fate))
        return job

    def _result(self, job: Job) -> pb.DeliberationResult:
        agent_id = job.agent_ids[0]
        dice = self.knobs.random(job.task_id, f"{agent_id}\0text")
        return pb.DeliberationResult(
            agent_id=agent_id,
            proposal=answers.proposal(job, dice),
            reasoning=f"{len(job.agent_ids)} agents answered",
            score=round(dice.uniform(0.5, 1.0), 2),
            metadata=job.constraints["metadata"],
        )


def refusal(request: AnyRequest, kind: JobKind) -> str:
    """The reason for which the real executor would answer `failed`; empty for an acceptable request."""
    task_id = request.task_id
    if not task_id:
        return "task_id is empty"
    if kind == "backlog_review" and not (
        task_id.startswith("ceremony-") and ":story-" in task_id and ":role-" in task_id
    ):
        return f"task_id {task_id!r} must read ceremony-<id>:story-<id>:role-<role>"
    if not request.task_description.strip():
        return "task_description is empty"
    if not request.agents:
        return "no agents"
    ids = [agent.id for agent in request.agents]
    if not all(ids) or len(set(ids)) < len(ids):
        return "agents need ids, each its own"
    return ""


def constraints(request: AnyRequest) -> dict[str, Any]:
    """The request's constraints as they come back in an answer."""
    given = request.constraints
    given_back = {
        "story_id": given.story_id,
        "timeout_seconds": given.timeout_seconds,
        "max_retries": given.max_retries,
        "metadata": dict(given.metadata),
    }
    if isinstance(given, pb.TaskConstraints):
        given_back["plan_id"] = given.plan_id
    return given_back


def submitted(job: Job, message: str) -> pb.ExecuteDeliberationResponse:
    """The response for an accepted task."""
    return pb.ExecuteDeliberationResponse(
        task_id=job.task_id, deliberation_id=job.deliberation_id, status="submitted", message=message
    )


def job_info(job: Job, now: float) -> pb.JobInfo:
    """A running job; `now` in monotonic seconds."""
    info = pb.JobInfo(
        job_id=job.deliberation_id,
        name=job.kind,
        status="RUNNING",
        submission_id=job.deliberation_id,
        role=job.role,
        task_id=job.task_id,
        runtime=f"{now - job.started:.1f}s",
    )
    info.start_time.FromNanoseconds(int(job.accepted_at * 1e9))
    return info

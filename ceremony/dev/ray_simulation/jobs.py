"""The jobs that the simulated executor has accepted, with their state; a limited number of ended ones is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

JobKind = Literal["backlog_review", "task_extraction", "generic"]


@dataclass(slots=True)
class Job:
    """One accepted task. Of its prompt only single words are kept."""

    task_id: str
    deliberation_id: str
    kind: JobKind
    role: str
    agent_ids: tuple[str, ...]
    model: str
    words: tuple[str, ...]
    """Words of the prompt, from which its answers are made."""
    voices: int
    """Number of deliberations that the prompt quotes."""
    constraints: dict[str, Any]
    accepted_at: float
    """Wall clock, seconds since the epoch."""
    started: float
    """Monotonic seconds."""
    traceparent: str = ""
    """W3C Trace Context of the call; it goes back with the answers."""
    waiting: int = 0
    """Answers that are still to come."""
    failed: int = 0
    """Answers that were failures."""
    lost: int = 0
    """Answers that never come."""
    ended: float | None = None
    """Monotonic seconds; set after the last answer."""

    @property
    def status(self) -> str:
        """`running`, `completed` or `failed`, as GetDeliberationStatus reports it."""
        if self.ended is None:
            return "running"
        return "failed" if self.failed or self.lost else "completed"


@dataclass(slots=True)
class JobBook:
    """Jobs by task id and by deliberation id; at most `running_limit` running ones and `kept_limit` ended ones."""

    running_limit: int
    kept_limit: int
    total: int = 0
    completed: int = 0
    failed: int = 0
    seconds: float = 0.0
    """Of all ended jobs together."""
    _running: dict[str, Job] = field(default_factory=dict)
    _ended: dict[str, Job] = field(default_factory=dict)
    _by_deliberation: dict[str, Job] = field(default_factory=dict)

    @property
    def active(self) -> int:
        """The number of jobs that run now."""
        return len(self._running)

    @property
    def full(self) -> bool:
        """True if no further job can be accepted."""
        return len(self._running) >= self.running_limit

    def find(self, task_id: str) -> Job | None:
        """The job of a task, running or kept."""
        return self._running.get(task_id) or self._ended.get(task_id)

    def find_deliberation(self, deliberation_id: str) -> Job | None:
        """The job with this deliberation id, running or kept."""
        return self._by_deliberation.get(deliberation_id)

    def running(self) -> Iterator[Job]:
        """The jobs that run now, oldest first."""
        return iter(self._running.values())

    def accept(self, job: Job) -> None:
        """Enter a new job."""
        self.total += 1
        self._running[job.task_id] = job
        self._by_deliberation[job.deliberation_id] = job

    def settle(self, job: Job, kind: Literal["completed", "failed", "silent"], now: float) -> None:
        """Count one answer of `job` as sent or silent. After its last one the job has ended."""
        job.failed += kind == "failed"
        job.lost += kind == "silent"
        job.waiting -= 1
        if job.waiting:
            return
        job.ended = now
        self.seconds += now - job.started
        self.completed += job.status == "completed"
        self.failed += job.status == "failed"
        self._ended[job.task_id] = self._running.pop(job.task_id)
        while len(self._ended) > self.kept_limit:
            forgotten = self._ended.pop(next(iter(self._ended)))
            del self._by_deliberation[forgotten.deliberation_id]

"""The Ray executor, as the engine needs it: tasks go out, results come back on NATS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class RayAgent:
    """One agent of a Ray task."""

    id: str
    role: str
    model: str
    prompt_template: str = ""


@dataclass(frozen=True, slots=True)
class RayTask:
    """A task for the Ray executor (specification 15.1); `backlog_review` picks ExecuteBacklogReviewDeliberation."""

    task_id: str
    task_description: str
    role: str
    agents: Sequence[RayAgent]
    story_id: str
    backlog_review: bool
    plan_id: str = ""
    timeout_seconds: int = 300
    max_retries: int = 3
    metadata: Mapping[str, str] = field(default_factory=dict)
    vllm_url: str = ""
    vllm_model: str = ""
    correlation_id: str = ""
    traceparent: str = ""
    """W3C Trace Context of the attempt."""


@dataclass(frozen=True, slots=True)
class RayAnswer:
    """The executor's answer to a task: accepted (`submitted`) or refused (`failed`, with a stable code)."""

    status: Literal["submitted", "failed"]
    deliberation_id: str = ""
    code: str = ""
    message: str = ""


class RayExecutor(Protocol):
    async def execute(self, task: RayTask) -> RayAnswer:
        """Submit a task and return at once; its results come on NATS. Raises Unreachable. Every call has a deadline."""

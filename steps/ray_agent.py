"""The agent that hands tasks to the Ray executor, for the two kinds that have any."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ports.clock import Clock
from ports.ray import RayAgent, RayExecutor, RayTask
from steps.agent import AgentFunction, Calls, calling
from steps.outcome import Outcome, failed
from steps.reading import Wiring
from tables.effects import StepRequested


class TaskBody(msgspec.Struct, frozen=True, gc=False):
    """Body of the request, as steps/ray_task.py `task_body` makes it."""

    task_id: str
    task_description: str
    role: str
    agents: list[str]
    story_id: str
    plan_id: str
    timeout_seconds: int
    max_retries: int
    metadata: dict[str, str]
    backlog_review: bool


@dataclass(frozen=True, slots=True)
class Model:
    """Where the agents find their language model: settings of this server, not of the request."""

    url: str
    """VLLM_URL"""
    name: str
    """VLLM_MODEL"""


def ray_agent(
    name: str, wiring: Wiring, clock: Clock, ray: RayExecutor, model: Model, concurrency: int, seconds: float
) -> AgentFunction:
    """The agent of `steps.<name>`: hands over each task; its results come later, on NATS."""

    async def perform(request: StepRequested, body: TaskBody) -> Outcome:
        answer = await ray.execute(_task(request, body, model))
        if answer.status == "submitted":
            return Outcome("submitted", deliberation_id=answer.deliberation_id)
        return failed(answer.code or "ray_refused", answer.message or "the Ray executor refused the task")

    return calling(name, wiring, TaskBody, Calls(clock, "ray_executor", perform, concurrency, seconds))


def _task(request: StepRequested, body: TaskBody, model: Model) -> RayTask:
    return RayTask(
        task_id=body.task_id,
        task_description=body.task_description,
        role=body.role,
        agents=[RayAgent(agent, body.role, model.name) for agent in body.agents],
        story_id=body.story_id,
        backlog_review=body.backlog_review,
        plan_id=body.plan_id,
        timeout_seconds=body.timeout_seconds,
        max_retries=body.max_retries,
        metadata=body.metadata,
        vllm_url=model.url,
        vllm_model=model.name,
        correlation_id=request.correlation_id,
    )

"""Tasks of the Ray executor, shared by two step kinds: body, ids, judgement of answers, and the agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ports.ray import RayAgent, RayTask
from steps.agent import AgentFunction, AgentPorts, Calls, Model, calling
from steps.config import Constraints
from steps.outcome import Outcome, failed
from steps.reading import Asked
from tables.instance import AgentAnswer
from tables.kinds import Failed, StepContext
from tables.templates import as_text, render

# Bytes of the UTF-8 text of `task_description`.
LARGEST_DESCRIPTION_BYTES = 256 * 1024


def task_id(context: StepContext, subject: str) -> str:
    """Return the id of an attempt's task: `ceremony-…:story-…:<subject>:step-…:attempt-…`; each attempt has its own."""
    instance = context.instance
    return (
        f"ceremony-{instance.ceremony_id}:story-{instance.story_id}:{subject}"
        f":step-{context.step.id}:attempt-{context.state.attempt}"
    )


def readable(value: Any) -> str:
    """Return a value as indented JSON, for an agent to read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def description(*sections: str) -> str | Failed:
    """Join the sections to `task_description`, or fail where it is too large."""
    text = "\n\n".join(sections)
    size = len(text.encode())
    if size > LARGEST_DESCRIPTION_BYTES:
        return Failed(
            "request_too_large",
            f"the task description has {size} bytes, at most {LARGEST_DESCRIPTION_BYTES} are allowed",
            retryable=False,
        )
    return text


def task_body(
    context: StepContext,
    *,
    task: str,
    text: str,
    role: str,
    agents: Iterable[str],
    constraints: Constraints,
    ours: Mapping[str, str],
    backlog_review: bool,
) -> dict[str, Any]:
    """Return the body of StepRequested for a Ray task. Metadata in `ours` wins. Raises TemplateFailed."""
    instance = context.instance
    asked = _asked(context, constraints)
    # These keys win, for results are routed by them.
    metadata = asked["metadata"] | {
        "task_id": task,
        "instance_id": instance.instance_id,
        "step_id": context.step.id,
        "attempt": str(context.state.attempt),
        "correlation_id": instance.correlation_id,
        **ours,
    }
    if asked["plan_id"]:
        metadata["plan_id"] = asked["plan_id"]
    return {
        "task_id": task,
        "task_description": text,
        "role": role,
        "agents": list(agents),
        "story_id": asked["story_id"],
        "plan_id": asked["plan_id"],
        "timeout_seconds": constraints.timeout_seconds,
        "max_retries": constraints.max_retries,
        "metadata": metadata,
        "backlog_review": backlog_review,
    }


def _asked(context: StepContext, constraints: Constraints) -> dict[str, Any]:
    """Render the constraints together, so that one limit holds for all of them. One that is null is as good as none."""
    template = {
        "story_id": context.instance.story_id if constraints.story_id is None else constraints.story_id,
        "plan_id": constraints.plan_id or "",
        "metadata": constraints.metadata,
    }
    asked = render(template, context.instance.inputs, context.output, context.definition.optional_inputs)
    story_id = asked["story_id"]
    return {
        "story_id": context.instance.story_id if story_id is None else as_text(story_id),
        "plan_id": "" if asked["plan_id"] is None else as_text(asked["plan_id"]),
        "metadata": {key: as_text(value) for key, value in asked["metadata"].items() if value is not None},
    }


def failures(agents: Iterable[str], answers: Mapping[str, AgentAnswer]) -> list[str]:
    """Return one phrase for each of these agents that did not succeed."""
    return [f"{agent}: {_reason(answers.get(agent))}" for agent in agents if not succeeded(answers.get(agent))]


def succeeded(answer: AgentAnswer | None) -> bool:
    """Return whether an agent gave a result that is not empty."""
    return answer is not None and not answer.error_code and answer.value not in (None, "")


def _reason(answer: AgentAnswer | None) -> str:
    if answer is None:
        return "no answer"
    if answer.error_code:
        return answer.error_code + (f" ({answer.error_message})" if answer.error_message else "")
    return "empty result"


class TaskBody(msgspec.Struct, frozen=True, gc=False):
    """Body of the request, as `task_body` makes it."""

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


def ray_agent(name: str, ports: AgentPorts) -> AgentFunction:
    """Return the agent of `steps.<name>`. It hands over tasks; their results come later, on NATS."""

    async def perform(asked: Asked[TaskBody]) -> Outcome:
        answer = await ports.ray.execute(_task(asked, ports.model))
        if answer.status == "submitted":
            return Outcome("submitted", deliberation_id=answer.deliberation_id)
        return failed(answer.code or "ray_refused", answer.message or "the Ray executor refused the task")

    calls = Calls(ports.clock, "ray_executor", perform, ports.concurrency, ports.ray_call_seconds, ports.spans)
    return calling(name, ports.wiring, TaskBody, calls)


def _task(asked: Asked[TaskBody], model: Model) -> RayTask:
    body = asked.body
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
        correlation_id=asked.request.correlation_id,
        traceparent=asked.provenance.traceparent,
    )

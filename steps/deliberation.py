"""Deliberation: several agents of one role work on a prompt; their proposals are the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from steps.agent import AgentFunction, AgentPorts
from steps.config import Config, Constraints, Count, NonBlankText, TaskRole, config_of
from steps.kind import Kind, rendered, unrendered
from steps.ray_task import (
    description,
    failures,
    ray_agent,
    readable,
    succeeded,
    task_body,
    task_id,
)
from tables.definition import Step
from tables.instance import AgentAnswer
from tables.kinds import Completed, Failed, Pending, StepContext, Verdict
from tables.templates import TemplateFailed

TASK_TYPE = "BACKLOG_REVIEW_ROLE"


class DeliberationConfig(Config):
    """Config with `num_agents` or `agents`; if both are given they must agree."""

    prompt: NonBlankText
    """May hold `${inputs.…}` and `${steps.…}`."""
    role: TaskRole
    """Role of the agents: one word without `:`, for it becomes part of the task id."""
    num_agents: Count | None = None
    """Number of agents that are asked; give this or `agents`."""
    agents: list[Any] | None = Field(default=None, min_length=1, max_length=999)
    """Only their number counts; in place of `num_agents`."""
    constraints: Constraints = Constraints()
    """Options of the task at the Ray executor."""
    min_agents: Count | None = None
    """Number of agents that must succeed; default: all."""

    @model_validator(mode="after")
    def _agree(self) -> DeliberationConfig:
        if self.num_agents is None and self.agents is None:
            raise PydanticCustomError("agents_missing", "give `num_agents` (1 or more) or a non-empty list `agents`")
        if self.agents is not None and self.num_agents not in (None, len(self.agents)):
            raise PydanticCustomError("agents_disagree", "`num_agents` and the length of `agents` must agree")
        if self.min_agents is not None and self.min_agents > self.count:
            raise PydanticCustomError("min_agents_too_many", "`min_agents` must not exceed the number of agents")
        return self

    @property
    def count(self) -> int:
        """Return the number of agents that are asked."""
        return self.num_agents or len(self.agents or ())

    @property
    def needed(self) -> int:
        """Return the number of agents that must succeed."""
        return self.min_agents or self.count

    @property
    def agent_ids(self) -> list[str]:
        """Return the ids of the agents that are asked, in order."""
        return [f"agent-{self.role.lower()}-{number:03}" for number in range(1, self.count + 1)]


class Deliberation(Kind):
    """The pure part of the kind."""

    handler: str = "deliberation_step"
    name: str = "deliberation"
    config: type[BaseModel] = DeliberationConfig
    reaches_out: bool = True
    fields: tuple[str, ...] = ("task_id", "deliberation_id", "role", "num_agents", "status", "deliberations")

    def role(self, step: Step) -> str | None:
        return config_of(step, DeliberationConfig).role

    def agents(self, step: Step) -> tuple[str, ...]:
        return tuple(config_of(step, DeliberationConfig).agent_ids)

    def prompts(self, step: Step) -> tuple[str, ...]:
        return (config_of(step, DeliberationConfig).prompt,)

    def inputs(self, step: Step) -> None:
        """Agents are sent all inputs."""

    def templates(self, step: Step) -> Mapping[str, Any]:
        config = config_of(step, DeliberationConfig)
        return {"prompt": config.prompt, "constraints": config.constraints.model_dump()}

    def request(self, context: StepContext) -> Any | Failed:
        """Return a Ray task (shape: steps/ray_task.py `task_body`)."""
        config = config_of(context.step, DeliberationConfig)
        try:
            text = description(rendered(context, config.prompt), "Inputs:", readable(context.instance.inputs))
            if isinstance(text, Failed):
                return text
            return task_body(
                context,
                task=_task_id(context),
                text=text,
                role=config.role,
                agents=config.agent_ids,
                constraints=config.constraints,
                ours={"task_type": TASK_TYPE},
                backlog_review=True,
            )
        except TemplateFailed as error:
            return unrendered(error)

    def accepts(self, context: StepContext, agent_id: str) -> bool:
        return agent_id in config_of(context.step, DeliberationConfig).agent_ids

    def gathered(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """Decide when every agent has answered: COMPLETED with enough proposals, else `agents_failed`."""
        config = config_of(context.step, DeliberationConfig)
        agents = config.agent_ids
        if not all(agent in answers for agent in agents):
            return Pending()
        output = _output(context, answers)
        if output is not None:
            return Completed(output)
        failed = failures(agents, answers)
        good = config.count - len(failed)
        return Failed("agents_failed", f"{good} of {config.needed} needed agents succeeded; {'; '.join(failed)}")

    def timed_out(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """Complete with enough proposals, else fail."""
        output = _output(context, answers)
        if output is not None:
            return Completed(output)
        failed = failures(config_of(context.step, DeliberationConfig).agent_ids, answers)
        return Failed("timeout", f"no result within {context.step.timeout_seconds:g} s; {'; '.join(failed)}")


def _task_id(context: StepContext) -> str:
    return task_id(context, f"role-{config_of(context.step, DeliberationConfig).role}")


def _output(context: StepContext, answers: Mapping[str, AgentAnswer]) -> dict[str, Any] | None:
    """Return the output, proposals in the order of agent ids; None while too few have come."""
    config = config_of(context.step, DeliberationConfig)
    proposals = [
        {"agent_id": agent, "role": config.role, "proposal": answers[agent].value}
        for agent in config.agent_ids
        if succeeded(answers.get(agent))
    ]
    if len(proposals) < config.needed:
        return None
    return {
        "task_id": _task_id(context),
        "deliberation_id": context.state.deliberation_id,
        "role": config.role,
        "num_agents": config.count,
        "status": "completed",
        "deliberations": proposals,
    }


def agent(ports: AgentPorts) -> AgentFunction:
    """Return the agent of `steps.deliberation`."""
    return ray_agent("deliberation", ports)

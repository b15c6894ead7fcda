"""Task extraction: one agent turns the proposals of a deliberation into a list of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, StringConstraints

from steps.agent import AgentFunction, AgentPorts
from steps.config import Config, Constraints, NonBlankText, config_of
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
from tables.definition import Definition, Step
from tables.instance import AgentAnswer
from tables.kinds import Completed, Failed, Pending, Source, StepContext, Verdict
from tables.templates import TemplateFailed

AGENT = "agent-task-extractor-001"
ROLE = "TASK_EXTRACTOR"
TASK_TYPE = "TASK_EXTRACTION"
# Name of the input that wins over the source step.
INPUT = "agent_deliberations"
DEFAULT_PROMPT = "Extract the tasks that follow from these deliberations."
WANTED = (
    "Answer with JSON of this shape, and nothing else:\n"
    '{"tasks": [{"title": string, "description": string, "estimated_hours": number, '
    '"deliberation_indices": [number, from 0], "priority": number}]}'
)


class TaskExtractionConfig(Config):
    source: Annotated[str, StringConstraints(pattern=r"^deliberation:[a-z0-9_]+$")]
    """`deliberation:<step id>`"""
    extraction_prompt: NonBlankText | None = None
    """May hold `${inputs.…}` and `${steps.…}`."""

    @property
    def source_step(self) -> str:
        return self.source.removeprefix("deliberation:")


class TaskExtraction(Kind):
    """The pure part of the kind."""

    handler: str = "task_extraction_step"
    name: str = "task_extraction"
    config: type[BaseModel] = TaskExtractionConfig
    reaches_out: bool = True
    fields: tuple[str, ...] = ("source", "task_id", "deliberation_id", "status", "tasks")

    def prompts(self, step: Step) -> tuple[str, ...]:
        prompt = config_of(step, TaskExtractionConfig).extraction_prompt
        return () if prompt is None else (prompt,)

    def inputs(self, step: Step) -> None:
        """Agents are sent all inputs."""

    def templates(self, step: Step) -> Mapping[str, Any]:
        return {"extraction_prompt": config_of(step, TaskExtractionConfig).extraction_prompt}

    def sources(self, step: Step) -> Iterable[Source]:
        return (Source(f"{config_of(step, TaskExtractionConfig).source_step}.deliberations", INPUT),)

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """Check that the source is a deliberation step, and that templates name steps that exist."""
        config = config_of(step, TaskExtractionConfig)
        name = config.source_step
        source = definition.steps.get(name)
        if source is None:
            yield "source", "unknown_source", f"there is no step `{name}`; name a deliberation_step of this definition"
        elif source.handler != "deliberation_step":
            yield "source", "source_not_deliberation", f"`{name}` is a {source.handler}; name a deliberation_step"
        yield from super().check(step, definition)

    def request(self, context: StepContext) -> Any | Failed:
        """Return a Ray task (shape: steps/ray_task.py `task_body`)."""
        config = config_of(context.step, TaskExtractionConfig)
        deliberations = _deliberations(context, config)
        if isinstance(deliberations, Failed):
            return deliberations
        try:
            text = description(
                rendered(context, config.extraction_prompt or DEFAULT_PROMPT),
                "Inputs:",
                readable({name: value for name, value in context.instance.inputs.items() if name != INPUT}),
                *map(_section, range(len(deliberations)), deliberations),
                WANTED,
            )
            if isinstance(text, Failed):
                return text
            return task_body(
                context,
                task=task_id(context, "task-extraction"),
                text=text,
                role=ROLE,
                agents=[AGENT],
                constraints=Constraints(),
                ours={"task_type": TASK_TYPE, "ceremony_id": context.instance.ceremony_id},
                backlog_review=False,
            )
        except TemplateFailed as error:
            return unrendered(error)

    def accepts(self, context: StepContext, agent_id: str) -> bool:
        return agent_id == AGENT

    def gathered(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        """Judge the one agent's list of tasks; an empty list is a result too."""
        answer = answers.get(AGENT)
        if answer is None:
            return Pending()
        if not succeeded(answer):
            return Failed("agents_failed", "; ".join(failures([AGENT], answers)))
        tasks = answer.value
        if not isinstance(tasks, list):
            return Failed("tasks_invalid", "`tasks` must be a list of objects")
        for index, task in enumerate(tasks):
            if not isinstance(task, dict):
                return Failed("tasks_invalid", f"tasks[{index}] must be an object")
        return Completed(_output(context, tasks))

    def timed_out(self, context: StepContext, answers: Mapping[str, AgentAnswer]) -> Verdict:
        return Failed("timeout", f"no result of {AGENT} came within {context.step.timeout_seconds:g} s")


def _output(context: StepContext, tasks: list[Any]) -> dict[str, Any]:
    return {
        "source": config_of(context.step, TaskExtractionConfig).source,
        "task_id": task_id(context, "task-extraction"),
        "deliberation_id": context.state.deliberation_id,
        "status": "completed",
        "tasks": tasks,
    }


def _deliberations(context: StepContext, config: TaskExtractionConfig) -> list[dict[str, Any]] | Failed:
    """Return the validated deliberations: from the input where given, else from the source step."""
    if INPUT in context.instance.inputs:
        return _validated(context.instance.inputs[INPUT], f"input `{INPUT}`")
    output = context.output(config.source_step)
    if not isinstance(output, dict) or "deliberations" not in output:
        return _refused(
            f"{INPUT}_missing", f"step `{config.source_step}` has no deliberations yet, and there is no input `{INPUT}`"
        )
    return _validated(output["deliberations"], f"output of step `{config.source_step}`")


def _validated(value: Any, where: str) -> list[dict[str, Any]] | Failed:
    if not isinstance(value, list):
        return _refused(f"{INPUT}_not_list", f"{where}: a non-empty list of deliberations is required")
    if not value:
        return _refused(f"{INPUT}_empty", f"{where}: the list of deliberations is empty; at least one is required")
    for index, item in enumerate(value):
        wrong = _wrong(item)
        if wrong:
            return _refused(f"{INPUT}_invalid", f"{where}: item {index}: {wrong}")
    return value


def _wrong(item: Any) -> str:
    """Return the mistake of one deliberation, or ""."""
    if not isinstance(item, dict):
        return "must be an object with agent_id, role and proposal"
    for field in ("agent_id", "role"):
        if not isinstance(item.get(field), str) or not item[field].strip():
            return f"`{field}` must be a non-empty string"
    if not _text_of(item.get("proposal")).strip():
        return "`proposal` must be a non-empty string, or an object with such a `content`"
    return ""


def _text_of(proposal: Any) -> str:
    text = proposal.get("content") if isinstance(proposal, dict) else proposal
    return text if isinstance(text, str) else ""


def _section(index: int, item: dict[str, Any]) -> str:
    return f"Deliberation {index} (agent {item['agent_id']}, role {item['role']}):\n{_text_of(item['proposal'])}"


def _refused(code: str, message: str) -> Failed:
    return Failed(code, message, retryable=False)


def agent(ports: AgentPorts) -> AgentFunction:
    """Return the agent of `steps.task_extraction`."""
    return ray_agent("task_extraction", ports)

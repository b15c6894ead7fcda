"""The registry of step kinds: one line for each kind, with its pure part and its agent."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

from steps import aggregation, deliberation, human_gate, publish, task_extraction
from steps.agent import AgentFunction, AgentPorts
from tables.kinds import Kinds, StepKind


class Registered(NamedTuple):
    """One step kind: the pure part for the fold, and the agent that works outside."""

    kind: StepKind
    agent: Callable[[AgentPorts], AgentFunction]


REGISTRY: tuple[Registered, ...] = (
    Registered(deliberation.Deliberation(), deliberation.agent),
    Registered(task_extraction.TaskExtraction(), task_extraction.agent),
    Registered(aggregation.Aggregation(), aggregation.agent),
    Registered(human_gate.HumanGate(), human_gate.agent),
    Registered(publish.Publish(), publish.agent),
)
_KINDS: Kinds = MappingProxyType({entry.kind.handler: entry.kind for entry in REGISTRY})


def all_kinds() -> Kinds:
    """Return every step kind, by the handler that a definition names."""
    return _KINDS


def step_agents(ports: AgentPorts) -> dict[str, AgentFunction]:
    """Return the agent of every step kind, by the kind's short name."""
    return {entry.kind.name: entry.agent(ports) for entry in REGISTRY}

"""A loaded ceremony definition: immutable, validated, with its look-ups compiled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

# The role a trigger inside an agent's message acts as (specification 13.13).
SYSTEM_ROLE = "SYSTEM"


class GuardType(StrEnum):
    AUTOMATED = "automated"
    HUMAN = "human"


@dataclass(frozen=True, slots=True)
class State:
    id: str
    description: str
    initial: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    from_state: str
    to_state: str
    trigger: str
    guards: tuple[str, ...] = ()
    """Names of guards, all of which must hold."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When attempt k failed, attempt k+1 starts after `backoff_seconds` (times 2^(k-1) when exponential)."""

    max_attempts: int = 1
    backoff_seconds: float = 5
    exponential_backoff: bool = False
    max_backoff_seconds: float | None = None
    jitter: float = 0.0
    """Fraction 0..1 of the pause that is spread by a hash of (instance, step, attempt)."""
    non_retryable: tuple[str, ...] = ()
    """Error codes that end the step at once."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The facts of a step that people decide."""

    role: str
    """Decides it, where no role lists the step among its allowed actions."""
    message: str
    quorum: int = 1
    """Approvals by distinct actors."""
    deadline_seconds: float | None = None
    """From the opening of the gate; None: it waits as long as the ceremony may."""


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    state: str
    handler: str
    config: BaseModel
    """Validated by the config model of its kind."""
    retry: RetryPolicy
    """Resolved: its own, the policy it names, the policy `default`, or one attempt."""
    timeout_seconds: float
    """Per attempt; resolved against `timeouts.step_default`."""
    after: tuple[str, ...] = ()
    """Resolved: steps of the same state that are completed before this one starts."""
    on_failure: str | None = None
    """Trigger of a transition leaving its state."""
    line: int = 1
    role: str | None = None
    """Its kind says: the role in which the step acts; None: it needs none."""
    gate: Gate | None = None
    """Its kind says: people decide the step; None: it is no gate."""
    agents: tuple[str, ...] = ()
    """Its kind says: ids of the agents whose answers it counts."""


@dataclass(frozen=True, slots=True)
class Guard:
    name: str
    type: GuardType
    check: str
    """As written; free text for a human guard."""
    role: str | None = None
    threshold: float | None = None
    expression: Any = None
    """The parsed check (tables/guards.py); None for a human guard."""


@dataclass(frozen=True, slots=True)
class Role:
    id: str
    description: str
    allowed_actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    step_default: float = 3600
    step_max: float = 86400
    ceremony_max: float = 604800


@dataclass(frozen=True, slots=True)
class Output:
    name: str
    type: str
    """object, array, string, number or boolean."""
    schema: Mapping[str, Any] | None = None
    """As written: a flat map field → type word, or a JSON Schema."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One definition, pinned by `hash` (hex SHA-256 of its text)."""

    name: str
    description: str
    hash: str
    text: str
    required_inputs: tuple[str, ...]
    optional_inputs: tuple[str, ...]
    outputs: Mapping[str, Output]
    states: Mapping[str, State]
    transitions: tuple[Transition, ...]
    steps: Mapping[str, Step]
    """By id, in file order."""
    guards: Mapping[str, Guard]
    roles: Mapping[str, Role]
    timeouts: Timeouts
    initial: str = ""
    steps_by_state: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    transitions_from: Mapping[str, tuple[Transition, ...]] = field(default_factory=dict)
    waiting_for: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    """By step: those that name it in their `after`, in file order."""
    ways_out: Mapping[str, tuple[tuple[Step, Transition], ...]] = field(default_factory=dict)
    """By state: its steps with an `on_failure`, each with the transition which that names."""

"""A loaded ceremony definition: immutable, validated, with its look-ups compiled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from tables.errors import Problem

# A trigger inside an agent's message acts in this role (specification 13.13).
SYSTEM_ROLE = "SYSTEM"
# Inputs of every ceremony, which no start can override.
ALWAYS_INPUTS = frozenset({"story_id", "ceremony_id"})


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
    """The pause before a retry: `backoff_seconds`, times 2^(k-1) after attempt k when exponential."""

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
    """This role decides the gate where no role lists the step among its allowed actions."""
    message: str
    quorum: int = 1
    """Number of approvals needed, each by another actor."""
    deadline_seconds: float | None = None
    """Counted from the opening of the gate; None: the gate waits as long as the ceremony may run."""


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    state: str
    handler: str
    config: BaseModel
    """Validated by the config model of its kind."""
    retry: RetryPolicy
    """The policy of the step itself, else the one it names, else `default`, else one attempt."""
    timeout_seconds: float
    """Per attempt; `timeouts.step_default` where the step has none."""
    after: tuple[str, ...] = ()
    """Steps of the same state that complete before this one starts."""
    on_failure: str | None = None
    """Trigger of a transition that leaves its state."""
    line: int = 1
    role: str | None = None
    """From the kind: the role in which the step acts; None: it needs none."""
    gate: Gate | None = None
    """From the kind: the facts of a gate; None: people do not decide the step."""
    agents: tuple[str, ...] = ()
    """From the kind: ids of the agents whose answers are counted."""
    prompts: tuple[str, ...] = ()
    """From the kind: prompts as written, which must not leave as they are."""
    publishes: bool = False
    """From the kind: whether the step sends a message, which is announced."""


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
    """Time limits in seconds."""

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
    searchable_inputs: tuple[str, ...]
    """Declared inputs by whose value a list can be filtered."""
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
    automatic_from: Mapping[str, tuple[Transition, ...]] = field(default_factory=dict)
    """By state: the transitions that are taken by themselves. One without guards whose trigger is the `on_failure` of a
    step of the state is not among them: it is taken on that failure, or by its trigger."""
    waiting_for: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    """By step: the steps that name it in their `after`, in file order."""
    objections: tuple[Problem, ...] = ()
    """Rules of this release that a pinned definition breaks. It keeps its meaning, but a check that is refused never
    holds."""
    ways_out: Mapping[str, tuple[tuple[Step, Transition], ...]] = field(default_factory=dict)
    """By state: its steps with an `on_failure`, each with the transition of that trigger."""
    prompts: tuple[str, ...] = ()
    """Of all steps as written, in file order: they must not leave as they are."""

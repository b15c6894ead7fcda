"""What the engine needs of the world: a clock, the Ray executor and an outlet for messages.

Everything that waits, sleeps, starts a task or speaks to a neighbour goes through one of these ports, so that the whole
engine can run under a fake clock and be killed at every await.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec


class Clock(Protocol):
    """Time and concurrency; the implementation on the host's clock is `bridge/clock.py`."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""

    def wall(self) -> float:
        """Seconds since the epoch, for people and for other systems' messages; never for a decision."""

    async def sleep(self, seconds: float) -> None: ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start a task. Its owner keeps the reference and looks at its end."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[Any]:
        """`async with clock.timeout(s)`: raises TimeoutError when the body takes longer."""


class Unreachable(Exception):
    """A neighbour cannot be reached, or did not answer before the call's deadline; asking again later makes sense."""

    def __init__(self, neighbour: str, reason: str) -> None:
        super().__init__(f"{neighbour}: {reason}")
        self.neighbour = neighbour
        """`ray_executor` or `nats`."""
        self.reason = reason
        """One line for people; no raw exception text."""


@dataclass(frozen=True, slots=True)
class RayAgent:
    """One agent of a Ray task."""

    id: str
    role: str
    model: str
    prompt_template: str = ""


@dataclass(frozen=True, slots=True)
class RayTask:
    """What is asked of the Ray executor (contract §4). `backlog_review` picks ExecuteBacklogReviewDeliberation."""

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


@dataclass(frozen=True, slots=True)
class RayAnswer:
    """The executor's answer to a task: accepted (`submitted`) or refused (`failed`, with a stable code)."""

    status: Literal["submitted", "failed"]
    deliberation_id: str = ""
    code: str = ""
    message: str = ""


class RayExecutor(Protocol):
    async def execute(self, task: RayTask) -> RayAnswer:
        """Hand over a task; returns at once, results come on NATS. Raises Unreachable. Every call has a deadline."""


class Published(msgspec.Struct, frozen=True):
    """JetStream's acknowledgement."""

    stream: str
    sequence: int
    duplicate: bool


class Refused(Exception):
    """NATS answered and said no (no stream for the subject, too large): asking again does not help."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Outbound(Protocol):
    """The one way out to NATS; nothing publishes past it."""

    async def publish(
        self,
        subject: str,
        event_type: str,
        payload: Mapping[str, Any],
        *,
        key: str,
        correlation_id: str,
        causation_id: str | None = None,
    ) -> Published:
        """Put `payload` in the contract's envelope and publish it; `key` is idempotency key and `Nats-Msg-Id`.

        Returns after JetStream's acknowledgement. Raises Unreachable or Refused.
        """

    async def publish_raw(
        self, subject: str, envelope: bytes, *, key: str, correlation_id: str, headers: Mapping[str, str] | None = None
    ) -> Published:
        """Publish an envelope that is encoded already. Same errors."""

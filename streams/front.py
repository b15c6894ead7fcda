"""What the front may ask of the engine: the protocol and its data; `streams/engine.py` fulfils it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tables.commands import Cancel, GateDecision, Pause, Resume, RetryStep, RunStep, Start, Trigger
from tables.definition import Definition
from tables.instance import Instance

Operation = Trigger | GateDecision | Cancel | Pause | Resume | RetryStep | RunStep


@dataclass(frozen=True, slots=True)
class Answer:
    """The fold's answer to a command. `code` is empty when it was accepted, else stable (`already_exists`, …)."""

    code: str = ""
    message: str = ""
    partition: int = -1
    offset: int = -1
    """Where the command stands in the log."""
    folded: bool = True
    """False: durable, but not folded within the time the front waits."""


class Unavailable(Exception):
    """The log cannot be reached, or the partition of the instance is not served now; the call may be repeated."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry of the topic `deadletters`."""

    topic: str
    """The topic, or NATS stream, it came from."""
    partition: int
    """0 for a NATS stream."""
    offset: int
    """Offset in the partition, or sequence in the stream."""
    code: str
    message: str
    timestamp: int
    """Milliseconds, when it was set aside."""
    size: int
    """Bytes of the original value."""
    key: bytes | None


class Engine(Protocol):
    async def start(self, definition: Definition, start: Start) -> Answer:
        """Durable when it returns, and folded unless `folded` is False. Raises Unavailable, RecordTooLarge."""

    async def operate(self, command: Operation) -> Answer:
        """Append, wait for the fold, answer from it. Raises Unavailable (not folded in time, or moving)."""

    def get(self, instance_id: str) -> Instance | None:
        """The present row. Raises Unavailable where its partition is not served."""

    def instances(self) -> Sequence[Instance]:
        """All rows, in no order. Raises Unavailable where a partition is not served."""

    def definition_of(self, instance: Instance) -> Definition | None:
        """The pinned definition."""

    def waiting_for(self, instance: Instance) -> Sequence[str]:
        """What a live ceremony waits for, as lines for people; empty for an ended one."""

    def watch(self, instance_id: str) -> AsyncIterator[Instance]:
        """The present row, then each newer version, until the ceremony has ended. Raises Unavailable."""

    async def dead_letters(self, limit: int, offset: int, topic: str = "") -> tuple[Sequence[DeadLetter], int]:
        """Newest first, with the total; `topic`: only what came from it. Raises Unavailable."""

    def readiness(self) -> dict[str, str]:
        """State of `kafka` (the log) and `tables`: `ok`, or what is wrong."""

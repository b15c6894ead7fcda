"""Knobs of the simulated executor: its latency, and its rates of failure, refusal, repetition and silence."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from ceremony.errors import KnobError

RATES = (
    "failure_rate", "rejection_rate", "duplicate_rate", "reorder_rate", "silence_rate",
    "hang_rate", "late_rate", "oversize_rate",
)  # fmt: skip
LONGEST_SECONDS = 86_400
REORDER_FLOOR_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Knobs:
    """Seconds and shares (0 to 1). The fate of a task depends only on the seed, its task id and the agent."""

    latency: float = 0.2
    """Mean seconds from the acceptance of a task to an agent's answer."""
    jitter: float = 0.1
    """Seconds by which an answer may come earlier or later than that."""
    failure_rate: float = 0.0
    """Share of the answers that are `agent.response.failed`."""
    rejection_rate: float = 0.0
    """Share of the tasks that are refused at once: OK with status `failed`."""
    duplicate_rate: float = 0.0
    """Share of the answers that come twice."""
    reorder_rate: float = 0.0
    """Share of the answers that are held back, so that later ones overtake them."""
    silence_rate: float = 0.0
    """Share of the answers that never come."""
    seed: int = 0
    """Seed of the random choices."""
    hang_rate: float = 0.0
    """Share of the tasks whose call hangs past every deadline, although the task was accepted."""
    late_rate: float = 0.0
    """Share of the answers that come `late_seconds` later. After a step's timeout they belong to an old attempt."""
    late_seconds: float = 0.0
    oversize_rate: float = 0.0
    """Share of the completed proposals that are far larger than any row may be."""

    def __post_init__(self) -> None:
        for name in RATES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise KnobError("knob_invalid", f"{name} is {value}", remedy="use a share from 0 to 1")
        for name in ("latency", "jitter", "late_seconds"):
            value = getattr(self, name)
            if not 0 <= value <= LONGEST_SECONDS:
                remedy = f"use seconds from 0 to {LONGEST_SECONDS}"
                raise KnobError("knob_invalid", f"{name} is {value}", remedy=remedy)

    def random(self, task_id: str, who: str = "") -> random.Random:
        """The random numbers of one task, or of one agent in it; they do not depend on the order of tasks."""
        return random.Random(f"{self.seed}\0{task_id}\0{who}")  # noqa: S311 - dice, no secret

    def rejects(self, task_id: str) -> bool:
        """Return whether this task is refused at once."""
        return self.rejection_rate > 0 and self.random(task_id).random() < self.rejection_rate

    def hangs(self, task_id: str) -> bool:
        """Return whether the call with this task hangs."""
        return self.hang_rate > 0 and self.random(task_id, "hang").random() < self.hang_rate


@dataclass(frozen=True, slots=True)
class Fate:
    """The fate of one agent's answer."""

    kind: Literal["completed", "failed", "silent"]
    delay: float
    """Seconds from acceptance."""
    repeat_after: float | None
    """Seconds from acceptance to the second copy; None without one."""
    oversize: bool = False
    """The proposal is too large for a row."""

    @classmethod
    def draw(cls, knobs: Knobs, dice: random.Random) -> Fate:
        """Draw the fate of one agent. It always draws the same number of times, so that texts stay the same too."""
        silent, failed, doubled, held = (dice.random() for _ in range(4))
        spread, hold, gap = dice.uniform(-1, 1), dice.uniform(1, 3), dice.uniform(0, 2)
        delay = max(0.0, knobs.latency + spread * knobs.jitter)
        if held < knobs.reorder_rate:
            delay += hold * max(REORDER_FLOOR_SECONDS, knobs.latency + knobs.jitter)
        kind: Literal["completed", "failed", "silent"] = "completed"
        if silent < knobs.silence_rate:
            kind = "silent"
        elif failed < knobs.failure_rate:
            kind = "failed"
        repeat = delay + gap * max(REORDER_FLOOR_SECONDS, knobs.latency) if doubled < knobs.duplicate_rate else None
        # Drawn last: the fates of a seed are the same as before these knobs existed.
        if dice.random() < knobs.late_rate:
            delay, repeat = delay + knobs.late_seconds, None
        return cls(kind, delay, repeat, oversize=dice.random() < knobs.oversize_rate)

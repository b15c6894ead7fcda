"""The demo's verdict: a table for each definition, the events by subject, and whether every start is accounted for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ceremony.demo.plan import PlannedStart
from ceremony.demo.stream import Tally

ENDS = ("completed", "failed", "cancelled", "timed_out")


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one definition."""

    started: int
    ends: Mapping[str, int]
    """completed, failed, cancelled, timed_out."""
    steps: int
    p50_ms: float | None
    p99_ms: float | None
    """From `ceremony.started` to the end, by the times at which JetStream stored them; None if none has ended."""

    def data(self) -> dict[str, Any]:
        return {
            "started": self.started,
            **self.ends,
            "steps": self.steps,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
        }


@dataclass(frozen=True, slots=True)
class Missing:
    """A start that was accepted, and of which no end was seen."""

    instance_id: str
    definition: str
    status: str
    waiting_for: Sequence[str] = ()

    def data(self) -> dict[str, Any]:
        return {
            "instance_id": self.instance_id,
            "definition": self.definition,
            "status": self.status,
            "waiting_for": list(self.waiting_for),
        }


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The results of one run."""

    count: int
    accepted: Sequence[PlannedStart]
    refused: Mapping[str, str]
    """Instance id to the reason."""
    tally: Tally
    missing: Sequence[Missing]
    seconds: float
    """From the first start to the last end."""
    log: str
    folder: str
    kept: bool
    """True if the folder was not deleted."""
    decisions: int
    triggers: int
    complaints: Sequence[str] = ()
    """Other problems: the engine ended, time ran out, decisions were refused."""
    definitions: Mapping[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        names = sorted({start.definition for start in self.accepted})
        rows = {name: row(name, self.accepted, self.tally) for name in names}
        object.__setattr__(self, "definitions", rows)

    @property
    def ended_twice(self) -> dict[str, list[str]]:
        return {
            instance_id: [kind for kind, _ in ends] for instance_id, ends in self.tally.ended.items() if len(ends) > 1
        }

    @property
    def ok(self) -> bool:
        """Every start was accepted and has ended, each end was seen once, and no message id came twice."""
        wrong = (self.refused, self.missing, self.ended_twice, self.tally.repeated, self.complaints)
        return len(self.accepted) == self.count and not any(wrong)

    @property
    def steps(self) -> int:
        return sum(self.tally.steps.values())

    def data(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "count": self.count,
            "accepted": len(self.accepted),
            "refused": dict(self.refused),
            "ended": sum(len(ends) > 0 for ends in self.tally.ended.values()),
            "missing": [one.data() for one in self.missing],
            "ended_twice": self.ended_twice,
            "message_ids_twice": list(self.tally.repeated),
            "complaints": list(self.complaints),
            "definitions": {name: one.data() for name, one in self.definitions.items()},
            "events": dict(sorted(self.tally.events.items())),
            "events_total": self.tally.total,
            "foreign_messages": self.tally.foreign,
            "steps": self.steps,
            "decisions": self.decisions,
            "triggers": self.triggers,
            "seconds": round(self.seconds, 3),
            "steps_per_s": round(self.steps / self.seconds, 1) if self.seconds > 0 else 0.0,
            "log": self.log,
            "folder": self.folder if self.kept else None,
        }


def row(name: str, accepted: Sequence[PlannedStart], tally: Tally) -> Row:
    ids = [start.instance_id for start in accepted if start.definition == name]
    ends = Counter(tally.ended[one][0][0] for one in ids if one in tally.ended)
    took = sorted(
        tally.ended[one][0][1] - tally.started[one] for one in ids if one in tally.ended and one in tally.started
    )
    return Row(
        started=len(ids),
        ends={kind: ends[kind] for kind in ENDS},
        steps=sum(tally.steps[one] for one in ids),
        p50_ms=percentile(took, 0.50),
        p99_ms=percentile(took, 0.99),
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest rank of ascending values, rounded to a tenth; None without values."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 1)

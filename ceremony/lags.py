"""Measures how far this worker is behind: its agents, its bridges, and its checkpoints."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from bridge.nats import metrics as nats
from bridge.nats.events import EventsBridge
from bridge.nats.responses import AgentResponses
from ports.clock import Clock
from ports.log import AgentSpec, Log, LogUnavailable
from streams.metrics import Metrics

# Between two measurements; each asks the log for the ends of some topics.
EVERY_SECONDS = 5.0


class MeasuredPart(Protocol):
    """The part of a served partition that is read here."""

    spec: AgentSpec
    number: int

    @property
    def position(self) -> int: ...
    @property
    def stateful(self) -> bool: ...
    @property
    def checkpoint_age_seconds(self) -> float: ...


class Lags:
    """The lags of one worker, measured in `run`."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        metrics: Metrics,
        *,
        prefix: str,
        parts: Callable[[], Iterable[MeasuredPart]],
        events: EventsBridge,
        responses: AgentResponses | None,
    ) -> None:
        """`parts` served here; `responses`: None where this worker takes none."""
        self._log = log
        self._clock = clock
        self._metrics = metrics
        self._prefix = f"{prefix}."
        self._parts = parts
        self._events = events
        self._responses = responses
        self._shown: set[str] = set()
        metrics.checkpoint_age.set_function(self.checkpoint_age_seconds)

    async def run(self) -> None:
        """Measure from time to time, until cancelled. While the log is away the last values stay."""
        while True:
            with contextlib.suppress(LogUnavailable):
                await self.measure()
            if self._responses is not None and (waiting := await self._responses.waiting()) is not None:
                nats.RESPONSES_WAITING.set(waiting)
            await self._clock.sleep(EVERY_SECONDS)

    async def measure(self) -> None:
        """Measure the lag of agents and of the events bridge. Raises LogUnavailable."""
        agents: dict[str, dict[int, int]] = {}
        for part in self._parts():
            agents.setdefault(part.spec.topic, {})[part.number] = part.position
        lags = Counter({topic: await self._lag(topic, places) for topic, places in agents.items()})
        for topic in self._shown | lags.keys():  # a topic without a partition here has no lag of ours
            self._metrics.lag.labels(topic.removeprefix(self._prefix)).set(lags[topic])
        self._shown = set(lags)
        for topic, places in self._events.places.items():
            nats.LAG_RECORDS.labels(topic.removeprefix(self._prefix)).set(await self._lag(topic, places))

    async def _lag(self, topic: str, places: Mapping[int, int]) -> int:
        if not places:
            return 0
        ends = await self._log.ends(topic)
        return sum(max(0, ends[number][1] - place) for number, place in places.items())

    def checkpoint_age_seconds(self) -> float:
        """Return the age of the oldest checkpoint of a partition with rows; 0 where none is served."""
        return max((part.checkpoint_age_seconds for part in self._parts() if part.stateful), default=0.0)

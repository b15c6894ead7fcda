"""Times the calls to the Ray executor by their answer."""

from __future__ import annotations

from prometheus_client import REGISTRY

from ports.clock import Clock
from ports.errors import Unreachable
from ports.ray import RayAnswer, RayExecutor, RayTask
from streams.histograms import BatchHistogram

BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SECONDS = BatchHistogram(
    "ceremony_ray_call_seconds",
    "Duration of a call to the Ray executor that submits a task, by answer: submitted, failed, unreachable",
    ["answer"],
    buckets_seconds=BUCKETS_SECONDS,
    registry=REGISTRY,
)


class TimedRayExecutor:
    """The RayExecutor port around another one."""

    def __init__(self, executor: RayExecutor, clock: Clock) -> None:
        self._executor = executor
        self._clock = clock

    async def execute(self, task: RayTask) -> RayAnswer:
        """Submit a task as the executor does. Raises Unreachable."""
        began = self._clock.monotonic()
        try:
            answered = await self._executor.execute(task)
        except Unreachable:
            SECONDS.of("unreachable").add(self._clock.monotonic() - began)
            raise
        SECONDS.of(answered.status).add(self._clock.monotonic() - began)
        return answered

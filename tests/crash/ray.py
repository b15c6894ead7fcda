"""The Ray executor in memory: it accepts each task id once; the script sends the results."""

from __future__ import annotations

from ports.ray import RayAnswer, RayTask
from tests.crash.world import Host

# Longer than a checkpoint and the commit of its offset: the request is held during the call.
CALL_SECONDS = 1.5


class Executor:
    """The executor, which outlives the processes."""

    def __init__(self) -> None:
        self.tasks: dict[str, RayTask] = {}

    def take(self, task: RayTask) -> RayAnswer:
        """Accept a task; a known task id is not a new one."""
        self.tasks.setdefault(task.task_id, task)
        return RayAnswer("submitted", deliberation_id=f"d-{list(self.tasks).index(task.task_id) + 1}")


class RayPort:
    """Fulfils `ports.ray.RayExecutor` in one process."""

    def __init__(self, executor: Executor, host: Host) -> None:
        self._executor = executor
        self._host = host

    async def execute(self, task: RayTask) -> RayAnswer:
        return await self._host.call(CALL_SECONDS, lambda: self._executor.take(task))

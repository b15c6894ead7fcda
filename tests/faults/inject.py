"""The faults themselves. Each leaves one worker that serves, and everything else up again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.faults.plan import Fault, Plan
from tests.faults.world import TERM_SECONDS, FaultRunFailed, World

WOKEN_SECONDS = 30.0
"""How long a woken worker may take to end by itself, or to be a sound member of the group again."""


@dataclass(slots=True)
class Blow:
    """One time that something was broken. Unix times."""

    began: float
    over: float
    """When what was broken was there again; of a worker: when it was gone, for it is started at once."""
    problems: list[str] = field(default_factory=list)


class Injector:
    """Breaks one thing after the other, at moments drawn from a seed."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self._plan: Plan = world.plan
        self._faults: dict[Fault, Callable[[], Iterator[Blow]]] = {
            Fault.KILL: self._kills,
            Fault.TERM: self._terms,
            Fault.NATS: self._nats,
            Fault.RAY: self._ray,
            Fault.KAFKA: self._kafka,
            Fault.ZOMBIE: self._zombie,
        }

    def inject(self, fault: Fault) -> list[Blow]:
        """All of it, with load before and after."""
        self._pause()
        return list(self._faults[fault]())

    def _pause(self) -> None:
        time.sleep(self._plan.steady * self._dice.uniform(1, 2))

    def _kills(self) -> Iterator[Blow]:
        """At random moments under load, and every other time while it is still starting up from the last."""
        for number in range(self._plan.kills):
            if number % 2 == 0:
                wait_ready(self._world)
                self._pause()
            began = time.time()
            self._world.worker.kill()
            blow = Blow(began, time.time())
            self._world.worker.launch()
            yield self._back(blow)

    def _terms(self) -> Iterator[Blow]:
        for _ in range(self._plan.terms):
            wait_ready(self._world)  # a program that has not come to its signal handlers ends as the system has it
            began = time.time()
            code, took = self._world.worker.terminate(TERM_SECONDS)
            blow = Blow(began, time.time())
            if code != 0:
                blow.problems.append(
                    f"SIGTERM: exit code {code} after {took:.1f} s, 0 within {TERM_SECONDS:.0f} s is right"
                )
            self._world.worker.launch()
            yield self._back(blow)

    def _nats(self) -> Iterator[Blow]:
        began = time.time()
        self._world.nats.kill()
        time.sleep(self._plan.nats_down)
        self._world.nats.start()
        yield self._back(Blow(began, time.time()))

    def _ray(self) -> Iterator[Blow]:
        began = time.time()
        self._world.ray.kill()
        time.sleep(self._plan.ray_down)
        self._world.ray.start()
        yield self._back(Blow(began, time.time()))

    def _kafka(self) -> Iterator[Blow]:
        """The worker outlives it; one that ends says why, and is started again as an orchestrator would."""
        began = time.time()
        self._world.kafka.kill()
        time.sleep(self._plan.kafka_down)
        self._world.kafka.start()
        yield self._back(Blow(began, time.time()))

    def _zombie(self) -> Iterator[Blow]:
        """Frozen past the session timeout while another takes over; woken, both serve; then the other one alone."""
        old, new = self._world.workers
        if self._world.worker is new:
            old, new = new, old
        began = time.time()
        old.pause()
        new.launch()
        time.sleep(self._plan.frozen)
        blow = Blow(began, began)
        self._world.worker = new
        old.resume()
        self._pause()
        ended = old.returncode
        if ended is None:
            code, took = old.terminate(WOKEN_SECONDS)
            if code != 0:
                blow.problems.append(f"the woken worker's exit code is {code}, after {took:.1f} s")
        yield self._back(blow)

    def _back(self, blow: Blow) -> Blow:
        """With load for a while: until it is ready it may be struck again."""
        self._pause()
        worker = self._world.worker
        if worker.returncode is not None:
            blow.problems.append(f"the worker ended with {worker.returncode}: {worker.last_words()}")
            worker.launch()
        return blow


def wait_ready(world: World) -> None:
    """Raises FaultRunFailed when the worker does not recover."""
    try:
        world.worker.wait_ready()
    except Exception as error:
        raise FaultRunFailed(f"the worker did not recover: {error}; {world.worker.readiness()[1]}") from error

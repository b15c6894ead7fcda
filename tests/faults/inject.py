"""The faults. Each ends with one worker serving and everything else up again."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import nats

from tests.faults.measure import STREAM
from tests.faults.plan import Fault, Plan
from tests.faults.world import PARTITIONS, TERM_SECONDS, FaultRunFailed, WorkerServer, World
from tests.services import KafkaCluster

# Share of the changes that add a worker, if both are possible.
ADDED = 0.5
# Time within which a woken worker must end by itself or be a sound member of the group again.
WOKEN_SECONDS = 30.0


@dataclass(slots=True)
class Blow:
    """One strike of a fault, in Unix times."""

    began: float
    over: float
    """Time at which the broken part was back; for a worker the time of its end, since it is started at once."""
    problems: list[str] = field(default_factory=list)


class Injector:
    """Strikes one fault after the other, at moments drawn from a seed."""

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
            Fault.STREAM: self._stream,
            Fault.ODD_RAY: self._odd_ray,
            Fault.CHURN: self._churn,
            Fault.CLOCK: self._clock,
            Fault.LEADER: self._leader,
            Fault.BROKERS: self._brokers,
            Fault.UNREACHABLE: self._unreachable,
        }

    def inject(self, fault: Fault) -> list[Blow]:
        """Inject a fault, with load before and after."""
        self._pause()
        return list(self._faults[fault]())

    def _pause(self) -> None:
        time.sleep(self._plan.steady * self._dice.uniform(1, 2))

    def _kills(self) -> Iterator[Blow]:
        """Kill the worker at random moments under load; every other kill hits it while it is still starting."""
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
            wait_ready(self._world)  # before a program has its signal handlers, the system's default ends it
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
        """Stop Kafka. A worker that ends logs the reason, and is started again as an orchestrator would."""
        began = time.time()
        self._world.kafka.kill()
        time.sleep(self._plan.kafka_down)
        self._world.kafka.start()
        yield self._back(Blow(began, time.time()))

    def _zombie(self) -> Iterator[Blow]:
        """Freeze a worker past the session timeout while another takes over; wake it, let both serve, then end it."""
        old, new = self._world.workers[:2]
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

    def _stream(self) -> Iterator[Blow]:
        """Delete the stream under load: the worker makes it anew. Then restore all messages as an operator would."""
        for _ in range(self._plan.stream_deleted):
            began = time.time()
            asyncio.run(delete_stream(self._world.nats.url))
            yield self._back(Blow(began, began))
            began = time.time()
            blow = Blow(began, began)
            code, _ = self._world.worker.terminate(TERM_SECONDS)
            if code != 0:
                blow.problems.append(f"SIGTERM: exit code {code}")
            asyncio.run(delete_stream(self._world.nats.url))
            self._world.worker.republish()
            self._world.worker.republish()  # safe to repeat
            blow.over = time.time()
            self._world.worker.launch()
            yield self._back(blow)

    def _odd_ray(self) -> Iterator[Blow]:
        began = time.time()
        ray = self._world.ray
        for odd, lasts in ((True, self._plan.odd_ray), (False, 0)):
            ray.kill()
            ray.odd = odd
            ray.start()
            time.sleep(lasts)
        yield self._back(Blow(began, time.time()))

    def _churn(self) -> Iterator[Blow]:
        """Add and remove workers, so that one to three run; at the end one."""
        began = time.time()
        blow = Blow(began, began)
        workers = self._world.workers
        until = time.monotonic() + self._plan.churn
        while time.monotonic() < until:
            time.sleep(self._plan.churn_every)
            up = [worker for worker in workers if worker.pid is not None]
            away = [worker for worker in workers if worker.pid is None]
            if away and (len(up) == 1 or self._dice.random() < ADDED):
                self._dice.choice(away).launch()
            else:
                blow.problems += self._leave(self._dice.choice(up))
        self._world.worker, *others = [worker for worker in workers if worker.pid is not None]
        for worker in others:
            blow.problems += self._leave(worker)
        blow.over = time.time()
        yield self._back(blow)

    def _leave(self, worker: WorkerServer) -> list[str]:
        code, took = worker.terminate(WOKEN_SECONDS)
        # Before a worker has its signal handlers, the system's default ends it.
        return [] if code in (0, -signal.SIGTERM) else [f"a worker that was removed: exit code {code}, {took:.1f} s"]

    def _clock(self) -> Iterator[Blow]:
        """Start the worker with its clock an hour ahead, an hour behind, and right again."""
        worker = self._world.worker
        for hours in (1, -1, 0):
            wait_ready(self._world)
            began = time.time()
            code, _ = worker.terminate(TERM_SECONDS)
            blow = Blow(began, time.time())
            if code != 0:
                blow.problems.append(f"SIGTERM: exit code {code}")
            worker.set_clock(hours)
            worker.launch()
            time.sleep(self._plan.clock)
            yield self._back(blow)

    def _leader(self) -> Iterator[Blow]:
        began = time.time()
        leader = self._cluster.leader(f"{self._world.prefix}.commands", self._dice.randrange(PARTITIONS))
        leader.kill()
        time.sleep(self._plan.leader_down)
        leader.start()
        yield self._back(Blow(began, time.time()))

    def _brokers(self) -> Iterator[Blow]:
        began = time.time()
        self._cluster.kill()
        time.sleep(self._plan.brokers_down)
        self._cluster.start()
        yield self._back(Blow(began, time.time()))

    def _unreachable(self) -> Iterator[Blow]:
        """Freeze a neighbour: connections stay open, and nobody answers."""
        began = time.time()
        self._cluster.pause()
        time.sleep(self._plan.unreachable)
        self._cluster.resume()
        yield self._back(Blow(began, time.time()))

    @property
    def _cluster(self) -> KafkaCluster:
        kafka = self._world.kafka
        if not isinstance(kafka, KafkaCluster):
            raise FaultRunFailed("this fault needs three brokers")
        return kafka

    def _back(self, blow: Blow) -> Blow:
        """Start the worker and load it for a while; until it is ready it may be struck again."""
        self._pause()
        worker = self._world.worker
        if worker.returncode is not None:
            blow.problems.append(f"the worker ended with {worker.returncode}: {worker.last_words()}")
            worker.launch()
        return blow


async def delete_stream(url: str) -> None:
    async def quiet(_: Exception) -> None: ...

    client = await nats.connect(url, error_cb=quiet)
    try:
        await client.jetstream(timeout=10).delete_stream(STREAM)
    finally:
        await client.close()


def wait_ready(world: World) -> None:
    """Wait until the worker is ready. Raises FaultRunFailed if it does not recover."""
    try:
        world.worker.wait_ready()
    except Exception as error:
        raise FaultRunFailed(f"the worker did not recover: {error}; {world.worker.readiness()[1]}") from error

"""The callers: a process that calls StartPlanningCeremony, as fast as it goes or at a fixed rate.

Run as `python -m tests.benchmarks.intake_load`, options as JSON on stdin, the answer as JSON on stdout. Every call goes
through the async client, which repeats a start that was refused for lag: the caller's whole wait counts.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import uvloop
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient, PlanningCeremonyError

from tests.benchmarks import preload
from tests.benchmarks.serial import percentile

CHANNELS = 4


class Options(msgspec.Struct, kw_only=True):
    """One phase of calls."""

    addresses: list[str]
    """Addresses of the workers' gRPC servers; calls go to each in turn."""
    definition: str
    name: str
    """Prefix of the ceremonies' ids."""
    seconds: float
    callers: int = 0
    """Callers that call again as soon as they have their answer. 0: calls are sent at `rate`, answered or not."""
    rate: float = 0.0
    """Calls a second."""
    skip_seconds: float = 0.0
    """Uncounted seconds at the beginning."""


class Measured(msgspec.Struct, kw_only=True):
    """Measurements of the callers."""

    began: float
    """Wall clock."""
    ended: float
    """Wall clock of the last answer that counts."""
    behind_s: float
    """Seconds by which the engine was behind: from the end of the phase until the last answer that counts."""
    accepted: int
    failed: dict[str, int]
    """Failed calls by the client's description."""
    p50_ms: float
    p99_ms: float
    """Time of accepted calls, from when the call was due; a call sent late, behind others, includes that wait."""
    cpu_cores: float
    """CPU of the callers themselves."""

    @property
    def per_s(self) -> float:
        return self.accepted / (self.ended - self.began)


class Callers:
    """Makes the calls and keeps the answer to each."""

    def __init__(self, options: Options, clients: Sequence[AsyncPlanningCeremonyClient]) -> None:
        self._options = options
        self._clients = clients
        self._number = 0
        self.answered: list[tuple[float, float]] = []
        """(when it was due, when it was answered), of the accepted ones."""
        self.failed: Counter[str] = Counter()

    async def call(self, due: float) -> None:
        number = self._number
        self._number += 1
        client = self._clients[number % len(self._clients)]
        try:
            await client.start(
                self._options.definition,
                ceremony_id=f"{self._options.name}-{number}",
                story_id=preload.STORY,
                requested_by="benchmark",
                inputs={"payload": preload.PAYLOAD},
            )
        except PlanningCeremonyError as error:
            self.failed[f"{error.status.name} {error.message.partition(':')[0]}"[:60]] += 1
        else:
            self.answered.append((due, time.perf_counter()))

    async def as_fast_as_it_goes(self, until: float) -> None:
        async def caller() -> None:
            while (now := time.perf_counter()) < until:
                await self.call(now)

        await asyncio.gather(*(caller() for _ in range(self._options.callers)))

    async def at_a_rate(self, began: float, until: float) -> None:
        tasks: set[asyncio.Task[None]] = set()
        sent = 0
        while (now := time.perf_counter()) < until:
            while (due := began + sent / self._options.rate) <= now:
                task = asyncio.create_task(self.call(due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await asyncio.gather(*tasks)


async def measure(options: Options) -> Measured:
    clients = [AsyncPlanningCeremonyClient(options.addresses[n % len(options.addresses)]) for n in range(CHANNELS)]
    callers = Callers(options, clients)
    wall, began, cpu = time.time(), time.perf_counter(), time.process_time()
    until = began + options.seconds
    try:
        if options.callers:
            await callers.as_fast_as_it_goes(until)
        else:
            await callers.at_a_rate(began, until)
    finally:
        for client in clients:
            await client.close()
    cpu, lasted = time.process_time() - cpu, time.perf_counter() - began
    return counted(callers.answered, callers.failed, options, began, wall, cpu / lasted)


def counted(
    answered: Sequence[tuple[float, float]],
    failed: dict[str, int],
    options: Options,
    began: float,
    wall: float,
    cores: float,
) -> Measured:
    """Return the calls that count: after `skip_seconds`, answered before the end, or at a rate due before the end.

    Raises ValueError if there are none.
    """
    first, last = began + options.skip_seconds, began + options.seconds
    if options.callers:
        kept = [(due, answer) for due, answer in answered if first <= answer <= last]
    else:
        kept = [(due, answer) for due, answer in answered if due >= first]
    if not kept:
        raise ValueError(f"no start was accepted in time; failed: {dict(failed)}")
    behind = max(0.0, max(answer for _, answer in kept) - last)
    ms = [1000 * (answer - due) for due, answer in kept]
    return Measured(
        began=wall + options.skip_seconds,
        ended=wall + options.seconds + behind,
        behind_s=behind,
        accepted=len(kept),
        failed=dict(failed),
        p50_ms=percentile(ms, 50),
        p99_ms=percentile(ms, 99),
        cpu_cores=cores,
    )


def main() -> None:
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=Options)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(measure(options))))


if __name__ == "__main__":
    main()

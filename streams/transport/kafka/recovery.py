"""Reads changelogs of Kafka in bulk: all that are requested at the same time share one consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from ports.clock import Clock
from streams.transport.kafka.client import new_reader, stop_reader
from streams.transport.kafka.wire import give_records, retrieve

# Changelogs read at the same time: aiokafka holds FETCH_BYTES of each, and as much again decoded.
CHANGELOGS_AT_ONCE = 8
# Records taken from aiokafka at a time; the bytes that it fetches are bounded separately.
RECORDS_AT_ONCE = 10_000

# Takes some records of a changelog, the newest of each key; None is a tombstone.
Add = Callable[[TopicPartition, dict[bytes, bytes | None]], Awaitable[None]]


class _Changelog:
    """One changelog partition being read."""

    def __init__(self, tp: TopicPartition, add: Add) -> None:
        self.tp = tp
        self.next = 0
        self.end = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add = add

    async def add(self, fetched: Sequence[Any]) -> None:
        if self.done.done():  # no caller waits for it any more
            return
        try:
            await self._add(self.tp, {record.key: record.value for record in fetched})
        except Exception as failure:  # noqa: BLE001 - of this changelog alone: the others are read on
            self.fail(failure)

    def fail(self, failure: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(failure)

    @property
    def read(self) -> bool:
        return self.next >= self.end or self.done.done()


class Recovery:
    """Reads whole changelog partitions; one that cannot be read to its end fails."""

    def __init__(self, servers: Sequence[str], clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._new: list[_Changelog] = []
        self._task: asyncio.Task[None] | None = None

    async def read(self, tps: Iterable[TopicPartition], add: Add) -> None:
        """Pass the records of changelog partitions up to their present ends to `add` (committed transactions only).

        Each partition is read in order. Raises KafkaError, and the errors of `add`.
        """
        jobs = [_Changelog(tp, add) for tp in tps]
        self._new += jobs
        if self._task is None:
            self._task = self._clock.spawn(self._run(), name="kafka recovery reads changelogs")
        try:
            for job in jobs:
                await job.done
        finally:
            for job in jobs:
                if not job.done.cancel():
                    retrieve(job.done)

    async def stop(self) -> None:
        """Cancel reading; no caller waits for it any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        await self._clock.sleep(0)  # lets the other partitions of this take-over request theirs
        reader = new_reader(self._servers, wait_ms=100)
        jobs: dict[TopicPartition, _Changelog] = {}
        try:
            await reader.start()
            give_records(reader, 0.0)
            while self._new or jobs:
                if self._new:
                    await self._begin(reader, jobs)
                self._finish(reader, jobs)
                await self._read(reader, jobs)
        except Exception as failure:  # noqa: BLE001 - handed to every part that waits
            for job in [*jobs.values(), *self._new]:
                job.fail(failure)
            self._new.clear()
        finally:
            self._task = None
            await stop_reader(reader, self._clock)

    async def _begin(self, reader: AIOKafkaConsumer, jobs: dict[TopicPartition, _Changelog]) -> None:
        fresh, self._new = self._new, []
        jobs.update({job.tp: job for job in fresh})
        tps = [job.tp for job in fresh]
        starts, ends = await reader.beginning_offsets(tps), await reader.end_offsets(tps)
        for job in fresh:
            job.next, job.end = starts[job.tp], ends[job.tp]
        reader.assign(list(jobs))
        for tp, job in jobs.items():
            reader.seek(tp, job.next)
        reader.pause(*jobs)

    def _finish(self, reader: AIOKafkaConsumer, jobs: dict[TopicPartition, _Changelog]) -> None:
        """Drop finished changelogs, and assign the next ones."""
        for tp, job in list(jobs.items()):
            if job.read:
                del jobs[tp]
                reader.pause(tp)
                if not job.done.done():
                    job.done.set_result(None)
        reader.resume(*list(jobs)[:CHANGELOGS_AT_ONCE])

    async def _read(self, reader: AIOKafkaConsumer, jobs: dict[TopicPartition, _Changelog]) -> None:
        active = list(jobs)[:CHANGELOGS_AT_ONCE]
        if not active:
            return
        fetched: Mapping[TopicPartition, Sequence[Any]] = await reader.getmany(
            *active, timeout_ms=200, max_records=RECORDS_AT_ONCE
        )
        for tp, records in fetched.items():
            await jobs[tp].add(records)
        for tp in active:
            jobs[tp].next = await reader.position(tp)
        await self._clock.sleep(0)

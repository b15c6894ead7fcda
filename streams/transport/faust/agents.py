"""Faust's agents over fetched batches: a stream hands its agent one `Batch` per event, undecoded.

A batch succeeds only when the agent asks for the next one; an exception, a return or a cancellation is a failure.
Faust's own acknowledgements, commits and recovery are not used; `Part` does that work.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from weakref import ref

import faust
from faust.streams import _current_event
from faust.tables import TableManager
from mode import OneForOneSupervisor

from streams import topics
from streams.transport.partition.batch import AgentGone, PartBatch


class BatchSchema(faust.Schema):  # type: ignore[type-arg]
    """Passes batches on undecoded; decodes every other message as usual."""

    def compile(self, app: Any, **options: Any) -> Callable[..., Awaitable[Any]]:
        decode = super().compile(app, **options)

        async def batch_or_decode(message: Any, **arguments: Any) -> Any:
            if type(message.value) is PartBatch:
                return app.create_event(None, message.value, None, message)
            return await decode(message, **arguments)

        return batch_or_decode


class BatchStream(faust.Stream):  # type: ignore[type-arg]
    """A stream of batches: yields each batch, and returns it to its part when the agent asks for the next."""

    app: Any
    channel: Any
    open: PartBatch | None = None
    """The batch in the agent's hands."""
    ended = False
    """The agent was stopped, so its return is no failure."""

    def __aiter__(self) -> AsyncIterator[Any]:
        if self.app.attached_topics.isdisjoint(getattr(self.channel, "topics", ())):
            return super().__aiter__()
        return self._batches()

    async def _batches(self) -> AsyncIterator[PartBatch]:
        self.hand_back(AgentGone("restarted"))
        self.ended = False
        await self.maybe_start()
        get = self.channel.queue.get
        try:
            while not self.should_stop:
                event = await get()
                batch, message = event.value, event.message
                if batch.finished.done():
                    continue  # its part was given up
                state = self._on_stream_event_in(message.tp, message.offset, self, event)
                self.open, self.current_event = batch, event
                _current_event.set(ref(event))
                self.events_total += 1
                try:
                    yield batch
                finally:
                    self._on_stream_event_out(message.tp, message.offset, self, event, state)
                self.hand_back(None)
        except StopAsyncIteration:  # thrown into the queue by the actor's cancel()
            pass
        self.ended = True

    def hand_back(self, failure: BaseException | None) -> None:
        """Return the open batch, if any, to its part; without a failure it succeeded."""
        batch, self.open, self.current_event = self.open, None, None
        if batch is not None:
            batch.finish(failure)


def supervised(name: str, fun: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """Wrap an agent function, so that its exception becomes the failure of its open batch."""

    @functools.wraps(fun)
    async def agent(stream: Any) -> None:
        try:
            await fun(stream)
        except asyncio.CancelledError:
            stream.hand_back(AgentGone("cancelled"))
            raise
        except Exception as failure:
            stream.hand_back(failure)
            raise
        if not stream.ended:
            left = RuntimeError(f"agent {name} left its stream; it must read for as long as the stream lasts")
            stream.hand_back(left)
            raise left

    return agent


class Supervisor(OneForOneSupervisor):
    """Replaces a failed actor at once, without a limit of restarts: dead letters end the failures of one record."""

    async def restart_service(self, service: Any) -> None:
        index = self._index[service]
        replace: Any = self.replacement
        actor = await replace(service, index)
        actor.supervisor = self
        self.insert(index, actor)
        await actor.maybe_start()


class RowsTable(faust.Table):  # type: ignore[type-arg]
    """Declares a table on the app, for `faust tables`. Its rows live in the parts, which also serve reads."""

    app: Any

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **{**options, "key_type": bytes, "value_type": bytes})

    def _changelog_topic_name(self) -> str:
        return topics.prefixed(self.app.prefix, topics.changelog(self.name))

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the row of a key, if this worker owns its partition."""
        for part in self.app.owner.parts:
            if self.name in part.table_names and (row := part.rows(self.name).get(key)) is not None:
                return row
        return default

    def __getitem__(self, key: Any) -> Any:
        row = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def __setitem__(self, key: Any, value: Any) -> None:
        raise RuntimeError(f"table {self.name}: rows are changed by their agent, through the batch in hand")

    def __delitem__(self, key: Any) -> None:
        self[key] = None


class Tables(TableManager):
    """Faust's registry of tables. `PartitionAssignment` recovers partitions, so no changelog is read here."""

    app: Any

    async def on_start(self) -> None:
        self._tables_finalized.set()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        """Do nothing, as nothing was started."""

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Do nothing, as the parts were given up already."""

    async def on_rebalance(self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0) -> None:
        if not self.app.flow_control.is_active():  # it would drop the batches in hand of partitions that stay
            self.app.flow_control.resume()
        self.on_actives_ready()
        self.on_standbys_ready()
        self.app.consumer.take_over(assigned, generation_id)

    async def wait_until_recovery_completed(self) -> bool:
        """Return False, to go on starting without waiting for rows: readiness tells when partitions are served."""
        return False

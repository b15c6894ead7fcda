"""Defects to plant into the engine. The order of writes (design 5) prevents each of them.

The suite must find every one: a proof that cannot fail proves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace
from nats.aio.msg import Msg

from bridge.nats.events import EventsBridge
from bridge.nats.progress import SentMarks
from bridge.nats.publish import JetStreamPublisher
from bridge.nats.response_messages import to_command
from bridge.nats.responses import AgentResponses
from bridge.nats.streams import AGENT_RESPONSES
from bridge.nats.window import Outgoing
from ports.log import Record
from steps.reading import Served
from streams.api import Reply
from streams.command_log import CommandLog
from streams.log_clock import LogClock
from streams.partition_timers import PartitionTimers
from streams.timers import Timers
from streams.transport.partition.checkpoints import Checkpoints
from streams.transport.partition.rows import Rows
from tables.commands import AgentResult

Plant = Callable[[], Any]
# Patches that plant a defect, by the name of the defect.
DEFECTS: dict[str, Plant] = {}


def defect(name: str) -> Callable[[Plant], Plant]:
    def add(plant: Plant) -> Plant:
        DEFECTS[name] = plant
        return plant

    return add


# Defects that only show in a process that was frozen and woke up.
ZOMBIES = frozenset(
    {"a bridge takes rewritten events for new ones", "a bridge that was frozen continues at its old position"}
)
# Defects that only show in a process that dies just after a message or a call reached it.
HEARING = frozenset(
    {
        "an answer from NATS is acknowledged before its command is durable",
        "a client is answered before its command is appended",
    }
)


@contextmanager
def planted(name: str) -> Iterator[None]:
    with DEFECTS[name]():
        yield


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


@defect("a checkpoint does not wait for its effects")
def _no_wait() -> Any:
    async def acknowledged(self: Checkpoints, pending: Sequence[Any]) -> None: ...

    return patch.object(Checkpoints, "_acknowledged", acknowledged)


@defect("the position row is written before the effects are acknowledged")
def _position_first() -> Any:
    async def save(self: Checkpoints, snapshot: Any) -> None:
        if self.rows.tables:
            await self._write(snapshot)
        await self._acknowledged(snapshot.pending)
        self._backend.commit(snapshot.commit)
        self._saved = snapshot.commit

    return patch.object(Checkpoints, "_save_snapshot", save)


@defect("the offset of a held record is committed")
def _held_committed() -> Any:
    return patch.object(Checkpoints, "_committable", lambda self: self.next)


@defect("the position is written without the rows")
def _no_rows() -> Any:
    def some(self: Rows) -> dict[str, dict[bytes, Any]]:
        for table in self.tables.values():
            table.take_dirty()
        return {name: {} for name in self.tables}

    return patch.object(Rows, "take_dirty", some)


@defect("the timers of a partition that was taken are not rebuilt")
def _no_timers() -> Any:
    async def taken(self: Timers, view: Any) -> None:
        self._parts[view.number] = PartitionTimers(view, LogClock(self._clock))

    return patch.object(Timers, "taken", taken)


@defect("an answer from NATS is acknowledged before its command is durable")
def _ack_first() -> Any:
    async def handle(self: AgentResponses, message: Msg) -> None:
        await message.ack()
        verdict = to_command(message.subject, message.data, AGENT_RESPONSES, message.metadata.sequence.stream)
        if isinstance(verdict, AgentResult):
            await self._append(verdict, "")

    return patch.object(AgentResponses, "_handle", handle)


@defect("the bridge hands a batch back before JetStream has acknowledged it")
def _bridge_hurries() -> Any:
    async def publish(
        self: EventsBridge, records: Sequence[Record], messages: Sequence[tuple[bytes, Outgoing]]
    ) -> None:
        task = self._clock.spawn(self._send(records[0], messages), name="hurried")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        await asyncio.sleep(0)

    return patch.object(EventsBridge, "_publish", publish)


@defect("events are published without their id")
def _no_message_id() -> Any:
    send_all = JetStreamPublisher.send_all

    async def bare(self: Any, client: Any, tokens: Iterable[int], messages: Iterable[Outgoing]) -> None:
        await send_all(self, client, tokens, [replace(message, id="") for message in messages])

    return patch.object(JetStreamPublisher, "send_all", bare)


@defect("a bridge takes rewritten events for new ones")
def _not_remembered() -> Any:
    return patch.object(SentMarks, "already_sent", lambda *_: False)


@defect("a bridge that was frozen continues at its old position")
def _always_fresh() -> Any:
    return patch.object(EventsBridge, "_fresh", lambda *_: True)


@defect("a client is answered before its command is appended")
def _answered_early() -> Any:
    append = CommandLog._append

    async def hasty(self: CommandLog, *given: Any, patient: bool) -> Any:
        self._clock.spawn(append(self, *given, patient=patient), name="later")
        return Reply()

    return patch.object(CommandLog, "_append", hasty)


@defect("an agent takes a request that it reads again for a served one")
def _served_for_ever() -> Any:
    seen: set[str] = set()

    def repeats(_: Served, effect_id: str, __: int) -> bool:
        if effect_id in seen:
            return True
        seen.add(effect_id)
        return False

    return patch.object(Served, "repeats", repeats)

"""Histories in Valkey: a list of the newest events of each ceremony, beside its row (specification 26.5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from bridge.projection.histories import HistoryWrite, PlacedEvent
from bridge.projection.store import Place, StoreError
from bridge.valkey.client import NAME, ValkeyAddress, valkey_errors
from bridge.valkey.places import PLACES, ValkeyPlaces
from ports.errors import Unreachable
from ports.history import CopiedEvent, CopyExtent, HistoryEvent
from streams.envelope import PRODUCER

HISTORY = "ceremony:history:"
# Events that are kept of each ceremony.
MOST_EVENTS = 10_000
# A list without a row, of a ceremony whose row has left or is still to come, is kept as long as the log keeps events.
ORPHAN_SECONDS = 30 * 24 * 60 * 60


class _CausingCommand(msgspec.Struct):
    partition: int
    offset: int


class ListedEvent(msgspec.Struct, kw_only=True):
    """One element of a list: the envelope of the event, with its places in the log. The script reads its beginning."""

    offset: int
    """Of its record in `events`."""
    idempotency_key: str
    timestamp: str
    event_type: str
    correlation_id: str
    producer: str
    payload: msgspec.Raw
    metadata: msgspec.Raw
    command: _CausingCommand
    """The record of `commands` that caused it; the offset is -1 where the event does not name it."""


class StoredEvent(ListedEvent, kw_only=True):
    """An element as the script wrote it."""

    number: int
    lost_before: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredEvent).decode


class ValkeyHistories(ValkeyPlaces):
    """Implements `HistoryStore`: each write is one call of a script."""

    name = f"{NAME}_history"

    def __init__(self, address: ValkeyAddress, *, topic: str) -> None:
        """`topic`: that of the events."""
        super().__init__(address, topic, "history.lua")

    async def append(self, write: HistoryWrite) -> str:
        return await self._written(_arguments(write))


class ValkeyHistoryCopy:
    """Implements `HistoryCopy`."""

    name = NAME
    most = MOST_EVENTS

    def __init__(self, address: ValkeyAddress, *, topic: str) -> None:
        """`topic`: that of the events."""
        self._address = address
        self._client = address.client()
        self._places = PLACES + topic

    async def extent(self, instance_id: str, partition: int) -> CopyExtent:
        key = HISTORY + instance_id
        with _unreachable(self._address):
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hget(self._places, str(partition))
                pipe.lindex(key, 0)
                pipe.lindex(key, -1)
                place, first, last = await pipe.execute()
            numbers = [_decode(one).number for one in (first, last) if one]
        copied_to = Place.read(place.decode()) if place else None
        oldest, newest = numbers if len(numbers) == 2 else (1, 0)  # noqa: PLR2004 - both, or the list is empty
        return CopyExtent(oldest, newest, 0 if copied_to is None else copied_to.next)

    async def events(self, instance_id: str, first: int, last: int) -> Sequence[CopiedEvent]:
        key = HISTORY + instance_id
        with _unreachable(self._address):
            oldest: Any = await self._client.lindex(key, 0)
            if oldest is None:
                return []
            shift = _decode(oldest).number
            found: Any = await self._client.lrange(key, max(0, first - shift), max(0, last - shift))
            events = [_copied(one) for one in found]
        return [event for event in events if first <= event.number <= last]

    async def close(self) -> None:
        with contextlib.suppress(Unreachable), _unreachable(self._address):
            await self._client.aclose()


@contextlib.contextmanager
def _unreachable(address: ValkeyAddress) -> Iterator[None]:
    """Turn errors of the client, and elements that are not ours, into Unreachable."""
    try:
        with valkey_errors(address):
            yield
    except StoreError as error:
        raise Unreachable(NAME, error.reason) from None
    except msgspec.DecodeError:
        raise Unreachable(NAME, "the list holds an element that no projector wrote") from None


def _arguments(write: HistoryWrite) -> list[Any]:
    """Return the arguments of the script, in the order that its head gives."""
    partition, expected, place = write.move
    arguments: list[Any] = [
        partition,
        expected,
        place.text,
        place.since,
        1 if place.rebuild else 0,
        MOST_EVENTS,
        ORPHAN_SECONDS,
    ]
    for instance_id, events in write.events.items():
        arguments += (instance_id, len(events))
        arguments += map(_listed, events)
    return arguments


def _listed(placed: PlacedEvent) -> bytes:
    event = placed.event
    return _encode(
        ListedEvent(
            offset=placed.offset,
            idempotency_key=event.effect_id,
            timestamp=event.at,
            event_type=event.subject,
            correlation_id=event.correlation_id,
            producer=PRODUCER,
            payload=msgspec.Raw(event.payload.encode()),
            metadata=msgspec.Raw(event.metadata.encode()),
            command=_CausingCommand(event.partition, event.command_offset),
        )
    )


def _copied(data: bytes) -> CopiedEvent:
    found = _decode(data)
    return CopiedEvent(
        found.number,
        HistoryEvent(
            subject=found.event_type,
            at=found.timestamp,
            effect_id=found.idempotency_key,
            correlation_id=found.correlation_id,
            payload=bytes(found.payload).decode(),
            metadata=bytes(found.metadata).decode(),
            partition=found.command.partition,
            command_offset=found.command.offset,
            source=NAME,
        ),
        found.lost_before,
    )

"""A list over all workers: each owner sorts its own rows, who was asked merges, and fetches only the page.

Two calls of a service between workers. `Keys` streams what sorts a row, in order, until the page is filled: whatever
the offset, no worker hands over more than that. `Rows` then brings the messages of the page.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any

import grpc
import grpc.aio
import msgspec
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.messages import LARGEST_ANSWER_BYTES
from bridge.grpc.peers import SERVICE, Peers
from bridge.grpc.refusals import Context, abort, page
from ports.clock import Clock
from streams.api import HERE, Directory, ReadApi, SortKey, Unavailable
from tables.instance import Instance, Outline

log = structlog.get_logger(__name__)

KEYS, ROWS = f"/{SERVICE}/Keys", f"/{SERVICE}/Rows"
LIST_SECONDS = 10.0
CHUNK = 1000
"""Keys in one message."""


class KeysWanted(msgspec.Struct, array_like=True):
    partitions: list[int]
    request: bytes
    """The ListPlanningCeremonyInstancesRequest, for its filters."""
    most: int = sys.maxsize
    """Keys that the page needs."""


class KeysChunk(msgspec.Struct, array_like=True):
    total: int
    """How many match, whatever the page."""
    keys: list[SortKey]


class RowsWanted(msgspec.Struct, array_like=True):
    ids: list[str]


class RowsFound(msgspec.Struct, array_like=True):
    rows: dict[str, bytes]
    """By id, in the order asked; those that are gone are absent."""
    complete: bool
    """False: the rest did not fit an answer."""


_encode = msgspec.msgpack.Encoder().encode
_keys_wanted = msgspec.msgpack.Decoder(KeysWanted).decode
_keys_chunk = msgspec.msgpack.Decoder(KeysChunk).decode
_rows_wanted = msgspec.msgpack.Decoder(RowsWanted).decode
_rows_found = msgspec.msgpack.Decoder(RowsFound).decode


def matches(row: Instance | Outline, request: pb.ListPlanningCeremonyInstancesRequest) -> bool:
    return (
        (not request.state_filter or row.state == request.state_filter)
        and (not request.definition_filter or row.definition_name == request.definition_filter)
        and (not request.story_id or row.story_id == request.story_id)
        and (not request.status_filter or row.status == request.status_filter)
    )


class LocalRows:
    """The share of this worker."""

    def __init__(self, reads: ReadApi, message: Callable[[Instance], Any]) -> None:
        self._reads = reads
        self._message = message

    async def keys(self, partitions: Collection[int] | None, request: Any, most: int) -> tuple[int, Sequence[SortKey]]:
        """How many rows match, and the keys of the newest `most`. Raises Unavailable where one is not served here."""
        return await self._reads.newest(lambda row: matches(row, request), most, partitions)

    def rows(self, ids: Iterable[str]) -> RowsFound:
        found: dict[str, bytes] = {}
        size = 0
        for instance_id in ids:
            row = self._reads.get(instance_id)
            if row is None:
                continue
            data: bytes = self._message(row).SerializeToString()
            size += len(data) + 8
            if found and size > LARGEST_ANSWER_BYTES:
                return RowsFound(found, complete=False)
            found[instance_id] = data
        return RowsFound(found, complete=True)


class Sorted:
    """The keys of one owner, read as far as the merge needs them."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._keys: list[SortKey] = []
        self.total = 0

    async def more(self) -> list[SortKey]:
        """The next keys; none at the end."""
        data = await anext(self._chunks, None)
        if data is None:
            return []
        chunk = _keys_chunk(data)
        self.total = chunk.total
        return chunk.keys


class AllWorkersListing:
    """Answers a list from all owners."""

    def __init__(self, directory: Directory, peers: Peers, clock: Clock, own: LocalRows) -> None:
        self._directory = directory
        self._peers = peers
        self._clock = clock
        self._own = own

    async def answer(
        self, request: pb.ListPlanningCeremonyInstancesRequest
    ) -> pb.ListPlanningCeremonyInstancesResponse:
        """Raises Unavailable where a partition has no owner, or its owner does not answer in time."""
        try:
            async with self._clock.timeout(LIST_SECONDS):
                return await self._answer(request)
        except TimeoutError:
            raise Unavailable(f"not every worker has answered within {LIST_SECONDS:g} s") from None
        except grpc.aio.AioRpcError as error:
            log.warning("listing_failed", status=error.code().name, reason=error.details())
            raise Unavailable(
                "a worker that owns some of the ceremonies does not answer, or has just lost it"
            ) from None

    async def _answer(
        self, request: pb.ListPlanningCeremonyInstancesRequest
    ) -> pb.ListPlanningCeremonyInstancesResponse:
        owners = self._directory.everywhere()
        limit, offset = page(request.limit, request.offset)
        total, chosen = await self._choose(owners, request, offset + limit)
        rows = await self._rows([instance_id for _, instance_id in chosen[offset:]])
        return pb.ListPlanningCeremonyInstancesResponse(
            ceremonies=[pb.PlanningCeremonyInstance.FromString(row) for row in rows], total_count=total, success=True
        )

    # -- which

    async def _choose(
        self, owners: Mapping[str, Collection[int]], request: Any, count: int
    ) -> tuple[int, Sequence[SortKey]]:
        """How many match, and the first `count` keys of all."""
        wanted = request.SerializeToString()
        total, mine = await self._own.keys(owners.get(HERE, ()), request, count)
        async with AsyncExitStack() as calls:
            others = []
            for address, partitions in owners.items():
                if address != HERE:
                    call = self._peers.stream(address, KEYS)(
                        _encode(KeysWanted(list(partitions), wanted, count)), timeout=LIST_SECONDS
                    )
                    calls.callback(call.cancel)
                    others.append(Sorted(aiter(call)))
            lists = [mine, *[await _first(one, count) for one in others]]
        total += sum(one.total for one in others)
        return total, list(islice(heapq.merge(*lists), count))

    # -- what

    async def _rows(self, ids: Sequence[str]) -> list[bytes]:
        """As many as fit an answer of 3 MiB; always the first."""
        by_owner: dict[str, list[str]] = {}
        for instance_id in ids:
            owner = self._directory.where(self._directory.partition_of(instance_id))
            by_owner.setdefault(owner, []).append(instance_id)
        calls = {
            owner: self._peers.unary(owner, ROWS)(_encode(RowsWanted(some)), timeout=LIST_SECONDS)
            for owner, some in by_owner.items()
            if owner != HERE
        }
        try:
            answers = [_rows_found(await call) for call in calls.values()]
        finally:
            for call in calls.values():
                call.cancel()
        if HERE in by_owner:
            answers.append(self._own.rows(by_owner[HERE]))
        return list(_page(ids, answers))


async def _first(one: Sorted, count: int) -> list[SortKey]:
    keys: list[SortKey] = []
    while len(keys) < count and (more := await one.more()):
        keys += more
    return keys[:count]


def _page(ids: Sequence[str], answers: Sequence[RowsFound]) -> Iterator[bytes]:
    """The rows in the order of `ids`, until an answer is full; those that are gone meanwhile are left out."""
    found = {instance_id: row for answer in answers for instance_id, row in answer.rows.items()}
    complete = all(answer.complete for answer in answers)
    size = 0
    for number, instance_id in enumerate(ids):
        row = found.get(instance_id)
        if row is None:
            if complete:
                continue
            return  # its owner's answer was full before it
        size += len(row) + 8
        if number and size > LARGEST_ANSWER_BYTES:
            return
        yield row


class ListingHandler(grpc.GenericRpcHandler):
    """The service between workers."""

    def __init__(self, own: LocalRows) -> None:
        self._own = own

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == KEYS:
            return grpc.unary_stream_rpc_method_handler(self._keys, bytes, bytes)
        if handler_call_details.method == ROWS:
            return grpc.unary_unary_rpc_method_handler(self._rows, bytes, bytes)
        return None

    async def _keys(self, data: bytes, context: Context[Any, Any]) -> AsyncIterator[bytes]:
        try:
            wanted = _keys_wanted(data)
            request = pb.ListPlanningCeremonyInstancesRequest.FromString(wanted.request)
            total, keys = await self._own.keys(wanted.partitions, request, wanted.most)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other worker gets a status with a code
            await abort(context, error)
        for first in range(0, max(len(keys), 1), CHUNK):
            yield _encode(KeysChunk(total, list(keys[first : first + CHUNK])))

    async def _rows(self, data: bytes, context: Context[Any, Any]) -> bytes:
        try:
            return _encode(self._own.rows(_rows_wanted(data).ids))
        except Exception as error:  # noqa: BLE001 - as above
            await abort(context, error)

"""Lists ceremonies of all workers: each owner sorts its own rows; the worker that was asked merges and fetches a page.

Workers make two calls of each other. `Keys` streams sort keys in order until the page is filled, so no worker sends
more keys than the page needs. `Rows` then fetches the messages of the page.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any

import grpc
import grpc.aio
import msgspec
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.encoding import sent_in_turn
from bridge.grpc.listed_rows import FRAME_BYTES, ListedRows, RowsAnswer
from bridge.grpc.messages import LARGEST_ANSWER_BYTES
from bridge.grpc.peers import SERVICE, Peers, silent
from bridge.grpc.redaction import CleanBytes
from bridge.grpc.refusals import Context, abort, page
from ports.clock import Clock
from ports.redaction import Redactor
from streams.api import HERE, Directory, ReadApi, SortKey, Unavailable
from streams.turns import Turns
from tables.instance import Instance, Outline

log = structlog.get_logger(__name__)

KEYS, ROWS = f"/{SERVICE}/Keys", f"/{SERVICE}/Rows"
LIST_SECONDS = 10.0
# Keys in one message, and keys that are merged before other tasks get the event loop.
KEYS_PER_CHUNK = 1000


class KeysRequest(msgspec.Struct, array_like=True):
    partitions: list[int]
    request: bytes
    """The encoded ListPlanningCeremonyInstancesRequest, for its filters."""
    most: int = sys.maxsize
    """Number of keys that the page needs."""


class KeysChunk(msgspec.Struct, array_like=True):
    total: int
    """Number of matching rows, on any page."""
    keys: list[SortKey]


class RowsRequest(msgspec.Struct, array_like=True):
    ids: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode_keys_request = msgspec.msgpack.Decoder(KeysRequest).decode
_decode_keys_chunk = msgspec.msgpack.Decoder(KeysChunk).decode
_decode_rows_request = msgspec.msgpack.Decoder(RowsRequest).decode
_decode_rows_answer = msgspec.msgpack.Decoder(RowsAnswer).decode


def matches(row: Instance | Outline, request: pb.ListPlanningCeremonyInstancesRequest) -> bool:
    return (
        (not request.state_filter or row.state == request.state_filter)
        and (not request.definition_filter or row.definition_name == request.definition_filter)
        and (not request.story_id or row.story_id == request.story_id)
        and (not request.status_filter or row.status == request.status_filter)
    )


class LocalRows:
    """The rows of this worker."""

    def __init__(self, reads: ReadApi, message: Callable[[Instance], Any], turns: Turns, redactor: Redactor) -> None:
        """`message` makes the message of a row, without its position."""
        self._reads = reads
        self._listed = ListedRows(reads, message, redactor)
        self.turns = turns

    async def keys(self, partitions: Collection[int] | None, request: Any, most: int) -> tuple[int, Sequence[SortKey]]:
        """Count of matching rows, and keys of the newest `most`. Raises Unavailable if not all are served here."""
        found = await self._reads.newest(lambda row: matches(row, request), most, partitions)
        await self._reads.committed()
        return found

    async def rows(self, ids: Iterable[str]) -> RowsAnswer:
        """The messages of these rows, as many as fit into an answer but at least one; no crash takes them back."""
        answer = await self.turns.run(self._listed.answer(ids))
        await self._reads.committed()
        return answer

    async def whole(self, total: int, rows: Iterable[bytes]) -> bytes:
        """The encoded answer of a list; every worker has redacted its rows as it encoded them."""
        rest = pb.ListPlanningCeremonyInstancesResponse(total_count=total, success=True)
        return await sent_in_turn(rest, "ceremonies", map(CleanBytes, rows), self.turns)


class KeyStream:
    """The sorted keys of one owner, read only as far as the merge needs them."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._keys: list[SortKey] = []
        self.total = 0

    async def next_keys(self) -> list[SortKey]:
        """The next keys; empty at the end."""
        data = await anext(self._chunks, None)
        if data is None:
            return []
        chunk = _decode_keys_chunk(data)
        self.total = chunk.total
        return chunk.keys


class AllWorkersListing:
    """Answers a list request with the rows of all owners."""

    def __init__(self, directory: Directory, peers: Peers, clock: Clock, local_rows: LocalRows) -> None:
        self._directory = directory
        self._peers = peers
        self._clock = clock
        self._local_rows = local_rows

    async def answer(self, request: pb.ListPlanningCeremonyInstancesRequest) -> bytes:
        """Raises Unavailable when a partition has no owner, or its owner does not answer in time."""
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

    async def _answer(self, request: pb.ListPlanningCeremonyInstancesRequest) -> bytes:
        owners = self._directory.partitions_by_address()
        limit, offset = page(request.limit, request.offset)
        total, chosen = await self._page_keys(owners, request, offset + limit)
        rows = await self._rows([instance_id for _, instance_id in chosen[offset:]])
        return await self._local_rows.whole(total, rows)

    # -- keys

    async def _page_keys(
        self, owners: Mapping[str, Collection[int]], request: Any, count: int
    ) -> tuple[int, Sequence[SortKey]]:
        """Count of matching rows, and the first `count` keys over all owners."""
        wanted = request.SerializeToString()
        async with AsyncExitStack() as stack:
            calls = {}
            for address, partitions in owners.items():
                if address != HERE:
                    call = calls[address] = self._peers.stream(address, KEYS)(
                        _encode(KeysRequest(list(partitions), wanted, count)), timeout=LIST_SECONDS
                    )
                    stack.callback(call.cancel)
            await self._require_signs(calls)
            total, mine = await self._local_rows.keys(owners.get(HERE, ()), request, count)
            others = [KeyStream(aiter(call)) for call in calls.values()]
            lists = [mine, *[await _first_keys(one, count) for one in others]]
        total += sum(one.total for one in others)
        return total, await self._local_rows.turns.run(_first(lists, count))

    # -- rows

    async def _rows(self, ids: Sequence[str]) -> list[bytes]:
        """The messages of these rows, as many as fit into an answer of 3 MiB but at least one."""
        by_owner: dict[str, list[str]] = {}
        for instance_id in ids:
            owner = self._directory.address_of(self._directory.partition_of(instance_id))
            by_owner.setdefault(owner, []).append(instance_id)
        calls = {
            owner: self._peers.stream(owner, ROWS)(_encode(RowsRequest(some)), timeout=LIST_SECONDS)
            for owner, some in by_owner.items()
            if owner != HERE
        }
        try:
            await self._require_signs(calls)
            answers = [_decode_rows_answer(await call.read()) for call in calls.values()]
        finally:
            for call in calls.values():
                call.cancel()
        if HERE in by_owner:
            answers.append(await self._local_rows.rows(by_owner[HERE]))
        return list(_page(ids, answers))

    async def _require_signs(self, calls: Mapping[str, Any]) -> None:
        """Wait until each called worker begins to answer. Raises Unavailable for one that is frozen or cut off."""
        if frozen := await silent(calls, self._clock):
            log.warning("listing_failed", workers=frozen, reason="no sign of an answer")
            raise Unavailable("a worker that owns some of the ceremonies does not answer")


def _first(lists: Iterable[Sequence[SortKey]], count: int) -> Generator[None, None, list[SortKey]]:
    """The first `count` keys of sorted lists, in order."""
    found: list[SortKey] = []
    for key in islice(heapq.merge(*lists), count):
        found.append(key)
        if len(found) % KEYS_PER_CHUNK == 0:
            yield
    return found


async def _first_keys(one: KeyStream, count: int) -> list[SortKey]:
    keys: list[SortKey] = []
    while len(keys) < count and (more := await one.next_keys()):
        keys += more
    return keys[:count]


def _page(ids: Sequence[str], answers: Sequence[RowsAnswer]) -> Iterator[bytes]:
    """The rows in the order of `ids` until the answer is full, without rows that no longer exist."""
    found = {instance_id: row for answer in answers for instance_id, row in answer.rows.items()}
    complete = all(answer.complete for answer in answers)
    size = 0
    for number, instance_id in enumerate(ids):
        row = found.get(instance_id)
        if row is None:
            if complete:
                continue
            return  # its owner's answer was full before this row
        size += len(row) + FRAME_BYTES
        if number and size > LARGEST_ANSWER_BYTES:
            return
        yield row


class ListingHandler(grpc.GenericRpcHandler):
    """Answers the calls of other workers."""

    def __init__(self, local_rows: LocalRows) -> None:
        self._local_rows = local_rows

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == KEYS:
            return grpc.unary_stream_rpc_method_handler(self._keys, bytes, bytes)
        if handler_call_details.method == ROWS:
            return grpc.unary_unary_rpc_method_handler(self._rows, bytes, bytes)
        return None

    async def _keys(self, data: bytes, context: Context[Any, Any]) -> AsyncIterator[bytes]:
        try:
            await context.send_initial_metadata(())  # the sign that this worker is not frozen
            wanted = _decode_keys_request(data)
            request = pb.ListPlanningCeremonyInstancesRequest.FromString(wanted.request)
            total, keys = await self._local_rows.keys(wanted.partitions, request, wanted.most)
        except Exception as error:  # noqa: BLE001 - every error becomes a status with a code
            await abort(context, error)
        for first in range(0, max(len(keys), 1), KEYS_PER_CHUNK):
            yield _encode(KeysChunk(total, list(keys[first : first + KEYS_PER_CHUNK])))

    async def _rows(self, data: bytes, context: Context[Any, Any]) -> bytes:
        try:
            await context.send_initial_metadata(())
            return _encode(await self._local_rows.rows(_decode_rows_request(data).ids))
        except Exception as error:  # noqa: BLE001 - as above
            await abort(context, error)

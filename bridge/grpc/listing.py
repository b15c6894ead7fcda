"""Lists ceremonies of all workers: each owner searches its rows; the worker that was asked merges and fetches a page.

Workers make two calls of each other. `Search` streams the sort keys of the first matches, no more than the page needs.
`Rows` then fetches the messages of the page. Workers of release 0.1.0 have `Keys` in the place of `Search`; it knows
four filters, so a list with another one, or with a page token, is unavailable while one of them owns a partition.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import msgspec
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.encoding import sent_in_turn
from bridge.grpc.list_request import is_of_old_form, next_page_token, query_of
from bridge.grpc.listed_rows import FRAME_BYTES, ListedRows, RowsAnswer
from bridge.grpc.messages import LARGEST_ANSWER_BYTES
from bridge.grpc.peers import SERVICE, Peers, silent
from bridge.grpc.redaction import CleanBytes
from bridge.grpc.refusals import Context, abort, page
from ports.clock import Clock
from ports.redaction import Redactor
from streams.api import HERE, Directory, Matches, Query, ReadApi, SortKey, Unavailable
from streams.matches import merged
from streams.turns import Turns
from tables.instance import Instance

log = structlog.get_logger(__name__)

SEARCH, ROWS = f"/{SERVICE}/Search", f"/{SERVICE}/Rows"
# The call of release 0.1.0.
KEYS = f"/{SERVICE}/Keys"
LIST_SECONDS = 10.0
# Keys in one message.
KEYS_PER_CHUNK = 1000
# The largest `total_count` that its type holds.
LARGEST_COUNT = 2**31 - 1


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


class SearchChunk(msgspec.Struct, array_like=True):
    """Some of the matches of one worker; `total`, `exact` and `stopped` are the same in all of its chunks."""

    total: int
    exact: bool
    stopped: SortKey | None
    keys: list[SortKey]


class RowsRequest(msgspec.Struct, array_like=True):
    ids: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode_keys_request = msgspec.msgpack.Decoder(KeysRequest).decode
_decode_search_chunk = msgspec.msgpack.Decoder(SearchChunk).decode
_decode_keys_chunk = msgspec.msgpack.Decoder(KeysChunk).decode
_decode_rows_request = msgspec.msgpack.Decoder(RowsRequest).decode
_decode_rows_answer = msgspec.msgpack.Decoder(RowsAnswer).decode


class LocalRows:
    """The rows of this worker."""

    def __init__(self, reads: ReadApi, message: Callable[[Instance], Any], turns: Turns, redactor: Redactor) -> None:
        """`message` makes the message of a row, without its position."""
        self._reads = reads
        self._listed = ListedRows(reads, message, redactor)
        self.turns = turns

    async def search(self, partitions: Collection[int] | None, query: Query, most: int) -> Matches:
        """The first `most` matches here; no crash takes them back. Raises Unavailable if not all are served here."""
        found = await self._reads.search(query, most, partitions)
        await self._reads.committed()
        return found

    async def rows(self, ids: Iterable[str]) -> RowsAnswer:
        """The messages of these rows, as many as fit into an answer but at least one; no crash takes them back."""
        answer = await self.turns.run(self._listed.answer(ids))
        await self._reads.committed()
        return answer

    async def whole(self, page: Page, rows: RowsAnswer) -> bytes:
        """The encoded answer of a list; every worker has redacted its rows as it encoded them."""
        rest = pb.ListPlanningCeremonyInstancesResponse(
            total_count=min(page.matches.total, LARGEST_COUNT),
            success=True,
            message=page.message,
            next_page_token=page.token_after(rows),
            total_is_lower_bound=not page.matches.exact,
        )
        return await sent_in_turn(rest, "ceremonies", map(CleanBytes, rows.rows.values()), self.turns)


class Page:
    """The page of a request: its filters, the matches up to its end, and the token of the next one."""

    def __init__(self, request: pb.ListPlanningCeremonyInstancesRequest, message: str = "") -> None:
        """Raises CallRefused for a request that is invalid. `message`: for the answer."""
        self.request = request
        self.message = message
        self.query = query_of(request)
        self._limit, self._offset = page(request.limit, request.offset)
        self.matches = Matches(0, exact=True, keys=(), stopped=None)

    @property
    def most(self) -> int:
        """The number of matches that the page needs: one more than it shows tells whether there is a next page."""
        return self._offset + self._limit + 1

    @property
    def keys(self) -> Sequence[SortKey]:
        return self.matches.keys[self._offset : self._offset + self._limit]

    @property
    def ids(self) -> list[str]:
        return [instance_id for _, instance_id in self.keys]

    def token_after(self, rows: RowsAnswer) -> str:
        """The token of the next page, once these rows of the page are shown; empty at the end."""
        if not rows.complete:
            shown = [key for key in self.keys if key[1] in rows.rows]
            return next_page_token(self.request, shown[-1])
        if len(self.matches.keys) >= self.most:
            return next_page_token(self.request, self.keys[-1])
        return "" if self.matches.stopped is None else next_page_token(self.request, self.matches.stopped)


class AllWorkersListing:
    """Answers a list request with the rows of all owners."""

    def __init__(self, directory: Directory, peers: Peers, clock: Clock, local_rows: LocalRows) -> None:
        self._directory = directory
        self._peers = peers
        self._clock = clock
        self._local_rows = local_rows

    async def answer(self, page: Page) -> bytes:
        """Raises Unavailable when a partition has no owner, or its owner does not answer in time."""
        try:
            async with self._clock.timeout(LIST_SECONDS):
                return await self._answer(page)
        except TimeoutError:
            raise Unavailable(f"not every worker has answered within {LIST_SECONDS:g} s") from None
        except grpc.aio.AioRpcError as error:
            log.warning("listing_failed", status=error.code().name, reason=error.details())
            raise Unavailable(
                "a worker that owns some of the ceremonies does not answer, or has just lost it"
            ) from None

    async def _answer(self, page: Page) -> bytes:
        owners = self._directory.partitions_by_address()
        page.matches = await self._search(owners, page)
        return await self._local_rows.whole(page, await self._rows(page.ids))

    # -- keys

    async def _search(self, owners: Mapping[str, Collection[int]], page: Page) -> Matches:
        """The first matches over all owners."""
        wanted = page.request.SerializeToString()
        async with AsyncExitStack() as stack:
            calls = {}
            for address, partitions in owners.items():
                if address != HERE:
                    asked = _encode(KeysRequest(list(partitions), wanted, page.most))
                    call = calls[address] = self._peers.stream(address, SEARCH)(asked, timeout=LIST_SECONDS)
                    stack.callback(call.cancel)
            await self._require_signs(calls)
            found = [await self._local_rows.search(owners.get(HERE, ()), page.query, page.most)]
            for address, call in calls.items():
                found.append(await self._found(call) or await self._found_by_old(address, owners[address], page))
        return await self._local_rows.turns.run(merged(found, page.most))

    async def _found(self, call: Any) -> Matches | None:
        """The matches of another worker; None for a worker of release 0.1.0."""
        keys: list[SortKey] = []
        chunk = SearchChunk(0, exact=True, stopped=None, keys=[])
        try:
            async for data in call:
                chunk = _decode_search_chunk(data)
                keys += chunk.keys
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise
        return Matches(chunk.total, chunk.exact, keys, chunk.stopped)

    async def _found_by_old(self, address: str, partitions: Collection[int], page: Page) -> Matches:
        """The matches of a worker of release 0.1.0."""
        if not is_of_old_form(page.request):
            raise Unavailable("a worker of an older release owns some of the ceremonies, and cannot list them so")
        asked = _encode(KeysRequest(list(partitions), page.request.SerializeToString(), page.most))
        call = self._peers.stream(address, KEYS)(asked, timeout=LIST_SECONDS)
        keys: list[SortKey] = []
        total = 0
        try:
            async for data in call:
                chunk = _decode_keys_chunk(data)
                total = chunk.total
                keys += chunk.keys
        finally:
            call.cancel()
        return Matches(total, exact=True, keys=keys, stopped=keys[-1] if len(keys) >= page.most else None)

    # -- rows

    async def _rows(self, ids: Sequence[str]) -> RowsAnswer:
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
            answers = {owner: _decode_rows_answer(await call.read()) for owner, call in calls.items()}
        finally:
            for call in calls.values():
                call.cancel()
        if HERE in by_owner:
            answers[HERE] = await self._local_rows.rows(by_owner[HERE])
        gone = {one for owner, answer in answers.items() if answer.complete for one in by_owner[owner]}
        return _first_rows(ids, answers.values(), gone)

    async def _require_signs(self, calls: Mapping[str, Any]) -> None:
        """Wait until each called worker begins to answer. Raises Unavailable for one that is frozen or cut off."""
        if frozen := await silent(calls, self._clock):
            log.warning("listing_failed", workers=frozen, reason="no sign of an answer")
            raise Unavailable("a worker that owns some of the ceremonies does not answer")


def _first_rows(ids: Sequence[str], answers: Iterable[RowsAnswer], gone: Collection[str]) -> RowsAnswer:
    """The rows in the order of `ids` until the answer is full; those that are missing and `gone` no longer exist."""
    found = {instance_id: row for answer in answers for instance_id, row in answer.rows.items()}
    shown: dict[str, bytes] = {}
    size = 0
    for instance_id in ids:
        row = found.get(instance_id)
        if row is None:
            if instance_id in gone:
                continue
            return RowsAnswer(shown, complete=False)  # its owner's answer was full before this row
        size += len(row) + FRAME_BYTES
        if shown and size > LARGEST_ANSWER_BYTES:
            return RowsAnswer(shown, complete=False)
        shown[instance_id] = row
    return RowsAnswer(shown, complete=True)


class ListingHandler(grpc.GenericRpcHandler):
    """Answers the calls of other workers."""

    def __init__(self, local_rows: LocalRows) -> None:
        self._local_rows = local_rows

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == SEARCH:
            return grpc.unary_stream_rpc_method_handler(self._search, bytes, bytes)
        if handler_call_details.method == KEYS:
            return grpc.unary_stream_rpc_method_handler(self._keys, bytes, bytes)
        if handler_call_details.method == ROWS:
            return grpc.unary_unary_rpc_method_handler(self._rows, bytes, bytes)
        return None

    async def _search(self, data: bytes, context: Context[Any, Any]) -> AsyncIterator[bytes]:
        found = await self._found(data, context)
        for keys in _chunks(found.keys):
            yield _encode(SearchChunk(found.total, found.exact, found.stopped, keys))

    async def _keys(self, data: bytes, context: Context[Any, Any]) -> AsyncIterator[bytes]:
        found = await self._found(data, context)
        for keys in _chunks(found.keys):
            yield _encode(KeysChunk(found.total, keys))

    async def _found(self, data: bytes, context: Context[Any, Any]) -> Matches:
        try:
            await context.send_initial_metadata(())  # the sign that this worker is not frozen
            wanted = _decode_keys_request(data)
            request = pb.ListPlanningCeremonyInstancesRequest.FromString(wanted.request)
            return await self._local_rows.search(wanted.partitions, query_of(request), wanted.most)
        except Exception as error:  # noqa: BLE001 - every error becomes a status with a code
            await abort(context, error)

    async def _rows(self, data: bytes, context: Context[Any, Any]) -> bytes:
        try:
            await context.send_initial_metadata(())
            return _encode(await self._local_rows.rows(_decode_rows_request(data).ids))
        except Exception as error:  # noqa: BLE001 - as above
            await abort(context, error)


def _chunks(keys: Sequence[SortKey]) -> Iterator[list[SortKey]]:
    """The keys in messages of bounded size; one message without keys if there are none."""
    for first in range(0, max(len(keys), 1), KEYS_PER_CHUNK):
        yield list(keys[first : first + KEYS_PER_CHUNK])

"""Lists over several workers: merged pages, tokens that skip nothing, and workers of release 0.1.0 among them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from msgspec.structs import replace

from bridge.clock import HostClock
from bridge.grpc.list_request import next_page_token
from bridge.grpc.listing import KEYS, ROWS, SEARCH, AllWorkersListing, ListingHandler, LocalRows, Page
from bridge.grpc.messages import LARGEST_ANSWER_BYTES
from bridge.grpc.peers import Peers
from steps.secrets.redactor import TextRedactor
from streams.api import HERE, Matches, Query, Unavailable
from streams.turns import Turns
from tests.streams.search_world import SearchWorld, searched
from tests.streams.test_timers import row

pytestmark = pytest.mark.asyncio


class Reads:
    """Some rows of one worker, searched by an index as the engine does."""

    losses = 0

    def __init__(self, numbers: Sequence[int], size: int = 0) -> None:
        self.world = SearchWorld(1)
        for number in numbers:
            one = replace(row(f"c{number}"), created_at=number // 2 + 1, correlation_id="corr", size=size)
            self.world.rows[one.instance_id.encode()] = one
        self.world.fill()

    async def search(self, query: Query, most: int, partitions: object) -> Matches:
        return searched(self.world.index, query, most)

    def get(self, instance_id: str) -> Any:
        return self.world.rows.get(instance_id.encode())

    def position_of(self, _: str) -> tuple[int, int]:
        return 0, 1

    async def committed(self) -> None: ...


def local_rows(reads: Any) -> LocalRows:
    def message(one: Any) -> pb.PlanningCeremonyInstance:
        return pb.PlanningCeremonyInstance(instance_id=one.instance_id, error_message="x" * one.size)

    return LocalRows(reads, message, Turns(HostClock()), TextRedactor())


class OldHandler(ListingHandler):
    """A worker of release 0.1.0."""

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == SEARCH:
            return None
        assert handler_call_details.method in (KEYS, ROWS)
        return super().service(handler_call_details)


@contextlib.asynccontextmanager
async def two_workers(
    mine: Reads, others: Reads, handler: type[ListingHandler] = ListingHandler
) -> AsyncIterator[AllWorkersListing]:
    """The listing of a worker with even numbers; another one has the odd numbers."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handler(local_rows(others))])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    directory: Any = SimpleNamespace(
        partition_of=lambda instance_id: int(others.get(instance_id) is not None),
        address_of=lambda partition: address if partition else HERE,
        partitions_by_address=lambda: {HERE: [0], address: [1]},
        addresses=lambda: {address},
    )
    peers = Peers(directory.addresses)
    yield AllWorkersListing(directory, peers, HostClock(), local_rows(mine))
    await peers.close()
    await server.stop(0)


async def listed(listing: AllWorkersListing, **fields: Any) -> pb.ListPlanningCeremonyInstancesResponse:
    request = pb.ListPlanningCeremonyInstancesRequest(**fields)
    return pb.ListPlanningCeremonyInstancesResponse.FromString(await listing.answer(Page(request)))


async def all_pages(listing: AllWorkersListing, **fields: Any) -> list[str]:
    """The ids of all pages, each begun by the token of the one before."""
    found: list[str] = []
    token = ""
    while True:
        page = await listed(listing, page_token=token, **fields)
        found += [one.instance_id for one in page.ceremonies]
        token = page.next_page_token
        if not token:
            return found


def in_order(*reads: Reads) -> list[str]:
    rows = [one for some in reads for one in some.world.rows.values()]
    return [one.instance_id for one in sorted(rows, key=lambda one: (-one.created_at, one.instance_id))]


async def test_pages_of_all_workers_together_are_the_whole_list() -> None:
    # specification 14.15, 14.22
    mine, others = Reads(range(0, 40, 2)), Reads(range(1, 40, 2))
    async with two_workers(mine, others) as listing:
        whole = in_order(mine, others)
        assert await all_pages(listing, limit=7) == whole
        assert await all_pages(listing, limit=1000, correlation_filter="corr") == whole
        page = await listed(listing, limit=3, offset=4)
        assert [one.instance_id for one in page.ceremonies] == whole[4:7] and page.total_count == 40
        last = await listed(listing, limit=40)
        assert (len(last.ceremonies), last.next_page_token) == (40, "")


async def test_a_page_that_is_full_of_bytes_leads_on_behind_its_last_row() -> None:
    # specification 14.9, 14.22
    mine, others = (Reads(range(first, 8, 2), LARGEST_ANSWER_BYTES // 3) for first in (0, 1))
    async with two_workers(mine, others) as listing:
        first = await listed(listing)
        assert 0 < len(first.ceremonies) < 8 and first.next_page_token
        assert await all_pages(listing) == in_order(mine, others)


async def test_ceremonies_that_start_between_two_pages_move_no_page() -> None:
    # specification 14.22
    mine, others = Reads(range(0, 20, 2)), Reads(range(1, 20, 2))
    async with two_workers(mine, others) as listing:
        whole = in_order(mine, others)
        first = await listed(listing, limit=5)
        new = replace(row("new"), created_at=1_000)
        mine.world.rows[b"new:s1"] = new
        mine.world.index.changed({b"new:s1": new}, {b"new:s1": None})
        second = await listed(listing, limit=5, page_token=first.next_page_token)
        assert [one.instance_id for one in second.ceremonies] == whole[5:10]
        assert second.total_count == 21


async def test_a_list_of_the_old_form_asks_a_worker_of_the_old_release_as_it_understands() -> None:
    # specification 14.22
    mine, others = Reads(range(0, 20, 2)), Reads(range(1, 20, 2))
    async with two_workers(mine, others, OldHandler) as listing:
        page = await listed(listing, limit=12, offset=3, story_id="s1")
        assert [one.instance_id for one in page.ceremonies] == in_order(mine, others)[3:15]
        assert page.total_count == 20


async def test_a_list_that_a_worker_of_the_old_release_would_get_wrong_is_unavailable() -> None:
    """It would ignore the filters and tokens that it does not know."""
    # specification 14.22
    mine, others = Reads(range(0, 20, 2)), Reads(range(1, 20, 2))
    token = next_page_token(pb.ListPlanningCeremonyInstancesRequest(), (-3, "c4:s1"))
    async with two_workers(mine, others, OldHandler) as listing:
        for fields in ({"correlation_filter": "corr"}, {"page_token": token}):
            with pytest.raises(Unavailable, match="older release"):
                await listed(listing, **fields)

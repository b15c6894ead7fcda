"""Lists and diagnoses over all workers while one of them is frozen, or works for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from msgspec.structs import replace

from bridge.clock import HostClock
from bridge.grpc import peers as peers_module
from bridge.grpc.diagnosis import AllWorkersDiagnosis, DiagnosisHandler
from bridge.grpc.listing import SEARCH, AllWorkersListing, ListingHandler, LocalRows, Page
from bridge.grpc.peers import Peers
from steps.secrets.redactor import TextRedactor
from streams.api import HERE, Matches, Unavailable
from streams.turns import Turns
from tests.streams.test_timers import row

ROW_IDS = ["c:1"]
LIST = pb.ListPlanningCeremonyInstancesRequest()


class OneRow:
    """Reads of a worker with one row; `delay_seconds` is the time that finding its key takes."""

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self._delay_seconds = delay_seconds

    async def search(self, *_: Any) -> Matches:
        await asyncio.sleep(self._delay_seconds)
        return Matches(len(ROW_IDS), exact=True, keys=[(0, one) for one in ROW_IDS], stopped=None)

    losses = 0

    def get(self, instance_id: str) -> Any:
        return replace(row(), instance_id=instance_id)

    def position_of(self, _: str) -> tuple[int, int]:
        return 0, 1

    async def committed(self) -> None: ...


class NoRows(OneRow):
    async def search(self, *_: Any) -> Matches:
        return Matches(0, exact=True, keys=[], stopped=None)


def local_rows(reads: Any, kind: type[LocalRows] = LocalRows) -> LocalRows:
    return kind(
        reads,
        lambda row: pb.PlanningCeremonyInstance(instance_id=row.instance_id),
        Turns(HostClock()),
        TextRedactor(),
    )


class Other:
    """The other worker's address, with a list and a diagnosis that this worker makes with its help."""

    def __init__(self, address: str) -> None:
        directory: Any = SimpleNamespace(
            partition_of=lambda _: 1,
            address_of=lambda _: address,
            partitions_by_address=lambda: {HERE: [0], address: [1]},
            addresses=lambda: {address},
        )
        self.address = address
        self.peers = Peers(directory.addresses)
        self.listing = AllWorkersListing(directory, self.peers, HostClock(), local_rows(NoRows()))
        self.diagnosis = AllWorkersDiagnosis(directory, self.peers, HostClock(), self._own)

    async def _own(self) -> pb.DiagnoseResponse:
        return pb.DiagnoseResponse(partitions=[pb.PartitionState(state="served")])


@contextlib.asynccontextmanager
async def stopped() -> AsyncIterator[Other]:
    """A worker whose process is stopped: the host accepts connections for it, and nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        other = Other(f"127.0.0.1:{listening.getsockname()[1]}")
        yield other
        await other.peers.close()


@contextlib.asynccontextmanager
async def serving(*handlers: grpc.GenericRpcHandler) -> AsyncIterator[Other]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers)
    other = Other(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    yield other
    await other.peers.close()
    await server.stop(0)


class SlowRows(LocalRows):
    async def rows(self, ids: Any) -> Any:
        await asyncio.sleep(0.5)
        return await super().rows(ids)


class KeysOnly(ListingHandler):
    """Freezes after its keys."""

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == SEARCH:
            return super().service(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(hang, bytes, bytes)


async def hang(*_: Any) -> bytes:
    await asyncio.sleep(30)
    return b""


@pytest.mark.parametrize("frozen", [stopped, lambda: serving(KeysOnly(local_rows(OneRow())))], ids=["at once", "later"])
async def test_a_list_is_unavailable_within_three_seconds_when_a_worker_is_frozen(
    frozen: Callable[[], Any],
) -> None:
    # specification 14.15
    async with frozen() as other:
        began = time.monotonic()
        with pytest.raises(Unavailable) as refusal:
            await other.listing.answer(Page(LIST))
        assert time.monotonic() - began < 3.0
    assert refusal.value.retry_after_seconds > 0


async def test_a_diagnosis_names_a_frozen_worker_within_three_seconds() -> None:
    # specification 14.15
    async with stopped() as other:
        began = time.monotonic()
        found = await other.diagnosis.diagnose()
        assert time.monotonic() - began < 3.0
        assert found.incomplete == f"no answer from {other.address}"


async def test_a_worker_that_has_begun_to_answer_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting many rows, or judging many ceremonies, takes seconds on a busy host."""
    monkeypatch.setattr(peers_module, "SIGN_SECONDS", 0.2)

    async def diagnose() -> pb.DiagnoseResponse:
        await asyncio.sleep(0.5)
        return pb.DiagnoseResponse(partitions=[pb.PartitionState(state="served")])

    async with serving(ListingHandler(local_rows(OneRow(0.5), SlowRows)), DiagnosisHandler(diagnose)) as other:
        listed = pb.ListPlanningCeremonyInstancesResponse.FromString(await other.listing.answer(Page(LIST)))
        assert [one.instance_id for one in listed.ceremonies] == ROW_IDS
        assert (await other.diagnosis.diagnose()).incomplete == ""

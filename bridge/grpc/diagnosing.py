"""A diagnosis over all workers: each looks at its own partitions, who was asked merges, and says who did not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.diagnosis import merged
from bridge.grpc.peers import SERVICE, Peers
from bridge.grpc.refusals import Context, abort
from streams.api import Directory

log = structlog.get_logger(__name__)

DIAGNOSE = f"/{SERVICE}/Diagnose"
ANSWER_SECONDS = 8.0
"""For another worker's look at its ceremonies, which ends by itself after five."""

Look = Callable[[], Awaitable[pb.DiagnoseResponse]]
"""What this worker sees."""


class Diagnosing:
    """Asks all workers that are heard of, whether they own a partition or not: each has neighbours of its own."""

    def __init__(self, directory: Directory, peers: Peers, look: Look) -> None:
        self._directory = directory
        self._peers = peers
        self._look = look

    async def all(self) -> pb.DiagnoseResponse:
        calls = {
            address: self._peers.unary(address, DIAGNOSE)(b"", timeout=ANSWER_SECONDS)
            for address in self._directory.addresses()
        }
        answers: dict[str, pb.DiagnoseResponse] = {}
        try:
            own = await self._look()
            for address, call in calls.items():
                try:
                    answers[address] = pb.DiagnoseResponse.FromString(await call)
                except grpc.aio.AioRpcError as error:
                    log.warning("diagnosis_unanswered", worker=address, status=error.code().name)
        finally:
            for call in calls.values():
                call.cancel()
        return merged(own, answers, calls.keys() - answers.keys())


class DiagnosingHandler(grpc.GenericRpcHandler):
    """Answers another worker that asks."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == DIAGNOSE:
            return grpc.unary_unary_rpc_method_handler(self._diagnose, bytes, bytes)
        return None

    async def _diagnose(self, _: bytes, context: Context[Any, Any]) -> bytes:
        try:
            return (await self._look()).SerializeToString()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other worker gets a status with a code
            await abort(context, error)

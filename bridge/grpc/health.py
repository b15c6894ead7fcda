"""The health service of gRPC. Setting a status waits for no client, however long one takes to read its watch."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


class HealthAnswers(health_pb2_grpc.HealthServicer):
    """Implements `grpc.health.v1`.

    The servicer of grpcio-health-checking holds a lock of a service while it writes to a client that watches it. A
    client that reads nothing kept that service SERVING on a worker that drains.
    """

    def __init__(self) -> None:
        self._statuses: Final[dict[str, Any]] = {}
        """By service; the empty name is the server."""
        self._changed = asyncio.Event()
        """Set at the next change, and replaced by another one."""

    def set(self, status: Any, *services: str) -> None:
        """Set the status of services. Each client that watches one is sent the newest when it reads."""
        self._statuses.update(dict.fromkeys(services, status))
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                await context.write(health_pb2.HealthCheckResponse(status=status))
            else:
                await changed.wait()

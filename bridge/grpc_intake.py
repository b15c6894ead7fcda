"""Takes up the calls of a gRPC server many at a time.

By itself grpc.aio asks gRPC for the next call of a method only when it has the last, some four turns of the event loop
later: with turns of 3 ms that is 80 calls a second, whatever the processor could do, and who waits may be ended by lot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # private names: tests/bridge/test_grpc_intake.py

from steps.ports import Clock

AT_ONCE = 64
"""Calls of one method that are taken up in one turn of the loop."""


class Intake:
    """Stands for the server where a servicer is added to it; `start` after the server has started.

    It ends with the server, and what it took up is in the server's care as every other call: grace, cancellation.
    """

    def __init__(
        self, server: grpc.aio.Server, interceptors: Sequence[grpc.aio.ServerInterceptor], clock: Clock
    ) -> None:
        self._server = server
        self._interceptors = tuple(interceptors)
        self._clock = clock
        self._handlers: dict[str, Any] = {}
        self._tasks: set[Any] = set()

    # -- what a servicer is added by

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, dict(handlers))
        self._handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    # -- what gRPC asks

    def resolve_handler(self, details: Any) -> Any:
        return self._handlers[details.method]

    # -- life

    def start(self) -> None:
        for method in self._handlers:
            for _ in range(AT_ONCE):
                self._keep(self._clock.spawn(self._take_up(method), name=f"intake {method}"))

    async def _take_up(self, method: str) -> None:
        core: Any = self._server._server  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        name = method.encode()
        while core.is_running():
            try:
                call = await core._request_registered_call(name)
            except cygrpc._RequestCallError:
                return  # the server stops
            answer = cygrpc._handle_rpc(method, self, self._interceptors, call, loop, False)  # noqa: FBT003 - its own
            self._keep(self._clock.spawn(cygrpc._schedule_rpc_coro(answer, call, loop, method), name=method))

    def _keep(self, task: Any) -> None:
        """The loop itself holds a task weakly."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""Takes up the calls of a gRPC server many at a time.

By itself grpc.aio asks gRPC for the next call of a method only when it has the last, some four turns of the event loop
later: with turns of 3 ms that is 80 calls a second, whatever the processor could do, and who waits may be ended by lot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # private names: tests/bridge/grpc/test_intake.py

from bridge.grpc.refusals import CallRefused, told
from ports.clock import Clock

AT_ONCE = 16
"""Calls of one method that are taken up in one turn of the loop, where nothing else is said."""
A_TURN = 128
"""Calls of one method let in in a turn: with 2,500 a turn takes seconds, and what waits for the log runs out of time,
though the log has answered."""


@dataclass(frozen=True, slots=True)
class CallLimit:
    """How the calls of a method are let in."""

    method: str
    at_once: int = AT_ONCE
    """Calls taken up in one turn of the loop; each of them takes 1.3 KiB."""
    closed: Callable[[int], CallRefused | None] = lambda _: None
    """Why a call is refused as it is taken up, if it is; asked with the number of those that were let in and are still
    unanswered."""


class Intake:
    """Stands for the server where a servicer is added to it; `start` after the server has started.

    It ends with the server, and what it took up is in the server's care as every other call: grace, cancellation.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        clock: Clock,
        gates: Sequence[CallLimit] = (),
    ) -> None:
        self._server = server
        self._interceptors = tuple(interceptors)
        self._clock = clock
        self._gates = {gate.method: gate for gate in gates}
        self._handlers: dict[str, Any] = {}
        self._tasks: list[Any] = []

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
            gate = self._gates.get(method, CallLimit(method))
            inside: set[Any] = set()
            pace = _Pace()
            self._tasks += [
                self._clock.spawn(self._take_up(gate, inside, pace), name=f"intake {method}")
                for _ in range(gate.at_once)
            ]

    async def _take_up(self, gate: CallLimit, inside: set[Any], pace: _Pace) -> None:
        core: Any = self._server._server  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        method = gate.method
        name = method.encode()
        while core.is_running():
            try:
                call = await core._request_registered_call(name)
            except cygrpc._RequestCallError:
                return  # the server stops
            if (refusal := gate.closed(len(inside))) is not None:
                await _refuse(call, refusal, loop)
                continue
            task = self._clock.spawn(self._serve(method, call, pace), name=method)
            inside.add(task)  # the loop itself holds a task weakly
            task.add_done_callback(inside.discard)

    async def _serve(self, method: str, call: Any, pace: _Pace) -> None:
        """Who waits for the pace is inside: the next are taken up meanwhile, and refused once it is full."""
        await pace.let_in()
        loop = asyncio.get_running_loop()
        answer = cygrpc._handle_rpc(method, self, self._interceptors, call, loop, False)  # noqa: FBT003 - its own
        await cygrpc._schedule_rpc_coro(answer, call, loop, method)


class _Pace:
    """Lets in A_TURN calls in a turn of the loop; the next ones wait for the next turn."""

    def __init__(self) -> None:
        self._left = A_TURN
        self._next: asyncio.Future[None] | None = None

    async def let_in(self) -> None:
        while not self._left:
            await self._turn()
        self._left -= 1
        self._turn()

    def _turn(self) -> asyncio.Future[None]:
        """Done in the next turn, with room again."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_soon(self._begin, self._next)
        return self._next

    def _begin(self, turn: asyncio.Future[None]) -> None:
        self._left, self._next = A_TURN, None
        turn.set_result(None)


async def _refuse(call: Any, refusal: CallRefused, loop: asyncio.AbstractEventLoop) -> None:
    """End a call in one go, before its request is read: half or two thirds of what interceptor and handler take."""
    text, trailing = told(refusal)
    status = cygrpc.SendStatusFromServerOperation(trailing, refusal.status.value[0], text, 0)
    operations = (cygrpc.SendInitialMetadataOperation((), 0), status, cygrpc.ReceiveCloseOnServerOperation(0))
    with contextlib.suppress(cygrpc.ExecuteBatchError):  # the caller has gone
        await cygrpc.execute_batch(call, operations, loop)

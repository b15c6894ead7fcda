"""Lets gRPC keep up with an event loop whose turns are long, as they are while a batch is folded.

*Calls.* grpc.aio asks for the next call of a method only after it got the last one, about four turns of the event loop
later. With turns of 3 ms that is 80 calls a second, however fast the processor is, and gRPC ends waiting calls at
random. `Intake` keeps many requests for calls open.

*Wake-ups.* gRPC's poller thread writes one byte to a socket pair for each event, and the loop's reader reads one byte a
turn, though it handles all events there are. With long turns bytes pile up; after about 280 the poller blocks in its
write, until three quarters of them are read 200 turns later. Measured with turns of 3 ms: 65 calls a second, in bursts
with more than a second between them. `read_all_wakeups` reads all bytes in one turn.
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

from bridge.grpc import metrics
from bridge.grpc.refusals import CallRefused, details_and_trailers
from ports.clock import Clock

# Calls of one method that are taken up in one turn of the loop, unless its `CallLimit` has another number.
TAKEN_UP_PER_TURN = 16
# Calls of one method that begin to be served in one turn. With 2,500 a turn takes seconds, and calls that wait for the
# log time out although the log has answered.
STARTED_PER_TURN = 128
# Bytes in one read: more than the socket pair holds.
LARGEST_READ_BYTES = 65_536


def read_all_wakeups() -> None:
    """Let the running loop read all of gRPC's wake-ups in one turn. Call it before making a channel or a server."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop.add_reader, _AddReader):
        loop.add_reader = _AddReader(loop.add_reader)  # type: ignore[method-assign, assignment]  # for gRPC


class _AddReader:
    """The loop's `add_reader`, with one change: gRPC's reader finds its socket empty."""

    def __init__(self, add_reader: Callable[..., Any]) -> None:
        self._add_reader = add_reader

    def __call__(self, fd: Any, callback: Callable[..., Any], *args: Any) -> Any:
        handler = getattr(callback, "func", None)  # of gRPC's partial
        if isinstance(getattr(handler, "__self__", None), cygrpc.PollerCompletionQueue):
            return self._add_reader(fd, _emptying(fd, callback), *args)
        return self._add_reader(fd, callback, *args)


def _emptying(socket: Any, callback: Callable[..., Any]) -> Callable[..., Any]:
    """Empty the socket, then handle events. gRPC queues an event before it writes the byte, so none is missed."""

    def read(*args: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            socket.recv(LARGEST_READ_BYTES)
        callback(*args)

    return read


@dataclass(frozen=True, slots=True)
class CallLimit:
    """Limits on taking up the calls of one method."""

    method: str
    per_turn: int = TAKEN_UP_PER_TURN
    """Calls taken up in one turn of the loop; each of them takes 1.3 KiB."""
    refuse: Callable[[int], CallRefused | None] = lambda _: None
    """Returns the refusal of the next call, or None to let it in; its argument is the number of unanswered calls."""


class Intake:
    """Takes the server's place when a servicer is added; call `start` after the server has started.

    It ends with the server. The server handles grace and cancellation of these calls as of all others.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        clock: Clock,
        limits: Sequence[CallLimit] = (),
    ) -> None:
        self._server = server
        self._interceptors = tuple(interceptors)
        self._clock = clock
        self._limits = {limit.method: limit for limit in limits}
        self._handlers: dict[str, Any] = {}
        self._tasks: list[Any] = []

    # -- called when a servicer is added

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, dict(handlers))
        self._handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    # -- called by gRPC

    def resolve_handler(self, details: Any) -> Any:
        return self._handlers[details.method]

    # -- life

    def start(self) -> None:
        for method in self._handlers:
            limit = self._limits.get(method, CallLimit(method))
            unanswered: set[Any] = set()
            pace = _Pace()
            self._tasks += [
                self._clock.spawn(self._take_up(limit, unanswered, pace), name=f"intake {method}")
                for _ in range(limit.per_turn)
            ]

    async def _take_up(self, limit: CallLimit, unanswered: set[Any], pace: _Pace) -> None:
        core: Any = self._server._server  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        method = limit.method
        name = method.encode()
        while core.is_running():
            try:
                call = await core._request_registered_call(name)
            except cygrpc._RequestCallError:
                return  # the server stops
            if (refusal := limit.refuse(len(unanswered))) is not None:
                metrics.CALLS.labels(method.rpartition("/")[2], refusal.status.name).inc()
                await _refuse(call, refusal, loop)
                continue
            task = self._clock.spawn(self._serve(method, call, pace), name=method)
            unanswered.add(task)  # the loop itself holds a task weakly
            task.add_done_callback(unanswered.discard)

    async def _serve(self, method: str, call: Any, pace: _Pace) -> None:
        """Serve a call when its turn comes. Until then it counts as unanswered, so that later calls are refused."""
        await pace.wait_for_turn()
        loop = asyncio.get_running_loop()
        answer = cygrpc._handle_rpc(method, self, self._interceptors, call, loop, False)  # noqa: FBT003 - its own
        await cygrpc._schedule_rpc_coro(answer, call, loop, method)


class _Pace:
    """Starts at most STARTED_PER_TURN calls in one turn of the loop; the others wait for the next turn."""

    def __init__(self) -> None:
        self._left = STARTED_PER_TURN
        self._next: asyncio.Future[None] | None = None

    async def wait_for_turn(self) -> None:
        while not self._left:
            await self._next_turn()
        self._left -= 1
        self._next_turn()

    def _next_turn(self) -> asyncio.Future[None]:
        """A future that is done in the next turn, when more calls may start."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_soon(self._begin, self._next)
        return self._next

    def _begin(self, turn: asyncio.Future[None]) -> None:
        self._left, self._next = STARTED_PER_TURN, None
        turn.set_result(None)


async def _refuse(call: Any, refusal: CallRefused, loop: asyncio.AbstractEventLoop) -> None:
    """Refuse a call before its request is read, for half to two thirds of the cost of interceptor and handler."""
    text, trailing = details_and_trailers(refusal)
    status = cygrpc.SendStatusFromServerOperation(trailing, refusal.status.value[0], text, 0)
    operations = (cygrpc.SendInitialMetadataOperation((), 0), status, cygrpc.ReceiveCloseOnServerOperation(0))
    with contextlib.suppress(cygrpc.ExecuteBatchError):  # the caller has gone
        await cygrpc.execute_batch(call, operations, loop)

"""gRPC's wake-ups of the event loop, taken all at once: by itself grpc.aio takes one in a turn of the loop.

Its poller thread writes one byte to a socket pair for each event of gRPC, and the loop's reader takes one byte a turn,
though it handles all events there are. A loop whose turns are long (a batch is folded) is left with bytes: after some
280 the poller stands in its write, and goes on when three quarters of them are read, 200 turns later. Measured with
turns of 3 ms: 65 calls a second, in bursts with more than a second between them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # a private name: tests/bridge/grpc/test_intake.py

MOST = 65_536
"""Bytes in one read: more than the socket pair holds."""


def take_all() -> None:
    """From here on the running loop takes all wake-ups that there are; before its first channel or server is made."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop.add_reader, _AddReader):
        loop.add_reader = _AddReader(loop.add_reader)  # type: ignore[method-assign, assignment]  # for gRPC


class _AddReader:
    """The loop's `add_reader`, but gRPC's reader finds its socket empty."""

    def __init__(self, add_reader: Callable[..., Any]) -> None:
        self._add_reader = add_reader

    def __call__(self, fd: Any, callback: Callable[..., Any], *args: Any) -> Any:
        handler = getattr(callback, "func", None)  # of gRPC's partial
        if isinstance(getattr(handler, "__self__", None), cygrpc.PollerCompletionQueue):
            return self._add_reader(fd, _emptied(fd, callback), *args)
        return self._add_reader(fd, callback, *args)


def _emptied(socket: Any, callback: Callable[..., Any]) -> Callable[..., Any]:
    """An event is queued before its byte is written: whoever takes the byte first and looks then finds the event."""

    def read(*args: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            socket.recv(MOST)
        callback(*args)

    return read

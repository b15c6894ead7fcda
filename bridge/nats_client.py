"""nats-py's client that asks, before bytes go to the socket, whether what was published may still be sent.

`publish` only puts a message into the client's buffer; another task writes it: after a freeze, after a reconnect, or
while closing. By then the partition it came from may be another bridge's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.client import Client

log = structlog.get_logger(__name__)


class FencedClient(Client):
    """Asks `may_write` before each write; on a no it drops its buffer and the connection, as if the network had."""

    def __init__(self, may_write: Callable[[], bool]) -> None:
        super().__init__()
        self._may_write = may_write

    async def _connect_to_server(self, s: Any) -> None:
        await super()._connect_to_server(s)
        # nats-py keeps its transport over reconnects.
        if not isinstance(self._transport, _Fence):
            self._transport = _Fence(self._transport, self._may_write)  # type: ignore[assignment]  # stands in for one


class _Fence:
    """The transport of a client; whatever is published leaves by `writelines`."""

    def __init__(self, transport: Any, may_write: Callable[[], bool]) -> None:
        self._transport = transport
        self._may_write = may_write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def __bool__(self) -> bool:
        return bool(self._transport)

    def writelines(self, payload: list[bytes]) -> None:
        if self._may_write():
            self._transport.writelines(payload)
            return
        log.warning("nats_write_refused", commands=len(payload), hint="a partition was lost while its events waited")
        self._transport.close()  # nobody may wait for an answer to what was dropped: the client connects anew

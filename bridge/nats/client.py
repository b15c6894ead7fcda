"""nats-py's client as the bridges need it: many messages in one piece, answers without a queue, a fence at the socket.

`publish` only puts a message into the client's buffer, and so does `publish_many` where others wait there; another task
writes it: after a freeze, after a reconnect, or while closing. By then the partition it came from may be another
bridge's: so it is asked, before bytes go to the socket, whether what was published may still be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import nats.errors
import structlog
from nats.aio.client import Client

from bridge.nats.answers import AnswersFirst, Hear

log = structlog.get_logger(__name__)


class Message(Protocol):
    """To be published with an id as its only header."""

    @property
    def subject(self) -> str: ...
    @property
    def id(self) -> str:
        """`Nats-Msg-Id`; without line breaks, which would begin a header of their own."""

    @property
    def data(self) -> bytes: ...


class FencedClient(Client):
    """Asks `may_write` before each write; on a no it drops its buffer and the connection, as if the network had."""

    def __init__(self, may_write: Callable[[], bool]) -> None:
        super().__init__()
        self._may_write = may_write
        self._ps = self._answers = AnswersFirst(self)

    def hear(self, inbox: str, hear: Hear) -> None:
        """Hand what comes to `<inbox>.<number>` to `hear`, past the subscription; what has headers still goes there."""
        self._answers.inboxes[inbox.encode()] = hear

    async def publish_many(self, inbox: str, tokens: Iterable[int], messages: Iterable[Message]) -> None:
        """Publish each; its answer comes to `<inbox>.<token>`. As `publish` of each, at a fraction of its cost.

        They go to the socket at once, where nothing waits in the buffer that they must not overtake; returns when the
        socket has room again. Raises nats.errors.Error, OSError.
        """
        if not self.is_connected:
            raise nats.errors.ConnectionReconnectingError
        pairs = zip(tokens, messages, strict=True)
        piece = b"".join([_encoded(inbox, token, message) for token, message in pairs])
        if self.pending_data_size or self._transport is None:
            await self._send_command(piece)
            await self._flush_pending()
            return
        try:
            self._transport.writelines([piece])
        except RuntimeError as error:  # of uvloop, where the socket has gone and nats-py has not seen it yet
            raise ConnectionResetError from error
        await self._transport.drain()  # type: ignore[no-untyped-call]

    async def _connect_to_server(self, s: Any) -> None:
        await super()._connect_to_server(s)
        # nats-py keeps its transport over reconnects.
        if not isinstance(self._transport, _Fence):
            self._transport = _Fence(self._transport, self._may_write)  # type: ignore[assignment]  # stands in for one


def _encoded(inbox: str, token: int, message: Message) -> bytes:
    headers = f"NATS/1.0\r\nNats-Msg-Id: {message.id.strip()}\r\n\r\n".encode()
    data, size = message.data, len(headers)
    command = f"HPUB {message.subject} {inbox}.{token} {size} {size + len(data)}\r\n"
    return b"".join((command.encode(), headers, data, b"\r\n"))


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

"""nats-py's client with additions of the bridges: batched publishing, fast acknowledgements, a fence before the socket.

`publish` only puts a message into the client's buffer, and so does `publish_many` while others wait there. Another task
writes the buffer: after a freeze, after a reconnect, or while closing. By then the partition of a message may belong to
another bridge, so the fence asks before each write whether the buffered messages may still be sent.

JetStream answers each published message with an acknowledgement of about eighty bytes. Through nats-py's parser,
headers, message, queue and task an acknowledgement costs several times as much as the publish, so `AnswerParser` takes
acknowledgements out of the received bytes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import nats.errors
import structlog
from nats.aio.client import Client
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

log = structlog.get_logger(__name__)

# Receives the number at the end of an answer's subject, and its body. An exception would end the connection.
AnswerHandler = Callable[[int, bytes], None]

_ANSWER_START = re.compile(rb"MSG (_INBOX\.[^.\s]+)\.")
# A message without headers and without a reply, whose body is one line of JSON.
_ANSWER = re.compile(rb"MSG (_INBOX\.[^.\s]+)\.(\d{1,18}) \d+ (\d{1,9})\r\n(\{[^\r\n]*\})\r\n")
_ANSWER_LINES = 2


class Message(Protocol):
    """A message to publish, with an id and the lines of its other headers."""

    @property
    def subject(self) -> str: ...
    @property
    def id(self) -> str:
        """`Nats-Msg-Id`; without line breaks, which would begin a header of their own."""

    @property
    def beside(self) -> str:
        """Lines of `header_lines`."""

    @property
    def data(self) -> bytes: ...


class AnswerParser(Parser):
    """Takes plain answers at the start of a read; nats-py's parser gets everything else."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.inboxes: dict[bytes, AnswerHandler] = {}

    async def parse(self, data: bytes = b"") -> None:
        self.buf.extend(data)
        if self.state == AWAITING_CONTROL_LINE:
            del self.buf[: self._take_answers()]
            if self._ends_inside_answer():
                return  # the next read brings the rest
        await super().parse()

    def _take_answers(self) -> int:
        """Hand over the answers at the start of the buffer; return where they end."""
        end = 0
        while (found := _ANSWER.match(self.buf, end)) is not None:
            inbox, number, size, body = found.groups()
            handler = self.inboxes.get(inbox)
            if handler is None or len(body) != int(size):
                break
            handler(int(number), body)
            end = found.end()
        return end

    def _ends_inside_answer(self) -> bool:
        """Return whether the buffer begins with an incomplete answer."""
        found = _ANSWER_START.match(self.buf)
        return found is not None and found[1] in self.inboxes and self.buf.count(b"\r\n") < _ANSWER_LINES


class FencedClient(Client):
    """Asks `may_write` before each write; on a refusal drops buffer and connection, as if the network had failed."""

    def __init__(self, may_write: Callable[[], bool]) -> None:
        super().__init__()
        self._may_write = may_write
        self._ps = self._answers = AnswerParser(self)

    def handle_answers(self, inbox: str, handler: AnswerHandler) -> None:
        """Give answers to `<inbox>.<number>` to `handler`; those with headers still go to the subscription."""
        self._answers.inboxes[inbox.encode()] = handler

    async def publish_many(self, inbox: str, tokens: Iterable[int], messages: Iterable[Message]) -> None:
        """Publish messages, each answered at `<inbox>.<token>`. Same bytes as `publish`, at a fraction of its cost.

        They go straight to the socket when the buffer holds nothing that they must not overtake. Returns when the
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
        except RuntimeError as error:  # from uvloop, when the socket is closed and nats-py does not know it yet
            raise ConnectionResetError from error
        await self._transport.drain()  # type: ignore[no-untyped-call]

    async def _connect_to_server(self, s: Any) -> None:
        await super()._connect_to_server(s)
        # nats-py keeps its transport over reconnects.
        if not isinstance(self._transport, _Fence):
            self._transport = _Fence(self._transport, self._may_write)  # type: ignore[assignment]  # stands in for one


def _encoded(inbox: str, token: int, message: Message) -> bytes:
    headers = f"NATS/1.0\r\nNats-Msg-Id: {message.id.strip()}\r\n{message.beside}\r\n".encode()
    data, size = message.data, len(headers)
    command = f"HPUB {message.subject} {inbox}.{token} {size} {size + len(data)}\r\n"
    return b"".join((command.encode(), headers, data, b"\r\n"))


class _Fence:
    """The transport of a client; every published byte leaves through `writelines`."""

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
        self._transport.close()  # no answer will come for dropped messages: the client connects anew

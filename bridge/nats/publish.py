"""Publishing to JetStream without a future, task or subscription per message: one inbox gets all acknowledgements."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.nats.client import FencedClient, Message
from bridge.nats.connection import NatsConnection
from ports.outbound import Published

MESSAGE_ID = "Nats-Msg-Id"
NO_RESPONDERS = "503"
# From this code on the error is JetStream's, not the message's.
SERVER_ERROR = 500
# A subject for publishing: tokens without white space or wildcards.
SUBJECT = re.compile(r"[^\s.*>\x00]+(\.[^\s.*>\x00]+)*")
# The server closes the connection on a protocol line above 4 KiB.
LONGEST_SUBJECT_BYTES = 1024
# JetStream's error number for a message above the stream's `max_msg_size`.
TOO_LARGE_FOR_STREAM = 10054
# Its numbers below 500 that are the stream's or the account's fault all the same: resources exceeded, stream not found,
# stream sealed, and the same message being stored at this moment. The message is sent again once they are mended.
OF_THE_STREAM = frozenset({10002, 10059, 10109, 10158})
_BREAKS_LINE = re.compile(r"[\r\n\x00]")
_HEADER_FRAME = len("NATS/1.0\r\n\r\n")
_HEADER_LINE = len(": \r\n")
# Header values of at most 2,048 characters fit into 16 KiB, with their names and in any encoding.
_SMALL_HEADERS, _ROOM_FOR_HEADERS = 2048, 16 * 1024


class Nack(NamedTuple):
    """A refusal of NATS, or no answer from it."""

    code: str
    """`subject_invalid`, `header_invalid`, `message_too_large`, `refused_by_nats`, `no_stream`, `stream_unavailable`"""
    message: str
    final: bool
    """True when sending the message again does not help."""


Answer = Published | Nack
# Receives the token of a published message, and the answer.
OnAnswer = Callable[[int, Answer], None]


class _Error(msgspec.Struct):
    code: int = 0
    description: str = ""
    err_code: int = 0


class _PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_decode = msgspec.json.Decoder(_PubAck).decode


class JetStreamPublisher:
    """Sends messages and gives each answer to the callback of its message, in the event loop."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._subscribed: FencedClient | None = None
        self._inbox = ""
        self._prefix = 0
        self._subscribing = asyncio.Lock()
        self._next = 0
        self._waiting: dict[int, OnAnswer] = {}

    @property
    def in_flight(self) -> int:
        """Messages whose answer is awaited."""
        return len(self._waiting)

    async def client(self) -> FencedClient:
        """The connected client, subscribed to the inbox; waits for the server."""
        client = await self._connection.connected()
        if self._subscribed is client:
            return client
        async with self._subscribing:
            if self._subscribed is not client:
                inbox = client.new_inbox()
                # A connection keeps the order, so the subscription exists before the first publish. nats-py renews it
                # after a reconnect. Acknowledgements are small, and bounded by the messages in flight.
                await client.subscribe(f"{inbox}.*", cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1)
                client.handle_answers(inbox, self._on_answer)
                self._inbox, self._prefix, self._subscribed = inbox, len(inbox) + 1, client
        return client

    def expect(self, on_answer: OnAnswer, count: int = 1) -> range:
        """Tokens for `count` messages; `on_answer` receives each answer, until its token is forgotten."""
        tokens = range(self._next, self._next + count)
        self._next += count
        self._waiting.update(dict.fromkeys(tokens, on_answer))
        return tokens

    def forget(self, tokens: Iterable[int]) -> None:
        """Ignore later answers to these tokens."""
        for token in tokens:
            self._waiting.pop(token, None)

    async def send(self, client: FencedClient, token: int, subject: str, data: bytes, headers: dict[str, str]) -> None:
        """Send one message. Raises nats-py's errors when the connection breaks."""
        await client.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)

    async def send_all(self, client: FencedClient, tokens: Iterable[int], messages: Iterable[Message]) -> None:
        """Send messages with their ids. Raises nats-py's errors when the connection breaks."""
        await client.publish_many(self._inbox, tokens, messages)

    async def _on_message(self, message: Msg) -> None:
        token = message.subject[self._prefix :]
        on_answer = self._waiting.pop(int(token), None) if token.isdecimal() else None
        if on_answer is not None:
            on_answer(int(token), read_answer(message.data, message.headers))

    def _on_answer(self, token: int, body: bytes) -> None:
        on_answer = self._waiting.pop(token, None)
        if on_answer is not None:
            on_answer(token, read_answer(body, None))


def read_answer(data: bytes, headers: Mapping[str, str] | None) -> Answer:
    """Decode JetStream's answer to a publish; accepts any bytes."""
    if headers and headers.get("Status") == NO_RESPONDERS:
        return Nack("no_stream", "no stream takes this subject", final=False)
    try:
        ack = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Nack("stream_unavailable", "the answer was no acknowledgement", final=False)
    if ack.error is None:
        return Published(ack.stream, ack.seq, ack.duplicate)
    if ack.error.err_code == TOO_LARGE_FOR_STREAM:
        return Nack("message_too_large", "the message is larger than the stream takes", final=True)
    text = f"{ack.error.description} ({ack.error.err_code})"
    if ack.error.code >= SERVER_ERROR or ack.error.err_code in OF_THE_STREAM:
        return Nack("stream_unavailable", text, final=False)
    return Nack("refused_by_nats", text, final=True)


@lru_cache(maxsize=1024)
def _is_subject(subject: str) -> bool:
    return len(subject.encode()) <= LONGEST_SUBJECT_BYTES and SUBJECT.fullmatch(subject) is not None


def surely_fits(client: Client, message: Message) -> bool:
    """Return whether a cheap check already shows that `refusal` would return None."""
    return (
        message.id.isprintable()
        and len(message.id) < _SMALL_HEADERS
        and len(message.data) + _ROOM_FOR_HEADERS <= client.max_payload
        and _is_subject(message.subject)
    )


def refusal(client: Client, subject: str, data: bytes, headers: Mapping[str, str]) -> Nack | None:
    """The refusal of a message on which the server would close the connection; None for a message to send."""
    if not _is_subject(subject):
        return Nack("subject_invalid", f"`{subject[:100]}` is not a subject for a message", final=True)
    values = "".join(headers.values())
    if _BREAKS_LINE.search(values):
        return Nack("header_invalid", "a line break in a header would begin another one", final=True)
    block = _HEADER_FRAME + sum(len(k.encode()) + len(v.encode()) + _HEADER_LINE for k, v in headers.items())
    size = len(data) + block
    if size > client.max_payload:
        return Nack(
            "message_too_large",
            f"the message has {size} bytes, the server takes at most {client.max_payload}",
            final=True,
        )
    return None

"""Every private name of nats-py that `bridge/nats/client.py` uses: these tests fail when a new release moves one."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from unittest.mock import Mock

import nats.errors
import pytest
from nats.aio.client import Client
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from bridge.nats.client import AnswerParser, FencedClient
from bridge.nats.headers import header_lines, read_lines
from bridge.nats.window import Outgoing
from ports.log import Record
from ports.provenance import NOWHERE, Provenance


def outgoing(subject: str, message_id: str, data: bytes, provenance: Provenance = NOWHERE) -> Outgoing:
    return Outgoing(message_id, subject, data, Record("t.events", 0, 0, 0, None, data), header_lines(provenance))


MESSAGES = (
    outgoing("ceremony.started", "c:s/0/0@1", b'{"a": 1}', Provenance("c:s", "approval", "00-1-2-00")),
    outgoing("ceremony.é", " kürzel/1 ", b""),
)


def connected(make: Callable[[], Client]) -> Client:
    """A client in the connected state that only buffers."""
    client = make()
    client._status = Client.CONNECTED
    return client


@pytest.mark.parametrize("name", ["_connect_to_server", "_send_command", "_flush_pending"])
def test_overridden_and_called_methods_are_coroutines(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(Client, name))


@pytest.mark.parametrize("attribute", ["_transport", "_flush_queue", "_ps", "_pending"])
def test_used_attributes_exist(attribute: str) -> None:
    assert re.search(rf"self\.{attribute}\b", inspect.getsource(Client)), attribute


def test_received_bytes_go_through_the_answer_parser() -> None:
    assert "self._ps.parse(" in inspect.getsource(Client._read_loop)
    assert isinstance(FencedClient(lambda: True)._ps, AnswerParser)
    assert Parser().state == AWAITING_CONTROL_LINE


def test_the_flusher_writes_published_messages_through_the_fence() -> None:
    assert "self._transport.writelines(self._pending" in inspect.getsource(Client._flusher)


class Wire:
    """A transport that records the written bytes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.drained = 0

    def writelines(self, payload: list[bytes]) -> None:
        self.written += payload

    async def drain(self) -> None:
        self.drained += 1


async def test_publish_many_sends_the_bytes_that_nats_py_would_send() -> None:
    """Ids with spaces around them or letters outside ASCII, and an empty body, are written in one piece."""
    theirs, ours = connected(Client), connected(lambda: FencedClient(lambda: True))
    wire = ours._transport = Wire()  # type: ignore[assignment]  # as much as is used of one
    assert isinstance(ours, FencedClient)
    for token, message in enumerate(MESSAGES):
        reply, headers = f"_INBOX.x.{token}", {"Nats-Msg-Id": message.id, **read_lines(message.beside)}
        await theirs.publish(message.subject, message.data, reply=reply, headers=headers)
    await ours.publish_many("_INBOX.x", range(2), MESSAGES)
    assert wire.written == [b"".join(theirs._pending)]
    assert wire.drained == 1 and ours.pending_data_size == 0


async def test_publish_many_does_not_overtake_the_buffer() -> None:
    """The subscription to the answers may still be in the buffer at the first publish."""
    client = connected(lambda: FencedClient(lambda: True))
    wire = client._transport = Wire()  # type: ignore[assignment]
    assert isinstance(client, FencedClient)
    client._flush_queue = asyncio.Queue()
    client._flusher_task = asyncio.create_task(asyncio.sleep(60))
    await client._send_command(b"SUB _INBOX.x.*  1\r\n")
    await client.publish_many("_INBOX.x", range(2), MESSAGES)
    client._flusher_task.cancel()
    assert wire.written == [] and len(client._pending) == 2
    assert client._flush_queue.qsize() == 1


async def test_a_closed_socket_raises_connection_reset() -> None:
    """nats-py notices it later."""
    client = connected(lambda: FencedClient(lambda: True))
    wire = client._transport = Wire()  # type: ignore[assignment]
    wire.writelines = Mock(side_effect=RuntimeError("the handler is closed"))  # type: ignore[method-assign]
    assert isinstance(client, FencedClient)
    with pytest.raises(ConnectionResetError):
        await client.publish_many("_INBOX.x", range(2), MESSAGES)


async def test_a_disconnected_client_refuses_and_buffers_nothing() -> None:
    client = FencedClient(lambda: True)
    with pytest.raises(nats.errors.ConnectionReconnectingError):
        await client.publish_many("_INBOX.x", [1], [outgoing("ceremony.x", "i", b"")])
    assert client.pending_data_size == 0

"""Every private name of nats-py that `bridge/nats_client.py` touches: this fails when a new release moves one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import nats.errors
import pytest
from nats.aio.client import Client
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from bridge.nats_answers import AnswersFirst
from bridge.nats_client import FencedClient
from bridge.nats_window import Outgoing
from streams.transport.contract import Record


def connected(make: Callable[[], Client]) -> Client:
    """One that believes to be connected, and keeps what it is given."""
    client = make()
    client._status = Client.CONNECTED
    return client


@pytest.mark.parametrize("name", ["_connect_to_server", "_send_command", "_flush_pending"])
def test_methods_overridden_or_called_are_coroutines(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(Client, name))


@pytest.mark.parametrize("attribute", ["_transport", "_flush_queue", "_ps", "_pending"])
def test_attributes_read_or_set_exist(attribute: str) -> None:
    assert re.search(rf"self\.{attribute}\b", inspect.getsource(Client)), attribute


def test_what_is_read_goes_through_our_parser() -> None:
    assert "self._ps.parse(" in inspect.getsource(Client._read_loop)
    assert isinstance(FencedClient(lambda: True)._ps, AnswersFirst)
    assert Parser().state == AWAITING_CONTROL_LINE


def test_what_is_published_is_written_by_the_flusher_through_the_fence() -> None:
    assert "self._transport.writelines(self._pending" in inspect.getsource(Client._flusher)


async def test_many_messages_are_the_bytes_that_nats_py_would_send() -> None:
    """Also an id with spaces around it or letters outside of ASCII, and an empty body."""
    messages = [
        outgoing("ceremony.started", "c:s/0/0@1", b'{"a": 1}'),
        outgoing("ceremony.é", " kürzel/1 ", b""),
    ]
    theirs, ours = connected(Client), connected(lambda: FencedClient(lambda: True))
    assert isinstance(ours, FencedClient)
    for token, message in enumerate(messages):
        reply, headers = f"_INBOX.x.{token}", {"Nats-Msg-Id": message.id}
        await theirs.publish(message.subject, message.data, reply=reply, headers=headers)
    await ours.publish_many("_INBOX.x", range(2), messages)
    assert len(ours._pending) == 1
    assert b"".join(ours._pending) == b"".join(theirs._pending)
    assert ours.pending_data_size == theirs.pending_data_size


async def test_without_a_connection_nothing_is_kept() -> None:
    client = FencedClient(lambda: True)
    with pytest.raises(nats.errors.ConnectionReconnectingError):
        await client.publish_many("_INBOX.x", [1], [outgoing("ceremony.x", "i", b"")])
    assert client.pending_data_size == 0


def outgoing(subject: str, message_id: str, data: bytes) -> Outgoing:
    return Outgoing(message_id, subject, data, Record("t.events", 0, 0, 0, None, data))

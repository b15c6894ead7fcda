"""The Outbound port on a real nats-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from bridge.nats.connection import NatsConnection
from bridge.nats.outbound import NatsOutbound
from bridge.nats.publish import MESSAGE_ID, Nack, read_answer, refusal, surely_fits
from bridge.nats.window import Outgoing
from ports.errors import Unreachable
from ports.log import Record
from ports.outbound import Published, PublishRefused
from streams.envelope import envelope
from tests.bridge.nats.world import CLOCK, client, connection, eventually, stored
from tests.services import NatsServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


@pytest.fixture
async def link(server: NatsServer) -> AsyncIterator[NatsConnection]:
    async with connection(server.url) as opened:
        await opened.connected()
        yield opened


async def publish(
    outbound: NatsOutbound, subject: str = "ceremony.story.ready", key: str = "publish/c:s/p/1", text: str = "é"
) -> Published:
    return await outbound.publish(
        subject, "story.ready", {"a": text}, key=key, correlation_id="corr", causation_id="why"
    )


def text_of(size: int) -> str:
    """Return the text with which an envelope of `publish` has this number of bytes."""
    return "x" * (size - len(envelope("story.ready", {"a": ""}, "publish/c:s/p/1", "corr", 0, "why")))


async def test_a_publish_is_acknowledged_and_its_repetition_is_a_duplicate(
    server: NatsServer, link: NatsConnection
) -> None:
    """Envelope, message id and acknowledgement follow the specification; a missing stream is made."""
    # specification 9.6, 16.2
    outbound = NatsOutbound(link, CLOCK)
    with pytest.raises(Unreachable):  # the publish made the missing stream
        await publish(outbound)
    first = await publish(outbound)
    assert first == Published("CEREMONY", 1, duplicate=False)
    assert await publish(outbound) == Published("CEREMONY", 1, duplicate=True)
    (message,) = await stored(server.url)
    sent = json.loads(message.data)
    assert message.headers == {"Nats-Msg-Id": "publish/c:s/p/1"}
    assert sent.pop("timestamp").endswith("Z")
    assert sent == {
        "event_type": "story.ready",
        "payload": {"a": "é"},
        "idempotency_key": "publish/c:s/p/1",
        "correlation_id": "corr",
        "producer": "ceremony-engine",
        "metadata": {},
        "causation_id": "why",
    }


async def test_a_subject_without_a_stream_is_refused(link: NatsConnection) -> None:
    """Repeating does not help, and the message holds the remedy."""
    # specification 9.9
    with pytest.raises(PublishRefused, match="no stream takes the subject elsewhere") as refused:
        await publish(NatsOutbound(link, CLOCK), subject="elsewhere.x")
    assert refused.value.code == "no_stream"


@pytest.mark.parametrize("subject", ["ceremony.*", "ceremony.>", "a b", "a..b", "", "a\r\nPUB x 0"])
async def test_an_invalid_subject_is_refused_before_sending(link: NatsConnection, subject: str) -> None:
    with pytest.raises(PublishRefused) as refused:
        await publish(NatsOutbound(link, CLOCK), subject=subject)
    assert refused.value.code == "subject_invalid"


async def test_a_message_above_the_servers_limit_is_refused_and_the_connection_stays(link: NatsConnection) -> None:
    """Header lines count: the server would close the connection on one more byte."""
    # specification 9.9
    outbound = NatsOutbound(link, CLOCK)
    client_ = await link.connected()
    with pytest.raises(Unreachable):
        await publish(outbound)
    frame = len("NATS/1.0\r\n\r\n") + len("Nats-Msg-Id: publish/c:s/p/1\r\n")
    for size, fits in ((client_.max_payload - frame, True), (client_.max_payload - frame + 1, False)):
        if fits:
            assert (await publish(outbound, text=text_of(size))).sequence == 1
        else:
            with pytest.raises(PublishRefused) as refused:
                await publish(outbound, text=text_of(size))
            assert refused.value.code == "message_too_large"
    assert link.generation == 1


async def test_a_stream_that_takes_only_small_messages_refuses_a_large_one(
    server: NatsServer, link: NatsConnection
) -> None:
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="SMALL", subjects=["small.>"], max_msg_size=100))
    with pytest.raises(PublishRefused) as refused:
        await publish(NatsOutbound(link, CLOCK), "small.x")
    assert refused.value.code == "message_too_large"


async def test_a_missing_server_is_unreachable_at_once_and_works_when_it_is_back(
    server: NatsServer, link: NatsConnection
) -> None:
    """A publish step repeats it later; no message waits here."""
    # specification 9.9
    outbound = NatsOutbound(link, CLOCK)
    with pytest.raises(Unreachable):
        await publish(outbound)
    server.kill()
    await eventually(lambda: not link.is_connected, "the loss is seen")
    with pytest.raises(Unreachable, match="nats: not connected"):
        await publish(outbound)
    await asyncio.to_thread(server.start)
    await eventually(lambda: link.is_connected, "the connection is back")
    assert (await publish(outbound)).stream == "CEREMONY"


async def test_a_frozen_server_is_unreachable_after_the_timeout(server: NatsServer, link: NatsConnection) -> None:
    """The call has a deadline, and no acknowledgement arrives."""
    outbound = NatsOutbound(link, CLOCK, timeout_seconds=0.3)
    with pytest.raises(Unreachable):
        await publish(outbound)
    server.pause()
    try:
        with pytest.raises(Unreachable, match=r"no acknowledgement within 0\.3 s"):
            await publish(outbound)
    finally:
        server.resume()


JUNK = (b"+OK", b'{"stream":"\xff","seq":1}', b'{"x":' + b"[" * 100_000, b'{"seq":"x"}')


@pytest.mark.parametrize(
    ("data", "headers", "answer"),
    [
        (b'{"stream":"S","seq":3}', None, Published("S", 3, duplicate=False)),
        (b'{"stream":"S","seq":3,"duplicate":true,"domain":"d"}', None, Published("S", 3, duplicate=True)),
        (b"", {"Status": "503"}, Nack("no_stream", "no stream takes this subject", final=False)),
        *((junk, None, Nack("stream_unavailable", "the answer was no acknowledgement", final=False)) for junk in JUNK),
        (
            b'{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}',
            None,
            Nack("stream_unavailable", "maximum messages exceeded (10077)", final=False),
        ),
        (
            b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence"}}',
            None,
            Nack("refused_by_nats", "wrong last sequence (10071)", final=True),
        ),
    ],
)
def test_answers_of_jetstream_are_decoded(
    data: bytes, headers: dict[str, str] | None, answer: Published | Nack
) -> None:
    assert read_answer(data, headers) == answer


@pytest.mark.parametrize(
    ("subject", "key", "size", "code"),
    [
        ("ceremony.x", "c:s/1/0@1", 10, None),
        ("ceremony.x", "é" * 5000, 10, None),
        ("ceremony.x", "a\u2028b", 10, None),
        ("ceremony.x", "a\nb", 10, "header_invalid"),
        ("ceremony.x", "a\rb", 10, "header_invalid"),
        ("ceremony.x", "a\0b", 10, "header_invalid"),
        ("ceremony.*", "k", 10, "subject_invalid"),
        ("ceremony.x", "k", 1_048_576, "message_too_large"),
        ("ceremony.x", "k" * 2047, 1_048_576 - 2048, "message_too_large"),
        ("ceremony.x", "k", 1_048_576 - 100, None),
    ],
)
async def test_a_message_that_passes_the_cheap_check_passes_the_full_check(
    link: NatsConnection, subject: str, key: str, size: int, code: str | None
) -> None:
    data = b"x" * size
    client = await link.connected()
    refused = refusal(client, subject, data, {MESSAGE_ID: key})
    assert (refused.code if refused else None) == code
    message = Outgoing(key, subject, data, Record("t.events", 0, 0, 0, None, data))
    assert not surely_fits(client, message) or not refused
    assert surely_fits(client, message) == (code is None and len(key) < 2000 and key.isprintable() and size < 1_000_000)

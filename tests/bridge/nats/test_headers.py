"""Headers beside the id of a message: they name its ceremony, definition and trace."""

# ruff: noqa: F811 - fixtures
from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from nats.js.api import StreamConfig

from bridge.nats.connection import NatsConnection
from bridge.nats.headers import header_lines, read_lines
from bridge.nats.outbound import NatsOutbound
from ports.provenance import DEFINITION, TRACEPARENT, Provenance
from streams import topics
from streams.dead_letters import dead_letter_provenance, decode_dead_letter
from streams.envelope import event_record
from streams.transport.sqlite.log import SqliteLog
from tests.bridge.nats.test_events import arrives, bridge, log, server  # noqa: F401 - fixtures
from tests.bridge.nats.world import CLOCK, PREFIX, append_events, client, connection, event, eventually, stored
from tests.services import NatsServer

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BESIDE = ((DEFINITION, b"planning"), (TRACEPARENT, TRACE.encode()))


@pytest.fixture
async def link(server: NatsServer) -> AsyncIterator[NatsConnection]:
    async with connection(server.url) as opened:
        yield opened


def test_lines_are_read_back_as_they_were() -> None:
    lines = header_lines(Provenance("c-1:s-1", "planning", TRACE))
    named = {"Ceremony-Instance": "c-1:s-1", "Ceremony-Definition": "planning", "traceparent": TRACE}
    assert read_lines(lines) == named
    assert read_lines(header_lines(Provenance())) == {}


@pytest.mark.parametrize("value", ["", "a b", "a\r\nNats-Msg-Id: other", "a\n", "\x00", "é", "x" * 513])
def test_a_value_that_could_break_the_headers_is_left_out(value: str) -> None:
    assert read_lines(header_lines(Provenance(value, "planning", value))) == {"Ceremony-Definition": "planning"}


async def test_a_consumer_sorts_events_without_decoding_them(
    log: SqliteLog, link: NatsConnection, server: NatsServer
) -> None:
    """An event of release 0.1.0, whose record names neither definition nor trace, is named by its key alone."""
    # specification 16.12
    key, value, headers = event_record(event(1, 0), 1, 0, 1, BESIDE)
    await log.append(f"{PREFIX}.{topics.EVENTS}", 0, key, value, headers)
    await append_events(log, [event(2, 1)])
    async with bridge(log, link):
        await arrives(server, 2)
    found = {
        json.loads(message.data)["correlation_id"]: dict(message.headers or {}) for message in await stored(server.url)
    }
    assert found["corr-1"] == {
        "Nats-Msg-Id": "c-1:s-1/0/0@1",
        "Ceremony-Instance": "c-1:s-1",
        "Ceremony-Definition": "planning",
        "traceparent": TRACE,
    }
    assert found["corr-2"] == {"Nats-Msg-Id": "c-2:s-1/1/0@1", "Ceremony-Instance": "c-2:s-1"}


async def test_a_dead_letter_of_a_ceremony_names_it(log: SqliteLog, link: NatsConnection, server: NatsServer) -> None:
    # specification 16.12
    key, value, headers = event_record(event(1, 0, size=2_000_000), 1, 0, 1, BESIDE)
    await log.append(f"{PREFIX}.{topics.EVENTS}", 0, key, value, headers)
    async with bridge(log, link):
        await arrives(server, 1)
    (announced,) = await stored(server.url)
    assert announced.headers == {
        "Nats-Msg-Id": f"deadletter/{PREFIX}.{topics.EVENTS}/0/0",
        "Ceremony-Instance": "c-1:s-1",
        "Ceremony-Definition": "planning",
        "traceparent": TRACE,
    }


@pytest.mark.parametrize("key", [None, b"", b"5f3a90", b"a:b:c", b"\xff:\xff"])
def test_a_dead_letter_of_no_ceremony_names_none(key: bytes | None) -> None:
    """Definitions are keyed by their hash, answers of agents by nothing."""
    assert dead_letter_provenance(decode_dead_letter(key, b"", BESIDE)) == Provenance()


async def test_the_message_of_a_publish_step_names_its_ceremony(link: NatsConnection, server: NatsServer) -> None:
    # specification 16.12
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="STORIES", subjects=["story.>"]))
    provenance = Provenance("c-1:s-1", "planning", TRACE)
    await NatsOutbound(link, CLOCK).publish(
        "story.ready", "ready", {}, key="k", correlation_id="c", provenance=provenance
    )
    (message,) = await stored(server.url, "STORIES")
    assert message.headers == {"Nats-Msg-Id": "k", **read_lines(header_lines(provenance))}


async def test_the_stream_is_made_with_the_number_of_replicas_that_is_set(server: NatsServer, log: SqliteLog) -> None:
    """One server cannot hold three, and says so; the events wait."""
    # specification 16.13
    async with connection(server.url, stream_replicas=3) as link, bridge(log, link) as started:
        await eventually(lambda: "stream CEREMONY cannot be made: replicas > 1" in started.state, "the reason is named")


async def test_a_stream_with_other_replicas_is_kept_and_named(server: NatsServer, log: SqliteLog) -> None:
    # specification 16.13
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"]))
    async with connection(server.url, stream_replicas=3) as link, bridge(log, link) as started:
        await eventually(lambda: started.state == "ok", "the bridge is ready")
        await eventually(lambda: bool(started.warning), "the warning is there")
        assert started.warning == (
            "stream_replicas_differ: stream CEREMONY has 1 replicas, CEREMONY_STREAM_REPLICAS is 3;"
            " nats stream edit CEREMONY --replicas=3"
        )
    async with connection(server.url) as link, bridge(log, link) as started:
        await eventually(lambda: started.state == "ok", "the bridge is ready")
        assert not started.warning

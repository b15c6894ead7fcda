"""The events bridge on a real nats-server and the embedded log."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from nats.js.api import StreamConfig
from prometheus_client import REGISTRY

from bridge.nats.connection import NatsConnection
from bridge.nats.events import EventsBridge, outgoing
from ports.log import Record
from steps.secrets.redactor import TextRedactor
from streams import topics
from streams.dead_letters import dead_letter_record, decode_dead_letter
from streams.transport.sqlite.log import SqliteLog
from tests.bridge.nats.world import (
    CLOCK,
    PARTITIONS,
    PREFIX,
    append_events,
    client,
    connection,
    embedded_log,
    event,
    eventually,
    records,
    stored,
)
from tests.e2e.world import until
from tests.services import NatsServer, running
from tests.steps.secrets.planted import planted


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    async with embedded_log(tmp_path) as opened:
        yield opened


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Each of these tests has its own server: they need the stream CEREMONY, and stop the server."""
    server = NatsServer(tmp_path / "nats")
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def bridge(log: SqliteLog, link: NatsConnection, **options: Any) -> AsyncIterator[EventsBridge]:
    started = EventsBridge(log, link, CLOCK, prefix=PREFIX, redactor=TextRedactor(), **options)
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


async def committed(log: SqliteLog) -> bool:
    """Return whether the bridge's group has committed every event."""
    group, topic = f"{PREFIX}.nats-out.{topics.EVENTS}", f"{PREFIX}.{topics.EVENTS}"
    ends = await log.ends(topic)
    return all((log.register(group, topic, n) or 0) >= end for n, (_, end) in enumerate(ends))


async def settled(log: SqliteLog) -> None:
    for _ in range(400):
        if await committed(log):
            return
        await asyncio.sleep(0.05)
    pytest.fail("the bridge has not dealt with every event within 20 s")


def forget_commits(log: SqliteLog) -> None:
    """Reset the commits, as if the last bridge had been killed before its first commit."""
    for partition in range(PARTITIONS):
        log.put_offset(f"{PREFIX}.nats-out.{topics.EVENTS}", f"{PREFIX}.{topics.EVENTS}", partition, 0, "")


async def arrives(server: NatsServer, count: int, seconds: float = 30.0) -> None:
    async with client(server.url) as link:
        for _ in range(int(seconds / 0.05)):
            with contextlib.suppress(Exception):
                if (await link.jetstream().stream_info("CEREMONY")).state.messages >= count:
                    return
            await asyncio.sleep(0.05)
    pytest.fail(f"CEREMONY did not reach {count} messages within {seconds} s")


async def test_events_arrive_once_and_in_order_per_ceremony(log: SqliteLog, server: NatsServer) -> None:
    """The log's value is sent unchanged with the effect id as `Nats-Msg-Id`; the stream has the specified settings."""
    # specification 16.2, 16.5, 16.7
    events = [event(ceremony, number) for number in range(12) for ceremony in range(40)]
    await append_events(log, events)
    async with connection(server.url) as link, bridge(log, link, window=64, batch=200) as started:
        await arrives(server, len(events))
        await eventually(lambda: started.state == "ok", "the bridge is ready")
        async with client(server.url) as other:
            config = (await other.jetstream().stream_info("CEREMONY")).config
    assert (config.subjects, config.storage, config.duplicate_window, config.max_age) == (
        ["ceremony.>"],
        "file",
        600.0,
        30 * 86400.0,
    )
    numbers = defaultdict(list)
    for message in await stored(server.url):
        envelope = json.loads(message.data)
        assert message.headers == {
            "Nats-Msg-Id": envelope["idempotency_key"],
            "Ceremony-Instance": envelope["payload"]["instance_id"],
        }
        assert message.subject == envelope["event_type"]
        numbers[envelope["correlation_id"]].append(envelope["payload"]["number"])
    assert numbers == {f"corr-{ceremony}": list(range(12)) for ceremony in range(40)}


async def test_the_metric_counts_messages_that_are_not_acknowledged_yet(log: SqliteLog, server: NatsServer) -> None:
    def in_flight() -> float:
        return REGISTRY.get_sample_value("ceremony_nats_in_flight") or 0.0

    async with connection(server.url) as link, bridge(log, link):
        await append_events(log, [event(1, 1)])
        await settled(log)
        server.pause()
        await append_events(log, [event(2, 2), event(3, 2)])
        await eventually(lambda: in_flight() == 2, "two messages wait for the frozen server")
        server.resume()
        await settled(log)
        await eventually(lambda: in_flight() == 0, "all are acknowledged")


async def test_events_sent_twice_are_stored_once(log: SqliteLog, server: NatsServer) -> None:
    """A bridge that lost its commits publishes all events again, as after kill -9."""
    # specification 16.7
    events = [event(ceremony, number) for number in range(5) for ceremony in range(20)]
    await append_events(log, events)
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, len(events))
    async with connection(server.url) as link:
        forget_commits(log)
        async with bridge(log, link):
            await settled(log)
    assert len(await stored(server.url)) == len(events)


async def test_effects_written_twice_to_the_log_are_sent_once(log: SqliteLog, server: NatsServer) -> None:
    """The engine crashed and the bridge restarted; the committed note holds the effects that are sent."""
    # specification 16.7
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"], duplicate_window=0.1))
    events = [event(ceremony, number) for number in range(5) for ceremony in range(20)]
    await append_events(log, events[:60])
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, 60)
        await settled(log)
    await asyncio.sleep(0.3)
    await append_events(log, events)
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, len(events))
        await settled(log)
    ids = [message.headers["Nats-Msg-Id"] for message in await stored(server.url) if message.headers]
    assert sorted(ids) == sorted(one.id for one in events)


async def test_no_event_is_lost_when_the_server_is_killed_under_load(log: SqliteLog, server: NatsServer) -> None:
    """Events arrive while the server is down; the bridge waits, catches up, and each id is stored once."""
    # specification 16.8
    first = [event(ceremony, number) for number in range(10) for ceremony in range(60)]
    second = [event(ceremony, number) for number in range(10, 20) for ceremony in range(60)]
    async with connection(server.url) as link, bridge(log, link, window=32, batch=100) as started:
        appending = asyncio.create_task(append_events(log, first))
        await arrives(server, 50)
        server.kill()
        await appending
        await append_events(log, second)
        assert started.state != "ok"
        await asyncio.to_thread(server.start)
        await arrives(server, len(first) + len(second))
        await eventually(lambda: started.state == "ok", "the bridge is ready again")
    numbers = defaultdict(list)
    for message in await stored(server.url):
        envelope = json.loads(message.data)
        numbers[envelope["correlation_id"]].append(envelope["payload"]["number"])
    assert numbers == {f"corr-{ceremony}": list(range(20)) for ceremony in range(60)}


async def test_without_a_server_the_bridge_waits_and_stops_without_committing(log: SqliteLog, tmp_path: Path) -> None:
    """Stopping takes no longer than its limit, and the next run publishes the events."""
    server = NatsServer(tmp_path / "nats")
    await append_events(log, [event(1, number) for number in range(3)])
    async with connection(server.url) as link:
        async with bridge(log, link) as started:
            await asyncio.sleep(0.3)
            assert started.state.startswith("unreachable")
            stopping = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - stopping < 10
    assert not await committed(log)
    with running(server):
        async with connection(server.url) as link, bridge(log, link):
            await arrives(server, 3)
        assert await committed(log)


async def test_a_dead_letter_is_not_timed_as_an_event(log: SqliteLog, server: NatsServer) -> None:
    """Its value is the message that nobody could read, which may have a timestamp of its own."""
    letter = dead_letter_record(
        "t.commands", 0, 0, "unreadable", "no", key=b"k", value=b'{"timestamp":"2020-01-01T00:00:00Z"}'
    )
    before = REGISTRY.get_sample_value("ceremony_hop_seconds_count", {"hop": "fold"})
    async with connection(server.url) as link, bridge(log, link):
        await log.append(f"{PREFIX}.{topics.DEADLETTERS}", 0, *letter)
        await arrives(server, 1)
    assert REGISTRY.get_sample_value("ceremony_hop_seconds_count", {"hop": "fold"}) == before


async def test_an_event_too_large_for_nats_becomes_an_announced_dead_letter(log: SqliteLog, server: NatsServer) -> None:
    """The other events of its ceremony are published; the dead letter refers to the record in the log."""
    await append_events(log, [event(1, 0), event(1, 1, size=2_000_000), event(1, 2)])
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, 3)
    subjects = [(m.subject, json.loads(m.data)["payload"].get("number")) for m in await stored(server.url)]
    assert sorted(subjects, key=str) == [
        ("ceremony.deadletter", None),
        ("ceremony.transition.applied", 0),
        ("ceremony.transition.applied", 2),
    ]
    (record,) = await records(log, topics.DEADLETTERS)
    letter = decode_dead_letter(record.key, record.value, record.headers)
    assert (letter.topic, letter.offset, letter.code, letter.value) == ("t.events", 1, "message_too_large", None)
    assert letter.size > 2_000_000
    announced = next(m for m in await stored(server.url) if m.subject == "ceremony.deadletter")
    assert announced.headers == {"Nats-Msg-Id": f"deadletter/{letter.origin}", "Ceremony-Instance": "c-1:s-1"}


async def test_a_record_that_is_no_event_becomes_a_dead_letter(log: SqliteLog, server: NatsServer) -> None:
    """A malformed record in the topic stops no other record."""
    await log.append("t.events", 0, b"c-9:s-1", b"junk")
    await append_events(log, [event(9, 0)])
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, 2)
    (record,) = await records(log, topics.DEADLETTERS)
    assert decode_dead_letter(record.key, record.value, record.headers).code == "event_undecodable"


async def test_a_stream_without_the_subjects_is_reported_and_not_changed(log: SqliteLog, server: NatsServer) -> None:
    """It belongs to another service; once it takes the subjects, the bridge continues without a restart."""
    # specification 16.5
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.started"]))
        await append_events(log, [event(1, 0)])
        async with connection(server.url) as link, bridge(log, link) as started:
            await eventually(lambda: "takes ceremony.started" in started.state, "the state names the subjects")
            await other.jetstream().update_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"]))
            await arrives(server, 1)
            await eventually(lambda: started.state == "ok", "the bridge is ready")


async def test_stored_ids_are_read_back_after_the_duplicate_window(log: SqliteLog, server: NatsServer) -> None:
    """A worker that starts after a long outage does not send its predecessor's last batch again."""
    # specification 16.7
    events = [event(ceremony, number) for number in range(5) for ceremony in range(20)]
    await append_events(log, events)
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"], duplicate_window=0.1))
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, len(events))
    await asyncio.sleep(0.3)
    late = [event(ceremony, 5) for ceremony in range(20)]
    await append_events(log, late)
    async with connection(server.url) as link:
        forget_commits(log)
        async with bridge(log, link, batch=30):
            await settled(log)
    ids = [message.headers["Nats-Msg-Id"] for message in await stored(server.url) if message.headers]
    assert sorted(ids) == sorted(one.id for one in events + late)


async def test_a_message_stored_before_a_long_outage_is_not_sent_again(log: SqliteLog, server: NatsServer) -> None:
    """Its acknowledgement was lost, and the restarted server has forgotten its id."""
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"], duplicate_window=0.1))
    async with connection(server.url) as link, bridge(log, link) as started:
        await append_events(log, [event(1, 0)])
        await arrives(server, 1)
        server.pause()
        await append_events(log, [event(1, number) for number in range(1, 4)])
        await eventually(lambda: not link.is_connected, "the frozen server is given up")
        server.resume()
        await arrives(server, 4)
        await eventually(lambda: started.state == "ok", "the bridge is ready again")
    numbers = [json.loads(message.data)["payload"]["number"] for message in await stored(server.url)]
    assert numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_event_written_twice_is_not_sent_again_after_the_duplicate_window(
    log: SqliteLog, server: NatsServer, *, restarted: bool
) -> None:
    """A worker that folds again after a long outage writes the same effects, which then look new."""
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"], duplicate_window=0.1))
    again = [event(1, 0), event(1, 1), event(1, 2)]
    async with connection(server.url) as link, bridge(log, link):
        await append_events(log, again[:2])
        await arrives(server, 2)
        if not restarted:
            await asyncio.sleep(0.3)
            await append_events(log, again)
            await arrives(server, 3)
    if restarted:
        await asyncio.sleep(0.3)
        await append_events(log, again)
        async with connection(server.url) as link, bridge(log, link):
            await arrives(server, 3)
    numbers = [json.loads(message.data)["payload"]["number"] for message in await stored(server.url)]
    assert numbers == [0, 1, 2]


async def test_a_stream_that_is_deleted_is_made_again(log: SqliteLog, server: NatsServer) -> None:
    """After an operator's mistake the events flow again."""
    # specification 16.5
    async with connection(server.url) as link, bridge(log, link):
        await append_events(log, [event(1, 0)])
        await arrives(server, 1)
        async with client(server.url) as other:
            await other.jetstream().delete_stream("CEREMONY")
        await append_events(log, [event(1, 1)])
        await arrives(server, 1)
    assert [json.loads(m.data)["payload"]["number"] for m in await stored(server.url)] == [1]


@pytest.mark.parametrize("subject", [b"$JS.API.STREAM.DELETE.CEREMONY", b"elsewhere.x", b"ceremony"])
def test_a_record_with_another_subject_is_no_event(subject: bytes) -> None:
    """If no stream takes its subject, the bridge would wait for it and never publish the events behind it."""
    headers = {topics.SUBJECT: subject, topics.EFFECT_ID: b"i"}
    assert outgoing(Record("t.events", 0, 0, 0, b"k", b"{}"), headers) is None


async def test_an_id_that_would_inject_headers_becomes_a_dead_letter(log: SqliteLog, server: NatsServer) -> None:
    """The event behind it is published."""
    headers = [(topics.SUBJECT, b"ceremony.x"), (topics.EFFECT_ID, b"i\r\nNats-Rollup: all")]
    await log.append("t.events", 0, b"c-9:s-1", b"{}", headers)
    await append_events(log, [event(9, 0)])
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, 2)
    (record,) = await records(log, topics.DEADLETTERS)
    assert decode_dead_letter(record.key, record.value, record.headers).code == "header_invalid"


async def test_a_subject_too_long_for_the_server_becomes_a_dead_letter(log: SqliteLog, server: NatsServer) -> None:
    headers = [(topics.SUBJECT, b"ceremony." + b"x" * 5000), (topics.EFFECT_ID, b"i")]
    await log.append("t.events", 0, b"c-9:s-1", b"{}", headers)
    await append_events(log, [event(9, 0)])
    async with connection(server.url) as link, bridge(log, link):
        await arrives(server, 2)
    (record,) = await records(log, topics.DEADLETTERS)
    assert decode_dead_letter(record.key, record.value, record.headers).code == "subject_invalid"


async def test_a_new_client_connects_after_the_server_closed_with_an_error(log: SqliteLog, server: NatsServer) -> None:
    """nats-py closes for good then; the bridge continues with a new client."""
    async with connection(server.url) as link, bridge(log, link):
        await append_events(log, [event(1, 0)])
        await arrives(server, 1)
        await (await link.connected()).publish("x" * 5000, b"")
        await eventually(lambda: link.generation > 1, "the connection is made anew")
        await append_events(log, [event(2, 0)])
        await arrives(server, 2)
        assert link.state == "ok"


def test_a_record_with_undecodable_headers_is_no_event() -> None:
    record = Record("t.events", 0, 0, 0, b"k", b"{}")
    for subject, effect_id in ((b"ceremony.\xff", b"i"), (b"ceremony.x", b"\xff")):
        assert outgoing(record, {topics.SUBJECT: subject, topics.EFFECT_ID: effect_id}) is None


async def test_an_event_of_an_older_release_is_redacted_as_it_is_sent(log: SqliteLog, server: NatsServer) -> None:
    """That release wrote secrets into the log; a dead letter's message may hold one, too."""
    # specification 27.8
    texts, secret = [one.text for one in planted()], next(planted()).secret
    await append_events(log, [replace(event(1, 1), payload={"instance_id": "c-1:s-1", "number": 1, "texts": texts})])
    await append_events(log, [event(2, 1)])
    letter = dead_letter_record("t", 0, 7, "bad", f"no command: {texts[0]}", key=b"k", value=b"x")
    await log.append(f"{PREFIX}.{topics.DEADLETTERS}", 0, *letter)
    async with connection(server.url) as link, bridge(log, link):
        found = await until(lambda: three(server.url), "all are sent")
    sent = [json.loads(message.data) for message in found]
    assert not any(one.secret in str(message) for message in sent for one in planted())
    (announced,) = [one for one in sent if one["event_type"] == "ceremony.deadletter"]
    assert "[redacted:aws_access_key_id]" in announced["payload"]["message"]
    (first,) = [one for one in sent if "texts" in one["payload"]]
    assert first["payload"]["texts"][0] == texts[0].replace(secret, "[redacted:aws_access_key_id]")
    assert first["idempotency_key"] == "c-1:s-1/1/0@1"


async def three(url: str) -> list[Any]:
    """Return the messages of the stream once it has three."""
    found = await stored(url)
    return found if len(found) == 3 else []

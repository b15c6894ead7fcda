"""Showing and replaying dead letters on a real log: once for each request id, and only to topics of the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge.clock import HostClock
from bridge.dead_letters import DeadLetters, DeadLetterUnknown, LetterOrigin, NotReplayable
from bridge.nats.metrics import REPLAYED
from bridge.nats.streams import AGENT_RESPONSES
from ports.log import LogUnavailable, Record
from streams.api import Unavailable
from streams.dead_letters import DEADLETTER_BODY_BYTES, dead_letter_record, placed_letter
from streams.topology import topics
from streams.transport.sqlite.log import SqliteLog
from tables.commands import AgentResult, decode_command
from tests.poison.shapes import Shape, good, shapes

PARTITIONS = 3
RESPONSE = {
    "event_type": "agent.response.completed",
    "payload": {
        "task_id": "ceremony-c1:story-s1:role-DEV:step-talk:attempt-1",
        "agent_id": "agent-dev-001",
        "role": "DEV",
        "status": "completed",
        "proposal": "let us",
        "metadata": {"correlation_id": "corr-1"},
    },
    "idempotency_key": "k",
    "correlation_id": "x",
    "timestamp": "2026-01-31T12:00:00Z",
    "producer": "ray",
}
OF_OTHERS = {"task_id": "of-others", "agent_id": "a", "status": "completed"}


class Site:
    def __init__(self, log: SqliteLog) -> None:
        self.log = log
        self.stream: dict[int, bytes] = {}
        self.dead_letters = DeadLetters(log, HostClock(), prefix="t", partitions=PARTITIONS, read_message=self.stored)

    async def stored(self, sequence: int) -> bytes | None:
        return self.stream.get(sequence)

    async def put(self, topic: str, partition: int, offset: int, value: bytes | None, **more: Any) -> LetterOrigin:
        fields: dict[str, Any] = {"key": b"c1:s1", "headers": [("correlation-id", b"corr")], **more}
        key, body, headers = dead_letter_record(topic, partition, offset, "boom", "it broke", value=value, **fields)
        await self.log.append("t.deadletters", partition % PARTITIONS, key, body, headers)
        return LetterOrigin(topic, partition, offset)

    async def records(self, topic: str, partition: int) -> list[Record]:
        start, end = (await self.log.ends(topic))[partition]
        return [record async for records in self.log.read(topic, partition, start, end) for record in records]

    async def replay(self, origin: LetterOrigin, request_id: str = "r-1") -> Any:
        return await self.dead_letters.replay(origin, "ana", "it is mended", request_id)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create(topics("t", PARTITIONS))
    yield Site(log)
    await log.stop()


async def test_a_dead_letter_is_shown_with_headers_and_body(site: Site) -> None:
    # specification 19.4
    origin = await site.put("t.commands", 2, 7, b'{"type": "nonsense"}')
    found = await site.dead_letters.show(origin)
    assert (found.letter.code, found.letter.message, found.letter.key) == ("boom", "it broke", b"c1:s1")
    assert found.letter.headers == (("correlation-id", b"corr"),)
    assert (found.body, found.body_from, found.replays) == (b'{"type": "nonsense"}', "dead_letter", ())


async def test_the_newest_of_several_with_one_origin_is_shown(site: Site) -> None:
    await site.put("t.commands", 2, 7, b"first")
    origin = await site.put("t.commands", 2, 7, b"second")
    assert (await site.dead_letters.show(origin)).body == b"second"


@pytest.mark.parametrize(
    "origin", [("t.commands", 2, 8), ("t.commands", -1, 7), ("other", 0, 0), ("t.events", 99, 2**60)]
)
async def test_an_origin_without_a_dead_letter_is_unknown(site: Site, origin: tuple[str, int, int]) -> None:
    await site.put("t.commands", 2, 7, b"x")
    with pytest.raises(DeadLetterUnknown, match="dead_letter_unknown"):
        await site.dead_letters.show(LetterOrigin(*origin))
    with pytest.raises(DeadLetterUnknown):
        await site.replay(LetterOrigin(*origin))


@pytest.mark.parametrize("topic", ["t.commands", "t.steps.aggregation"])
async def test_a_record_is_replayed_with_its_key_headers_and_partition(site: Site, topic: str) -> None:
    # specification 19.5
    origin = await site.put(topic, 2, 7, b"body")
    before = REPLAYED.labels(topic)._value.get()
    replay, repeated = await site.replay(origin)
    (record,) = await site.records(topic, 2)
    assert (record.key, record.value) == (b"c1:s1", b"body")
    marks = [("replay", b"r-1"), ("replay-of", f"{topic}/2/7".encode())]
    assert list(record.headers) == [("correlation-id", b"corr"), *marks]
    assert (replay.sent_to, repeated) == (f"{topic}/2/{record.offset}", False)
    assert REPLAYED.labels(topic)._value.get() == before + 1
    (done,) = (await site.dead_letters.show(origin)).replays
    assert (done.entry.actor, done.entry.reason, done.sent_to) == ("ana", "it is mended", replay.sent_to)


async def test_a_repeated_request_sends_nothing_and_another_request_sends_again(site: Site) -> None:
    # specification 19.5
    origin = await site.put("t.commands", 1, 7, b"body")
    first, _ = await site.replay(origin)
    again, repeated = await site.replay(origin)
    assert (again.sent_to, repeated) == (first.sent_to, True)
    assert len(await site.records("t.commands", 1)) == 1
    await site.replay(origin, "r-2")
    found = await site.records("t.commands", 1)
    assert [dict(record.headers)["replay"] for record in found] == [b"r-1", b"r-2"]
    assert len((await site.dead_letters.show(origin)).replays) == 2


@pytest.mark.parametrize("cut_after", [1, 2])
async def test_an_interrupted_replay_is_completed_by_the_same_request(
    site: Site, monkeypatch: pytest.MonkeyPatch, cut_after: int
) -> None:
    """If only the intention was written the record is sent now; if it was sent, only the audit entry is written."""
    # specification 19.5
    origin = await site.put("t.commands", 1, 7, b"body")
    appends = 0
    real = site.log.append

    async def cut(*arguments: Any) -> Any:
        nonlocal appends
        appends += 1
        if appends > cut_after:
            raise LogUnavailable("log_unavailable", "gone")
        return await real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(site.log, "append", cut)
        with pytest.raises(Unavailable):
            await site.replay(origin)
    assert len(await site.records("t.commands", 1)) == cut_after - 1
    _, repeated = await site.replay(origin)
    assert repeated is (cut_after == 2)
    assert len(await site.records("t.commands", 1)) == 1
    assert len((await site.dead_letters.show(origin)).replays) == 1


async def test_a_replay_of_another_letter_under_the_same_id_does_not_complete_an_interrupted_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller would be answered from a record that is not its own, and its letter never be sent."""
    # specification 19.5
    first, second = await site.put("t.commands", 1, 7, b"first"), await site.put("t.commands", 1, 8, b"second")
    real, entries = site.log.append, []

    async def only_the_intention(topic: str, *arguments: Any) -> Any:
        if topic == "t.commands":
            raise LogUnavailable("log_unavailable", "gone")
        entries.append(topic)
        return await real(topic, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(site.log, "append", only_the_intention)
        with pytest.raises(Unavailable):
            await site.replay(first)
    assert entries == ["t.audit"]
    await site.replay(second)
    _, repeated = await site.replay(first)
    assert not repeated
    assert [record.value for record in await site.records("t.commands", 1)] == [b"second", b"first"]


async def test_a_large_body_is_read_from_its_origin(site: Site) -> None:
    """A dead letter only refers to a value above 256 KiB."""
    # specification 19.2
    body = b"x" * (DEADLETTER_BODY_BYTES + 1)
    position = await site.log.append("t.commands", 1, b"c1:s1", body)
    origin = await site.put("t.commands", 1, position.offset, body)
    found = await site.dead_letters.show(origin)
    assert (found.body, found.body_from, found.letter.size) == (body, "origin", len(body))
    await site.replay(origin)
    assert [record.value for record in await site.records("t.commands", 1)] == [body, body]


async def test_a_body_that_is_gone_cannot_be_replayed(site: Site) -> None:
    # specification 19.6
    origin = await site.put("t.commands", 1, 7, b"x" * (DEADLETTER_BODY_BYTES + 1))
    assert (await site.dead_letters.show(origin)).body_from == "gone"
    with pytest.raises(NotReplayable, match="body_gone"):
        await site.replay(origin)
    assert await site.records("t.audit", 1) == []


@pytest.mark.parametrize("origin", [("t.events", 1, 7), ("elsewhere", 1, 7), ("t.commands", 4, 7)])
async def test_only_commands_and_step_requests_are_replayed(site: Site, origin: tuple[str, int, int]) -> None:
    # specification 19.6
    where = await site.put(*origin, b"body")
    with pytest.raises(NotReplayable, match="not_replayable"):
        await site.replay(where)


async def test_a_nats_message_is_replayed_as_a_command(site: Site) -> None:
    # specification 19.5
    subject = [("subject", b"agent.response.completed")]
    origin = await site.put(AGENT_RESPONSES, 0, 12, json.dumps(RESPONSE).encode(), key=None, headers=subject)
    replay, _ = await site.replay(origin)
    home = site.log.partition_of(b"c1:s1", PARTITIONS)
    (record,) = await site.records("t.commands", home)
    command = decode_command(record.value)
    assert isinstance(command, AgentResult)
    assert (record.key, command.step_id, command.agent_id) == (b"c1:s1", "talk", "agent-dev-001")
    assert dict(record.headers)["correlation-id"] == b"corr-1"
    assert replay.sent_to == f"t.commands/{home}/{record.offset}"


async def test_a_large_nats_message_is_read_from_its_stream(site: Site) -> None:
    site.stream[12] = json.dumps(RESPONSE).encode()
    large = b"x" * (DEADLETTER_BODY_BYTES + 1)
    origin = await site.put(AGENT_RESPONSES, 0, 12, large, key=None, headers=[("subject", b"agent.response.completed")])
    assert (await site.dead_letters.show(origin)).body_from == "origin"
    await site.replay(origin)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "still_malformed: AGENT_RESPONSES/0/12: message_undecodable"),
        (
            json.dumps({**RESPONSE, "payload": {"task_id": "of-others", "agent_id": "a", "status": "completed"}}),
            "not_ours",
        ),
    ],
    ids=["malformed", "foreign"],
)
async def test_a_nats_message_that_is_still_malformed_is_refused(site: Site, body: bytes | str, code: str) -> None:
    # specification 19.6
    value = body if isinstance(body, bytes) else body.encode()
    subject = [("subject", b"agent.response.completed")]
    origin = await site.put(AGENT_RESPONSES, 0, 12, value, key=None, headers=subject)
    with pytest.raises(NotReplayable, match=code):
        await site.replay(origin)


@pytest.mark.parametrize("shape", shapes("audit"), ids=lambda shape: shape.name)
async def test_an_undecodable_audit_record_becomes_one_dead_letter_and_blocks_nothing(site: Site, shape: Shape) -> None:
    """That holds also for a record with the requested origin as its key."""
    origin = await site.put("t.commands", 1, 7, b"body")
    record = shape.spoil(good("audit", "poisoned")._replace(key=str(origin).encode()))
    assert len(shapes("audit")) >= 30
    position = await site.log.append("t.audit", 1, *record)
    await site.replay(origin)
    assert len((await site.dead_letters.show(origin)).replays) == 1
    (letter,) = [placed_letter(one) for one in await site.records("t.deadletters", 1)][1:]
    assert (letter.origin, letter.code) == (f"t.audit/1/{position.offset}", "audit_undecodable")
    assert letter.message


async def test_a_valid_audit_entry_makes_no_dead_letter(site: Site) -> None:
    """The entry from which the malformed shapes are made is valid."""
    origin = await site.put("t.commands", 1, 7, b"body")
    await site.log.append("t.audit", 1, *good("audit", str(origin)))
    assert len((await site.dead_letters.show(origin)).replays) == 1
    assert len(await site.records("t.deadletters", 1)) == 1

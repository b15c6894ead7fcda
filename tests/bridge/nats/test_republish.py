"""`ceremony republish` on a real nats-server and the embedded log: restores all events, and stores none twice."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
import structlog
from nats.js.api import StreamConfig

import bridge.nats.republish
from bridge.nats.connection import NatsConnection
from bridge.nats.progress import stored_since
from bridge.nats.republish import Republished, Republisher
from ceremony.cli.errors import Exit
from ceremony.program import run
from steps.secrets.redactor import TextRedactor
from streams import topics
from streams.dead_letters import dead_letter_record
from streams.transport.sqlite.log import SqliteLog
from tests.bridge.nats.world import CLOCK, PREFIX, append_events, client, connection, embedded_log, event, stored
from tests.services import NatsServer, free_port

EVENTS = [event(ceremony, number) for number in range(10) for ceremony in range(30)]


@pytest.fixture(autouse=True)
def _no_log_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the program's log set-up, which would bind the loggers of every later test in this process."""
    monkeypatch.setattr("ceremony.logs.configure", lambda *_: None)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    """A log with 300 events, a record that is no event, and a dead letter."""
    async with embedded_log(tmp_path) as opened:
        await append_events(opened, EVENTS)
        await opened.append("t.events", 0, b"c-1:s-1", b"junk")
        letter = dead_letter_record("t.commands", 0, 7, "command_undecodable", "m", key=None, value=b"x")
        await opened.append(f"{PREFIX}.{topics.DEADLETTERS}", 0, *letter)
        yield opened


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


async def republish(log: SqliteLog, server: NatsServer, since_ms: int = 0) -> Republished:
    async with connection(server.url) as link:
        return await Republisher(log, link, CLOCK, prefix=PREFIX, redactor=TextRedactor(), since_ms=since_ms).run()


async def ids(server: NatsServer) -> list[str]:
    return [(message.headers or {})["Nats-Msg-Id"] for message in await stored(server.url)]


async def test_a_deleted_stream_is_restored_in_order(log: SqliteLog, server: NatsServer) -> None:
    """Each retained event is there once, in order per ceremony; dead letters are announced, other records counted."""
    # specification 16.9
    assert await republish(log, server) == Republished(total=302, read=302, sent=301, present=0, refused=1)
    async with client(server.url) as other:
        await other.jetstream().delete_stream("CEREMONY")
    assert await republish(log, server) == Republished(total=302, read=302, sent=301, present=0, refused=1)
    numbers = defaultdict(list)
    for message in await stored(server.url):
        envelope = json.loads(message.data)
        numbers[envelope["correlation_id"]].append(envelope["payload"].get("number"))
    assert numbers.pop("deadletter/t.commands/0/7") == [None]
    assert numbers == {f"corr-{ceremony}": list(range(10)) for ceremony in range(30)}


async def test_events_in_the_stream_are_not_stored_twice(log: SqliteLog, server: NatsServer) -> None:
    """That holds after the duplicate window too."""
    # specification 16.9
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"], duplicate_window=0.1))
    await republish(log, server)
    async with client(server.url) as other:
        await other.jetstream().delete_msg("CEREMONY", 17)
    await asyncio.sleep(0.3)
    again = await republish(log, server)
    assert (again.sent, again.present) == (1, 300)
    found = await ids(server)
    assert sorted(found) == sorted({*(one.id for one in EVENTS), "deadletter/t.commands/0/7"})


async def test_memory_holds_the_ids_of_one_piece_of_the_log_whatever_the_stream_holds(
    log: SqliteLog, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is read back once for each piece; pieces begin where the one before them ended."""
    # specification 16.9
    monkeypatch.setattr(bridge.nats.republish, "IDS_AT_ONCE", 40)
    wanted: list[int] = []
    kept: list[int] = []

    async def noting(link: NatsConnection, since_ms: int, ids: Collection[str]) -> set[str]:
        wanted.append(len(ids))
        found = await stored_since(link, since_ms, ids)
        kept.append(len(found))
        return found

    monkeypatch.setattr(bridge.nats.republish, "stored_since", noting)
    async with client(server.url) as other:
        await other.jetstream().add_stream(StreamConfig(name="CEREMONY", subjects=["ceremony.>"], duplicate_window=0.1))
    assert await republish(log, server) == Republished(total=302, read=302, sent=301, present=0, refused=1)
    await asyncio.sleep(0.3)
    assert await republish(log, server) == Republished(total=302, read=302, sent=0, present=301, refused=1)
    assert max(wanted) == max(kept) == 40
    assert sum(wanted) == 2 * 301 and sum(kept) == 301
    assert sorted(await ids(server)) == sorted({*(one.id for one in EVENTS), "deadletter/t.commands/0/7"})


async def test_since_leaves_out_older_events(log: SqliteLog, server: NatsServer) -> None:
    await asyncio.sleep(0.05)
    position = await log.append("t.events", 0, b"c-1:s-1", b"junk")
    await append_events(log, [event(99, 0)])
    done = await republish(log, server, position.timestamp)
    assert (done.sent, done.read) == (1, 304)
    assert await ids(server) == [event(99, 0).id]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed log with 300 events."""

    async def fill() -> None:
        async with embedded_log(tmp_path) as opened:
            await append_events(opened, EVENTS)

    asyncio.run(fill())
    return tmp_path


def test_the_command_reports_its_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run finds all events in the stream."""
    server = NatsServer(folder / "nats")
    server.start()
    told = ["--log", f"sqlite://{folder}/log.sqlite", "--nats", server.url, "--topic-prefix", PREFIX]
    try:
        with structlog.testing.capture_logs():
            assert run(["republish", *told]) == Exit.OK
        assert capsys.readouterr().out.startswith("300 published, 0 were there, 0 refused; 300 of 300")
        with structlog.testing.capture_logs():
            assert run(["republish", *told, "--since", "1d", "-o", "json"]) == Exit.OK
        assert json.loads(capsys.readouterr().out)["read"] == 300
        assert sorted(asyncio.run(ids(server))) == sorted(one.id for one in EVENTS)
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        (["--since", "yesterday"], Exit.USAGE, "since_invalid: --since 'yesterday'"),
        (["--nats", f"nats://127.0.0.1:{free_port()}"], Exit.UNAVAILABLE, "nats_unavailable: "),
    ],
)
def test_a_failure_is_one_line(
    told: list[str],
    code: Exit,
    said: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ceremony.cli.republish.CONNECT_SECONDS", 0.5)
    assert run(["republish", "--log", f"sqlite://{folder}/log.sqlite", *told]) == code
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1

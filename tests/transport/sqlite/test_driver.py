"""The embedded driver: URLs, backends, and the errors of an app whose file cannot be used."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from bridge.clock import HostClock
from bridge.dead_letters import DeadLetters, LetterOrigin
from ports.log import AgentSpec, Batch, Fenced, LogFailed, LogUrlInvalid, TopicSpec
from streams.topology import topics
from streams.transport.app import CeremonyApp, create_app
from streams.transport.partition.backend import NewRecord, PositionRow
from streams.transport.partition.dead_letters import LARGEST_COPY_BYTES
from streams.transport.sqlite.backend import SqliteBackend
from streams.transport.sqlite.driver import open_log
from streams.transport.sqlite.log import SqliteLog
from tests.transport.conformance.harness import COUNTS, eventually, serving
from tests.transport.memory import read_back

POSITION = PositionRow(1, 1, 0, 0)


async def count(stream: AsyncIterable[Batch]) -> None:
    async for batch in stream:
        for record in batch:
            assert record.key is not None
            batch.put("counts", record.key, (batch.get("counts", record.key) or 0) + 1)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec("in", 1, queue=True), TopicSpec("out", 1), TopicSpec("rows", 1, compacted=True)])
    yield log
    await log.stop()


def folding(log: SqliteLog) -> SqliteBackend:
    return SqliteBackend(log, "fold", "in", 0, changelogs={"t": "rows"})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://folder/log.db", "names no file"),
        ("sqlite:///log.db?fsync=1", "unknown settings"),
        ("sqlite:///log.db?synchronous=off", "normal or full"),
        ("sqlite:///log.db?window_ms=long", "window_ms"),
        ("sqlite:///log.db?window_ms=-1", "window_ms"),
        ("sqlite:///log.db?window_ms=nan", "window_ms"),
    ],
)
def test_an_invalid_url_is_refused(url: str, reason: str) -> None:
    """The error has the code log_url_invalid and names the problem."""
    with pytest.raises(LogUrlInvalid, match=f"log_url_invalid: .*{reason}"):
        open_log(URL(url), HostClock())


async def test_settings_are_read_from_the_url(tmp_path: Path) -> None:
    """It sets path, synchronous and the commit window; the file and its folder are created."""
    log = open_log(URL(f"sqlite://{tmp_path}/new folder/log.db?synchronous=FULL&window_ms=0"), HostClock())
    await log.start()
    assert (tmp_path / "new folder" / "log.db").exists()
    assert log.file._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    await log.stop()


async def test_a_second_app_on_the_file_fails_and_names_the_reason(tmp_path: Path) -> None:
    """It fails at once, without disturbing the first app."""
    url = f"sqlite://{tmp_path}/log.db"
    first, second = (create_app("a", url, clock=HostClock(), partitions=1, topics=[], prefix="p") for _ in range(2))
    async with first:
        with pytest.raises(LogFailed, match="log_in_use"):
            await second.start()
        await second.stop()
        assert first.commit_log.state == "ok"
        assert first.failure is None


async def test_another_partition_count_is_refused(tmp_path: Path) -> None:
    """Keys would change their owner, so the app does not start; the error names both counts."""
    url = f"sqlite://{tmp_path}/log.db"
    apps = [
        create_app("a", url, clock=HostClock(), partitions=n, topics=[TopicSpec("p.in", n)], prefix="p") for n in (2, 3)
    ]
    async with apps[0]:
        pass
    with pytest.raises(LogFailed, match=r"partition_count: topic p\.in .* has 2 partitions, not 3"):
        await apps[1].start()
    await apps[1].stop()


async def test_a_full_disk_ends_the_worker_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The app fails once with a remedy; started again, it has every acknowledged command once."""
    url = f"sqlite://{tmp_path}/log.db"

    def app() -> CeremonyApp:
        app = create_app("a", url, clock=HostClock(), partitions=1, topics=[TopicSpec("p.in", 1)], prefix="p")
        app.attach(AgentSpec("count", "p.in", tables=[COUNTS]), count)
        return app

    first, failures, acknowledged = app(), list[BaseException](), list[int]()

    async def fill() -> None:
        for _ in range(1000):
            position = await first.commit_log.append("p.in", 0, b"k", b"x" * 50_000)
            acknowledged.append(position.offset)

    first.on_crash = failures.append
    await first.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        with pytest.raises(LogFailed, match=r"log_io: .*look at the disk's space"):
            await fill()
        await first.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [type(failure) for failure in failures] == [LogFailed]
    async with serving(app()) as second:
        await eventually(lambda: second.views("count")[0].position == len(acknowledged))
        assert second.views("count")[0].rows("counts") == {b"k": len(acknowledged)}
    assert acknowledged


async def test_a_backend_recovers_the_last_checkpoint(log: SqliteLog) -> None:
    """Rows, position and the ends of the log; the committed offset only for agents without tables."""
    first = folding(log)
    rows, recovered = await read_back(first, "t")
    assert (rows, recovered.position, recovered.start, recovered.end) == ({"t": {}}, None, 0, 0)
    await log.append("in", 0, b"k", b"v")
    await first.checkpoint({"t": {b"k": b"row", b"gone": None}}, POSITION)
    await first.close()
    rows, recovered = await read_back(folding(log), "t")
    assert (rows, recovered.position, recovered.end) == ({"t": {b"k": b"row"}}, POSITION, 1)
    assert recovered.committed is None


async def test_a_later_take_fences_the_former_backend(log: SqliteLog) -> None:
    """Also in the same process: its checkpoint, commit and fetch are refused."""
    first, second = folding(log), folding(log)
    await read_back(first, "t")
    await read_back(second, "t")
    with pytest.raises(Fenced, match="log_fenced"):
        await first.checkpoint({"t": {b"k": b"zombie"}}, POSITION)
    with pytest.raises(Fenced):
        first.commit(1)
    with pytest.raises(Fenced):
        await first.fetch(1)
    await first.close()
    await second.checkpoint({"t": {b"k": b"ours"}}, POSITION)
    assert list(log.rows("rows", 0)) == [{b"k": b"ours"}]


async def test_a_backend_reads_ahead_of_the_commit_unless_it_is_committed_only(tmp_path: Path) -> None:
    """`committed_only` backends get a record only once its window is committed."""
    log = SqliteLog(tmp_path / "log.db", HostClock(), window=0.2)
    await log.start()
    await log.create([TopicSpec("in", 1)])
    ahead = SqliteBackend(log, "fold", "in", 0, changelogs={})
    outside = SqliteBackend(log, "publish", "in", 0, changelogs={}, committed_only=True)
    await asyncio.gather(read_back(ahead), read_back(outside))
    (written,) = ahead.send("in", 0, [NewRecord(b"k", b"v")])
    fetching = asyncio.ensure_future(outside.fetch(1))
    assert [record.value for record in await ahead.fetch(1)] == [b"v"]
    durable = asyncio.ensure_future(ahead.durable(1))
    await asyncio.sleep(0)
    assert not fetching.done() and not durable.done()
    await written
    await durable
    await ahead.durable(1)
    assert [record.value for record in await fetching] == [b"v"]
    await log.stop()


async def test_a_cancelled_fetch_loses_nothing(log: SqliteLog) -> None:
    """The next fetch returns the record that comes after the cancellation."""
    backend = SqliteBackend(log, "step", "in", 0, changelogs={})
    await read_back(backend)
    fetching = asyncio.ensure_future(backend.fetch(10))
    await asyncio.sleep(0)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    await log.append("in", 0, b"k", b"v")
    assert [record.value for record in await backend.fetch(10)] == [b"v"]
    backend.commit(1)
    await backend.close()
    _, recovered = await read_back(SqliteBackend(log, "step", "in", 0, changelogs={}))
    assert recovered.committed == 1


@pytest.mark.parametrize("size", [300_000, LARGEST_COPY_BYTES - 1000])
async def test_a_large_dead_letter_is_replayed_although_its_original_is_consumed(tmp_path: Path, size: int) -> None:
    # specification 19.2

    async def refuse(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                batch.dead_letter(record, "refused", "for this test")

    url = f"sqlite://{tmp_path}/log.db"
    app = create_app("a", url, clock=HostClock(), partitions=1, topics=topics("p", 1), prefix="p")
    app.attach(AgentSpec("refuse", "p.commands"), refuse)

    async def nothing(_sequence: int) -> None:
        raise AssertionError("no message of NATS is read")

    async with serving(app):
        log = app.commit_log
        value = b"{" + b"x" * size
        origin = await log.append("p.commands", 0, b"k", value, [("h", b"1")])
        await eventually(lambda: ends(log)["p.deadletters"] == 1 and ends(log)["p.commands"] == 0)
        letters = DeadLetters(log, HostClock(), prefix="p", partitions=1, read_message=nothing)
        where = LetterOrigin("p.commands", 0, origin.offset)
        replay, _ = await letters.replay(where, "anna", "mended", "r1")
        assert replay.entry.offset == 1
        await eventually(lambda: ends(log)["p.deadletters"] == 2)
        assert (await letters.show(LetterOrigin("p.commands", 0, 1))).body == value


def ends(log: Any) -> dict[str, int]:
    """Return the number of records of each topic's first partition that are still there."""
    return {name: shards[0].durable - shards[0].start for name, shards in log._shards.items()}

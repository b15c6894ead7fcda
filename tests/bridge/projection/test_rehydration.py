"""Ceremonies come back from a real store, and from both: sound, lossy, broken and skipped ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bridge.clock import HostClock
from bridge.projection.rehydration import Rehydration, RehydrationProgress, Restoration
from bridge.projection.store import Place, Write
from streams.topology import every_topic
from streams.transport.sqlite.log import SqliteLog
from tables.commands import PutDefinition, Restore, decode_command
from tables.instance import Instance, encode_instance
from tables.read_model import Redact, document_of, nothing_redacted
from tests.bridge.projection.world import DEFINITION, Neo4jSite, Site, ValkeySite, row
from tests.services import Neo4jServer, ValkeyServer
from tests.tables.world import KINDS

PARTITIONS = 3
CHANGELOG = "t.ceremonies.changelog"
TEXT = {DEFINITION.hash: (DEFINITION.name, DEFINITION.text)}


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create(every_topic("t", PARTITIONS))
    yield log
    await log.stop()


async def put(site: Site, *rows: Instance, redact: Redact = nothing_redacted, definitions: Any = TEXT) -> None:
    store = site.store()
    await store.open()
    place = Place(len(rows), rebuild=str(id(rows))).text
    await store.set_places({0: place})
    await store.write(Write(0, place, place, [document_of(one, redact) for one in rows], definitions=definitions))
    await store.close()


async def rehydrated(log: SqliteLog, *sites: Site, dry_run: bool = False, progress: Any = None) -> list[Restoration]:
    stores: Any = [site.store() for site in sites]
    options: dict[str, Any] = {} if progress is None else {"on_progress": progress}
    made = Rehydration(log, stores, HostClock(), KINDS, prefix="t", partitions=PARTITIONS, dry_run=dry_run, **options)
    found = [one async for page in made.run() for one in page]
    for store in stores:
        await store.close()
    return found


async def placed(log: SqliteLog) -> list[tuple[int, Any]]:
    """The commands in the log, each with its partition."""
    found = []
    for partition, (start, end) in enumerate(await log.ends("t.commands")):
        async for records in log.read("t.commands", partition, start, end):
            for record in records:
                command = decode_command(record.value)
                assert record.key == (command.instance_id or getattr(command, "hash", "")).encode()
                found.append((partition, command))
    return found


async def sent(log: SqliteLog) -> list[Any]:
    return [command for _, command in await placed(log)]


async def keep(log: SqliteLog, *rows: Instance) -> None:
    """Write rows of the table, as a checkpoint does."""
    for one in rows:
        key = one.instance_id.encode()
        log.put_rows(CHANGELOG, log.partition_of(key, PARTITIONS), {key: encode_instance(one)})
    await log.flush()


def codes(one: Restoration) -> list[str]:
    return [code for code, _ in one.reasons]


def redact_note(texts: bytes) -> tuple[Any, Sequence[str]]:
    return msgspec.json.decode(texts.replace(b'"secret"', b'"[redacted:test]"')), ["$.inputs.note"]


async def test_sound_ceremonies_are_sent_with_their_definition_before_them(site: Site, log: SqliteLog) -> None:
    # specification 28.6
    rows = [row(f"c{number}:s1", number) for number in range(1, 8)]
    await put(site, *rows)
    seen: list[tuple[int, int, int]] = []

    def note(now: RehydrationProgress) -> None:
        seen.append((now.read, now.total, now.restored))

    found = await rehydrated(log, site, progress=note)
    assert [(one.instance_id, one.verdict, one.version, one.reasons) for one in found] == [
        (f"c{number}:s1", "sound", number, ()) for number in range(1, 8)
    ]
    assert seen == [(7, 7, 7)]
    commands = await sent(log)
    restores = {one.instance_id: one for one in commands if isinstance(one, Restore)}
    assert {i: (one.instance["version"], one.seen_version) for i, one in restores.items()} == {
        f"c{number}:s1": (1000 + number, number) for number in range(1, 8)
    }
    first: dict[int, Any] = {}
    for partition, command in await placed(log):
        first.setdefault(partition, command)
    assert first and all(isinstance(command, PutDefinition) for command in first.values())
    assert sum(isinstance(command, PutDefinition) for command in commands) == len(first)


async def test_a_dry_run_sends_nothing(site: Site, log: SqliteLog) -> None:
    # specification 28.6
    await put(site, row("c1:s1"))
    (one,) = await rehydrated(log, site, dry_run=True)
    assert one.verdict == "sound"
    assert await sent(log) == []


async def test_rows_that_the_table_has_are_skipped_and_older_ones_replaced(site: Site, log: SqliteLog) -> None:
    # specification 28.3, 28.6
    await put(site, row("same:s1", 5), row("newer:s1", 5), row("older:s1", 5), row("later:s1", 5))
    await keep(log, row("same:s1", 5), row("newer:s1", 9), row("older:s1", 4), row("later:s1", 1, life=1))
    found = {one.instance_id: one for one in await rehydrated(log, site)}
    assert {i: one.verdict for i, one in found.items()} == {
        "same:s1": "skipped",
        "newer:s1": "skipped",
        "older:s1": "sound",
        "later:s1": "skipped",
    }
    assert found["newer:s1"].reasons == (("newer_row", "the table has version 9"),)
    assert [one.instance_id for one in await sent(log) if isinstance(one, Restore)] == ["older:s1"]


async def test_a_lossy_ceremony_is_sent_paused(site: Site, log: SqliteLog) -> None:
    # specification 28.4, 28.6
    await put(site, row("c1:s1", note="secret"), redact=redact_note)
    (one,) = await rehydrated(log, site)
    assert (one.verdict, one.reasons) == ("lossy", (("text_redacted", "step gather reads the input note"),))
    (restore,) = [command for command in await sent(log) if isinstance(command, Restore)]
    assert (restore.instance["status"], restore.instance["inputs"]["note"]) == ("PAUSED", "[redacted:test]")


async def test_a_broken_ceremony_is_reported_and_hides_no_other(site: Site, log: SqliteLog) -> None:
    # specification 28.2, 28.6
    await put(site, row("good:s1"), replace(row("bad:s1", 3), state="NOWHERE"))
    site.plant("planted:s1")
    found = {one.instance_id: one for one in await rehydrated(log, site)}
    assert {i: one.verdict for i, one in found.items()} == {
        "good:s1": "sound",
        "bad:s1": "broken",
        "planted:s1": "broken",
    }
    assert {"state_unknown", "visit_missing"} <= set(codes(found["bad:s1"]))
    assert "property_missing" in codes(found["planted:s1"])
    assert [one.instance_id for one in await sent(log) if isinstance(one, Restore)] == ["good:s1"]


async def test_without_its_definition_a_ceremony_is_broken(site: Site, log: SqliteLog) -> None:
    # specification 28.2
    await put(site, row("c1:s1"), definitions={})
    (one,) = await rehydrated(log, site)
    assert (one.verdict, codes(one)) == ("broken", ["definition_missing"])


@pytest.fixture
def both(valkey: ValkeyServer, neo4j: Neo4jServer) -> Any:
    sites = ValkeySite(valkey), Neo4jSite(neo4j)
    for site in sites:
        site.wipe()
    yield sites
    for site in sites:
        site.close()


async def test_of_two_stores_the_newer_sound_form_is_taken(both: tuple[ValkeySite, Neo4jSite], log: SqliteLog) -> None:
    """The version is above both; a form that is broken gives way to an older one, and is reported."""
    # specification 28.3, 28.6
    valkey, neo4j = both
    await put(valkey, row("a:s1", 5), row("b:s1", 9), replace(row("c:s1", 9), state="NOWHERE"), row("d:s1", 9))
    await put(neo4j, row("a:s1", 7), row("b:s1", 2), row("c:s1", 4), row("d:s1", 1, life=1))
    found = await rehydrated(log, valkey, neo4j)
    assert [(one.instance_id, one.verdict, one.source, one.version) for one in found] == [
        ("a:s1", "sound", "neo4j", 7),
        ("b:s1", "sound", "valkey", 9),
        ("c:s1", "sound", "neo4j", 4),
        ("d:s1", "sound", "neo4j", 1),
    ]
    assert {"state_unknown", "visit_missing"} <= set(codes(found[2]))
    assert found[2].reasons[0][1].startswith("valkey: ")
    versions = {one.instance_id: one.instance["version"] for one in await sent(log) if isinstance(one, Restore)}
    assert versions == {"a:s1": 1007, "b:s1": 1009, "c:s1": 1009, "d:s1": 1009}


async def test_a_definition_is_taken_from_the_store_that_has_its_text(
    both: tuple[ValkeySite, Neo4jSite], log: SqliteLog
) -> None:
    valkey, neo4j = both
    await put(valkey, row("a:s1", 5), definitions={DEFINITION.hash: ("probe", "altered")})
    await put(neo4j, row("a:s1", 4))
    (one,) = await rehydrated(log, valkey, neo4j)
    assert (one.verdict, one.source) == ("sound", "valkey")

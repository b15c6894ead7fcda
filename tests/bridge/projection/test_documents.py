"""Batches of the changelog become the newest document of each instance, redacted by its own definition."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.clock import HostClock
from bridge.projection.definitions import PinnedDefinitions
from bridge.projection.documents import MOST_BYTES, MOST_ROWS, Documents, newest, portions
from bridge.projection.rebuild import Rebuild
from bridge.projection.store import Gone, Place
from ports.log import Record, TopicSpec
from steps.registry import all_kinds
from streams.transport.sqlite.log import SqliteLog
from tables.definition import Definition
from tables.errors import FormatTooNew
from tables.instance import encode_instance
from tables.read_model import Redact
from tests.bridge.projection.world import DEFINITION, row


def record(offset: int, key: bytes, value: bytes | None) -> Record:
    return Record("t.ceremonies.changelog", 0, offset, 1_700_000_000_000, key, value)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec("t.definitions.changelog", 1, compacted=True)])
    yield log
    await log.stop()


def test_the_newest_record_of_each_instance_counts_and_the_engines_own_keys_do_not() -> None:
    records = [record(0, b"\0position", b"x"), record(1, b"a", b"1"), record(2, b"b", b"1"), record(3, b"a", b"2")]
    assert {key: found.offset for key, found in newest(records).items()} == {"b": 2, "a": 3}


def test_a_batch_is_cut_into_portions_of_bounded_size_in_order() -> None:
    records = [record(offset, b"k", b"x" * (MOST_BYTES // 3)) for offset in range(7)]
    cut = list(portions(records))
    assert [one for portion in cut for one in portion] == records
    assert [len(portion) for portion in cut] == [3, 3, 1]
    assert [len(portion) for portion in portions([record(0, b"k", b"x" * (2 * MOST_BYTES))] * 2)] == [1, 1]
    assert [len(p) for p in portions([record(0, b"k", b"")] * (MOST_ROWS + 1))] == [MOST_ROWS, 1]
    assert list(portions([])) == []


async def test_a_document_is_redacted_by_the_definition_of_its_row(log: SqliteLog) -> None:
    asked: list[Definition | None] = []

    def redaction(definition: Definition | None) -> Redact:
        asked.append(definition)

        def redact(_: bytes) -> tuple[Any, Sequence[str]] | None:
            return None

        return redact

    documents = Documents(PinnedDefinitions(log, all_kinds(), prefix="t"), redaction, HostClock())
    records = [record(0, b"c1:s1", encode_instance(row("c1:s1"))), record(1, b"c2:s1", None)]
    before = await documents.of(records)
    assert asked == [None] and before.definitions == {}
    assert [document.instance_id for document in before.documents] == ["c1:s1"]
    assert before.gone == [Gone("c2:s1", "2023-11-14T22:13:20.000Z")]

    log.put_rows("t.definitions.changelog", 0, {DEFINITION.hash.encode(): DEFINITION.text.encode()})
    await log.flush()
    after = await documents.of(records)
    assert after.definitions == {DEFINITION.hash: (DEFINITION.name, DEFINITION.text)}
    found = asked[-1]
    assert found is not None and found.hash == DEFINITION.hash


async def test_a_row_of_a_newer_release_ends_the_worker(log: SqliteLog) -> None:
    # specification 24.1
    documents = Documents(PinnedDefinitions(log, all_kinds(), prefix="t"), lambda _: lambda _: None, HostClock())
    newer = encode_instance(row("c1:s1")).replace(b'"instance_id"', b'"format":999,"instance_id"', 1)
    with pytest.raises(FormatTooNew):
        await documents.of([record(0, b"c1:s1", newer)])


def test_a_rebuild_knows_the_rows_that_the_log_does_not_have() -> None:
    rebuild = Rebuild("again", until=5)
    rebuild.saw(f"c{number}:s1" for number in range(1000))
    rebuild.saw(["late:s1"])
    assert rebuild.unseen(["c999:s1", "gone:s1", "late:s1"]) == ["gone:s1"]


def test_a_place_that_is_none_of_ours_counts_as_none() -> None:
    assert Place.read("") is None and Place.read("nonsense") is None
    assert Place.read(Place(7, "again", 9).text) == Place(7, "again", 9)

"""The recorder of archives: its recording of today's engine is whole, and folds to its own rows."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from tests.releases import record
from tests.releases.archive import Archive, ArchivedLog, ArchivedRecord, release, releases, write_records
from tests.releases.folding import fold


@pytest.mark.timeout(120)
def test_a_recording_of_the_engine_of_today_is_whole(tmp_path: Path) -> None:
    """Every status, kind of step and type of command is in it, and the commands fold to its rows."""
    archive = Archive(tmp_path / "9.9.9")
    assert record.main([str(archive.folder), "--driver", "sqlite"]) == 0
    log = archive.log("sqlite")
    with structlog.testing.capture_logs():
        assert fold(log).ceremonies == log.newest("ceremonies")
    assert (archive.folder / "specs/asyncapi.yaml").read_bytes() == (record.SPECS / "asyncapi.yaml").read_bytes()
    assert len(list((archive.folder / "proto").rglob("*.proto"))) == 2
    with closing(sqlite3.connect(log.database(tmp_path / "copy.db"))) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_missing_parts_of_a_log_are_named(tmp_path: Path) -> None:
    """A copy of an archive, without its commands and its rows."""
    log = ArchivedLog(tmp_path / "kafka")
    shutil.copytree(release("0.1.0").log("kafka").folder, log.folder)
    assert record.missing(log) == []
    write_records(log.folder / "commands.jsonl.gz", [])
    write_records(log.folder / "ceremonies.changelog.jsonl.gz", [])
    lacking = record.missing(log)
    assert {"PAUSED", "publish asked", "cancel", "an expired stub"} <= set(lacking)
    assert len(lacking) == len(record.STATUSES) + len(record.IN_FLIGHT) + len(record.COMMAND_TYPES) + 1


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Bytes that are no text, no key, a tombstone, headers; the same records give the same file."""
    records = [
        ArchivedRecord("ceremony.commands", 0, 1, 1_000, b"k", None, (("name", b"\xff"),)),
        ArchivedRecord("ceremony.commands", 0, 0, 1_000, None, b"\xff\x00", ()),
    ]
    write_records(tmp_path / "first.jsonl.gz", records)
    write_records(tmp_path / "second.jsonl.gz", reversed(records))
    assert (tmp_path / "first.jsonl.gz").read_bytes() == (tmp_path / "second.jsonl.gz").read_bytes()
    assert ArchivedLog(tmp_path).records("first") == sorted(records, key=lambda one: one.offset)


def test_archives_are_listed_in_the_order_of_their_versions() -> None:
    assert releases()[0].version == "0.1.0"

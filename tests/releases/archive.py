"""Reads the archive of a release: the records of its topics, and the offsets of its readers.

An archive is a folder `tests/releases/<version>/`; its README.md lists its files. It is written by
`tests/releases/record.py` and never changed afterwards.
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

RELEASES = Path(__file__).parent
DRIVERS = ("kafka", "sqlite")
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
# Prefix of every topic of an archive.
PREFIX = "ceremony"


class ArchivedRecord(NamedTuple):
    """One record as the log had it. `timestamp` is the log's append time, in milliseconds since the epoch."""

    topic: str
    """Full name, prefix included."""
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class ArchivedLog:
    """The log of one driver."""

    folder: Path

    @property
    def about(self) -> Mapping[str, Any]:
        """`log.json`: partitions, topics with their ends, positions and committed offsets."""
        found: Mapping[str, Any] = json.loads((self.folder / "log.json").read_text("utf-8"))
        return found

    def topics(self) -> list[str]:
        """Names of the topics without their prefix, in order."""
        return sorted(path.name.removesuffix(".jsonl.gz") for path in self.folder.glob("*.jsonl.gz"))

    def records(self, topic: str) -> list[ArchivedRecord]:
        """Every record of a topic (name without prefix), by partition and offset."""
        with gzip.open(self.folder / f"{topic}.jsonl.gz", "rt", encoding="utf-8") as lines:
            return [read_record(line) for line in lines]

    def newest(self, table: str) -> dict[bytes, bytes]:
        """The rows of a table as its changelog leaves them, by key; keys that begin with a zero byte are no rows."""
        rows: dict[bytes, bytes] = {}
        for record in self.records(f"{table}.changelog"):
            key = record.key or b""
            if key.startswith(b"\0"):
                continue
            rows.pop(key, None)
            if record.value is not None:
                rows[key] = record.value
        return rows

    def ceremonies(self) -> list[dict[str, Any]]:
        """The rows of the table `ceremonies`, decoded as JSON, by instance id."""
        return [json.loads(value) for _, value in sorted(self.newest("ceremonies").items())]

    def in_flight(self) -> set[tuple[str, str]]:
        """Each kind of step that some live ceremony has under way, with the phase that its row shows."""
        definitions = {key.decode(): yaml.safe_load(text) for key, text in self.newest("definitions").items()}
        found = set()
        for row in self.ceremonies():
            if row["status"] in ENDED:
                continue
            handlers = {step["id"]: step["handler"] for step in definitions[row["definition_hash"]]["steps"]}
            found |= {
                (handlers[step_id].removesuffix("_step"), step["phase"])
                for step_id, step in row["steps"].items()
                if "phase" in step
            }
        return found

    def fold(self) -> int:
        """The fold number of the release: the highest in the headers of its events."""
        return max(int(dict(record.headers)["fold"]) for record in self.records("events"))

    def command_types(self) -> set[str]:
        """The `type` of every command that can be read."""
        found = set()
        for record in self.records("commands"):
            with suppress(ValueError):
                found.add(json.loads(record.value or b"")["type"])
        return found

    def database(self, copy: Path) -> Path:
        """Unpack the SQLite file to `copy`; returns that path. Only the driver `sqlite` has one."""
        with gzip.open(self.folder / "log.db.gz") as packed, copy.open("wb") as target:
            shutil.copyfileobj(packed, target)
        return copy


@dataclass(frozen=True, slots=True)
class Archive:
    """One release."""

    folder: Path

    @property
    def version(self) -> str:
        return self.folder.name

    def log(self, driver: str) -> ArchivedLog:
        """The log of `kafka` or `sqlite`."""
        return ArchivedLog(self.folder / driver)


def release(version: str) -> Archive:
    """The archive of a release."""
    return Archive(RELEASES / version)


def releases() -> list[Archive]:
    """Every archive, in the order of the version numbers."""
    found = [Archive(path.parent) for path in RELEASES.glob("*.*.*/README.md")]
    return sorted(found, key=lambda one: [int(part) for part in one.version.split(".")])


def read_record(line: str) -> ArchivedRecord:
    """The record in one line of a `.jsonl` file."""
    data = json.loads(line)
    headers = tuple((name, _bytes(value) or b"") for name, value in data["headers"])
    key, value = _bytes(data["key"]), _bytes(data["value"])
    return ArchivedRecord(data["topic"], data["partition"], data["offset"], data["timestamp"], key, value, headers)


def write_records(path: Path, records: Iterable[ArchivedRecord]) -> None:
    """Write a `.jsonl.gz` file; the same records always give the same bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed:
        for line in _lines(records):
            packed.write(line.encode())


def _lines(records: Iterable[ArchivedRecord]) -> Iterator[str]:
    for record in sorted(records, key=lambda one: (one.partition, one.offset)):
        data = record._asdict() | {
            "key": _text(record.key),
            "value": _text(record.value),
            "headers": [[name, _text(value)] for name, value in record.headers],
        }
        yield json.dumps(data, ensure_ascii=False) + "\n"


def _text(value: bytes | None) -> str | dict[str, str] | None:
    """UTF-8 as text, other bytes as `{"base64": …}`."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _bytes(value: str | Mapping[str, str] | None) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def newest_fold() -> int:
    """The fold number of the newest release in the archive."""
    return max(release(path.parent.name).log("sqlite").fold() for path in RELEASES.glob("*/sqlite"))

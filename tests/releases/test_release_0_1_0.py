"""Release 0.1.0 against the engine of today: its log folds to the same rows, its protos and its file can be read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.client import PlanningCeremonyClient
from msgspec.structs import replace

from bridge.clock import HostClock
from ceremony.settings import Settings
from ceremony.worker import Worker
from ports.provenance import DEFINITION, TRACEPARENT
from steps.registry import all_kinds
from tables.definitions.loader import load, load_pinned
from tables.effects import FOLD
from tables.instance import Phase, decode_instance, encode_instance
from tables.invariants import broken
from tests.contract.asyncapi import validate_message
from tests.e2e.world import until, worker_settings
from tests.releases.archive import DRIVERS, ENDED, ArchivedLog, ArchivedRecord, release
from tests.releases.folding import Folded, fold
from tests.services import free_port

ARCHIVE = release("0.1.0")
PROTO = Path(__file__).parents[2] / "proto"
# SHA-256 over the paths and bytes of its files.
DIGEST = "9f80fc65a3b2d34803db6f071730145616532ccc8099be88be1c00903716686e"
STEP_TOPICS = ("steps.deliberation", "steps.task_extraction", "steps.aggregation", "steps.human_gate", "steps.publish")
# Every difference to the fold of 0.1.0 that is meant, as pattern and replacement in the bytes of rows and effects.
INTENDED = ((rb"(?<=\d)@3(?=\"|$)", b"@%d" % FOLD),)
# Rows hold digests of operations beside their ids, at their end, and why a neighbour is out of reach; nothing
# else of a row is new.
DIGESTS = re.compile(rb',"command_digests":\["[0-9a-f]{16}"(?:,"[0-9a-f]{16}")*\](?=}$)')
# Longer than the gate of `approval` stays open.
TWO_HOURS_SECONDS = 2 * 3600.0
# Longer than any ceremony of the archive may last, and shorter than ended ones are kept.
FORTNIGHT_SECONDS = 15 * 86_400.0


@pytest.fixture(params=DRIVERS, scope="module")
def log(request: pytest.FixtureRequest) -> ArchivedLog:
    return ARCHIVE.log(request.param)


@pytest.fixture(scope="module")
def folded(log: ArchivedLog) -> Iterator[Folded]:
    with structlog.testing.capture_logs():
        yield fold(log)


def comparable(record: ArchivedRecord) -> tuple[object, ...]:
    headers = {name: as_of_today(value) for name, value in record.headers}
    if "fold" in headers:
        headers["fold"] = b"%d" % FOLD
    return record.topic, record.partition, record.key, as_of_today(record.value), tuple(headers.items())


def as_of_today(value: bytes | None) -> bytes:
    """The bytes that the archive would hold had today's fold written them."""
    assert value is not None
    for old, new in INTENDED:
        value = re.sub(old, new, value)
    return value


def without_provenance(headers: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    """The headers that a release had which did not name the ceremony's definition and trace."""
    *ours, definition, trace = headers
    assert (definition[0], trace[0]) == (DEFINITION, TRACEPARENT)
    return tuple(ours)


def row_of_today(value: bytes | None) -> bytes:
    """The bytes of the archived row with its sizes counted as today: bytes of JSON, and approvals and texts too."""
    return encode_instance(decode_instance(as_of_today(value)))


def as_then(value: bytes) -> bytes:
    """A row of today without the parts that 0.1.0 did not keep."""
    row = decode_instance(DIGESTS.sub(b"", value))
    steps = {
        step_id: step.unreachable() if step.phase is Phase.UNREACHABLE else step for step_id, step in row.steps.items()
    }
    reasons = sum(step.gathered - steps[step_id].gathered for step_id, step in row.steps.items())
    return encode_instance(replace(row, steps=steps, size=row.size - reasons))


@pytest.mark.parametrize("topic", ["events", *STEP_TOPICS])
def test_the_commands_fold_to_the_archived_effects(log: ArchivedLog, folded: Folded, topic: str) -> None:
    """Same effects in the same order: keys, values and headers to the byte, effect ids among them."""
    today = [(*one[:4], without_provenance(one.headers)) for one in folded.of(topic)]
    assert today == [comparable(one) for one in log.records(topic)]


def test_the_commands_fold_to_the_archived_rows(log: ArchivedLog, folded: Folded) -> None:
    rows = {key: as_then(row) for key, row in folded.ceremonies.items()}
    assert rows == {key: row_of_today(row) for key, row in log.newest("ceremonies").items()}
    assert folded.definitions == log.newest("definitions")


def test_every_row_that_today_makes_of_the_commands_holds_every_invariant(folded: Folded) -> None:
    """Also in between, and beside its definition."""
    texts = {key.decode(): text.decode() for key, text in folded.definitions.items()}
    for key, versions in folded.history.items():
        for value in versions:
            row = decode_instance(value)
            definition = (
                None if row.expired else load_pinned(texts[row.definition_hash], row.definition_hash, all_kinds())
            )
            assert broken(row, definition) == [], (key, row.version)


def test_every_row_that_a_checkpoint_wrote_is_a_version_of_the_fold(log: ArchivedLog, folded: Folded) -> None:
    for record in log.records("ceremonies.changelog"):
        if record.key is not None and not record.key.startswith(b"\0"):
            assert row_of_today(record.value) in [as_then(row) for row in folded.history[record.key]]


def test_a_position_row_stands_behind_the_last_command(log: ArchivedLog) -> None:
    """The stopped worker had folded everything: nothing in the rows is older than the log."""
    ends = [place["end"] for place in log.about["topics"]["ceremony.commands"]]
    assert [positions(log)[number]["next"] for number in range(3)] == ends


def positions(log: ArchivedLog) -> dict[int, dict[str, Any]]:
    """The newest position row by partition: records of a changelog on Kafka, a table of its own in the SQLite file."""
    if "positions" in log.about:
        stored = log.about["positions"]["ceremony"]
        return {number: stored[f"ceremony.commands/{number}"] for number in range(3)}
    records = [record for record in log.records("ceremonies.changelog") if record.key == b"\0position"]
    return {record.partition: json.loads(record.value or b"") for record in records}


def test_a_dead_letter_is_set_aside_again(log: ArchivedLog, folded: Folded) -> None:
    letters = [dict(record.headers) for record in log.records("deadletters")]
    archived = {(letter["origin"].decode(), letter["error-code"].decode()) for letter in letters}
    assert {(f"ceremony.commands/{number}/{offset}", code) for number, offset, code in folded.dead} == archived
    assert len(archived) == 2


def test_the_archive_was_never_changed() -> None:
    """Another recording needs an archive of its own. Only the words of the README may be improved."""
    digest = hashlib.sha256()
    for path in sorted(path for path in ARCHIVE.folder.rglob("*") if path.is_file() and path.name != "README.md"):
        digest.update(f"{path.relative_to(ARCHIVE.folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    assert digest.hexdigest() == DIGEST


def test_the_archive_has_every_status(log: ArchivedLog) -> None:
    rows = log.ceremonies()
    assert {row["status"] for row in rows} == ENDED | {"RUNNING", "WAITING_FOR_HUMAN", "PAUSED"}
    assert [row["instance_id"] for row in rows if row.get("expired")] == ["merge_chain-expired:S1"]


def test_the_archive_has_every_kind_of_step_in_flight(log: ArchivedLog) -> None:
    assert log.in_flight() == {
        ("deliberation", "submitted"),
        ("deliberation", "backoff"),
        ("deliberation", "unreachable"),
        ("task_extraction", "submitted"),
        ("aggregation", "asked"),
        ("human_gate", "gate"),
        ("publish", "asked"),
    }


def test_the_archive_has_every_type_of_command(log: ArchivedLog) -> None:
    """But for the `noop` on Kafka, which the engine had no need of."""
    types = log.command_types()
    assert types | {"noop"} == {
        "put_definition", "noop", "start", "step_outcome", "agent_result", "trigger", "gate_decision", "timer_fired",
        "cancel", "pause", "resume", "retry_step", "run_step", "restore",
    }  # fmt: skip


def test_the_archived_events_are_as_the_document_of_today_says(log: ArchivedLog) -> None:
    """Both may stand in one stream after an upgrade."""
    records = log.records("events")
    assert records
    for record in records:
        validate_message(dict(record.headers)["subject"].decode(), json.loads(record.value or b""))


@pytest.mark.parametrize(
    "path", sorted((ARCHIVE.folder / "specs/ceremonies").glob("*.yaml")), ids=lambda path: path.stem
)
def test_an_archived_definition_is_valid_today(path: Path) -> None:
    assert load(path.read_text("utf-8"), path.name, all_kinds()).name == path.stem


def breaking(proto: Path) -> subprocess.CompletedProcess[str]:
    """Run `buf breaking` on these protos against the archived ones."""
    buf = Path(sys.executable).with_name("buf")
    command = [str(buf), "breaking", str(proto), "--against", str(ARCHIVE.folder / "proto")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_protos_of_today_break_no_client_of_the_release() -> None:
    found = breaking(PROTO)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_removed_field_would_be_found(tmp_path: Path) -> None:
    copy = tmp_path / "proto"
    shutil.copytree(ARCHIVE.folder / "proto", copy)
    path = copy / "fleet/planning_ceremony/v1/planning_ceremony.proto"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(line for line in lines if "requested_by = 7" not in line), "utf-8")
    found = breaking(copy)
    assert found.returncode != 0
    assert "requested_by" in found.stdout


class ArchivedTime(HostClock):
    """A clock that starts at the end of the archive, and leaps on demand."""

    def __init__(self, wall: float) -> None:
        self._behind = time.time() - wall
        self._leapt = 0.0

    def leap(self, seconds: float) -> None:
        self._leapt += seconds

    def monotonic(self) -> float:
        return time.monotonic() + self._leapt

    def wall(self) -> float:
        return time.time() - self._behind + self._leapt


class Opened:
    """The engine of today on a copy of the archived file, without NATS and without a Ray executor."""

    def __init__(self, clock: ArchivedTime, client: PlanningCeremonyClient) -> None:
        self.clock = clock
        self._client = client

    async def ceremonies(self) -> dict[str, pb.PlanningCeremonyInstance]:
        found = await self._client.list(limit=1000)
        return {one.instance_id: one for one in found.ceremonies}

    async def ended(self, instance_id: str, status: str, state: str) -> bool:
        found = (await self.ceremonies())[instance_id]
        return (found.status, found.current_state) == (status, state)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    archived = ARCHIVE.log("sqlite")
    path = archived.database(tmp_path / "log.db")
    clock = ArchivedTime(max(record.timestamp for record in archived.records("commands")) / 1000)
    unserved = f"127.0.0.1:{free_port()}"
    worker = Worker(Settings(**worker_settings(f"sqlite://{path}", f"nats://{unserved}", unserved)), clock=clock)
    async with worker, PlanningCeremonyClient(f"127.0.0.1:{worker.grpc.port}") as client:
        await until(lambda: worker.readiness.states()["tables"] == "ok", "the tables are read")
        yield Opened(clock, client)


def rows() -> dict[str, dict[str, Any]]:
    """The archived rows of the SQLite driver by instance id."""
    return {row["instance_id"]: row for row in ARCHIVE.log("sqlite").ceremonies()}


@pytest.mark.timeout(60)
async def test_the_engine_of_today_lists_the_ceremonies_of_the_archived_file(opened: Opened) -> None:
    """Every one is there as it was, but for the one whose agent answers now."""
    found, archived = await opened.ceremonies(), rows()
    assert found.keys() == archived.keys()
    moving = {"wide_merge-asked:S1"}
    stands = {name: (one.status, one.current_state) for name, one in found.items() if name not in moving}
    assert stands == {name: (row["status"], row["state"]) for name, row in archived.items() if name not in moving}


@pytest.mark.timeout(60)
async def test_the_live_ceremonies_of_the_archived_file_go_on_and_end(opened: Opened) -> None:
    """Open requests are answered today, deadlines come, and in a fortnight every ceremony has ended."""
    archived = rows()
    merged, declined, failed = "wide_merge-asked:S1", "approval-open-gate:S1", "refinement-silent:S1"
    await until(lambda: opened.ended(merged, "COMPLETED", "MERGED"), "the aggregations asked for are answered")
    opened.clock.leap(TWO_HOURS_SECONDS)
    await until(lambda: opened.ended(declined, "COMPLETED", "DECLINED"), "the deadline of the open gate has come")
    await until(lambda: opened.ended(failed, "FAILED", "REFINING"), "the unanswered deliberation is out of time")
    opened.clock.leap(FORTNIGHT_SECONDS)

    async def all_ended() -> bool:
        return {one.status for one in (await opened.ceremonies()).values()} <= ENDED

    await until(all_ended, "every ceremony has ended")
    found = await opened.ceremonies()
    assert found.keys() == archived.keys()
    assert found["approval-paused:S1"].status == "TIMED_OUT"
    ended = {name for name, row in archived.items() if row["status"] in ENDED}
    assert {name: found[name].version for name in ended} == {name: archived[name]["version"] for name in ended}

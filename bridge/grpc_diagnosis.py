"""The answer to `Diagnose`: what engine, neighbours, log and definitions say, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.definitions_dir import DefinitionsDir
from bridge.grpc_messages import LARGEST_ANSWER, within
from streams.codecs import iso
from streams.front import Diagnosis, Engine, PartitionState, Unavailable
from tables.diagnosis import URGENT, CeremonyDiagnosis

ERROR, WARNING = "error", "warning"
LETTERS_READ = 100_000
"""Dead letters that are counted."""

_PARTITION_TODO = {
    "position_beyond_log_end": "the log lost records that were folded: restore the topic from a replica or a backup",
    "position_below_log_start": "commands were deleted before they were folded: restore them, or rehydrate",
    "log_differs": "the topic was created anew: point the worker at the right cluster, or set CEREMONY_TOPIC_PREFIX",
}
_NEIGHBOUR_TODO = {
    "log": "see that Kafka runs and is reached at CEREMONY_LOG; calls are UNAVAILABLE until then, nothing is lost",
    "tables": "see the partitions below",
    "nats": "see that NATS runs with JetStream at NATS_URL; events wait in the log and are published when it is back",
    "ray_executor": "see that it runs at RAY_EXECUTOR_URL; steps are asked again until their timeout",
}


def of_ceremony(found: Diagnosis) -> pb.DiagnoseResponse:
    """The answer about one ceremony."""
    return pb.DiagnoseResponse(
        healthy=not any(one.verdict in URGENT for one in found.ceremonies),
        at=iso(found.at),
        ceremonies=map(_ceremony, found.ceremonies),
        verdicts=found.verdicts,
        statuses=found.statuses,
    )


async def of_engine(engine: Engine, definitions: DefinitionsDir, states: Mapping[str, str]) -> pb.DiagnoseResponse:
    """The answer about everything this worker sees; what cannot be read now is a finding, not an error."""
    found = await engine.diagnose()
    letters, incomplete = await _dead_letters(engine)
    findings = [
        *_partitions(found.partitions),
        *_neighbours(states),
        *_ceremonies(found.verdicts),
        *_letters(letters),
        *_definitions(definitions),
    ]
    return pb.DiagnoseResponse(
        healthy=not any(finding.severity == ERROR for finding in findings),
        at=iso(found.at),
        findings=sorted(findings, key=lambda finding: finding.severity != ERROR),
        ceremonies=within(map(_ceremony, found.ceremonies), LARGEST_ANSWER // 2),
        verdicts=found.verdicts,
        statuses=found.statuses,
        neighbours=[pb.NeighbourState(name=name, state=state) for name, state in states.items()],
        partitions=map(_partition, found.partitions),
        dead_letters=letters,
        incomplete="; ".join(filter(None, (found.incomplete, incomplete))),
    )


async def _dead_letters(engine: Engine) -> tuple[Counter[str], str]:
    try:
        letters, total = await engine.dead_letters(LETTERS_READ, 0)
    except Unavailable as error:
        return Counter(), f"dead letters: {error.message}"
    more = f"dead letters: only the newest {len(letters)} of {total} are counted" if len(letters) < total else ""
    return Counter(letter.code for letter in letters), more


def _partitions(states: Sequence[PartitionState]) -> Iterator[pb.Finding]:
    for one in states:
        if one.state == "not_served":
            todo = _PARTITION_TODO.get(one.code, "see the worker's log")
            yield _finding(ERROR, one.code, f"partition {one.number}", one.message, todo)
        elif one.state == "recovering":
            yield _finding(WARNING, one.code, f"partition {one.number}", one.message, "wait; it is being taken over")
    elsewhere = [one.number for one in states if one.state == "elsewhere"]
    if elsewhere:
        some = f"{len(elsewhere)} of {len(states)} partitions"
        text = f"this worker does not have {', '.join(map(str, elsewhere))}"
        yield _finding(WARNING, "partitions_elsewhere", some, text, "ask the other workers too")


def _neighbours(states: Mapping[str, str]) -> Iterator[pb.Finding]:
    for name, state in states.items():
        if state != "ok":
            yield _finding(ERROR, "neighbour_down", name, state, _NEIGHBOUR_TODO.get(name, "see /readyz"))


def _ceremonies(verdicts: Mapping[str, int]) -> Iterator[pb.Finding]:
    for verdict in sorted(URGENT):
        if count := verdicts.get(verdict, 0):
            text = f"{count} ceremonies are {verdict}"
            yield _finding(ERROR, f"ceremonies_{verdict}", "ceremonies", text, "they are listed below, with what to do")


def _letters(letters: Mapping[str, int]) -> Iterator[pb.Finding]:
    for code, count in sorted(letters.items()):
        todo = "ceremony deadletters list; then show, and replay once the cause is gone"
        yield _finding(WARNING, "dead_letters", code, f"{count} set aside", todo)


def _definitions(definitions: DefinitionsDir) -> Iterator[pb.Finding]:
    for loaded in definitions.all():
        if loaded.definition is None:
            text = f"{len(loaded.problems)} problems, the first: {next(map(str, loaded.problems), '')}"
            yield _finding(WARNING, "definition_invalid", loaded.name, text, "ceremony definitions; then mend the file")


def _finding(severity: str, code: str, subject: str, message: str, todo: str) -> pb.Finding:
    return pb.Finding(severity=severity, code=code, subject=subject, message=message, todo=todo)


def _partition(one: PartitionState) -> pb.PartitionState:
    return pb.PartitionState(
        partition=one.number, state=one.state, code=one.code, message=one.message, ceremonies=one.ceremonies
    )


def _ceremony(found: CeremonyDiagnosis) -> pb.CeremonyDiagnosis:
    row = found.row
    return pb.CeremonyDiagnosis(
        instance_id=row.instance_id,
        definition_name=row.definition_name,
        status=row.status,
        current_state=row.state,
        verdict=found.verdict,
        since=_time(found.since),
        message=found.message,
        todo=found.todo,
        waits=[
            pb.Wait(
                kind=wait.kind,
                subject=wait.subject,
                message=wait.message,
                since=_time(wait.since),
                due=_time(wait.due),
            )
            for wait in found.waits
        ],
        ways_out=[
            pb.WayOut(
                trigger=way.trigger,
                to_state=way.to_state,
                guards=[pb.GuardState(guard=g.guard, holds=g.holds, reason=g.reason) for g in way.guards],
            )
            for way in found.ways_out
        ],
    )


def _time(at: int) -> str:
    return iso(at) if at else ""

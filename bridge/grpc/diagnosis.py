"""The answer to `Diagnose`: what engine, neighbours, log and definitions say, and what to do about it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.definitions_dir import DefinitionsDir
from bridge.grpc.messages import LARGEST_ANSWER, within
from streams.api import Diagnosis, PartitionState, ReadApi, Unavailable
from streams.envelope import iso
from tables.diagnosis import URGENT, CeremonyDiagnosis, Verdict

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
_KNOWN = ("elsewhere", "not_served", "recovering", "served")
"""States of a partition; of two workers' words about one the later counts."""
_VERDICTS = {str(verdict): number for number, verdict in enumerate(Verdict)}


def of_ceremony(found: Diagnosis) -> pb.DiagnoseResponse:
    """The answer about one ceremony."""
    return pb.DiagnoseResponse(
        healthy=not any(one.verdict in URGENT for one in found.ceremonies),
        at=iso(found.at),
        ceremonies=map(_ceremony, found.ceremonies),
        verdicts=found.verdicts,
        statuses=found.statuses,
    )


async def of_worker(reads: ReadApi, states: Mapping[str, str]) -> pb.DiagnoseResponse:
    """What one worker sees: its ceremonies, its partitions, its neighbours."""
    found = await reads.diagnose()
    return pb.DiagnoseResponse(
        at=iso(found.at),
        ceremonies=within(map(_ceremony, found.ceremonies), LARGEST_ANSWER // 2),
        verdicts=found.verdicts,
        statuses=found.statuses,
        neighbours=[pb.NeighbourState(name=name, state=state) for name, state in states.items()],
        partitions=map(_partition, found.partitions),
        incomplete=found.incomplete,
    )


async def of_engine(
    seen: pb.DiagnoseResponse, reads: ReadApi, definitions: DefinitionsDir, *, all_asked: bool
) -> pb.DiagnoseResponse:
    """The whole answer from what was `seen` by this worker, or by all; what cannot be read now is no error."""
    letters, incomplete = await _dead_letters(reads)
    findings = [
        *_partitions(seen.partitions, all_asked=all_asked),
        *_neighbours(seen.neighbours),
        *_ceremonies(seen.verdicts),
        *_letters(letters),
        *_definitions(definitions),
    ]
    seen.healthy = not any(finding.severity == ERROR for finding in findings)
    seen.findings.extend(sorted(findings, key=lambda finding: finding.severity != ERROR))
    seen.dead_letters.update(letters)
    seen.incomplete = "; ".join(filter(None, (seen.incomplete, incomplete)))
    return seen


def merged(
    own: pb.DiagnoseResponse, others: Mapping[str, pb.DiagnoseResponse], silent: Collection[str]
) -> pb.DiagnoseResponse:
    """What all workers see; `others` by their address, `silent` are those that did not answer."""
    answers = [own, *others.values()]
    ceremonies = heapq.merge(*(answer.ceremonies for answer in answers), key=_gravity)
    incomplete = [own.incomplete, *(f"{where}: {one.incomplete}" for where, one in others.items() if one.incomplete)]
    if silent:
        incomplete.append(f"no answer from {', '.join(sorted(silent))}")
    return pb.DiagnoseResponse(
        at=own.at,
        ceremonies=within(ceremonies, LARGEST_ANSWER // 2),
        verdicts=sum((Counter(answer.verdicts) for answer in answers), Counter()),
        statuses=sum((Counter(answer.statuses) for answer in answers), Counter()),
        neighbours=[*own.neighbours, *_unlike(own, others)],
        partitions=[
            max(some, key=lambda one: _KNOWN.index(one.state))
            for some in zip(*(answer.partitions for answer in answers), strict=True)
        ],
        incomplete="; ".join(filter(None, incomplete)),
    )


def _gravity(one: pb.CeremonyDiagnosis) -> tuple[int, str]:
    return _VERDICTS.get(one.verdict, 0), one.since


def _unlike(own: pb.DiagnoseResponse, others: Mapping[str, pb.DiagnoseResponse]) -> Iterator[pb.NeighbourState]:
    """What another worker sees of a neighbour, where it is not what we see."""
    ours = {one.name: one.state for one in own.neighbours}
    for where, answer in others.items():
        for one in answer.neighbours:
            if one.state != ours.get(one.name):
                yield pb.NeighbourState(name=f"{one.name} of {where}", state=one.state)


async def _dead_letters(reads: ReadApi) -> tuple[Counter[str], str]:
    try:
        letters, total = await reads.dead_letters(LETTERS_READ, 0)
    except Unavailable as error:
        return Counter(), f"dead letters: {error.message}"
    more = f"dead letters: only the newest {len(letters)} of {total} are counted" if len(letters) < total else ""
    return Counter(letter.code for letter in letters), more


def _partitions(states: Sequence[pb.PartitionState], *, all_asked: bool) -> Iterator[pb.Finding]:
    for one in states:
        if one.state == "not_served":
            todo = _PARTITION_TODO.get(one.code, "see the worker's log")
            yield _finding(ERROR, one.code, f"partition {one.partition}", one.message, todo)
        elif one.state == "recovering":
            yield _finding(WARNING, one.code, f"partition {one.partition}", one.message, "wait; it is being taken over")
    elsewhere = [one.partition for one in states if one.state == "elsewhere"]
    if not elsewhere:
        return
    some = f"{len(elsewhere)} of {len(states)} partitions"
    if all_asked:
        text = f"no worker has answered for {', '.join(map(str, elsewhere))}"
        todo = "see that all workers run and reach each other; a partition that moves has an owner within seconds"
        yield _finding(ERROR, "partitions_unanswered", some, text, todo)
    else:
        text = f"this worker does not have {', '.join(map(str, elsewhere))}"
        yield _finding(WARNING, "partitions_elsewhere", some, text, "ask the other workers too")


def _neighbours(states: Iterable[pb.NeighbourState]) -> Iterator[pb.Finding]:
    for one in states:
        if one.state != "ok":
            todo = _NEIGHBOUR_TODO.get(one.name.partition(" of ")[0], "see /readyz")
            yield _finding(ERROR, "neighbour_down", one.name, one.state, todo)


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

"""Answers `Diagnose`: the state of ceremonies, partitions, neighbours, dead letters and definitions, with remedies.

Every worker diagnoses its own partitions and neighbours. The worker that a client asks calls all others, merges their
answers, and names those that did not answer.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.definitions import DefinitionFolder
from bridge.grpc.messages import LARGEST_ANSWER_BYTES, MESSAGES_PER_PIECE, as_many_as_fit
from bridge.grpc.peers import SERVICE, Peers, silent
from bridge.grpc.refusals import Context, abort
from ports.clock import Clock
from ports.health import OK, NeighbourHealth
from streams.api import Diagnosis, Directory, PartitionState, ReadApi, Unavailable
from streams.envelope import iso
from streams.turns import Turns
from tables.diagnosis import URGENT, CeremonyDiagnosis, CeremonyVerdict

log = structlog.get_logger(__name__)

DIAGNOSE = f"/{SERVICE}/Diagnose"
# Deadline of another worker's answer; that worker stops reading its ceremonies after five seconds.
ANSWER_SECONDS = 8.0
ERROR, WARNING = "error", "warning"

# Gives the answer of this worker alone.
DiagnoseHere = Callable[[], Awaitable[pb.DiagnoseResponse]]

_PARTITION_TODO = {
    "position_beyond_log_end": "the log lost records that were folded: restore the topic from a replica or a backup",
    "position_below_log_start": "commands were deleted before they were folded: restore them, or rehydrate",
    "log_differs": "the topic was created anew: point the worker at the right cluster, or set CEREMONY_TOPIC_PREFIX",
}
_NEIGHBOUR_TODO = {
    "log": "see that Kafka runs and is reached at CEREMONY_LOG; calls are UNAVAILABLE until then, nothing is lost",
    "tables": "see the partitions below",
    "nats": "see that NATS runs with JetStream at NATS_URL; events wait in the log and are published when it is back",
    "publications": "mend the streams that publish steps send to; steps ask again until their timeout",
    "valkey": "see that it runs at VALKEY_HOST; rows wait in the log, and publish steps rely on the ceremony's row",
    "valkey_history": "see that Valkey runs at VALKEY_HOST; events wait in the log and are copied when it is back",
    "neo4j": "see that it runs at NEO4J_URI; rows wait in the log and are written when it is back",
    "ray_executor": "see that it runs at RAY_EXECUTOR_URL; steps are asked again until their timeout",
}
# The state of NATS or of publications while it answers, and refuses what it is asked for.
REFUSES = re.compile(r"\b(stream|durable) [^\s.*>/\\]+:? ")
# In the state of a stream that refuses, which names its own time.
SINCE = "; since "
_STREAM_TODO = "mend the stream or the consumer as its state says; what waits is kept, and goes on by itself"
# States of a partition. When workers report different states of one partition, the last in this order counts.
_KNOWN = ("elsewhere", "not_served", "recovering", "served")
_VERDICTS = {str(verdict): number for number, verdict in enumerate(CeremonyVerdict)}


class AllWorkersDiagnosis:
    """Asks all known workers, including those without partitions: each has its own neighbours."""

    def __init__(self, directory: Directory, peers: Peers, clock: Clock, diagnose_here: DiagnoseHere) -> None:
        self._directory = directory
        self._peers = peers
        self._clock = clock
        self._diagnose_here = diagnose_here

    async def diagnose(self) -> pb.DiagnoseResponse:
        calls = {
            address: self._peers.stream(address, DIAGNOSE)(b"", timeout=ANSWER_SECONDS)
            for address in self._directory.addresses()
        }
        answers: dict[str, pb.DiagnoseResponse] = {}
        try:
            frozen = await silent(calls, self._clock)
            own = await self._diagnose_here()
            for address, call in calls.items():
                if address in frozen:
                    log.warning("diagnosis_unanswered", worker=address, status="no sign of an answer")
                    continue
                try:
                    answers[address] = pb.DiagnoseResponse.FromString(await call.read())
                except grpc.aio.AioRpcError as error:
                    log.warning("diagnosis_unanswered", worker=address, status=error.code().name)
        finally:
            for call in calls.values():
                call.cancel()
        return merge(own, answers, calls.keys() - answers.keys())


class DiagnosisHandler(grpc.GenericRpcHandler):
    """Answers the calls of other workers."""

    def __init__(self, diagnose_here: DiagnoseHere) -> None:
        self._diagnose_here = diagnose_here

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == DIAGNOSE:
            return grpc.unary_unary_rpc_method_handler(self._diagnose, bytes, bytes)
        return None

    async def _diagnose(self, _: bytes, context: Context[Any, Any]) -> bytes:
        try:
            await context.send_initial_metadata(())  # the sign that this worker is not frozen
            return (await self._diagnose_here()).SerializeToString()
        except Exception as error:  # noqa: BLE001 - every error becomes a status with a code
            await abort(context, error)


def ceremony_answer(found: Diagnosis) -> pb.DiagnoseResponse:
    """The answer about one ceremony."""
    return pb.DiagnoseResponse(
        healthy=not any(one.verdict in URGENT for one in found.ceremonies),
        at=iso(found.at),
        ceremonies=map(_ceremony, found.ceremonies),
        verdicts=found.verdicts,
        statuses=found.statuses,
    )


async def worker_answer(reads: ReadApi, neighbours: Mapping[str, NeighbourHealth], turns: Turns) -> pb.DiagnoseResponse:
    """The answer of one worker about its ceremonies, partitions and neighbours."""
    found = await reads.diagnose()
    ceremonies = await turns.run(_ceremonies_in_pieces(found.ceremonies))
    return pb.DiagnoseResponse(
        at=iso(found.at),
        ceremonies=as_many_as_fit(ceremonies, LARGEST_ANSWER_BYTES // 2),
        verdicts=found.verdicts,
        statuses=found.statuses,
        neighbours=[_neighbour(name, health) for name, health in neighbours.items()],
        partitions=map(_partition, found.partitions),
        incomplete=found.incomplete,
        findings=[*_log(found), *_clock(found)],
    )


async def add_findings(
    answer: pb.DiagnoseResponse, reads: ReadApi, definitions: DefinitionFolder, *, all_asked: bool
) -> pb.DiagnoseResponse:
    """Add findings and dead letters to the answer of one worker or of all; unreadable parts are named, not raised."""
    letters, incomplete = await _dead_letters(reads)
    findings = [
        *answer.findings,
        *_partitions(answer.partitions, all_asked=all_asked),
        *_neighbours(answer.neighbours),
        *_ceremonies(answer.verdicts),
        *_letters(letters),
        *_definitions(definitions),
    ]
    answer.healthy = not any(finding.severity == ERROR for finding in findings)
    del answer.findings[:]
    answer.findings.extend(sorted(findings, key=lambda finding: finding.severity != ERROR))
    answer.dead_letters.update(letters)
    answer.incomplete = "; ".join(filter(None, (answer.incomplete, incomplete)))
    return answer


def merge(
    own: pb.DiagnoseResponse, others: Mapping[str, pb.DiagnoseResponse], silent: Collection[str]
) -> pb.DiagnoseResponse:
    """The answer of all workers; `others` by their address, `silent` holds the addresses that did not answer."""
    answers = [own, *others.values()]
    ceremonies = heapq.merge(*(answer.ceremonies for answer in answers), key=_gravity)
    incomplete = [own.incomplete, *(f"{where}: {one.incomplete}" for where, one in others.items() if one.incomplete)]
    if silent:
        incomplete.append(f"no answer from {', '.join(sorted(silent))}")
    return pb.DiagnoseResponse(
        at=own.at,
        ceremonies=as_many_as_fit(ceremonies, LARGEST_ANSWER_BYTES // 2),
        verdicts=sum((Counter(answer.verdicts) for answer in answers), Counter()),
        statuses=sum((Counter(answer.statuses) for answer in answers), Counter()),
        neighbours=[*own.neighbours, *_differing_neighbours(own, others)],
        partitions=[
            max(some, key=lambda one: _KNOWN.index(one.state))
            for some in zip(*(answer.partitions for answer in answers), strict=True)
        ],
        incomplete="; ".join(filter(None, incomplete)),
        findings=[*own.findings, *_of_others(others)],
    )


def _gravity(one: pb.CeremonyDiagnosis) -> tuple[int, str]:
    return _VERDICTS.get(one.verdict, 0), one.since


def _differing_neighbours(
    own: pb.DiagnoseResponse, others: Mapping[str, pb.DiagnoseResponse]
) -> Iterator[pb.NeighbourState]:
    """Neighbour states that another worker reports and this worker does not."""
    known = {one.name: one.state for one in own.neighbours}
    for where, answer in others.items():
        for one in answer.neighbours:
            if one.state != known.get(one.name):
                yield pb.NeighbourState(
                    name=f"{one.name} of {where}",
                    state=one.state,
                    code=one.code,
                    since=one.since,
                    latency_ms=one.latency_ms if one.HasField("latency_ms") else None,
                )


def _of_others(others: Mapping[str, pb.DiagnoseResponse]) -> Iterator[pb.Finding]:
    """Findings of other workers, each with its worker."""
    for where, answer in others.items():
        for one in answer.findings:
            yield _finding(one.severity, one.code, f"{one.subject} of {where}", one.message, one.todo)


def _log(found: Diagnosis) -> Iterator[pb.Finding]:
    for warning in found.log_warnings:
        yield _finding(WARNING, warning.code, "the log", warning.message, warning.remedy)


def _clock(found: Diagnosis) -> Iterator[pb.Finding]:
    if found.clock_ahead is not None:
        by, at = found.clock_ahead
        text = f"an append time was {by / 1000:,.0f} s ahead of the others at {iso(at)}: a broker's clock was wrong"
        todo = "see that the clocks of all brokers are kept by NTP; timers that it moved are put right"
        yield _finding(WARNING, "clock_ahead", "the log", text, todo)


async def _dead_letters(reads: ReadApi) -> tuple[Mapping[str, int], str]:
    try:
        letters, total = await reads.dead_letter_counts()
    except Unavailable as error:
        return {}, f"dead letters: {error.message}"
    counted = sum(letters.values())
    return letters, f"dead letters: only the newest {counted} of {total} are counted" if counted < total else ""


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
        if one.state != OK:
            todo = _NEIGHBOUR_TODO.get(one.name.partition(" of ")[0], "see /readyz")
            if REFUSES.search(one.state) is not None:
                todo = _STREAM_TODO
            since = f"; since {one.since}" if one.since and SINCE not in one.state else ""
            yield _finding(ERROR, "neighbour_down", one.name, one.state + since, todo)


def _ceremonies(verdicts: Mapping[str, int]) -> Iterator[pb.Finding]:
    for verdict in sorted(URGENT):
        if count := verdicts.get(verdict, 0):
            text = f"{count} ceremonies are {verdict}"
            yield _finding(
                ERROR, f"ceremonies_{verdict}", "ceremonies", text, "they are listed below, each with its remedy"
            )


def _letters(letters: Mapping[str, int]) -> Iterator[pb.Finding]:
    for code, count in sorted(letters.items()):
        todo = "ceremony deadletters list; then show, and replay once the cause is gone"
        yield _finding(WARNING, "dead_letters", code, f"{count} set aside", todo)


def _definitions(definitions: DefinitionFolder) -> Iterator[pb.Finding]:
    for loaded in definitions.all():
        if loaded.definition is None:
            text = f"{len(loaded.problems)} problems, the first: {next(map(str, loaded.problems), '')}"
            yield _finding(WARNING, "definition_invalid", loaded.name, text, "ceremony definitions; then mend the file")


def _finding(severity: str, code: str, subject: str, message: str, todo: str) -> pb.Finding:
    return pb.Finding(severity=severity, code=code, subject=subject, message=message, todo=todo)


def _neighbour(name: str, health: NeighbourHealth) -> pb.NeighbourState:
    return pb.NeighbourState(
        name=name, state=health.state, code=health.code, since=_time(health.since), latency_ms=health.latency_ms
    )


def _partition(one: PartitionState) -> pb.PartitionState:
    return pb.PartitionState(
        partition=one.number, state=one.state, code=one.code, message=one.message, ceremonies=one.ceremonies
    )


def _ceremonies_in_pieces(found: Iterable[CeremonyDiagnosis]) -> Generator[None, None, list[pb.CeremonyDiagnosis]]:
    made = []
    for one in found:
        made.append(_ceremony(one))
        if len(made) % MESSAGES_PER_PIECE == 0:
            yield
    return made


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

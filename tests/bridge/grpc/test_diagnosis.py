"""A diagnosis over all workers: merging their answers, and naming workers without an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.clock import HostClock
from bridge.grpc.diagnosis import AllWorkersDiagnosis, add_findings, merge, worker_answer
from bridge.grpc.peers import Peers
from ports.log import LogWarning
from streams.api import Diagnosis, PartitionState, Unavailable
from streams.log_clock import ClockAhead
from streams.turns import Turns
from tests.bridge.health import health_of
from tests.services import free_port


def seen(
    states: Sequence[str], ceremonies: Sequence[tuple[str, str]] = (), nats: str = "ok", incomplete: str = ""
) -> pb.DiagnoseResponse:
    """A worker's answer, from the state of each partition and (verdict, since) of its ceremonies."""
    verdicts: dict[str, int] = {}
    for verdict, _ in ceremonies:
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
    return pb.DiagnoseResponse(
        at="2026-01-01T00:00:00Z",
        partitions=[pb.PartitionState(partition=n, state=state) for n, state in enumerate(states)],
        ceremonies=[pb.CeremonyDiagnosis(verdict=verdict, since=since) for verdict, since in ceremonies],
        verdicts=verdicts,
        statuses={"RUNNING": len(ceremonies)},
        neighbours=[pb.NeighbourState(name="log", state="ok"), pb.NeighbourState(name="nats", state=nats)],
        incomplete=incomplete,
    )


class NoLetters:
    async def dead_letter_counts(self) -> Any:
        raise Unavailable("the log cannot be reached")


async def whole(answer: pb.DiagnoseResponse) -> pb.DiagnoseResponse:
    nothing: Any = SimpleNamespace(all=list)
    engine: Any = NoLetters()
    return await add_findings(answer, engine, nothing, all_asked=True)


def codes(found: pb.DiagnoseResponse) -> Mapping[str, str]:
    return {finding.code: finding.message for finding in found.findings}


async def test_the_engine_is_healthy_when_the_workers_serve_all_partitions() -> None:
    own, other = seen(["served", "elsewhere"]), seen(["elsewhere", "served"])
    found = await whole(merge(own, {"b:1": other}, []))
    assert [one.state for one in found.partitions] == ["served", "served"]
    assert found.healthy and not found.findings


async def test_a_partition_that_no_worker_serves_is_an_error() -> None:
    """Its owner gave no answer, or it has none, so its ceremonies are not checked."""
    # specification 14.14
    found = await whole(merge(seen(["served", "elsewhere", "elsewhere"]), {}, ["b:1"]))
    assert codes(found)["partitions_unanswered"] == "no worker has answered for 1, 2"
    assert not found.healthy
    assert found.incomplete.startswith("no answer from b:1")


async def test_ceremonies_of_all_workers_are_counted_and_the_gravest_come_first() -> None:
    # specification 14.14, 14.15
    own = seen(["served"], [("overdue", "2026-01-03"), ("waiting_for_human", "2026-01-01")], incomplete="5 not")
    other = seen(["elsewhere"], [("stuck", "2026-01-09"), ("overdue", "2026-01-02")], incomplete="7 not")
    found = await whole(merge(own, {"b:1": other}, []))
    assert [(one.verdict, one.since) for one in found.ceremonies] == [
        ("stuck", "2026-01-09"),
        ("overdue", "2026-01-02"),
        ("overdue", "2026-01-03"),
        ("waiting_for_human", "2026-01-01"),
    ]
    assert dict(found.verdicts) == {"stuck": 1, "overdue": 2, "waiting_for_human": 1}
    assert dict(found.statuses) == {"RUNNING": 4}
    assert {"ceremonies_stuck", "ceremonies_overdue"} <= codes(found).keys()
    assert found.incomplete.startswith("5 not; b:1: 7 not")


async def test_a_neighbour_that_only_one_worker_misses_is_listed_with_that_worker() -> None:
    found = await whole(merge(seen(["served"]), {"b:1": seen(["elsewhere"], nats="not connected")}, []))
    assert [(one.name, one.state) for one in found.neighbours][2:] == [("nats of b:1", "not connected")]
    assert [(finding.code, finding.subject) for finding in found.findings] == [("neighbour_down", "nats of b:1")]
    assert "NATS_URL" in found.findings[0].todo


async def test_a_worker_without_an_answer_is_named() -> None:
    """It is asked because it sent a heartbeat a moment ago."""
    silent = f"127.0.0.1:{free_port()}"
    directory: Any = SimpleNamespace(addresses=lambda: {silent})
    peers = Peers(directory.addresses)

    async def look() -> pb.DiagnoseResponse:
        return seen(["served", "elsewhere"])

    found = await AllWorkersDiagnosis(directory, peers, HostClock(), look).diagnose()
    await peers.close()
    assert found.incomplete == f"no answer from {silent}"
    assert [one.state for one in found.partitions] == ["served", "elsewhere"]


async def test_a_clock_that_was_ahead_is_a_warning_of_each_worker_that_saw_it() -> None:
    # specification 18.14
    seen_ahead = ClockAhead(86_400_000, 1_700_000_000_000)
    ahead = Diagnosis(0, [], {}, {}, [PartitionState(0, "served")], clock_ahead=seen_ahead)

    async def diagnose() -> Diagnosis:
        return ahead

    reads: Any = SimpleNamespace(diagnose=diagnose)
    turns = Turns(HostClock())
    own, other = await worker_answer(reads, {}, turns), await worker_answer(reads, {}, turns)
    found = await whole(merge(own, {"b:1": other}, []))
    assert [(one.severity, one.code, one.subject) for one in found.findings] == [
        ("warning", "clock_ahead", "the log"),
        ("warning", "clock_ahead", "the log of b:1"),
    ]
    assert "86,400 s ahead of the others at 2023-11-14T22:13:20" in found.findings[0].message
    assert found.healthy


async def test_a_stream_that_refuses_has_another_remedy_than_a_server_that_is_down() -> None:
    # specification 16.10
    refused = "stream CEREMONY takes no events: maximum messages exceeded (10077); since 2026, 5 events wait"
    found = await whole(seen(["served"], nats=refused))
    (finding,) = found.findings
    assert (finding.code, finding.message) == ("neighbour_down", refused)
    assert finding.todo.startswith("mend the stream or the consumer")
    (down,) = (await whole(seen(["served"], nats="unreachable: OSError"))).findings
    assert down.todo.startswith("see that NATS runs")


async def test_a_stream_that_refuses_publications_is_found_under_any_name() -> None:
    # specification 16.11
    answer = seen(["served"])
    refused = "stream ORDERS_2 does not take a message: maximum messages exceeded (10077); since 2026, 5 messages wait"
    answer.neighbours.add(name="publications", state=refused)
    (finding,) = (await whole(answer)).findings
    assert (finding.subject, finding.message) == ("publications", refused)
    assert finding.todo.startswith("mend the stream or the consumer")


async def test_a_shortcoming_of_the_log_is_a_warning() -> None:
    # specification 22.16
    few = LogWarning("topic_replicas_few", "c.commands have 1 replicas", "kafka-reassign-partitions")
    found = Diagnosis(0, [], {}, {}, [PartitionState(0, "served")], log_warnings=[few])

    class Reads:
        async def diagnose(self) -> Diagnosis:
            return found

    reads: Any = Reads()
    answer = await whole(await worker_answer(reads, {"log": health_of("ok")}, Turns(HostClock())))
    (finding,) = answer.findings
    assert (finding.severity, finding.code, finding.todo) == ("warning", few.code, few.remedy)
    assert answer.healthy

"""The sweep examines changed rows, finds stuck ceremonies, and keeps to its share of time; so does the doctor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from streams import stuck
from streams.api import PartitionState
from streams.doctor import DETAILED_PER_VERDICT, Doctor
from streams.metrics import Metrics
from streams.stuck import ROWS_PER_TURN, StuckSweep
from streams.topics import CEREMONIES
from streams.turns import Turns
from tables.definition import Definition
from tables.diagnosis import waiting_for
from tables.instance import CeremonyStatus, Instance, Phase
from tests.streams.fakes import HandClock, MemoryView
from tests.tables.fold.test_operations import BODY
from tests.tables.world import World, definition_of

DEFINITION = definition_of(BODY)


def pinned(*_: object) -> Definition:
    return DEFINITION


class BusyClock(HandClock):
    """Each reading advances it by a tenth of the sweep's budget."""

    async def sleep(self, seconds: float) -> None:
        if seconds:
            await super().sleep(seconds)
        self.seconds += stuck.BUDGET_SECONDS / 10


class Site:
    def __init__(self) -> None:
        self.clock = BusyClock()
        self.metrics = Metrics(CollectorRegistry())
        self.sweep = StuckSweep(self.clock, self.metrics, pinned)
        self.view = MemoryView()
        world = World(DEFINITION)
        world.start(a=1)
        self.sound = world.live
        world.cancel()
        self.ended = world.live
        idle = {name: replace(step, phase=Phase.NONE) for name, step in self.sound.steps.items()}
        self.stuck = replace(self.sound, steps=idle, timers={})

    def put(self, row: Instance, *names: str) -> None:
        for name in names:
            self.view.put(replace(row, instance_id=name))

    def gauge(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines  # type: ignore[misc]  # structlog's own type of a line


async def test_all_rows_of_a_taken_partition_are_examined(site: Site, logs: list[dict[str, object]]) -> None:
    # specification 12.11
    site.put(site.sound, "a:s", "b:s")
    site.put(site.ended, "c:s")
    site.put(site.stuck, "d:s")
    site.sweep.taken(site.view)
    await site.sweep.turn()
    assert site.sweep.stuck == ["d:s"]
    assert site.gauge("ceremony_stuck") == 1
    by_status = {status: site.gauge("ceremony_instances_by_status", status=status) for status in CeremonyStatus}
    assert {status: count for status, count in by_status.items() if count} == {"RUNNING": 3, "CANCELLED": 1}
    assert [(line["event"], line["instance"]) for line in logs] == [("ceremony_stuck", "d:s")]


async def test_only_changed_rows_are_examined_again(site: Site) -> None:
    site.put(site.sound, "a:s")
    site.put(site.stuck, "b:s")
    site.sweep.taken(site.view)
    await site.sweep.turn()
    site.put(site.stuck, "a:s")
    site.put(site.ended, "b:s")
    site.sweep.changed(0, [b"a:s"])
    await site.sweep.turn()
    assert site.sweep.stuck == ["a:s", "b:s"]
    site.sweep.changed(0, [b"b:s"])
    await site.sweep.turn()
    assert site.sweep.stuck == ["a:s"]
    assert site.gauge("ceremony_instances_by_status", status="CANCELLED") == 1


async def test_a_deleted_row_is_no_longer_counted(site: Site) -> None:
    site.put(site.stuck, "a:s")
    site.sweep.taken(site.view)
    await site.sweep.turn()
    del site.view.tables[CEREMONIES][b"a:s"]
    site.sweep.changed(0, [b"a:s"])
    await site.sweep.turn()
    assert (site.gauge("ceremony_stuck"), site.gauge("ceremony_instances_by_status", status="RUNNING")) == (0, 0)


async def test_a_lost_partition_is_no_longer_counted(site: Site) -> None:
    site.put(site.stuck, "a:s", "b:s")
    site.sweep.taken(site.view)
    await site.sweep.turn()
    site.sweep.lost(0)
    site.sweep.changed(0, [b"a:s"])
    await site.sweep.turn()
    assert (site.gauge("ceremony_stuck"), site.gauge("ceremony_instances_by_status", status="RUNNING")) == (0, 0)


async def test_rows_above_the_budget_wait_for_the_next_turn(site: Site) -> None:
    """A turn ends when its time is up; in the end every row was examined."""
    total = 25 * ROWS_PER_TURN
    site.put(site.sound, *(f"c{number}:s" for number in range(total)))
    site.sweep.taken(site.view)
    turns = 0
    while site.sweep.counts[CeremonyStatus.RUNNING] < total:
        before = site.sweep.counts[CeremonyStatus.RUNNING]
        await site.sweep.turn()
        turns += 1
        assert site.sweep.counts[CeremonyStatus.RUNNING] - before <= 10 * ROWS_PER_TURN
    assert turns == 3


async def test_a_row_that_cannot_be_judged_counts_as_stuck_and_the_others_are_judged(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(row: Instance, definition: Definition) -> list[str]:
        if row.instance_id == "b:s":
            raise ValueError("a bug")
        return waiting_for(row, definition)

    monkeypatch.setattr(stuck, "waiting_for", judged)
    site.put(site.sound, "a:s", "b:s", "c:s")
    site.sweep.taken(site.view)
    with structlog.testing.capture_logs():
        await site.sweep.turn()
    assert site.sweep.stuck == ["b:s"]
    assert site.sweep.counts[CeremonyStatus.RUNNING] == 3


# -- the doctor, which examines all rows on request


def doctor(site: Site, now: int = 0) -> Doctor:
    return Doctor(site.clock, pinned, now, Turns(site.clock))


async def test_the_doctor_counts_all_and_details_the_oldest_of_each_verdict_gravest_first(site: Site) -> None:
    site.put(site.ended, "e:s")
    site.put(site.stuck, "x:s")
    for number in range(DETAILED_PER_VERDICT + 5):
        site.put(replace(site.sound, updated_at=site.sound.updated_at + number), f"m{number:02}:s")
    found = await doctor(site).all([site.view], [PartitionState(0, "served")])
    assert found.verdicts == {"ended": 1, "stuck": 1, "moving": DETAILED_PER_VERDICT + 5}
    assert found.statuses == {"CANCELLED": 1, "RUNNING": DETAILED_PER_VERDICT + 6}
    detailed = [one.row.instance_id for one in found.ceremonies]
    assert detailed == ["x:s", *(f"m{number:02}:s" for number in range(DETAILED_PER_VERDICT))]
    assert not found.incomplete


async def test_the_doctor_reports_the_rows_it_had_no_time_for(site: Site) -> None:
    site.put(site.sound, *(f"c{number}:s" for number in range(5 * ROWS_PER_TURN)))
    site.clock.seconds = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stuck, "BUDGET_SECONDS", 20.0)  # each slice takes two seconds by this clock
        found = await doctor(site).all([site.view], [])
    assert found.verdicts == {"moving": 3 * ROWS_PER_TURN}
    assert found.incomplete.startswith(f"{2 * ROWS_PER_TURN} ceremonies were not looked at")

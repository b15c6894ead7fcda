"""The waits of a partition are known by kind, with the oldest, without a look at all rows."""

from __future__ import annotations

import random

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from streams.metrics import Metrics
from streams.stuck import StuckSweep
from streams.waits import ATTEMPT, GATE, GUARD, PAUSE, SPARE_ENTRIES, Earliest, PartitionWaits, merged, waits_of
from tables.instance import Instance
from tests.streams.fakes import MemoryView
from tests.streams.test_outcomes import MIXED
from tests.streams.test_stuck import BusyClock
from tests.tables.world import BEGIN, World, definition_of

GUARDED = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, guards: [agreed], description: d}
guards:
  agreed: {type: human, check: somebody agrees}
steps: []
"""
DEFINITION = definition_of(MIXED)


def at_a_gate(seconds: float = 0) -> World:
    """A ceremony whose gate opened so many seconds after it began."""
    world = World(DEFINITION)
    world.start(a=1)
    world.done("one")
    world.wait(seconds)
    world.opened("gate")
    return world


def renamed(row: Instance, name: str, started_at: int) -> Instance:
    """A ceremony of another name, whose gate opened then."""
    steps = row.steps | {"gate": replace(row.steps["gate"], started_at=started_at)}
    return replace(row, instance_id=name, steps=steps)


def test_each_kind_of_wait_has_the_time_since_which_it_lasts() -> None:
    world = World(DEFINITION)
    world.start(a=1)
    assert dict(waits_of(world.live, DEFINITION)) == {ATTEMPT: BEGIN}
    world.wait(5)
    world.done("one")
    world.opened("gate")
    assert dict(waits_of(world.live, DEFINITION)) == {GATE: BEGIN + 5000}
    world.wait(5)
    world.pause()
    assert dict(waits_of(world.live, DEFINITION)) == {GATE: BEGIN + 5000, PAUSE: BEGIN + 10_000}


def test_a_human_guard_is_awaited_since_the_last_change() -> None:
    world = World(definition_of(GUARDED.replace("steps: []\n", MIXED[MIXED.index("steps:") :])))
    world.start(a=1)
    world.wait(3)
    world.done("one")
    assert dict(waits_of(world.live, world.definition))[GUARD] == BEGIN + 3000


def test_the_earliest_of_many_that_come_and_go_is_always_known() -> None:
    """As a scan of all would find it; entries that are out of date stay bounded."""
    chance, earliest, truth = random.Random(7), Earliest(), dict[bytes, int]()
    for _ in range(5000):
        key = b"%d" % chance.randrange(40)
        if chance.random() < 0.4:
            truth.pop(key, None)
            earliest.put(key, None)
        else:
            truth[key] = 1 + chance.randrange(1000)
            earliest.put(key, truth[key])
        assert earliest.first == min(truth.values(), default=None)
        assert len(earliest) == len(truth)
        assert len(earliest._heap) <= 2 * len(truth) + SPARE_ENTRIES


def test_gates_are_counted_by_definition_until_they_close() -> None:
    waits, world = PartitionWaits(), at_a_gate()
    waits.put(b"a", world.live, DEFINITION)
    waits.put(b"b", world.live, DEFINITION)
    waits.put(b"a", world.live, DEFINITION)
    assert waits.gates == {"probe": 2}
    world.decide("gate", role="PO")
    waits.remove(b"a")
    assert waits.gates == {"probe": 1}
    waits.put(b"b", world.live, None)
    assert waits.gates["probe"] == 0


def test_partitions_are_merged_to_the_oldest_of_each_kind() -> None:
    one, other = PartitionWaits(), PartitionWaits()
    one.put(b"a", at_a_gate(50).live, DEFINITION)
    other.put(b"b", at_a_gate(20).live, DEFINITION)
    found = {kind: (count, since) for kind, count, since in merged([one, other, PartitionWaits()])}
    assert found[GATE] == (2, BEGIN)
    assert found[PAUSE] == (0, None)


async def test_a_wait_whose_start_is_unknown_counts_and_hides_no_older_one() -> None:
    # specification 29.2
    metrics, view, row = Metrics(CollectorRegistry()), MemoryView(), at_a_gate().live
    sweep = StuckSweep(BusyClock(), metrics, lambda *_: DEFINITION, lambda: BEGIN + 100_000)
    view.put(renamed(row, "a:s", 0))
    view.put(renamed(row, "b:s", BEGIN + 70_000))
    sweep.taken(view)
    await sweep.turn()
    said = metrics.registry.get_sample_value
    assert said("ceremony_waiting", {"kind": "gate"}) == 2
    assert said("ceremony_oldest_wait_seconds", {"kind": "gate"}) == 30


def test_of_two_gates_of_a_ceremony_the_one_with_a_known_start_is_the_oldest() -> None:
    row = renamed(at_a_gate().live, "a:s", BEGIN)
    for times in ((0, BEGIN), (BEGIN, 0)):
        gates = {f"gate{number}": replace(row.steps["gate"], started_at=time) for number, time in enumerate(times)}
        waits = PartitionWaits()
        waits.put(b"a", replace(row, steps=gates), DEFINITION)
        assert waits.by_kind[GATE].first == BEGIN


async def test_the_sweep_shows_open_gates_and_the_age_of_the_oldest() -> None:
    # specification 29.2
    metrics, view, row = Metrics(CollectorRegistry()), MemoryView(), at_a_gate().live
    sweep = StuckSweep(BusyClock(), metrics, lambda *_: DEFINITION, lambda: BEGIN + 100_000)
    view.put(renamed(row, "a:s", BEGIN + 40_000))
    view.put(renamed(row, "b:s", BEGIN + 70_000))
    sweep.taken(view)

    def shown() -> tuple[float | None, ...]:
        said = metrics.registry.get_sample_value
        return (
            said("ceremony_gates_open", {"definition": "probe"}),
            said("ceremony_waiting", {"kind": "gate"}),
            said("ceremony_oldest_wait_seconds", {"kind": "gate"}),
            said("ceremony_unexamined"),
        )

    await sweep.turn()
    assert shown() == (2, 2, 60, 0)
    view.put(renamed(row, "a:s", BEGIN + 90_000))
    sweep.changed(0, [b"a:s"])
    await sweep.turn()
    assert shown() == (2, 2, 30, 0)
    sweep.lost(0)
    await sweep.turn()
    assert shown() == (0, 0, 0, 0)

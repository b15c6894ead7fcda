"""Properties of the bare fold over random definitions and random streams of commands.

After every command `World` makes all checks of `world.check`: invariants, liveness, unique effect ids, rising versions.
The assertions here come on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings

from tables.effects import Effect
from tables.instance import TERMINAL
from tests.tables.properties.definitions import HANDLERS
from tests.tables.properties.play import QUICK, RANDOM, begun, digests, played
from tests.tables.properties.players import Honest, Hostile

pytestmark = pytest.mark.uncounted
# Runs at the fixed seed whose shares are asserted.
RUNS = 500
LEAST = 0.05


@QUICK
@given(RANDOM)
def test_an_honest_world_brings_every_ceremony_to_an_end(rng: Random) -> None:
    # specification 12.11
    world = begun(rng)
    Honest(world, rng).play()
    assert world.live.status in TERMINAL


@QUICK
@given(RANDOM)
def test_no_stream_of_commands_breaks_an_invariant_and_the_same_commands_give_the_same_bytes(rng: Random) -> None:
    # specification 12.10, 12.11, 18.2
    world = begun(rng)
    hostile = Hostile(world, rng)
    for _ in range(60):
        if world.row is None or world.row.expired:
            break
        hostile.move()
    assert_versioned_ids_are_unique(world.effects)
    first = digests(world.log, world)
    assert first == digests(world.log, world)


def assert_versioned_ids_are_unique(effects: Sequence[Effect]) -> None:
    counted = Counter(effect.id for effect in effects)
    assert not [name for name, times in counted.items() if times > 1]


@settings(QUICK, max_examples=40)
@given(RANDOM)
def test_after_any_hostile_stream_an_honest_world_still_brings_the_ceremony_to_an_end(rng: Random) -> None:
    world = begun(rng)
    hostile = Hostile(world, rng)
    for _ in range(15):
        if world.row is None or world.row.expired:
            return
        hostile.move()
    if world.row is None or world.row.expired:
        return
    if world.live.status == "PAUSED":
        world.resume()
    hostile.honest.quality = 0.95
    hostile.honest.play()
    assert world.live.status in TERMINAL


def test_random_runs_reach_every_terminal_status_and_every_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """At a fixed seed; the shares are printed, each is at least 5 %."""
    statuses: Counter[str] = Counter()
    handlers: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for seed in range(RUNS):
        world = played(seed)
        statuses["expired" if world.row is None else world.row.status] += 1
        handlers.update({world.definition.steps[request.step_id].handler for request in world.requests()})
        notes.update(decision.note for decision in world.decisions if decision.note)
    with capsys.disabled():
        print(f"\n{RUNS} runs, share that ended as:", shares(statuses))
        print("share in which a step ran of:", shares(handlers))
        print("commands that changed nothing:", dict(notes.most_common()))
    for status in TERMINAL:
        assert statuses[status] >= LEAST * RUNS, f"only {statuses[status]} of {RUNS} runs ended as {status}"
    for handler in HANDLERS:
        assert handlers[handler] >= LEAST * RUNS, f"only {handlers[handler]} of {RUNS} runs ran a {handler}"


def shares(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {times / RUNS:.0%}" for name, times in sorted(counted.items()))

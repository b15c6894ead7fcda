"""Properties of the bare fold over random definitions and random streams of commands.

After every command `World` makes all checks of `world.check`: invariants, liveness, unique effect ids, rising versions.
The assertions here come on top.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tables.commands import AnyCommand, Origin
from tables.definitions.loader import load
from tables.effects import Effect
from tables.fold.decide import decide
from tables.fold.next_row import NextRow
from tables.instance import TERMINAL, Instance, encode_instance
from tables.kinds import Kinds
from tests.tables.properties.definitions import HANDLERS, random_definition
from tests.tables.properties.players import Honest, Hostile
from tests.tables.world import ASKED, KINDS, World

pytestmark = pytest.mark.uncounted
# Runs at the fixed seed whose shares are asserted.
RUNS = 500
LEAST = 0.05
RANDOM = st.randoms(use_true_random=False)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
_encode = msgspec.json.Encoder().encode


@pytest.fixture(autouse=True)
def _check_fully(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NextRow, "check_fully", True)


def begun(rng: Random, kinds: Kinds | None = None) -> World:
    """Start a ceremony of a random definition; its computing steps finish in the fold, or are requested."""
    definition = load(random_definition(rng), "probe.yaml", KINDS)
    world = World(definition, kinds or rng.choice((KINDS, ASKED)))
    chosen = rng.sample(list(definition.steps), rng.randint(0, len(definition.steps))) if rng.random() < 0.25 else []
    world.start(*chosen, a={"x": 1})
    return world


def digests(log: Sequence[tuple[AnyCommand, Origin]], world: World) -> list[str]:
    """Fold a log, and return a digest of row and effects after each command."""
    row: Instance | None = None
    found = []
    for command, origin in log:
        decision = decide(row, command, origin, world.definition, world.kinds)
        row = decision.row
        body = b"" if row is None else encode_instance(row)
        found.append(hashlib.sha256(body + _encode(decision.effects)).hexdigest())
    return found


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


def played(seed: int) -> World:
    """Play one run: two of three are honest, with more or less patience, the others hostile."""
    rng = Random(seed)
    world = begun(rng)
    if seed % 3:
        player = Honest(world, rng, quality=rng.choice((0.6, 0.9, 0.98)))
        for _ in range(rng.choice((3, 6, 12, 300, 300))):
            if world.live.status in TERMINAL:
                return world
            player.move()
        if world.live.status not in TERMINAL:
            world.cancel() if rng.random() < 0.4 else world.fire("ceremony_max")
        return world
    hostile = Hostile(world, rng)
    for _ in range(80):
        ended = world.row is not None and world.row.status in TERMINAL
        if world.row is None or world.row.expired or (ended and rng.random() < 0.1):
            break
        hostile.move()
    return world


def shares(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {times / RUNS:.0%}" for name, times in sorted(counted.items()))

"""Properties of an upgrade: an older release requested the agents of steps that this one finishes at once.

It left rows whose computing steps and gates are requested, requests that their agents still answer, and commands
after the last checkpoint, which this release folds again.
"""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings

from tables.commands import Restore
from tables.fold.decide import decide
from tables.fold.next_row import raised
from tables.instance import TERMINAL, Instance, decode_instance, encode_instance
from tests.tables.properties.play import QUICK, RANDOM, begun
from tests.tables.properties.players import Hostile
from tests.tables.world import ASKED, ID, KINDS, World, check

pytestmark = pytest.mark.uncounted
SOME = settings(QUICK, max_examples=40)
AT_ONCE = ("aggregation", "human_gate")


@SOME
@given(RANDOM)
def test_a_ceremony_begun_by_an_older_release_ends_under_this_one(rng: Random) -> None:
    """All commands after a checkpoint are folded again; answers to older requests come too."""
    # specification 24.3
    world = begun(rng, ASKED)
    hostile = Hostile(world, rng)
    moved(world, hostile, rng.randint(0, 20))
    saved = rng.randint(1, len(world.log))
    world.row, world.kinds = older_row(world, saved), KINDS
    for command, origin in world.log[saved:]:
        before = world.row
        decision = decide(before, command, origin, world.definition, KINDS)
        check(before, decision, world.definition)
        world.row = decision.row
        world.effects += decision.effects
    moved(world, hostile, rng.choice((0, 10)))
    assert_it_comes_to_an_end(world, hostile)


@SOME
@given(RANDOM)
def test_computing_steps_of_a_restored_older_row_finish_at_once(rng: Random) -> None:
    older = begun(rng, ASKED)
    moved(older, Hostile(older, rng), rng.randint(0, 10))
    if older.row is None or older.row.expired:
        return
    world = World(older.definition, KINDS)
    world.now, world.log = older.now, older.log
    body = json.loads(encode_instance(raised(older.row, 1000, 100)))
    world.fold(Restore(instance_id=ID, command_id="r", instance=body))
    if world.live.status != "PAUSED" and world.live.visits == older.row.visits:  # a second visit asks the agents
        assert not [
            step_id
            for step_id, step in world.live.steps.items()
            if step.phase == "asked" and KINDS[world.definition.steps[step_id].handler].name in AT_ONCE
        ]
    assert_it_comes_to_an_end(world, Hostile(world, rng))


def moved(world: World, hostile: Hostile, moves: int) -> None:
    for _ in range(moves):
        if world.row is None or world.row.expired:
            return
        hostile.move()


def older_row(world: World, length: int) -> Instance | None:
    """The row after so many commands, as the older release wrote it."""
    row: Instance | None = None
    for command, origin in world.log[:length]:
        row = decide(row, command, origin, world.definition, ASKED).row
    return None if row is None else decode_instance(encode_instance(row))


def assert_it_comes_to_an_end(world: World, hostile: Hostile) -> None:
    if world.row is None or world.row.status in TERMINAL:
        return
    if world.row.status == "PAUSED":
        world.resume()
    hostile.honest.quality = 0.95
    hostile.honest.play()
    assert world.live.status in TERMINAL

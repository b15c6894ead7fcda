"""Properties of pinned definitions, older than a rule of today, whose human guards have the names of gate steps."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings

from tables.definition import Definition
from tables.definitions.loader import content_hash, load_pinned
from tables.instance import TERMINAL
from tests.tables.properties.definitions import random_definition
from tests.tables.properties.play import QUICK, RANDOM, digests
from tests.tables.properties.players import Honest, Hostile
from tests.tables.properties.test_full_rows import Wordy, assert_written, filled, gone
from tests.tables.world import ASKED, KINDS, World

pytestmark = pytest.mark.uncounted
SOME = settings(QUICK, max_examples=40)


def shared(rng: Random) -> Definition:
    """Return a random definition in which each human guard has the name of a gate step, as far as there are any."""
    while True:
        body = json.loads(random_definition(rng))
        gates = [step["id"] for step in body.get("steps", ()) if step["handler"] == "human_gate_step"]
        humans = [name for name, guard in body.get("guards", {}).items() if guard.get("type") == "human"]
        names = dict(zip(humans, rng.sample(gates, len(gates)), strict=False))
        if names:
            break
    body["guards"] = {names.get(name, name): guard for name, guard in body["guards"].items()}
    for transition in body["transitions"]:
        transition["guards"] = [names.get(name, name) for name in transition.get("guards", ())]
    text = json.dumps(body)
    definition = load_pinned(text, content_hash(text), KINDS)
    assert {problem.rule for problem in definition.objections} == {"gate_and_guard"}
    return definition


def begun(rng: Random) -> World:
    world = World(shared(rng), rng.choice((KINDS, ASKED)))
    world.start(a={"x": 1})
    return world


@SOME
@given(RANDOM)
def test_a_ceremony_whose_guards_have_the_names_of_gates_comes_to_an_end(rng: Random) -> None:
    # specification 8.3, 24.4
    world = begun(rng)
    Honest(world, rng).play()
    assert world.live.status in TERMINAL


@SOME
@given(RANDOM)
def test_any_commands_on_shared_names_fold_to_the_same_bytes_and_the_ceremony_still_ends(rng: Random) -> None:
    # specification 18.2, 24.4
    world = begun(rng)
    hostile = Hostile(world, rng)
    for _ in range(rng.randint(0, 40)):
        if gone(world):
            return
        hostile.move()
    assert digests(world.log, world) == digests(world.log, world)
    if gone(world):
        return
    if world.live.status == "PAUSED":
        world.resume()
    hostile.honest.quality = 0.95
    hostile.honest.play()
    assert world.live.status in TERMINAL


@settings(QUICK, max_examples=20)
@given(RANDOM)
def test_decisions_on_shared_names_leave_nearly_full_rows_that_can_be_written(rng: Random) -> None:
    # specification 20.5
    world = begun(rng)
    player = Wordy(world, rng)
    for _ in range(rng.randint(0, 6)):
        if world.live.status not in TERMINAL:
            player.honest.move()
    world.row = filled(world.live, rng.choice((0, 50, 1_000, 20_000)))
    for _ in range(20):
        if gone(world):
            return
        player.move()
        assert_written(world)

"""Random ceremonies for properties: how one begins, how a whole run is played, and digests of its fold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tables.commands import AnyCommand, Origin
from tables.definitions.loader import load
from tables.fold.decide import decide
from tables.instance import TERMINAL, Instance, encode_instance
from tables.kinds import Kinds
from tests.tables.properties.definitions import random_definition
from tests.tables.properties.players import Honest, Hostile
from tests.tables.world import ASKED, KINDS, World

RANDOM = st.randoms(use_true_random=False)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
_encode = msgspec.json.Encoder().encode


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

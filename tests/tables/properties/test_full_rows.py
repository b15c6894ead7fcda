"""Properties of nearly full rows: any command leaves a row that can be written, or is refused, and none raises."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from ports.log import LARGEST_RECORD_BYTES
from tables.effects import Event, StepRequested, encode_request
from tables.fold.decide import decide
from tables.instance import TERMINAL, Instance, encode_instance, recounted
from tables.limits import MAX_ROW_BYTES, MAX_WRITTEN_BYTES
from tests.tables.properties.play import QUICK, RANDOM, begun
from tests.tables.properties.players import Hostile
from tests.tables.world import World

pytestmark = pytest.mark.uncounted
SOME = settings(QUICK, max_examples=25)
TEXTS = ("", "ok", "x" * 2000, "\x01" * 3000, "\U0001f600" * 2000, '"' * 2000)


def filled(row: Instance, free: int) -> Instance:
    """Return the row with an input that leaves so many bytes free."""
    return recounted(replace(row, inputs={**row.inputs, "b": "x" * max(MAX_ROW_BYTES - row.size - free, 0)}))


class Wordy(Hostile):
    """Puts long texts of every kind into each command that takes some."""

    def __init__(self, world: World, rng: Random) -> None:
        super().__init__(world, rng)
        self.throws = tuple(throw for throw in self._throws if throw not in (self._again, self._odd))

    def move(self) -> None:
        command = self.rng.choice(self.throws)()
        known = set(command.__struct_fields__)
        longer: dict[str, str] = {
            name: self.rng.choice(TEXTS)
            for name in ("comment", "reason", "error_message", "error_code", "deliberation_id")
            if name in known
        }
        if "actor" in known:
            longer["actor"] = self.rng.choice(("petra", "paul", "\x01" * 300))
        self.world.wait(self.rng.choice((0.0, 1.0, 100.0)))
        self.world.fold(replace(command, **longer))


@SOME
@given(RANDOM)
def test_no_command_on_a_nearly_full_row_raises_or_overfills_it(rng: Random) -> None:
    # specification 20.5
    world = begun(rng)
    player = Wordy(world, rng)
    for _ in range(rng.randint(0, 6)):
        if world.live.status not in TERMINAL:
            player.honest.move()
    world.row = filled(world.live, rng.choice((0, 50, 1_000, 3_500, 20_000, 100_000)))
    for _ in range(25):
        if gone(world):
            return
        player.move()
        assert gone(world) or world.live.size <= MAX_WRITTEN_BYTES
        assert_written(world)


def gone(world: World) -> bool:
    return world.row is None or world.row.expired


def assert_written(world: World) -> None:
    decision = world.decisions[-1]
    if decision.row is not None:
        assert len(encode_instance(decision.row)) < LARGEST_RECORD_BYTES // 2
    for effect in decision.effects:
        if isinstance(effect, StepRequested):
            assert len(encode_request(effect)) < LARGEST_RECORD_BYTES
        elif isinstance(effect, Event):
            assert len(str(effect.payload)) < LARGEST_RECORD_BYTES // 4


@pytest.mark.parametrize("free", [0, 100, 3_000, 10_000])
def test_every_command_of_a_played_ceremony_can_meet_a_nearly_full_row(free: int) -> None:
    """Each command that an honest or hostile player sends is folded once more on the same row, filled."""
    for seed in range(12):
        rng = Random(seed)
        world = begun(rng)
        player = Hostile(world, rng)
        for _ in range(20):
            if gone(world):
                break
            before = world.live
            player.move()
            command, origin = world.log[-1]
            decision = decide(filled(before, free), command, origin, world.definition, world.kinds)
            if decision.row is not None:
                assert len(encode_instance(decision.row)) < LARGEST_RECORD_BYTES // 2

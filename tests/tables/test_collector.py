"""Rows of the table cost Python's garbage collector nothing."""

from __future__ import annotations

import gc

from tables.commands import StepOutcome, decode_command, encode_command
from tables.instance import Instance, StepState, Timer, decode_instance, encode_instance
from tests.tables.world import World, definition_of


def begun() -> World:
    world = World(
        definition_of(
            "states:\n  - {id: RUN, description: r, initial: true}\n  - {id: DONE, description: d, terminal: true}\n"
            "transitions:\n  - {from: RUN, to: DONE, trigger: finish, description: f}\n"
            "steps:\n  - {id: s1, state: RUN, handler: publish_step, config: {subject: a.b, event_type: e}}\n"
        )
    )
    world.start()
    return world


def test_rows_are_not_tracked_by_the_collector() -> None:
    """Neither a folded row nor a decoded one is tracked, nor the maps of its steps and timers."""
    folded = begun().row
    assert folded is not None
    for row in (folded, decode_instance(encode_instance(folded))):
        assert isinstance(row, Instance)
        assert not gc.is_tracked(row)
        assert not gc.is_tracked(row.steps)
        assert not gc.is_tracked(row.timers)
        assert not any(gc.is_tracked(part) for part in (*row.steps.values(), *row.timers.values()))
    assert not gc.is_tracked(StepState())
    assert not gc.is_tracked(Timer(1))


def test_commands_are_not_tracked_by_the_collector() -> None:
    command = decode_command(
        encode_command(StepOutcome(instance_id="a:b", step_id="s", attempt=1, outcome="completed"))
    )
    assert not gc.is_tracked(command)


def test_decisions_are_not_tracked_by_the_collector() -> None:
    """Thousands of decisions are made a second, and each ends with its batch."""
    decision = begun().decisions[-1]
    assert not gc.is_tracked(decision)
    assert not any(gc.is_tracked(effect) for effect in decision.effects)

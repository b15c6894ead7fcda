"""Rows of ceremonies that cannot be folded or written: they stay valid, and move on once they are resumed."""

from __future__ import annotations

import pytest

from tables.fold.set_aside import substituted
from tables.instance import Pauser, encode_instance
from tables.invariants import broken
from tests.tables.world import World, definition_of

DEFINITION = definition_of(
    """
inputs: {optional: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: talk, state: RUN, handler: deliberation_step, retry: {max_attempts: 2},
     config: {prompt: p, role: DEV, num_agents: 2}}
  - {id: gate, state: RUN, after: [], handler: human_gate_step, config: {role: PO, message: m, deadline_seconds: 60}}
"""
)
BY = Pauser("ceremony-engine", reason="its row cannot be written")


@pytest.fixture
def world() -> World:
    world = World(DEFINITION)
    world.start(a=1)
    world.opened("gate")
    world.outcome("talk", "submitted", deliberation_id="d")
    return world


def test_the_last_written_row_is_paused_with_raised_numbers(world: World) -> None:
    written = world.live
    world.result("talk", "agent-dev-001")
    row = substituted(written, world.live, BY)
    assert broken(row, DEFINITION) == []
    assert (row.status, row.version) == ("PAUSED", world.live.version + 1001)
    assert row.steps["talk"].attempt == 101
    assert row.steps["gate"].status == "WAITING_FOR_HUMAN"
    assert encode_instance(row)
    world.row = row
    world.resume()
    world.fire("timeout/talk")
    world.fire("retry/talk")
    for number in (1, 2):
        world.result("talk", f"agent-dev-00{number}")
    world.outcome("talk", "submitted", deliberation_id="d2")
    world.fire("gate/gate")
    assert world.live.status == "FAILED"


def test_a_ceremony_that_was_never_written_is_a_failed_stub(world: World) -> None:
    row = substituted(None, world.live, BY)
    assert broken(row, DEFINITION) == []
    assert (row.status, row.expired, row.error_code) == ("FAILED", True, "row_unwritable")
    assert row.start_digest == world.live.start_digest


def test_an_ended_row_keeps_its_ending(world: World) -> None:
    written = world.live
    world.cancel()
    assert substituted(None, world.live, BY).status == "CANCELLED"
    row = substituted(world.live, world.live, BY)
    assert (row.status, row.version) == ("CANCELLED", written.version + 1001)

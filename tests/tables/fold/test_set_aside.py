"""Rows of ceremonies that cannot be folded or written: they stay valid, are announced, and move on once resumed."""

from __future__ import annotations

import pytest

from tables.commands import SetAside
from tables.effects import FOLD
from tables.fold.set_aside import report, substituted
from tables.instance import Instance, encode_instance
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
CODE, TEXT = "row_too_large", "it has 9 MB"


@pytest.fixture
def world() -> World:
    world = World(DEFINITION)
    world.start(a=1)
    world.opened("gate")
    world.outcome("talk", "submitted", deliberation_id="d")
    return world


def set_aside(world: World, written: Instance | None) -> SetAside:
    """Replace the row as a checkpoint does, and return the report for the log."""
    world.row = substituted(written, world.live)
    assert broken(world.live, DEFINITION) == []
    return report(written, world.live, CODE, TEXT)


def announced(world: World, subject: str) -> list[tuple[str, dict[str, object]]]:
    return [(event.id, event.payload) for event in world.events(subject)]


def test_the_last_written_row_is_paused_with_raised_numbers(world: World) -> None:
    written = world.live
    world.result("talk", "agent-dev-001")
    row = substituted(written, world.live)
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
    row = substituted(None, world.live)
    assert broken(row, DEFINITION) == []
    assert (row.status, row.expired, row.error_code) == ("FAILED", True, "row_unwritable")
    assert row.start_digest == world.live.start_digest


def test_the_failure_of_a_ceremony_that_was_never_written_is_announced_once(world: World) -> None:
    # specification 16.3, 18.16
    written = world.live.version
    command = set_aside(world, None)
    world.fold(command)
    (event,) = announced(world, "ceremony.failed")
    assert event == (
        f"c1:s1/{written + 1001}/0@{FOLD}",
        {
            "instance_id": "c1:s1",
            "definition_name": "probe",
            "current_state": "RUN",
            "status": "FAILED",
            "error_code": "row_unwritable",
            "error_message": "its row cannot be written",
        },
    )
    assert world.effects[-1].id == f"c1:s1/{written + 1001}/1@{FOLD}"
    assert world.live.version == written + 1001
    assert world.fold(command).note == "duplicate"
    assert announced(world, "ceremony.failed") == [event]
    assert (world.live.status, world.live.expired) == ("FAILED", True)
    world.fire("expire")
    assert world.row is None


def test_a_fold_after_a_crash_fails_the_ceremony_under_the_same_event(world: World) -> None:
    """The report was durable, and the checkpoint with the substitute was not: the row is folded from the log again."""
    # specification 18.2, 18.16
    unwritable, offset, now = world.live, world.offset, world.now
    command = set_aside(world, None)
    world.fold(command)
    first = announced(world, "ceremony.failed")
    world.row, world.offset, world.now, world.effects = unwritable, offset, now, []
    world.fold(command)
    assert announced(world, "ceremony.failed") == first
    assert (world.live.status, world.live.expired, world.live.error_code) == ("FAILED", True, "row_unwritable")
    assert world.fold(command).note == "duplicate"


@pytest.mark.parametrize("again", [False, True])
def test_the_pause_of_a_ceremony_whose_newest_row_was_not_written_is_announced_once(
    world: World, *, again: bool
) -> None:
    """With `again` the log is folded once more after a crash, and the row is set aside a second time."""
    # specification 18.16
    written = world.live
    world.result("talk", "agent-dev-001")
    command = set_aside(world, written)
    if again:
        world.row = written
        world.result("talk", "agent-dev-001")
    world.fold(command)
    if again:
        command = set_aside(world, written)
    assert world.fold(command).note == "duplicate"
    ((_, payload),) = announced(world, "ceremony.paused")
    assert (payload["actor"], payload["reason"]) == ("ceremony-engine", "its row cannot be written")
    assert world.live.status == "PAUSED"
    world.resume()
    assert world.live.status == "RUNNING"


@pytest.mark.parametrize("was_paused", [False, True])
def test_the_last_pause_that_was_announced_is_the_one_of_the_row(world: World, *, was_paused: bool) -> None:
    """Of a ceremony that is PAUSED the pause stands; one that was resumed since it was written is PAUSED anew."""
    written = world.live
    world.pause()
    if was_paused:
        written = world.live
        world.resume()
    world.fold(set_aside(world, written))
    assert world.live.status == "PAUSED"
    actors = ["petra", "ceremony-engine"] if was_paused else ["petra"]
    assert [payload["actor"] for _, payload in announced(world, "ceremony.paused")] == actors
    assert world.live.paused_by is not None and world.live.paused_by.actor == actors[-1]


@pytest.mark.parametrize("begun", [False, True])
def test_an_end_that_was_announced_stands(world: World, *, begun: bool) -> None:
    # specification 18.16
    written = world.live if begun else None
    world.cancel()
    command = set_aside(world, written)
    assert (world.live.status, world.live.expired) == ("CANCELLED", True)
    assert world.fold(command).note == "already_ended"
    assert world.subjects()[-1] == "ceremony.cancelled"


def test_a_ceremony_that_was_opened_again_and_never_written_since_fails(world: World) -> None:
    world.fire("gate/gate")
    world.fire("timeout/talk")
    world.fire("retry/talk")
    world.fire("timeout/talk")
    assert world.live.status == "FAILED"
    written = world.live
    world.retry("talk")
    world.fold(set_aside(world, written))
    assert (world.live.status, world.live.error_code) == ("FAILED", "row_unwritable")
    assert world.subjects()[-1] == "ceremony.failed"

"""One record of a broker whose clock is a day ahead delays no timer of the row by a day."""

from __future__ import annotations

import pytest

from tables.commands import TimerFired
from tables.fold.decide import Decision
from tables.timers import DAY_MS
from tests.tables.world import ID, World, definition_of

DEFINITION = definition_of(
    """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: one, state: RUN, handler: deliberation_step, timeout_seconds: 60,
     config: {prompt: p, role: DEV, num_agents: 1}, retry: {max_attempts: 9, backoff_seconds: 5}}
  - {id: gate, state: RUN, after: [], handler: human_gate_step,
     config: {role: PO, message: m, deadline_seconds: 100}}
timeouts: {step_default: 60, step_max: 100, ceremony_max: 1000}
"""
)


@pytest.fixture
def world() -> World:
    world = World(DEFINITION)
    world.start()
    return world


def due(world: World, timer_id: str) -> int:
    """Return the milliseconds until a timer is due, by the log's clock."""
    return world.live.timers[timer_id].due - world.now


def ahead(world: World) -> None:
    """Fold one command that a broker stamped a day ahead."""
    world.now += DAY_MS
    world.opened("gate")
    world.now -= DAY_MS


def early(world: World, timer_id: str) -> Decision:
    timer = world.live.timers[timer_id]
    return world.fold(TimerFired(instance_id=ID, timer_id=timer_id, attempt=timer.attempt))


def test_later_timers_of_the_row_are_set_by_the_time_of_their_command(world: World) -> None:
    # specification 18.6
    ahead(world)
    world.wait(1)
    world.failed("one")
    assert due(world, "retry/one") == 5000
    world.fire("retry/one")
    assert due(world, "timeout/one") == 60_000
    assert world.live.updated_at > world.now, "the row's own time never goes back"


def test_a_retry_is_announced_for_the_time_of_its_timer(world: World) -> None:
    ahead(world)
    world.failed("one")
    (event,) = world.events("ceremony.step.retrying")
    assert event.payload["next_attempt_at"] == "2023-11-14T22:13:25.000Z"


def test_a_timer_is_judged_by_the_time_of_its_own_command(world: World) -> None:
    ahead(world)
    assert early(world, "timeout/one").effects == ()
    assert world.step("one").status == "IN_PROGRESS"
    assert early(world, "timeout/one").note == "early_timer"


def test_a_pause_keeps_the_remaining_time_by_the_time_of_its_command(world: World) -> None:
    ahead(world)
    world.wait(20)
    world.pause()
    assert world.live.timers["timeout/one"].due == 40_000
    world.wait(500)
    world.resume()
    assert due(world, "timeout/one") == 40_000


def test_timers_set_by_the_clock_that_was_ahead_are_shortened_when_one_of_them_is_judged(world: World) -> None:
    """A timer never has more than its whole duration to go."""
    world.now += DAY_MS
    world.failed("one")
    world.opened("gate")
    world.now -= DAY_MS
    assert due(world, "retry/one") > DAY_MS
    decision = early(world, "retry/one")
    assert (decision.note, decision.effects) == ("", ())
    assert due(world, "retry/one") == 5000
    assert due(world, "gate/gate") == 100_000
    assert due(world, "ceremony_max") == 1_000_000
    assert early(world, "retry/one").note == "early_timer", "once is enough"
    world.fire("retry/one")
    assert world.step("one").attempt == 2


def test_a_start_by_a_clock_ahead_gets_its_time_limit_shortened() -> None:
    world = World(DEFINITION)
    world.now += DAY_MS
    world.start()
    world.now -= DAY_MS
    early(world, "ceremony_max")
    assert due(world, "ceremony_max") == 1_000_000
    assert due(world, "timeout/one") == 60_000


def test_an_end_by_a_clock_ahead_is_kept_for_thirty_days_only(world: World) -> None:
    world.now += DAY_MS
    world.cancel()
    world.now -= DAY_MS
    early(world, "expire")
    assert due(world, "expire") == 30 * DAY_MS


def test_the_stopped_timers_of_a_paused_ceremony_keep_their_remaining_time(world: World) -> None:
    world.now += DAY_MS
    world.failed("one")
    world.pause()
    world.now -= DAY_MS
    early(world, "ceremony_max")
    assert world.live.timers["retry/one"].due == 5000
    assert early(world, "ceremony_max").note == "early_timer"

"""Automatic transitions and the rules of failure, in the order of specification 12.4."""

from __future__ import annotations

from tables.definition import Definition
from tests.tables.world import World, definition_of, refusal

SIDE_BY_SIDE = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: MEND, description: m}
  - {id: DONE, description: d, terminal: true}
inputs: {required: [a]}
"""


def agg(step_id: str, more: str = "", state: str = "RUN") -> str:
    return (
        f"  - {{id: {step_id}, state: {state}, handler: aggregation_step,"
        f" config: {{sources: [a], aggregation_type: list}}{more}}}\n"
    )


def definition(transitions: list[str], *steps: str, more: str = "") -> Definition:
    lines = "".join(f"  - {{{line}, description: d}}\n" for line in transitions)
    return definition_of(f"{SIDE_BY_SIDE}transitions:\n{lines}steps:\n{''.join(steps)}{more}")


FINISH = "from: RUN, to: DONE, trigger: finish"
MENDED = "from: MEND, to: DONE, trigger: mended"
MEND = "from: RUN, to: MEND, trigger: mend"
ON_FAILED = "\nguards:\n  x_failed: {check: 'step_status:x:FAILED'}\n"


def started(of: Definition, *step_ids: str) -> World:
    world = World(of)
    world.start(*step_ids, a=1)
    return world


def test_the_first_transition_in_file_order_whose_guards_all_hold_is_applied() -> None:
    # specification 12.1
    ways = [
        "from: RUN, to: DONE, trigger: both, guards: [x_done, x_failed]",
        "from: RUN, to: MEND, trigger: one, guards: [x_done]",
        "from: RUN, to: DONE, trigger: same, guards: [x_done]",
        MENDED,
    ]
    done = "  x_done: {check: 'step_status:x:COMPLETED'}\n"
    world = started(definition(ways, agg("x"), more=ON_FAILED + done))
    world.done("x")
    assert [event.payload["trigger"] for event in world.events("ceremony.transition.applied")] == ["one", "mended"]


def test_first_the_automatic_transitions_whose_guards_hold_on_the_failure() -> None:
    # specification 12.1, 12.3
    world = started(
        definition(
            [FINISH, MEND, "from: RUN, to: MEND, trigger: seen, guards: [x_failed]", MENDED],
            agg("x", ", on_failure: mend"),
            more=ON_FAILED,
        )
    )
    world.failed("x")
    assert world.events("ceremony.transition.applied")[0].payload["trigger"] == "seen"
    assert world.live.status == "COMPLETED"


def test_then_the_on_failure_trigger_is_taken_even_past_a_failed_step() -> None:
    # specification 12.3
    world = started(definition([FINISH, MEND, MENDED], agg("x", ", on_failure: mend")))
    world.failed("x")
    assert world.path() == ["MEND", "DONE"]


def test_guards_of_the_on_failure_transition_count() -> None:
    # specification 12.3
    world = started(
        definition(
            [FINISH, "from: RUN, to: MEND, trigger: mend, guards: [y_done]", MENDED],
            agg("x", ", on_failure: mend, after: []"),
            agg("y", ", after: []"),
            more="\nguards:\n  y_done: {check: 'step_status:y:COMPLETED'}\n",
        )
    )
    world.failed("x")
    assert world.live.status == "RUNNING"
    world.done("y")
    assert world.path() == ["MEND", "DONE"]


def test_then_the_ceremony_fails_once_nothing_else_is_in_flight() -> None:
    # specification 12.4
    world = started(definition([FINISH, MEND, MENDED], agg("x", ", after: []"), agg("y", ", after: []")))
    world.failed("x")
    assert world.live.status == "RUNNING"
    world.done("y")
    assert (world.live.status, world.live.error_code) == ("FAILED", "boom")
    assert world.events("ceremony.failed")[0].payload["error_code"] == "boom"


def test_a_failed_step_does_not_keep_independent_steps_from_starting() -> None:
    # specification 11.1
    world = started(
        definition([FINISH, MEND, MENDED], agg("x", ", after: []"), agg("y", ", after: []"), agg("z", ", after: [y]"))
    )
    world.failed("x")
    world.done("y")
    assert world.step("z").status == "IN_PROGRESS"
    world.done("z")
    assert world.live.status == "FAILED"


def test_steps_in_flight_are_cancelled_before_the_event_that_moves_the_ceremony() -> None:
    # specification 12.8
    world = started(
        definition(
            [FINISH, "from: RUN, to: MEND, trigger: seen, guards: [x_failed]", MENDED],
            agg("x", ", after: []"),
            agg("y", ", after: []"),
            more=ON_FAILED,
        )
    )
    world.failed("x")
    assert world.subjects()[1:] == [
        "ceremony.step.executed",
        "ceremony.step.executed",
        "ceremony.transition.applied",
        "ceremony.transition.applied",
        "ceremony.completed",
    ]
    cancelled = world.events("ceremony.step.executed")[1].payload
    assert (cancelled["step_id"], cancelled["status"], cancelled["current_state"]) == ("y", "CANCELLED", "RUN")
    assert world.done("y").note == "finished_step"


def test_a_ceremony_whose_steps_have_ended_fails_when_no_transition_can_hold() -> None:
    # specification 12.5
    world = started(
        definition(
            [FINISH + ", guards: [never]", MEND + ", guards: [never]", MENDED],
            agg("x"),
            more="\nguards:\n  never: {check: 'cel:size(outputs) > 5'}\n",
        )
    )
    world.done("x")
    assert (world.live.status, world.live.error_code) == ("FAILED", "no_transition")


def test_a_guard_over_an_unselected_step_keeps_the_ceremony_waiting_until_an_operator_runs_it() -> None:
    # specification 1.5, 12.5, 13.10
    world = started(
        definition(
            ["from: RUN, to: DONE, trigger: finish, guards: [y_done]", MEND + ", guards: [y_done]", MENDED],
            agg("x", ", after: []"),
            agg("y", ", after: []"),
            more="\nguards:\n  y_done: {check: 'step_status:y:COMPLETED'}\n",
        ),
        "x",
    )
    world.done("x")
    assert world.live.status == "WAITING_FOR_HUMAN"
    assert refusal(world.run("x")) == "step_selected"
    world.run("y")
    assert world.live.status == "RUNNING"
    world.done("y")
    assert world.live.status == "COMPLETED"


def test_a_failed_unselected_step_fails_the_ceremony_too() -> None:
    world = started(
        definition(
            ["from: RUN, to: DONE, trigger: finish, guards: [y_done]", MEND + ", guards: [y_done]", MENDED],
            agg("x", ", after: []"),
            agg("y", ", after: []"),
            more="\nguards:\n  y_done: {check: 'step_status:y:COMPLETED'}\n",
        ),
        "x",
    )
    world.done("x")
    world.run("y")
    world.failed("y")
    assert world.live.status == "FAILED"


def test_a_guardless_transition_never_fires_past_a_failed_step_that_an_operator_ran() -> None:
    """All selected steps are COMPLETED, and yet the transition does not fire."""
    # specification 12.2
    world = started(
        definition([FINISH, MEND, MENDED], agg("x", ", after: []"), agg("y", ", after: []")),
        "x",
    )
    world.run("y")
    world.failed("y")
    assert world.live.status == "RUNNING"
    world.done("x")
    assert (world.live.status, world.live.error_code, world.path()) == ("FAILED", "boom", [])


def test_more_than_a_hundred_transitions_from_one_command_fail_the_ceremony() -> None:
    # specification 12.6
    world = started(
        definition(
            [
                "from: RUN, to: MEND, trigger: go, guards: [always]",
                "from: MEND, to: RUN, trigger: back, guards: [always]",
                MENDED,
                FINISH,
            ],
            agg("x"),
            more="\nguards:\n  always: {check: 'cel:state != \"\"'}\n",
        )
    )
    assert (world.live.status, world.live.error_code) == ("FAILED", "endless_cycle")
    assert len(world.path()) == 100


def test_entering_a_state_again_runs_its_steps_again_with_rising_attempts_and_a_new_budget() -> None:
    # specification 1.6, 11.10
    world = started(
        definition(
            [
                "from: RUN, to: MEND, trigger: broken, guards: [x_failed]",
                FINISH,
                "from: MEND, to: RUN, trigger: again",
            ],
            agg("x", ", retry: {max_attempts: 2, backoff_seconds: 0}"),
            agg("fix", state="MEND"),
            more="\nguards:\n  x_failed: {check: 'step_status:x:FAILED'}\n",
        )
    )
    world.failed("x")
    world.fire("retry/x")
    world.failed("x")
    assert world.live.state == "MEND"
    world.done("fix")
    assert (world.live.state, world.live.visits) == ("RUN", {"RUN": 2, "MEND": 1})
    assert (world.step("x").attempt, world.step("x").tries, world.step("x").output) == (3, 1, None)
    assert (world.requests()[-1].attempt, world.requests()[-1].visit) == (3, 2)
    world.failed("x")
    assert world.step("x").phase == "backoff"


def test_a_step_failing_at_its_request_fails_like_any_other() -> None:
    world = World(definition([FINISH, MEND, MENDED], agg("x", ", on_failure: mend").replace("[a]", "[nothing]")))
    world.start(a=1)
    assert world.path() == ["MEND", "DONE"]
    assert world.events("ceremony.step.executed")[0].payload["error_code"] == "source_missing"


def test_a_step_that_fails_as_it_starts_moves_the_ceremony_before_its_neighbours_start() -> None:
    broken = agg("x", ", after: [], on_failure: mend").replace("[a]", "[nothing]")
    world = started(definition([FINISH, MEND, MENDED], broken, agg("y", ", after: []")))
    assert world.requests() == []
    assert world.path() == ["MEND", "DONE"]


def test_a_failed_step_may_be_retried_while_its_neighbour_is_still_in_flight() -> None:
    # specification 13.9
    world = started(definition([FINISH, MEND, MENDED], agg("x", ", after: []"), agg("y", ", after: []")))
    world.failed("x")
    world.retry("x")
    assert (world.step("x").status, world.step("x").attempt) == ("IN_PROGRESS", 2)
    world.done("x")
    assert refusal(world.retry("x")) == "step_not_failed"
    world.done("y")
    assert world.live.status == "COMPLETED"


def test_a_guard_less_on_failure_is_never_the_automatic_way_of_success() -> None:
    """The transition stands first, and the step succeeds: the next one without guards is taken."""
    # specification 12.2
    world = started(definition([MEND, FINISH, MENDED], agg("x", ", on_failure: mend")))
    world.done("x")
    assert world.path() == ["DONE"]


def test_a_guard_less_on_failure_is_taken_by_an_explicit_trigger() -> None:
    # specification 12.2
    world = started(definition([MEND, FINISH, MENDED], agg("x", ", on_failure: mend")))
    world.trigger("mend")
    assert world.path() == ["MEND", "DONE"]


def test_a_success_without_a_way_fails_the_ceremony() -> None:
    # specification 12.2, 12.5
    world = started(definition([MEND, MENDED], agg("x", ", on_failure: mend")))
    world.done("x")
    assert (world.live.status, world.live.error_code) == ("FAILED", "no_transition")


ONCE_UNDER_WAY = "\nguards:\n  x_runs: {check: 'step_status:x:IN_PROGRESS'}\n"
WAY_WHILE_X_RUNS = ["from: RUN, to: MEND, trigger: early, guards: [x_runs]", FINISH, MENDED]


def test_transitions_are_not_judged_when_an_attempt_fails_and_is_repeated() -> None:
    """A retry is no conclusion, and neither is its timer."""
    # specification 12.1
    world = started(definition(WAY_WHILE_X_RUNS, agg("x", ", retry: {max_attempts: 2}"), more=ONCE_UNDER_WAY))
    world.failed("x")
    world.wait(10)
    world.fire("retry/x")
    assert (world.step("x").attempt, world.path()) == (2, [])
    world.done("x")
    assert world.path() == ["DONE"]


def test_transitions_are_not_judged_when_an_operator_lets_a_step_run_but_when_it_has_run() -> None:
    # specification 12.1
    steps = agg("x", ", after: []"), agg("y", ", after: []")
    world = started(definition(WAY_WHILE_X_RUNS, *steps, more=ONCE_UNDER_WAY), "y")
    world.run("x")
    assert world.path() == []
    world.done("y")
    assert world.path() == ["MEND", "DONE"]

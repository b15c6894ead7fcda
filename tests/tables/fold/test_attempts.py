"""Attempts: requests, repeated requests, retries with pauses, timeouts, gathered results, roles and sizes."""

from __future__ import annotations

from typing import Any

import pytest

from tables.definition import Definition, RetryPolicy
from tables.limits import MAX_OUTPUT_BYTES
from tables.retries import ask_pause, retry_pause
from tables.timers import iso
from tests.tables.world import BEGIN, World, definition_of


def one_step(step: str, more: str = "") -> Definition:
    return definition_of(
        f"""
inputs: {{optional: [a]}}
states:
  - {{id: RUN, description: r, initial: true}}
  - {{id: DONE, description: d, terminal: true}}
transitions:
  - {{from: RUN, to: DONE, trigger: finish, description: f}}
steps:
{step}
{more}"""
    )


MERGE = "  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: merge}, "
RETRIED = one_step(
    MERGE + "timeout_seconds: 60, retry: {max_attempts: 3, backoff_seconds: 2, exponential_backoff: true, "
    "max_backoff_seconds: 3, non_retryable: [hopeless]}}"
)
DELIBERATION = one_step(
    "  - {id: talk, state: RUN, handler: deliberation_step, timeout_seconds: 100,"
    " config: {prompt: talk about it, role: DEV, num_agents: 3, min_agents: 2}, retry: {max_attempts: 2}}"
)


@pytest.fixture
def world() -> World:
    world = World(RETRIED)
    world.start(a={})
    return world


@pytest.fixture
def talk() -> World:
    world = World(DELIBERATION)
    world.start()
    return world


# -- retries


def test_a_failed_attempt_is_retried_after_its_pause_under_a_new_number(world: World) -> None:
    # specification 1.6, 11.4, 11.5
    world.failed("one")
    retrying = world.events("ceremony.step.retrying")[0].payload
    assert retrying == {
        "instance_id": "c1:s1",
        "step_id": "one",
        "attempt": 1,
        "next_attempt_at": "2023-11-14T22:13:22.000Z",
        "error_code": "boom",
        "error_message": "boom happened",
    }
    assert (world.live.status, world.step("one").status, world.executed()) == ("RUNNING", "IN_PROGRESS", [])
    world.fire("retry/one")
    assert [request.attempt for request in world.requests()] == [1, 2]
    assert world.now == BEGIN + 2000


def test_pauses_grow_up_to_their_maximum_and_the_last_attempt_fails_the_ceremony(world: World) -> None:
    # specification 11.4, 12.4
    world.failed("one")
    world.fire("retry/one")
    world.failed("one")
    assert world.live.timers["retry/one"].due - world.now == 3000
    world.fire("retry/one")
    world.failed("one", "third")
    assert world.executed() == [("one", "FAILED")]
    failed = world.events("ceremony.step.executed")[0].payload
    assert failed == {
        "instance_id": "c1:s1",
        "step_id": "one",
        "status": "FAILED",
        "current_state": "RUN",
        "attempt": 3,
        "output": {},
        "error_code": "third",
        "error_message": "third happened",
    }
    assert (world.live.status, world.live.error_code) == ("FAILED", "third")


@pytest.mark.parametrize("more", [{"code": "hopeless"}, {"retryable": False}])
def test_a_failure_that_is_not_retryable_fails_the_step_at_once(world: World, more: dict[str, Any]) -> None:
    # specification 11.3
    world.failed("one", **more)
    assert world.live.status == "FAILED"


def test_without_a_policy_there_is_one_attempt() -> None:
    # specification 11.3
    world = World(one_step(MERGE.rstrip(", ") + "}"))
    world.start(a={})
    world.failed("one")
    assert world.live.status == "FAILED"


def test_the_policy_named_default_serves_steps_without_one_and_no_others() -> None:
    # specification 11.3
    policies = "retry_policies:\n  default: {max_attempts: 2, backoff_seconds: 7}\n  none: {max_attempts: 1}\n"
    of_default = World(one_step(MERGE.rstrip(", ") + "}", policies))
    of_default.start(a={})
    of_default.failed("one")
    assert of_default.live.timers["retry/one"].due == BEGIN + 7000
    of_its_own = World(one_step(MERGE + "retry: none}", policies))
    of_its_own.start(a={})
    of_its_own.failed("one")
    assert of_its_own.live.status == "FAILED"


def test_an_answer_to_an_older_attempt_is_ignored_and_noted(world: World) -> None:
    # specification 11.7
    world.failed("one")
    assert world.done("one", attempt=1).note == "stale_attempt"
    world.fire("retry/one")
    assert world.done("one", attempt=1).note == "stale_attempt"
    assert world.failed("one", attempt=3).note == "stale_attempt"
    world.done("one")
    assert world.live.status == "COMPLETED"


@pytest.mark.parametrize(
    ("at", "written"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_769_860_800_007, "2026-01-31T12:00:00.007Z"),
        (-1, "1970-01-01T00:00:00.000Z"),
        (10**18, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_outside_are_iso_8601_in_utc_with_milliseconds(at: int, written: str) -> None:
    """Even at extreme times of the log's clock the fold does not raise."""
    # specification 1.8
    assert iso(at) == written


def test_backoff_is_linear_or_doubles_and_jitter_only_shortens_it() -> None:
    # specification 11.4
    plain = RetryPolicy(9, 5)
    assert [retry_pause(plain, tries, "i", "s", tries) for tries in (1, 2, 3)] == [5000, 5000, 5000]
    growing = RetryPolicy(9, 5, exponential_backoff=True)
    assert [retry_pause(growing, tries, "i", "s", tries) for tries in (1, 2, 3)] == [5000, 10000, 20000]
    jittered = RetryPolicy(9, 10, jitter=0.5)
    pauses = [retry_pause(jittered, 1, "i", "s", attempt) for attempt in range(200)]
    assert 5000 <= min(pauses) < 6000
    assert 9000 < max(pauses) <= 10000
    assert pauses[3] == retry_pause(jittered, 1, "i", "s", 3)
    assert retry_pause(RetryPolicy(10**6, 1e300, exponential_backoff=True), 10**6, "i", "s", 1) > 0


# -- timeouts


def test_an_attempt_that_times_out_is_retried(world: World) -> None:
    # specification 11.2
    assert world.requests()[0].deadline == BEGIN + 60_000
    world.fire("timeout/one")
    assert world.events("ceremony.step.retrying")[0].payload["error_code"] == "timeout"


def test_the_timer_of_a_finished_or_an_older_attempt_is_harmless(world: World) -> None:
    world.failed("one")
    world.fire("retry/one")
    world.now = world.live.timers["timeout/one"].due
    assert world.fire("timeout/one", attempt=1).note == "stale_attempt"


def test_an_early_timer_changes_nothing(world: World) -> None:
    world.live.timers["timeout/one"]
    from tables.commands import TimerFired  # noqa: PLC0415

    decision = world.fold(TimerFired(instance_id="c1:s1", timer_id="timeout/one", attempt=1))
    assert (decision.note, decision.effects) == ("early_timer", ())


# -- a neighbour out of reach


def test_while_the_neighbour_is_unreachable_the_same_attempt_is_asked_after_growing_pauses(world: World) -> None:
    # specification 11.8
    pauses = []
    for _ in range(5):
        world.outcome("one", "unreachable")
        pauses.append((world.live.timers["ask/one"].due - world.now) // 1000)
        world.fire("ask/one")
    assert pauses == [1, 2, 4, 8, 16]
    assert [request.attempt for request in world.requests()] == [1] * 6
    assert len({request.id for request in world.requests()}) == 6
    assert world.events("ceremony.step") == []
    world.outcome("one", "unreachable")
    world.fire("timeout/one")
    assert world.step("one").phase == "backoff"
    assert "ask/one" not in world.live.timers


REFUSED: dict[str, Any] = {"error_code": "nats_unreachable", "error_message": "stream ORDERS takes no message"}


def test_the_reason_of_an_unreachable_neighbour_is_kept_until_its_timeout_names_it(world: World) -> None:
    # specification 11.8
    world.outcome("one", "unreachable", **REFUSED)
    world.fire("ask/one")
    assert (world.step("one").error_code, world.step("one").error_message) == tuple(REFUSED.values())
    world.fire("timeout/one")
    assert world.step("one").error_code == "timeout"
    assert world.step("one").error_message.endswith("; last: nats_unreachable: stream ORDERS takes no message")


def test_the_reason_is_forgotten_when_the_neighbour_takes_the_attempt(talk: World) -> None:
    before = talk.live.size
    talk.outcome("talk", "unreachable", **REFUSED)
    assert talk.live.size > before
    talk.fire("ask/talk")
    talk.outcome("talk", "submitted")
    assert (talk.step("talk").error_code, talk.step("talk").error_message) == ("", "")
    assert talk.live.size == before


def test_pauses_between_requests_grow_up_to_30_seconds() -> None:
    # specification 11.8
    assert [ask_pause(asks) for asks in (1, 5, 6, 60, 10**9)] == [1000, 16000, 30000, 30000, 30000]


# -- gathered results


def test_a_deliberation_completes_when_all_agents_answered_and_it_was_submitted(talk: World) -> None:
    # specification 1.4
    talk.outcome("talk", "submitted", deliberation_id="d-1")
    for number in (1, 2, 3):
        talk.result("talk", f"agent-dev-00{number}", role="DEV", value=f"idea {number}")
    output = talk.step("talk").output
    assert output["deliberation_id"] == "d-1"
    assert [d["proposal"] for d in output["deliberations"]] == ["idea 1", "idea 2", "idea 3"]
    assert talk.live.status == "COMPLETED"
    assert talk.step("talk").answers == {}


def test_results_may_overtake_submitted_but_complete_nothing_before_it(talk: World) -> None:
    # specification 1.4
    for number in (1, 2, 3):
        talk.result("talk", f"agent-dev-00{number}")
    assert talk.step("talk").status == "IN_PROGRESS"
    talk.outcome("talk", "submitted", deliberation_id="d-7")
    assert talk.step("talk").output["deliberation_id"] == "d-7"


def test_a_result_counts_once_per_agent_and_unknown_agents_do_not(talk: World) -> None:
    # specification 5.4, 11.12
    talk.outcome("talk", "submitted", deliberation_id="d")
    talk.result("talk", "agent-dev-001", value="first")
    assert talk.result("talk", "agent-dev-001", value="second").note == "duplicate"
    assert talk.result("talk", "agent-x-009").note == "unknown_agent"
    assert talk.step("talk").answers["agent-dev-001"].value == "first"


def test_enough_proposals_at_the_timeout_complete_the_step(talk: World) -> None:
    # specification 5.6
    talk.outcome("talk", "submitted", deliberation_id="d")
    talk.result("talk", "agent-dev-001")
    talk.result("talk", "agent-dev-002")
    assert talk.step("talk").status == "IN_PROGRESS"
    talk.fire("timeout/talk")
    assert talk.step("talk").status == "COMPLETED"


def test_too_few_proposals_at_the_timeout_fail_the_attempt_and_drop_its_answers(talk: World) -> None:
    talk.outcome("talk", "submitted", deliberation_id="d")
    talk.result("talk", "agent-dev-001")
    talk.fire("timeout/talk")
    assert talk.events("ceremony.step.retrying")[0].payload["error_code"] == "timeout"
    assert talk.step("talk").answers == {}
    assert talk.step("talk").gathered == len('"timeout"') + len(f'"{talk.step("talk").error_message}"')
    assert talk.live.size == talk.live.inputs_size + talk.step("talk").gathered


def test_failed_agents_fail_the_attempt_when_all_have_answered(talk: World) -> None:
    # specification 5.5
    talk.outcome("talk", "submitted", deliberation_id="d")
    talk.result("talk", "agent-dev-001")
    talk.result("talk", "agent-dev-002", value=None, error_code="oom", error_message="out of memory")
    talk.result("talk", "agent-dev-003", value=None, error_code="oom", error_message="out of memory")
    assert talk.events("ceremony.step.retrying")[0].payload["error_code"] == "agents_failed"


def test_the_second_outcome_of_an_attempt_performed_twice_does_not_count(talk: World) -> None:
    # specification 18.4
    talk.outcome("talk", "submitted", deliberation_id="d")
    for word in ("submitted", "failed", "unreachable"):
        assert talk.outcome("talk", word, error_code="x").note == "duplicate"


# -- roles


def test_a_step_whose_role_does_not_list_it_fails_before_it_runs_and_is_not_retried() -> None:
    # specification 11.9
    step = (
        "  - {id: talk, state: RUN, handler: deliberation_step, retry: {max_attempts: 5},"
        " config: {prompt: talk about it, role: DEV, num_agents: 1}}"
    )
    world = World(one_step(step, "roles:\n  - {id: DEV, description: d, allowed_actions: [finish]}"))
    world.start()
    assert world.requests() == []
    assert (world.live.status, world.live.error_code) == ("FAILED", "role_not_allowed")


# -- sizes


def test_an_output_above_the_limit_fails_the_attempt(world: World) -> None:
    # specification 11.13
    world.done("one", "x" * MAX_OUTPUT_BYTES)
    assert world.events("ceremony.step.retrying")[0].payload["error_code"] == "output_too_large"


def test_a_result_without_its_body_fails_the_attempt_with_its_size_only(talk: World) -> None:
    # specification 17.7
    talk.outcome("talk", "submitted", deliberation_id="d")
    talk.result("talk", "agent-dev-001", value=None, size=300_000)
    retrying = talk.events("ceremony.step.retrying")[0].payload
    assert retrying["error_code"] == "output_too_large"
    assert "300000" in retrying["error_message"]


def test_a_row_above_its_limit_fails_the_step_and_is_not_retried() -> None:
    # specification 11.13
    steps = "\n".join(
        f"  - {{id: s{i}, state: RUN, handler: aggregation_step, retry: {{max_attempts: 3}},"
        " config: {sources: [a], aggregation_type: list}}"
        for i in range(4)
    )
    world = World(one_step(steps))
    world.start(a=1)
    for name in ("s0", "s1", "s2", "s3"):
        world.done(name, "x" * 200_000)
    assert (world.live.status, world.live.error_code) == ("FAILED", "output_too_large")
    assert world.live.size < 768 * 1024


def test_an_output_that_nests_too_deep_fails_the_attempt(world: World) -> None:
    # specification 11.13
    value: Any = 1
    for _ in range(200):
        value = [value]
    world.done("one", value)
    assert world.events("ceremony.step.retrying")[0].payload["error_code"] == "output_too_deep"


def test_results_that_together_overfill_the_row_fail_the_step() -> None:
    # specification 11.13
    world = World(
        one_step(
            "  - {id: talk, state: RUN, handler: deliberation_step, retry: {max_attempts: 3},"
            " config: {prompt: talk about it, role: DEV, num_agents: 5}}"
        )
    )
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    for number in (1, 2, 3):
        world.result("talk", f"agent-dev-00{number}", value="x" * 250_000)
    world.result("talk", "agent-dev-004", value="x" * 250_000)
    assert (world.live.status, world.live.error_code) == ("FAILED", "output_too_large")
    assert world.live.size == world.live.inputs_size + world.step("talk").gathered
    assert world.step("talk").gathered < 200

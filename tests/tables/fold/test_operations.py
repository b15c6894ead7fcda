"""Operations on a whole ceremony, announcements of publish steps, and triggers of agents."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from streams.envelope import event_record
from tables.effects import FOLD, Event
from tables.fold.decide import Decision
from tables.instance import KEPT_COMMAND_IDS
from tests.contract.asyncapi import validate_message
from tests.tables.world import BEGIN, World, definition_of, refusal

BODY = """
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: HELD, description: h}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: HELD, trigger: hold, description: d}
  - {from: HELD, to: DONE, trigger: finish, guards: [ready], description: d}
guards:
  ready: {check: "step_status:late:COMPLETED"}
timeouts: {step_default: 100, step_max: 1000, ceremony_max: 5000}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list},
     retry: {max_attempts: 2, backoff_seconds: 10}}
  - {id: late, state: HELD, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
"""
PUBLISH = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: d}
steps:
  - {id: publish_it, state: RUN, handler: publish_step,
     config: {subject: ceremony.result, event_type: result.ready, payload_template: {x: 1}}}
"""


def validate(event: Event) -> None:
    """Check an event against `specs/asyncapi.yaml`, as it is sent."""
    validate_message(event.subject, json.loads(event_record(event, 0, 0, FOLD)[1]))


RECEIPT = {"stream": "CEREMONY", "sequence": 7, "duplicate": False}


@pytest.fixture
def world() -> World:
    world = World(definition_of(BODY))
    world.start(a=1)
    return world


# -- triggers


def test_a_trigger_moves_the_ceremony_and_cancels_steps_in_flight(world: World) -> None:
    # specification 12.8, 13.5
    world.trigger("hold")
    assert world.path() == ["HELD"]
    assert world.executed() == [("one", "CANCELLED")]


def test_a_trigger_that_leaves_another_state_or_whose_guards_do_not_hold_is_refused(world: World) -> None:
    # specification 13.5
    assert refusal(world.trigger("finish")) == "trigger_unknown"
    world.trigger("hold")
    assert refusal(world.trigger("finish")) == "guards_not_met"
    assert refusal(world.trigger("hold")) == "trigger_unknown"


def test_the_same_trigger_again_is_accepted_without_moving_twice(world: World) -> None:
    # specification 13.12
    world.trigger("hold", command_id="r-1")
    decision = world.trigger("hold", command_id="r-1")
    assert (decision.note, decision.effects) == ("duplicate", ())


def test_the_last_64_command_ids_are_kept(world: World) -> None:
    # specification 13.12
    for _ in range(40):
        world.pause()
        world.resume()
    assert len(world.live.command_ids) == KEPT_COMMAND_IDS


def test_a_trigger_needs_a_role_where_roles_name_it() -> None:
    # specification 13.1
    world = World(definition_of(BODY + "roles:\n  - {id: PO, description: o, allowed_actions: [hold]}\n"))
    world.start(a=1)
    assert refusal(world.trigger("hold")) == "role_required"
    assert refusal(world.trigger("hold", role="DEV")) == "role_not_allowed"
    assert refusal(world.trigger("hold", role="PO")) == ""


# -- pause and resume


def test_while_paused_answers_are_recorded_and_nothing_starts_until_resume(world: World) -> None:
    # specification 13.7, 13.8
    world.pause()
    world.done("one")
    assert (world.live.status, world.live.state, world.step("one").status) == ("PAUSED", "RUN", "COMPLETED")
    assert refusal(world.trigger("hold")) == "paused"
    assert refusal(world.retry("one")) == "paused"
    world.resume()
    assert (world.live.state, world.step("late").status) == ("HELD", "IN_PROGRESS")


def test_timers_stop_while_paused_and_continue_with_their_remaining_time(world: World) -> None:
    # specification 13.7, 13.8
    world.wait(30)
    world.pause()
    assert world.live.timers["timeout/one"].due == 70_000
    world.wait(1000)
    assert world.fire("timeout/one").note == "early_timer"
    world.resume()
    assert world.live.timers["timeout/one"].due == BEGIN + 1_030_000 + 70_000
    assert world.live.timers["ceremony_max"].due == BEGIN + 5_000_000


def test_a_failure_while_paused_backs_off_after_the_resume(world: World) -> None:
    world.pause()
    world.failed("one")
    assert world.live.timers["retry/one"].due == 10_000
    world.wait(500)
    world.resume()
    assert world.live.timers["retry/one"].due == BEGIN + 510_000


def test_a_last_failure_while_paused_fails_the_ceremony_at_resume(world: World) -> None:
    world.pause()
    world.failed("one", retryable=False)
    assert world.live.status == "PAUSED"
    world.resume()
    assert world.live.status == "FAILED"


def test_pause_twice_is_one_pause_and_resume_needs_one(world: World) -> None:
    # specification 13.7, 13.8
    assert refusal(world.resume()) == "not_paused"
    world.pause()
    assert world.pause().note == "duplicate"
    assert len(world.events("ceremony.paused")) == 1


def test_ceremony_max_runs_on_while_paused_and_ends_it_as_timed_out(world: World) -> None:
    # specification 12.9, 13.7
    world.pause()
    world.fire("ceremony_max")
    assert world.live.status == "TIMED_OUT"
    assert world.subjects()[-2:] == ["ceremony.step.executed", "ceremony.timed_out"]
    assert world.events("ceremony.timed_out")[0].payload["error_code"] == "ceremony_max"


# -- the end


def test_cancel_announces_the_cancelled_steps_first(world: World) -> None:
    # specification 12.8, 13.6
    world.cancel(reason="no longer wanted")
    assert world.live.status == "CANCELLED"
    assert world.subjects()[-2:] == ["ceremony.step.executed", "ceremony.cancelled"]
    assert world.events("ceremony.cancelled")[0].payload["reason"] == "no longer wanted"
    assert world.cancel().note == "duplicate"
    assert refusal(world.pause()) == "already_ended"
    assert refusal(world.retry("one")) == "already_ended"


def test_only_a_retry_of_the_step_opens_a_failed_ceremony_again(world: World) -> None:
    # specification 12.10, 13.9
    world.failed("one", retryable=False)
    assert world.live.status == "FAILED"
    operations: list[Callable[[], Decision]] = [world.cancel, world.pause, world.resume, lambda: world.trigger("hold")]
    for operation in operations:
        assert refusal(operation()) == "already_ended"
    assert refusal(world.retry("late")) == "wrong_state"
    world.wait(9000)
    world.retry("one")
    assert (world.live.status, world.step("one").attempt, world.step("one").tries) == ("RUNNING", 2, 1)
    assert world.live.timers["ceremony_max"].due == world.now + 5_000_000
    assert (world.live.error_code, world.live.ended_at) == ("", 0)
    world.done("one")
    assert world.live.state == "HELD"


TIMED = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: d}
timeouts: {step_default: 9000, step_max: 9000, ceremony_max: 5000}
steps:
  - {id: first, state: RUN, handler: publish_step, config: {subject: ceremony.x, event_type: x}, after: []}
  - {id: second, state: RUN, handler: publish_step, config: {subject: ceremony.x, event_type: x}, after: []}
  - {id: ask, state: RUN, handler: human_gate_step, config: {role: PO, message: m}, after: []}
  - {id: last, state: RUN, handler: publish_step, config: {subject: ceremony.x, event_type: x}, after: [first]}
"""


def timed_out(roles: str = "") -> World:
    """One step has failed and waits for its neighbours, one is in flight and a gate is open: the time is up."""
    world = World(definition_of(TIMED + roles))
    world.start()
    world.opened("ask")
    world.done("second", published=RECEIPT)
    world.fire("ceremony_max")
    assert world.live.status == "TIMED_OUT"
    return world


def statuses(world: World) -> dict[str, str]:
    return {step_id: str(state.status) for step_id, state in world.live.steps.items()}


@pytest.mark.parametrize("named", ["", "first"])
def test_a_retry_opens_a_ceremony_that_timed_out_with_a_new_time_limit(named: str) -> None:
    """Each step that the time-out cancelled gets a new attempt, the named one first."""
    # specification 12.10, 13.9
    world = timed_out()
    assert statuses(world) == {"first": "CANCELLED", "second": "COMPLETED", "ask": "CANCELLED", "last": "PENDING"}
    for refused in (world.pause(), world.resume(), world.run("last"), world.trigger("finish")):
        assert refusal(refused) == "already_ended"
    world.wait(7000)
    assert refusal(world.retry(named, reason="the vendor was away")) == ""
    assert (world.live.status, world.live.ended_at, world.live.error_code) == ("RUNNING", 0, "")
    assert world.live.timers["ceremony_max"].due == world.now + 5_000_000
    assert statuses(world) == {"first": "IN_PROGRESS", "second": "COMPLETED", "ask": "IN_PROGRESS", "last": "PENDING"}
    assert (world.step("first").attempt, world.step("ask").attempt, world.step("first").tries) == (2, 2, 1)
    resumed = world.events("ceremony.resumed")[-1]
    assert resumed.payload["reason"] == "the vendor was away"
    assert resumed.payload.get("step_id", "") == named
    validate(resumed)
    ordered = [event.payload["step_id"] for event in world.events("ceremony.step.ordered")]
    assert ordered == ([named] if named else ["first", "ask"])
    world.done("first", published=RECEIPT)
    world.opened("ask")
    world.decide("ask", role="PO")
    world.done("last", published=RECEIPT)
    assert world.live.status == "COMPLETED"


def test_a_retry_of_all_needs_a_role_that_allows_each_cancelled_step() -> None:
    # specification 13.1, 13.9
    roles = "  - {id: PO, description: o, allowed_actions: [ask, first]}\n"
    world = timed_out("roles:\n" + roles + "  - {id: DEV, description: o, allowed_actions: [first]}\n")
    assert refusal(world.retry(role="DEV")) == "role_not_allowed"
    assert refusal(world.retry()) == "role_required"
    assert refusal(world.retry(role="PO")) == ""


def test_a_ceremony_that_timed_out_while_paused_goes_on_where_it_was() -> None:
    """Nothing was cancelled: what had concluded during the pause is judged at the retry."""
    # specification 12.1, 13.9
    world = World(definition_of(BODY))
    world.start(a=1)
    world.pause()
    world.done("one")
    world.fire("ceremony_max")
    assert (world.live.status, world.live.state) == ("TIMED_OUT", "RUN")
    assert refusal(world.retry()) == ""
    assert (world.live.status, world.live.state) == ("RUNNING", "HELD")


def test_a_retry_names_a_step_unless_the_ceremony_timed_out(world: World) -> None:
    # specification 13.9
    assert refusal(world.retry()) == "step_unknown"
    world.failed("one", retryable=False)
    assert refusal(world.retry()) == "step_unknown"
    world.retry("one")
    world.cancel()
    assert refusal(world.retry("one")) == "already_ended"


def test_a_step_in_flight_or_completed_is_not_retried(world: World) -> None:
    # specification 13.9
    assert refusal(world.retry("one")) == "step_in_flight"
    assert refusal(world.retry("nothing")) == "step_unknown"


def test_an_unselected_step_is_run_once_and_only_while_it_is_pending() -> None:
    # specification 13.10
    two = "  - {id: two, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}\n"
    world = World(definition_of(BODY + two))
    world.start("one", a=1)
    assert refusal(world.run("late")) == "wrong_state"
    assert refusal(world.run("nothing")) == "step_unknown"
    assert refusal(world.run("two")) == ""
    assert world.step("two").status == "IN_PROGRESS"
    assert refusal(world.run("two")) == "step_not_pending"


# -- publishing


def test_a_publish_is_announced_when_requested_and_when_done_with_one_key() -> None:
    # specification 9.6, 9.7
    world = World(definition_of(PUBLISH))
    world.start()
    world.done("publish_it", {"published": True}, published=RECEIPT)
    requested, completed = world.events("ceremony.publish")
    key = "publish/c1:s1/publish_it/1"
    assert requested.payload == {
        "instance_id": "c1:s1",
        "step_id": "publish_it",
        "subject": "ceremony.result",
        "event_type": "result.ready",
        "idempotency_key": key,
    }
    assert completed.payload == requested.payload | RECEIPT
    assert world.subjects() == [
        "ceremony.started",
        "ceremony.publish.requested",
        "ceremony.publish.completed",
        "ceremony.step.executed",
        "ceremony.transition.applied",
        "ceremony.completed",
    ]


def test_a_publish_that_happened_is_announced_once_although_the_ceremony_was_cancelled() -> None:
    # specification 9.8
    world = World(definition_of(PUBLISH))
    world.start()
    world.cancel()
    before = world.live
    world.done("publish_it", receipt(1), published=RECEIPT)
    late = world.events("ceremony.publish.completed")
    assert [event.payload["late"] for event in late] == [True]
    assert (world.live.status, world.step("publish_it").status) == ("CANCELLED", "CANCELLED")
    assert world.live.version == before.version + 1
    assert world.done("publish_it", receipt(1), published=RECEIPT).effects == ()


def test_a_publish_is_announced_once_per_attempt_however_often_it_is_requested() -> None:
    """`unreachable` sends nothing (specification 9.7); each request carries the same key."""
    # specification 9.7
    world = World(definition_of(PUBLISH))
    world.start()
    world.outcome("publish_it", "unreachable", error_code="nats_unreachable")
    world.fire("ask/publish_it")
    assert world.subjects() == ["ceremony.started", "ceremony.publish.requested"]
    assert [request.body["idempotency_key"][-2:] for request in world.requests()] == ["/1", "/1"]


BACK_AND_FORTH = (
    PUBLISH.replace(
        "steps:",
        "  - {from: RUN, to: BACK, trigger: back, description: d}\n"
        "  - {from: BACK, to: RUN, trigger: again, description: d}\nsteps:",
    )
    .replace("transitions:", "  - {id: BACK, description: b}\ntransitions:")
    .replace("steps:", "steps:\n  - {id: first, state: RUN, handler: human_gate_step, config: {role: R, message: m}}")
)


def test_a_late_publish_is_announced_under_the_key_of_its_own_visit_and_the_next_one_too() -> None:
    """The state was entered again meanwhile, so the message of this visit is still to come."""
    world = World(definition_of(BACK_AND_FORTH))
    world.start()
    approve(world)
    world.trigger("back")
    assert (world.path(), world.step("publish_it").status) == (["BACK", "RUN"], "PENDING")
    world.done("publish_it", receipt(1), published=RECEIPT)
    assert world.done("publish_it", receipt(1), published=RECEIPT).effects == ()
    approve(world)
    world.done("publish_it", receipt(2), published=RECEIPT)
    told = [event.payload for event in world.events("ceremony.publish.completed")]
    assert [(payload["idempotency_key"][-2:], payload.get("late")) for payload in told] == [("/1", True), ("/2", None)]


@pytest.mark.parametrize(
    "key", ["publish/c1:s1/publish_it/2", "publish/c1:s1/other/1", "publish/c1:s1/publish_it/01", 1]
)
def test_a_late_publish_of_a_message_that_was_never_requested_is_not_announced(key: Any) -> None:
    world = World(definition_of(PUBLISH))
    world.start()
    world.cancel()
    assert world.done("publish_it", {"idempotency_key": key}, published=RECEIPT).note == "finished_step"
    assert world.done("publish_it", receipt(1), published=RECEIPT, attempt=2).note == "stale_attempt"
    assert world.events("ceremony.publish.completed") == []


def approve(world: World) -> None:
    world.opened("first")
    world.decide("first")


def receipt(visit: int) -> dict[str, Any]:
    """Return the receipt of a message, as the agent of a publish step sends it."""
    return {"published": True, "idempotency_key": f"publish/c1:s1/publish_it/{visit}"}


# -- an agent's trigger


TALK = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: GOOD, description: g, terminal: true}
  - {id: BAD, description: b, terminal: true}
transitions:
  - {from: RUN, to: GOOD, trigger: good, description: d}
  - {from: RUN, to: BAD, trigger: bad, description: d}
steps:
  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 1}}
"""
SYSTEM = "roles:\n  - {id: DEV, description: d, allowed_actions: [talk]}\n"


@pytest.mark.parametrize(
    ("roles", "end"),
    [
        ("", "BAD"),
        (SYSTEM, "GOOD"),
        (SYSTEM + "  - {id: SYSTEM, description: s, allowed_actions: [bad]}\n", "BAD"),
    ],
)
def test_an_agents_trigger_acts_as_role_system(roles: str, end: str) -> None:
    # specification 13.13
    world = World(definition_of(TALK + roles))
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    world.result("talk", "agent-dev-001", trigger="bad", command_id="task/agent")
    assert world.live.state == end


def test_an_agent_that_the_step_does_not_ask_moves_nothing() -> None:
    world = World(definition_of(TALK))
    world.start()
    assert world.result("talk", "nobody-of-ours", trigger="bad", command_id="task/agent").note == "unknown_agent"
    assert world.path() == []


AGAIN = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: LOOK, description: l}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: LOOK, trigger: next, description: d}
  - {from: LOOK, to: DONE, trigger: next, description: d}
  - {from: LOOK, to: RUN, trigger: back, description: d}
steps:
  - {id: tell, state: RUN, handler: publish_step, config: {subject: ceremony.x, event_type: x}}
  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 2}}
  - {id: look, state: LOOK, handler: publish_step, config: {subject: ceremony.x, event_type: x}}
"""


def test_an_agents_trigger_counts_only_in_the_state_and_visit_of_its_request() -> None:
    """Both agents request `next`, which the following state has too; the ceremony moves once."""
    # specification 13.13
    world = World(definition_of(AGAIN))
    world.start()
    world.done("tell", published=RECEIPT)
    world.outcome("talk", "submitted", deliberation_id="d")
    world.result("talk", "agent-dev-001", trigger="next", command_id="task/1")
    assert world.result("talk", "agent-dev-002", trigger="next", command_id="task/2").note == "finished_step"
    assert world.path() == ["LOOK"]
    world.trigger("back")
    assert world.result("talk", "agent-dev-002", trigger="next", command_id="task/2").note == "finished_step"
    assert world.path() == ["LOOK", "RUN"]


def test_an_agents_trigger_that_comes_while_paused_is_judged_at_the_resume() -> None:
    """As without the pause it comes before the automatic transitions. It is kept once, and its message is known."""
    # specification 13.13
    world = World(definition_of(TALK))
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    world.pause()
    world.result("talk", "agent-dev-001", trigger="bad", command_id="task/agent")
    assert (world.live.state, world.step("talk").status) == ("RUN", "COMPLETED")
    assert [asked.trigger for asked in world.live.asked_triggers] == ["bad"]
    again = world.result("talk", "agent-dev-001", trigger="bad", command_id="task/agent")
    assert again.row is world.row and again.note == "finished_step"
    world.resume()
    assert (world.live.state, world.live.asked_triggers) == ("BAD", ())
    assert world.events("ceremony.transition.applied")[-1].metadata == {
        "actor": "agent-dev-001",
        "role": "SYSTEM",
        "reason": "",
    }
    assert world.subjects()[-3] == "ceremony.resumed"


def test_a_trigger_kept_while_paused_moves_only_the_state_and_visit_of_its_request() -> None:
    """Both agents ask for `next`, which the following state has too: the ceremony moves once."""
    # specification 13.13
    world = World(definition_of(AGAIN))
    world.start()
    world.done("tell", published=RECEIPT)
    world.outcome("talk", "submitted", deliberation_id="d")
    world.pause()
    world.result("talk", "agent-dev-001", trigger="next", command_id="task/1")
    world.result("talk", "agent-dev-002", trigger="next", command_id="task/2")
    world.resume()
    assert world.path() == ["LOOK"]


@pytest.mark.parametrize("roles", [SYSTEM, "unknown"])
def test_a_trigger_that_an_agent_may_not_use_is_not_kept_while_paused(roles: str) -> None:
    # specification 13.13
    world = World(definition_of(TALK + (roles if roles == SYSTEM else "")))
    world.start()
    world.pause()
    world.result("talk", "agent-dev-001", trigger="bad" if roles == SYSTEM else "nothing", command_id="task/agent")
    assert world.live.asked_triggers == ()


def test_a_kept_trigger_is_dropped_when_the_paused_ceremony_ends() -> None:
    world = World(definition_of(TALK))
    world.start()
    world.pause()
    world.result("talk", "agent-dev-001", trigger="bad", command_id="task/agent")
    world.cancel()
    assert (world.live.status, world.live.asked_triggers, world.path()) == ("CANCELLED", (), [])


PAST = """
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: skip, description: d}
steps:
  - {id: broken, state: RUN, handler: publish_step, config: {subject: ceremony.x, event_type: x}, after: []}
  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 2}, after: []}
"""


def past() -> World:
    world = World(definition_of(PAST))
    world.start()
    world.failed("broken", retryable=False)
    return world


def test_no_agents_trigger_takes_a_guardless_transition_past_a_failed_step() -> None:
    # specification 12.2, 13.13
    world = past()
    assert world.result("talk", "agent-dev-001", trigger="skip", command_id="task/1").note == "trigger_ignored"
    assert world.path() == []
    world.pause()
    world.result("talk", "agent-dev-002", trigger="skip", command_id="task/2")
    world.resume()
    assert world.path() == []


def test_a_persons_trigger_goes_past_a_failed_step_and_is_recorded_so() -> None:
    # specification 12.2, 13.11
    world = past()
    assert refusal(world.trigger("skip", reason="we do without")) == ""
    (event,) = world.events("ceremony.transition.applied")
    assert event.metadata == {
        "actor": "petra",
        "role": "",
        "reason": "we do without",
        "past_failed_steps": "broken",
    }
    validate(event)


def test_a_trigger_of_an_older_attempt_or_of_a_message_that_came_before_moves_nothing() -> None:
    more = "num_agents: 1}, retry: {max_attempts: 2}}"
    talk = TALK.replace("num_agents: 1}}", more).replace("{from: RUN, to: BAD", "{from: RUN, to: RUN")
    world = World(definition_of(talk.replace("  - {id: BAD, description: b, terminal: true}\n", "")))
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    world.fire("timeout/talk")
    world.fire("retry/talk")
    assert world.result("talk", "agent-dev-001", attempt=1, trigger="bad", command_id="one").note == "stale_attempt"
    assert world.path() == []
    world.result("talk", "agent-dev-001", trigger="bad", command_id="two")
    world.result("talk", "agent-dev-001", attempt=2, trigger="bad", command_id="two")
    assert world.path() == ["RUN"]


def test_a_publish_of_an_attempt_that_timed_out_is_announced_once_though_the_next_one_succeeds() -> None:
    world = World(
        definition_of(PUBLISH.replace("handler: publish_step,", "handler: publish_step, retry: {max_attempts: 2},"))
    )
    world.start()
    world.fire("timeout/publish_it")
    world.done("publish_it", receipt(1), published=RECEIPT, attempt=1)
    assert [event.payload.get("late") for event in world.events("ceremony.publish.completed")] == [True]
    world.fire("retry/publish_it")
    world.done("publish_it", {"published": True}, published=RECEIPT | {"duplicate": True})
    assert world.live.status == "COMPLETED"
    assert len(world.events("ceremony.publish.completed")) == 1

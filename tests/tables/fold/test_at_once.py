"""Computing steps finish, and gates open, in the fold that starts them: no agent is asked."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.registry import all_kinds
from tables.definitions.loader import load
from tables.effects import FOLD, Event, StepRequested
from tables.kinds import Completed, Failed, Kinds, Opened
from tables.limits import MAX_AT_ONCE, TRANSITIONS_AT_ONCE
from tests.tables.fold.test_chain import chain
from tests.tables.properties.definitions import random_definition
from tests.tables.properties.play import QUICK
from tests.tables.world import ASKED, KINDS, World, definition_of

MERGE = "{sources: [a], aggregation_type: merge}"
COMPUTING = ("aggregation", "human_gate")


def world_of(body: str) -> World:
    return World(definition_of(body), KINDS)


def test_a_chain_of_steps_that_compute_is_one_command() -> None:
    # specification 11.11
    world = World(chain(5), KINDS)
    decision = world.start(a={"x": 1})
    assert (world.live.status, world.live.version) == ("COMPLETED", 1)
    assert world.requests() == []
    assert world.subjects() == [
        "ceremony.started",
        *["ceremony.step.executed"] * 5,
        "ceremony.transition.applied",
        "ceremony.completed",
    ]
    assert [effect.id for effect in decision.effects] == [f"c1:s1/1/{n}@{FOLD}" for n in range(9)]
    assert world.step("s5").output == {
        "sources": ["s4.aggregated_result"],
        "aggregation_type": "merge",
        "aggregated_result": {"x": 1},
    }


def test_the_command_that_reaches_a_gate_opens_it() -> None:
    # specification 8.2, 11.11
    world = world_of(
        """
states:
  - {id: ASK, description: a, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: ASK, to: DONE, trigger: go, description: g}
steps:
  - {id: gate, state: ASK, handler: human_gate_step, config: {role: PO, message: is it good, deadline_seconds: 60}}
"""
    )
    world.start()
    assert world.live.status == "WAITING_FOR_HUMAN"
    assert world.subjects() == ["ceremony.started", "ceremony.gate.opened", "ceremony.step.executed"]
    assert set(world.live.timers) == {"ceremony_max", "gate/gate"}
    world.decide("gate", role="PO")
    assert world.live.status == "COMPLETED"


def test_a_guard_over_an_open_gate_is_judged_at_once() -> None:
    world = world_of(
        """
states:
  - {id: ASK, description: a, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: ASK, to: DONE, trigger: go, guards: [open], description: g}
guards:
  open: {check: "step_status:gate:WAITING_FOR_HUMAN"}
steps:
  - {id: gate, state: ASK, handler: human_gate_step, config: {role: PO, message: is it good}}
"""
    )
    world.start()
    assert (world.live.status, world.executed()[-1]) == ("COMPLETED", ("gate", "CANCELLED"))


def test_a_step_that_fails_as_it_computes_takes_its_on_failure_in_the_same_command() -> None:
    world = world_of(
        """
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
  - {id: LOST, description: l, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: go, description: g}
  - {from: RUN, to: LOST, trigger: lose, guards: [broken], description: g}
guards:
  broken: {check: "step_status:both:FAILED"}
steps:
  - {id: both, state: RUN, handler: aggregation_step, config: {sources: [a, a], aggregation_type: concat}}
"""
    )
    world.start(a=1)
    assert (world.live.status, world.path()) == ("COMPLETED", ["LOST"])
    assert world.step("both").error_code == "source_wrong_type"


def test_a_computed_output_that_is_too_large_fails_the_attempt() -> None:
    world = world_of(
        """
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: go, description: g}
steps:
  - id: twice
    state: RUN
    handler: aggregation_step
    config: {sources: [a, a], aggregation_type: concat}
    retry: {max_attempts: 2, backoff_seconds: 5}
"""
    )
    world.start(a="x" * 150_000)
    assert (world.step("twice").phase, world.step("twice").error_code) == ("backoff", "output_too_large")
    world.fire("retry/twice")
    assert (world.live.status, world.live.error_code) == ("FAILED", "output_too_large")


@pytest.mark.parametrize("kinds", [KINDS, ASKED], ids=["at once", "asked"])
def test_guards_judge_a_computed_failure_as_one_of_an_agent(kinds: Kinds) -> None:
    definition = definition_of(
        """
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
  - {id: LATE, description: l, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: go, description: g}
  - {from: RUN, to: LATE, trigger: tarry, guards: [tries_again], description: g}
guards:
  tries_again: {check: "step_status:twice:IN_PROGRESS"}
steps:
  - id: twice
    state: RUN
    handler: aggregation_step
    config: {sources: [a, a], aggregation_type: concat}
    retry: {max_attempts: 2, backoff_seconds: 5}
"""
    )
    world = World(definition, kinds)
    world.start(a="x" * 150_000)
    for request in world.requests():
        answer(world, request)
    assert world.subjects().count("ceremony.step.retrying") == 1
    assert (world.path(), world.executed()) == ([], [])  # an attempt that is repeated is no conclusion
    world.wait(5)
    world.fire("retry/twice")
    if not world.executed():
        answer(world, world.requests()[-1])
    assert (world.path(), world.executed()) == ([], [("twice", "FAILED")])


def test_after_32_steps_of_one_command_the_next_one_is_requested() -> None:
    # specification 11.11
    world = World(chain(2 * MAX_AT_ONCE + 2), KINDS)
    world.start(a={"x": 1})
    for asked in (MAX_AT_ONCE + 1, 2 * MAX_AT_ONCE + 2):
        assert world.requests()[-1].step_id == f"s{asked}"
        answer(world, world.requests()[-1])
    assert world.live.status == "COMPLETED"
    assert len(world.requests()) == 2
    assert len(world.executed()) == 2 * MAX_AT_ONCE + 2


def test_a_step_that_one_command_reaches_twice_is_requested() -> None:
    """A cycle moves at the pace of its agents, which bounds the events of one command."""
    # specification 11.11
    world = world_of(
        """
inputs: {required: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: RUN, trigger: again, description: g}
  - {from: RUN, to: DONE, trigger: leave, guards: [wanted], description: l}
guards:
  wanted: {type: human, check: does somebody want to leave}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: merge}}
  - {id: two, state: RUN, handler: aggregation_step, config: {sources: [one], aggregation_type: merge}}
"""
    )
    world.start(a="x" * 200_000)
    assert world.executed() == [("one", "COMPLETED"), ("two", "COMPLETED")]
    for _ in range(3):
        before = len(world.executed())
        assert world.requests()[-1].step_id == "one"
        answer(world, world.requests()[-1])
        assert [step for step, _ in world.executed()[before:]] == ["one", "two", "one"]
        answer(world, world.requests()[-1])


def test_a_ceremony_in_a_cycle_leaves_room_for_others_and_ends_at_ceremony_max() -> None:
    """The same holds for a ceremony whose steps come in one command each."""
    states = "".join(f"  - {{id: S{n}, description: s{', initial: true' if n == 0 else ''}}}\n" for n in range(9))
    moves = "".join(f"  - {{from: S{n}, to: S{(n + 1) % 9}, trigger: go_{n}, description: g}}\n" for n in range(9))
    world = world_of(
        f"""
inputs: {{required: [a]}}
states:
{states}  - {{id: DONE, description: d, terminal: true}}
transitions:
{moves}  - {{from: S0, to: DONE, trigger: leave, guards: [wanted], description: l}}
guards:
  wanted: {{type: human, check: does somebody want to leave}}
steps:
  - {{id: one, state: S0, handler: aggregation_step, config: {{sources: [a], aggregation_type: merge}}}}
timeouts: {{ceremony_max: 100}}
"""
    )
    world.start(a={"x": 1})
    for _ in range(3):
        assert world.live.status == "RUNNING", world.live.error_message
        answer(world, world.requests()[-1])
    assert world.live.visits["S0"] == 1 + 3 * 2 + 1
    world.fire("ceremony_max")
    assert world.live.status == "TIMED_OUT"


def test_computed_steps_never_reach_the_transitions_that_fail_a_ceremony() -> None:
    """Twelve states with a step, and ten without one behind each: 132 transitions in all."""
    # specification 11.11
    names = [f"S{n}" if n % 11 == 0 else f"E{n}" for n in range(132)]
    states = "".join(
        f"  - {{id: {name}, description: s{', initial: true' if n == 0 else ''}}}\n" for n, name in enumerate(names)
    )
    ways = zip(names, [*names[1:], "DONE"], strict=True)
    moves = "".join(f"  - {{from: {one}, to: {other}, trigger: go, description: g}}\n" for one, other in ways)
    steps = "".join(
        f"  - {{id: in_{name.lower()}, state: {name}, handler: aggregation_step, config: {MERGE}}}\n"
        for name in names
        if name.startswith("S")
    )
    world = world_of(
        f"""
inputs: {{required: [a]}}
states:
{states}  - {{id: DONE, description: d, terminal: true}}
transitions:
{moves}steps:
{steps}"""
    )
    world.start(a={"x": 1})
    before = 0
    while world.live.status == "RUNNING":
        assert len(world.path()) - before <= TRANSITIONS_AT_ONCE + 11
        before = len(world.path())
        answer(world, world.requests()[-1])
    assert (world.live.status, len(world.path())) == ("COMPLETED", 132)


def answer(world: World, request: StepRequested) -> None:
    """Answer as the agent of a computing step."""
    settled = all_kinds()[world.definition.steps[request.step_id].handler].at_once(request.body)
    match settled:
        case Completed(output):
            world.done(request.step_id, output)
        case Failed(code, message, retryable):
            world.outcome(request.step_id, "failed", error_code=code, error_message=message, retryable=retryable)
        case Opened(output):
            world.outcome(request.step_id, "waiting", output=output)
        case _:
            pytest.fail(f"{request.kind} needs an agent")


@QUICK
@given(st.randoms(use_true_random=False))
def test_computing_in_the_fold_gives_the_same_as_requesting_the_agents(rng: Random) -> None:
    """The events and times are the same, and the row too, except for its version."""
    # specification 11.11
    definition = load(one_after_the_other(random_definition(rng)), "probe.yaml", KINDS)
    at_once, asked = World(definition, KINDS), World(definition, ASKED)
    for world in (at_once, asked):
        world.start(a={"x": 1})
    settled: list[str] = []
    while requests := asked.requests()[len(asked.decisions) - 1 :]:
        if requests[0].kind not in COMPUTING or requests[0].step_id in settled or len(settled) >= MAX_AT_ONCE:
            break
        settled.append(requests[0].step_id)
        answer(asked, requests[0])
    assert said(at_once) == said(asked)
    assert kept(at_once) == kept(asked)


def one_after_the_other(text: str) -> str:
    body = json.loads(text)
    for step in body.get("steps", []):
        step.pop("after", None)
    return json.dumps(body)


def said(world: World) -> list[tuple[str, int, Any]]:
    return [(effect.subject, effect.at, effect.payload) for effect in world.effects if isinstance(effect, Event)]


def kept(world: World) -> Any:
    row = world.live
    return row.state, row.status, row.steps, row.timers, row.visits, row.size, row.error_code

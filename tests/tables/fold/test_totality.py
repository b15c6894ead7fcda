"""No command makes the fold raise, with any values in its fields."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import force_setattr

from ports.errors import CeremonyError
from tables.commands import (
    AgentResult,
    AnyCommand,
    Cancel,
    GateDecision,
    Noop,
    Origin,
    Pause,
    PutDefinition,
    Restore,
    Resume,
    RetryStep,
    RunStep,
    SetAside,
    Start,
    StepOutcome,
    TimerFired,
    Trigger,
    decode_command,
    encode_command,
)
from tables.fold.decide import decide
from tables.instance import Instance, encode_instance
from tests.tables.properties.players import nested
from tests.tables.world import BEGIN, ID, KINDS, World, check, definition_of

pytestmark = pytest.mark.uncounted
DEFINITION = definition_of(
    """
inputs: {optional: [a]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, guards: [agreed], description: f}
guards:
  agreed: {type: human, check: somebody agrees}
steps:
  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 2}}
  - {id: gate, state: RUN, after: [], handler: human_gate_step, config: {role: PO, message: m, quorum: 2}}
  - {id: pub, state: RUN, after: [], handler: publish_step, config: {subject: ceremony.x, event_type: x}}
  - {id: sum, state: RUN, after: [], handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
"""
)
STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 10**30, 1.5, float("nan"), "", "\ud800", "x" * 10_000, b"x"),
    *([], {}, [[]], {"a": {}}, {1: 2}, (1, "x"), {1, 2}, object(), nested(100), nested(5000)),
)
COMMANDS: tuple[AnyCommand, ...] = (
    PutDefinition(hash="h", text="t"),
    Noop(),
    Start(
        instance_id=ID,
        ceremony_id="c1",
        story_id="s1",
        definition_name="probe",
        definition_hash=DEFINITION.hash,
        correlation_id="c",
        requested_by="anna",
        inputs={"a": 1},
    ),
    *(
        StepOutcome(instance_id=ID, step_id=step, attempt=1, outcome=outcome, output={"a": 1}, published={"s": 1})
        for step in DEFINITION.steps
        for outcome in ("completed", "failed", "waiting", "submitted", "unreachable")
    ),
    AgentResult(instance_id=ID, step_id="talk", attempt=1, agent_id="agent-dev-001", value="v", trigger="finish"),
    Trigger(instance_id=ID, command_id="t", trigger="finish", actor="a"),
    GateDecision(instance_id=ID, command_id="g", gate="gate", approved=True, actor="a"),
    GateDecision(instance_id=ID, command_id="g", gate="agreed", approved=True, actor="a"),
    TimerFired(instance_id=ID, timer_id="timeout/talk", attempt=1),
    TimerFired(instance_id=ID, timer_id="ceremony_max"),
    Cancel(instance_id=ID, command_id="c", actor="a"),
    Pause(instance_id=ID, command_id="p", actor="a"),
    Resume(instance_id=ID, command_id="r", actor="a"),
    RetryStep(instance_id=ID, command_id="y", step_id="talk", actor="a"),
    RunStep(instance_id=ID, command_id="u", step_id="talk", actor="a"),
    Restore(instance_id=ID, instance={"instance_id": ID}),
    SetAside(
        instance_id=ID,
        command_id="engine/set_aside/0",
        status="FAILED",
        state="RUN",
        version=1001,
        code="c",
        message="m",
    ),
    SetAside(
        instance_id=ID,
        command_id="engine/set_aside/1",
        status="PAUSED",
        state="RUN",
        version=1001,
        code="c",
        message="m",
    ),
)


def rows() -> list[Instance | None]:
    """Return no row, a live one with an open gate, a paused, an ended and an expired one."""
    world = World(DEFINITION)
    world.start(a=1)
    world.opened("gate")
    live = world.live
    world.pause()
    paused = world.live
    world.cancel()
    ended = world.live
    world.fire("expire")
    return [None, live, paused, ended, world.live]


ROWS = rows()


def strange_forms(command: AnyCommand) -> list[AnyCommand]:
    """Yield the command with each strange value in each of its fields."""
    found = []
    for field in command.__struct_fields__:
        for value in STRANGE:
            form = msgspec.structs.replace(command)
            force_setattr(form, field, value)
            found.append(form)
    return found


def of_the_log(command: AnyCommand) -> bool:
    try:
        return decode_command(encode_command(command)) == command
    except (CeremonyError, TypeError, ValueError, RecursionError):
        return False


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_no_value_in_any_field_makes_the_fold_raise(command: AnyCommand) -> None:
    """Commands that the log can hold keep every invariant; for others it is enough not to raise."""
    late = BEGIN + 10**12
    for row in ROWS:
        for form in strange_forms(command):
            real = of_the_log(form)
            for timestamp in (BEGIN, late, 0):
                decision = decide(row, form, Origin(0, 1, timestamp), DEFINITION, KINDS)
                if real:
                    check(row, decision, DEFINITION)


def test_a_malformed_field_is_refused_to_a_waiting_client() -> None:
    command = Cancel(instance_id=ID, command_id="c", actor="a")
    force_setattr(command, "actor", 5)
    decision = decide(ROWS[1], command, Origin(0, 1, BEGIN), DEFINITION, KINDS)
    assert (decision.row, decision.note) == (ROWS[1], "malformed_command")


@pytest.mark.parametrize("depth", [70, 200, 900])
def test_outputs_of_any_depth_that_the_log_can_hold_leave_a_row_that_can_be_written(depth: int) -> None:
    value: Any = nested(depth)
    row = ROWS[1]
    assert row is not None
    command = StepOutcome(instance_id=ID, step_id="sum", attempt=1, outcome="completed", output=value)
    decision = decide(row, command, Origin(0, 1, BEGIN), DEFINITION, KINDS)
    assert decision.row is not None
    encode_instance(decision.row)
    assert decision.row.steps["sum"].status == ("COMPLETED" if depth < 128 else "FAILED")

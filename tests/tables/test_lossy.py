"""Redacted texts that a later step or guard still reads make a restored ceremony lossy."""

from __future__ import annotations

from typing import Any

import pytest

from tables.lossy import still_read
from tests.tables.world import KINDS, World, definition_of

HEAD = """
inputs: {optional: [title, token, publish_data, seen]}
states:
  - {id: TALK, description: t, initial: true}
  - {id: SEND, description: s}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: TALK, to: SEND, trigger: talked, description: f}
  - {from: SEND, to: DONE, trigger: sent, guards: [fine], description: f}
"""
GUARD = 'guards:\n  fine: {check: "%s"}\n'
STEPS = """
steps:
  - {id: sum, state: TALK, handler: aggregation_step, config: {sources: [title], aggregation_type: list}}
  - {id: talk, state: TALK, handler: deliberation_step, config: {prompt: "${inputs.title}", role: DEV, num_agents: 1}}
  - {id: gate, state: SEND, handler: human_gate_step, config: {role: PO, message: "Send ${steps.talk.status}?"}}
  - {id: send, state: SEND, handler: publish_step,
     config: {subject: ceremony.x, event_type: x, payload_template: {token: "${inputs.token}"}}}
"""


CUT = '  - {id: cut, state: SEND, handler: task_extraction_step, config: {source: "deliberation:talk"}}\n'


def world(check: str = "cel:inputs.seen == 'x'", more_steps: str = "") -> World:
    made = World(definition_of(HEAD + GUARD % check + STEPS + more_steps))
    made.start(title="t")
    return made


def read(made: World, *paths: str) -> list[str]:
    return still_read(made.live, made.definition, KINDS, paths)


@pytest.mark.parametrize(
    ("paths", "reasons"),
    [
        ([], []),
        (["$.correlation_id", "$.engine.error_message", "$.idempotency_keys[0]"], []),
        (["$.inputs.unused"], ["step talk reads the inputs"]),
        (
            ["$.inputs.title[0].x"],
            ["step sum reads the input title", "step talk reads the inputs", "step talk reads the input title"],
        ),
        (["$.inputs.token"], ["step talk reads the inputs", "step send reads the input token"]),
        (["$.inputs.publish_data"], ["step talk reads the inputs", "step send reads the input publish_data"]),
        (["$.inputs.seen"], ["step talk reads the inputs", "guard fine reads the input seen"]),
        (["$.step_outputs.sum.aggregated_result[0]"], []),
        (["$.step_outputs.talk.deliberations[0].proposal"], ["step gate reads the output of talk"]),
    ],
)
def test_each_reader_of_a_redacted_text_is_named(paths: list[str], reasons: list[str]) -> None:
    # specification 28.4
    assert read(world(), *paths) == reasons


def test_an_extraction_of_tasks_reads_all_inputs_and_its_source() -> None:
    # specification 28.4
    made = world(more_steps=CUT)
    assert "step cut reads the inputs" in read(made, "$.inputs.unused")
    assert "step cut reads the output of talk" in read(made, "$.step_outputs.talk.deliberations[0].proposal")


def test_a_name_in_brackets_may_be_any() -> None:
    assert "step send reads the input token" in read(world(), '$.inputs["odd name"]')


def test_a_step_that_has_run_reads_nothing_more() -> None:
    # specification 28.4
    made = world()
    made.done("sum")
    assert "step sum reads the input title" not in read(made, "$.inputs.title")
    made.outcome("talk", "submitted", deliberation_id="d")
    made.result("talk", "agent-dev-001")
    assert made.live.state == "SEND"
    assert read(made, "$.inputs.title") == []
    assert read(made, "$.step_outputs.talk.status") == ["step gate reads the output of talk"]


def test_a_guard_that_reads_all_inputs_or_outputs_reads_each() -> None:
    made = world("cel:size(inputs) > 3 && size(outputs) > 1")
    assert "guard fine reads the inputs" in read(made, "$.inputs.unused")
    assert read(made, "$.step_outputs.sum.x") == ["guard fine reads the outputs"]


@pytest.mark.parametrize("end", ["cancel", "ceremony_max"])
def test_an_ending_that_nothing_opens_again_loses_nothing(end: str) -> None:
    """A ceremony that timed out can be opened again by a retry."""
    made = world()
    made.cancel() if end == "cancel" else made.fire(end)
    found: Any = read(made, "$.inputs.token")
    assert bool(found) == (end == "ceremony_max")

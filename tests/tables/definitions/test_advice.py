"""Warnings of `validate`, and the errors beside them: what can never work is an error, what may not work a warning."""

from __future__ import annotations

import pytest

from tables.definitions.advice import warnings
from tables.definitions.loader import load
from tables.errors import DefinitionInvalid
from tests.tables.world import KINDS

HEAD = """\
version: "1.0"
name: x
description: d
inputs: {required: [topic], optional: [note]}
states:
- {id: TALK, description: t, initial: true}
- {id: OUT, description: o}
- {id: DONE, description: d, terminal: true}
transitions:
- {from: TALK, to: OUT, trigger: talked, description: d}
- {from: OUT, to: DONE, trigger: out, description: d}
"""
TALK = "- {id: talk, state: TALK, handler: deliberation_step, config: {role: R, num_agents: 1, prompt: 'On PROMPT'}}\n"
SHIP = "- {id: publish_it, state: OUT, handler: publish_step, config: {subject: ceremony.x, event_type: e, MORE}}\n"
EXTRACT = "- {id: extract, state: TALK, handler: task_extraction_step, config: {source: 'deliberation:talk'}MORE}\n"
JOIN = "- {id: join, state: TALK, handler: aggregation_step, config: {sources: [SOURCE], aggregation_type: list}MORE}\n"


def talk(prompt: str) -> str:
    return TALK.replace("PROMPT", prompt)


def ship(template: str, more: str = "") -> str:
    return SHIP.replace("MORE", f"payload_template: {{v: '{template}'}}{more}")


def join(source: str, more: str = "") -> str:
    return JOIN.replace("SOURCE", source).replace("MORE", more)


def guard(check: str, more: str = "") -> str:
    return f"guards:\n  g: {{check: '{check}'{more}}}\n"


def advised(*steps: str, more: str = "") -> list[tuple[str, int]]:
    definition = load(HEAD + "steps:\n" + "".join(steps) + more, "x.yaml", KINDS)
    return [(warning.rule, warning.line) for warning in warnings(definition, KINDS)]


def refused(*steps: str, more: str = "") -> list[str]:
    with pytest.raises(DefinitionInvalid) as caught:
        load(HEAD + "steps:\n" + "".join(steps) + more, "x.yaml", KINDS)
    return [problem.rule for problem in caught.value.problems]


# Lines of the first and the second step.
FIRST, SECOND = 13, 14


@pytest.mark.parametrize(
    ("prompt", "rules"),
    [
        ("${inputs.topic} ${inputs.note} ${inputs.story_id} ${inputs.ceremony_id} $${x} $5", []),
        ("${input.topic}", ["template_unknown"]),
        ("${env.HOME}", ["template_unknown"]),
        ("${HOME", ["template_unknown"]),
        ("{{ topic }}", ["template_braces"]),
        ("${inputs.topik}", ["undeclared_input"]),
    ],
)
def test_a_placeholder_that_stays_or_names_no_input_is_a_warning(prompt: str, rules: list[str]) -> None:
    # specification 4.9
    assert advised(talk(prompt)) == [(rule, FIRST) for rule in rules]


@pytest.mark.parametrize("prompt", ["${inputs.topic", "see ${ steps.talk.role and ${inputs.topic}", "${inputs.{x}}"])
def test_an_unclosed_placeholder_is_an_error(prompt: str) -> None:
    # specification 4.3
    assert refused(talk(prompt)) == ["template_unclosed"]


@pytest.mark.parametrize(
    ("template", "rules"),
    [
        ("${steps.talk}", []),
        ("${steps.talk.deliberations.0.proposal}", []),
        ("${steps.talk.proposals}", ["unknown_field"]),
        ("${steps.talk.aggregated_result}", ["unknown_field"]),
    ],
)
def test_a_field_that_the_kind_of_step_does_not_put_out_is_a_warning(template: str, rules: list[str]) -> None:
    # specification 4.9
    assert advised(talk("x"), ship(template)) == [(rule, SECOND) for rule in rules]


def test_sources_and_guards_are_judged_like_templates() -> None:
    # specification 4.9
    assert advised(talk("x"), join("talk.proposals")) == [("unknown_field", SECOND)]
    assert advised(talk("x"), join("topik")) == [("undeclared_input", SECOND)]
    checks = ("cel:outputs.talk.score > 1", 'cel:status.tallk == "FAILED"', "cel:inputs.topik == 1")
    rules = ["unknown_field", "unknown_step", "undeclared_input"]
    assert [advised(talk("x"), more=guard(check)) for check in checks] == [[(rule, 15)] for rule in rules]
    assert advised(talk("x"), more=guard("threshold:talk.score", ", threshold: 1")) == [("unknown_field", 15)]


SIDE_BY_SIDE, LAST = ", after: []", ", after: [extract]"


@pytest.mark.parametrize(
    ("steps", "rules", "advice"),
    [
        ([talk("x"), EXTRACT.replace("MORE", "")], [], []),
        ([talk("x"), EXTRACT.replace("MORE", SIDE_BY_SIDE)], [], [("source_maybe_later", SECOND)]),
        ([EXTRACT.replace("MORE", ""), talk("x")], ["source_never_before"], []),
        ([talk("${steps.talk.role}")], ["source_never_before"], []),
        ([ship("${steps.talk.role}"), talk("${steps.publish_it.subject}")], ["source_never_before"], []),
        ([talk("x"), join("talk.role", SIDE_BY_SIDE)], [], [("source_maybe_later", SECOND)]),
        ([join("talk.role"), talk("x")], ["source_never_before"], []),
        ([join("topic"), talk("${steps.join.aggregated_result}")], [], []),
    ],
)
def test_a_step_that_starts_before_its_source(
    steps: list[str], rules: list[str], advice: list[tuple[str, int]]
) -> None:
    """An error where the source never completes before it, a warning where nothing orders them."""
    # specification 4.3, 4.9
    assert refused(*steps) == rules if rules else advised(*steps) == advice


def test_an_extraction_before_its_source_may_work_where_its_input_is_declared() -> None:
    # specification 4.9
    head = HEAD.replace("[note]", "[note, agent_deliberations]")
    text = head + "steps:\n" + EXTRACT.replace("MORE", "") + talk("x")
    found = warnings(load(text, "x.yaml", KINDS), KINDS)
    assert [warning.rule for warning in found] == ["source_maybe_later"]
    required = text.replace("[topic]", "[topic, agent_deliberations]").replace("[note, agent_deliberations]", "[note]")
    assert warnings(load(required, "x.yaml", KINDS), KINDS) == []


def test_a_source_in_a_state_that_leads_back_may_have_completed() -> None:
    back = HEAD.replace("steps:", "").rstrip() + "\n- {from: OUT, to: TALK, trigger: again, description: d}\nsteps:\n"
    text = back + talk("${steps.publish_it.subject}") + ship("x")
    assert warnings(load(text, "x.yaml", KINDS), KINDS) == []


@pytest.mark.parametrize(
    ("outputs", "template", "advice"),
    [
        ("it: {type: object, schema: {v: string}}", "x", []),
        ("it: {type: object, schema: {v: string, w: string}}", "x", [("output_field_missing", SECOND)]),
        ("it: {type: object, schema: {required: [w]}}", "x", [("output_field_missing", SECOND)]),
        ("other: {type: object}", "x", [("output_unfilled", 16)]),
    ],
)
def test_an_output_that_no_step_fills_or_can_fill_is_a_warning(
    outputs: str, template: str, advice: list[tuple[str, int]]
) -> None:
    # specification 4.9
    assert advised(talk("x"), ship(template), more=f"outputs:\n  {outputs}\n") == advice


def test_guards_that_hold_by_chance_or_for_anybody_are_warnings() -> None:
    # specification 3.11
    checks = ("step_status:talk:IN_PROGRESS", 'cel:status.talk == "IN_PROGRESS"')
    assert [advised(talk("x"), more=guard(check)) for check in checks] == [[("guard_over_in_progress", 15)]] * 2
    assert advised(talk("x"), more=guard("Fine?", ", type: human")) == [("guard_without_role", 15)]
    assert advised(talk("x"), more=guard("step_status:talk:FAILED")) == []


def test_a_state_that_success_does_not_leave_is_a_warning() -> None:
    # specification 12.2
    text = HEAD + "steps:\n" + talk("x").replace("}}", "}, on_failure: talked}")
    found = warnings(load(text, "x.yaml", KINDS), KINDS)
    assert [(warning.rule, warning.line) for warning in found] == [("no_way_of_success", 6)]

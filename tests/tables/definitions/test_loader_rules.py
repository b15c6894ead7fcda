"""Every rule of a definition file: the violation, its code, and its line (marked `#!`)."""

from __future__ import annotations

import pytest

from steps.registry import all_kinds
from tables.definitions.loader import load
from tables.errors import DefinitionInvalid, Problem

# ruff: noqa: E501 — a case is one line, however long

KINDS = all_kinds()
BASE = """\
version: "1.0"
name: review
description: A review.
inputs: {required: [title], optional: [note]}
outputs:
  result: {type: object, schema: {title: string, ok: bool}}
states:
  - {id: OPEN, description: Open, initial: true}
  - {id: SHUT, description: Shut}
  - {id: DONE, description: Done, terminal: true}
transitions:
  - {from: OPEN, to: SHUT, trigger: shut, description: Shut it}
  - {from: SHUT, to: DONE, trigger: finish, guards: [good], description: Finish}
  - {from: SHUT, to: OPEN, trigger: again, guards: [wish], description: Again}
steps:
  - {id: first, state: OPEN, handler: aggregation_step, config: {sources: [title], aggregation_type: merge}}
  - {id: second, state: OPEN, handler: aggregation_step, config: {sources: [first], aggregation_type: list}}
  - id: publish_result
    state: SHUT
    handler: publish_step
    config: {subject: ceremony.x, event_type: ceremony.x}
guards:
  good: {check: "step_status:publish_result:COMPLETED"}
  wish: {type: human, check: Is it good?, role: OWNER}
roles:
  - {id: OWNER, description: Owns it, allowed_actions: [again, finish]}
timeouts: {step_default: 10, step_max: 100, ceremony_max: 1000}
retry_policies:
  default: {max_attempts: 2}
"""


def problems(text: str | bytes, file: str = "specs/review.yaml") -> list[Problem]:
    with pytest.raises(DefinitionInvalid) as caught:
        load(text, file, KINDS)
    return list(caught.value.problems)


def changed(old: str, new: str) -> str:
    assert BASE.count(old) == 1, f"{old!r} must be in the base once"
    return BASE.replace(old, new)


FIRST = "  - {id: first, state: OPEN, handler: aggregation_step, config: {sources: [title], aggregation_type: merge}}\n"
SECOND = (
    "  - {id: second, state: OPEN, handler: aggregation_step, config: {sources: [first], aggregation_type: list}}\n"
)
SHUT = "  - {from: OPEN, to: SHUT, trigger: shut, description: Shut it}\n"
RESULT = "  result: {type: object, schema: {title: string, ok: bool}}\n"
CONFIG = "config: {sources: [title], aggregation_type: merge}"
GOOD = '  good: {check: "step_status:publish_result:COMPLETED"}\n'
OWNER = "  - {id: OWNER, description: Owns it, allowed_actions: [again, finish]}\n"
POLICY = "  default: {max_attempts: 2}\n"
PUBLISH = "    config: {subject: ceremony.x, event_type: ceremony.x}\n"


def step(more: str = "", state: str = "OPEN", config: str = CONFIG, name: str = "first") -> str:
    return f"  - {{id: {name}, state: {state}, handler: aggregation_step, {config}{more}}} #!\n"


def deliberation(config: str) -> str:
    return (
        "  - id: first\n    state: OPEN\n    handler: deliberation_step\n"
        f"    config:\n      prompt: Think about it\n      role: OWNER\n      {config}\n"
    )


CASES = [
    # version, name, description
    ("bad_version", changed('version: "1.0"', 'version: "1.1" #!')),
    ("wrong_type", changed('version: "1.0"', "version: 1.0 #!")),
    ("missing_key", changed('version: "1.0"\n', "").replace("name: review", "name: review #!")),
    ("name_mismatch", changed("name: review", "name: revue #!")),
    ("bad_name", changed("name: review", "name: ../review #!")),
    ("bad_name", changed("name: review", "name: review-1 #!")),
    ("empty_value", changed("description: A review.", "description: ' ' #!")),
    ("null_value", changed("description: A review.", "description: #!")),
    # YAML
    ("unknown_key", changed("description: A review.", "description: A review.\nstepz: [] #!")),
    ("duplicate_key", changed("description: A review.", "description: A review.\nname: review #!")),
    ("duplicate_key", changed(POLICY, "  default: {max_attempts: 2}\n  default: {max_attempts: 3} #!\n")),
    ("yaml_alias", changed(SECOND, SECOND.replace("- {", "- &x {") + "  - *x #!\n")),
    ("yaml_alias", changed("  default: {max_attempts: 2}\n", "  default: &x {max_attempts: 2}\n  other: {<<: *x, max_attempts: 2} #!\n")),
    ("yaml_alias", changed(PUBLISH, "    config: {subject: ceremony.x, event_type: &x ceremony.x, payload_template: {a: *x}} #!\n")),
    ("quote_it", changed("description: A review.", "description: NO #!")),
    ("quote_it", changed("step_max: 100,", "step_max: 0100, #!\n ")),
    ("quote_it", changed(PUBLISH, PUBLISH.replace("}", ", payload_template: {at: [22:22]}} #!"))),
    ("quote_it", changed(PUBLISH, PUBLISH.replace("}", ", payload_template: {zip: 01234}} #!"))),
    ("quote_it", changed(RESULT, "  result: {type: object, schema: {enum: [1_000]}} #!\n")),
    ("quote_it", changed("terminal: true}", "terminal: yes} #!")),
    ("yaml_tag", changed("description: A review.", "description: !!python/name:os.system A #!")),
    ("yaml_tag", changed("inputs: {", "inputs: !mine { #!\n  ")),
    ("yaml_syntax", changed("description: A review.", "description: A: review #!")),
    ("several_documents", BASE + "--- #!\nversion: 2\n"),
    ("bad_key", changed("description: A review.", "description: A review.\n? [a, b] #!\n: 3")),
    ("bad_value", changed("description: A review.", "description: !!int one #!")),
    ("bad_number", changed("step_max: 100,", "step_max: .inf, #!\n ")),
    ("bad_number", changed("step_max: 100,", "step_max: 99999999999999999999999, #!\n ")),
    ("null_value", changed("retry_policies:\n" + POLICY, "retry_policies: #!\n")),
    ("null_value", changed("inputs: {required: [title], optional: [note]}", "inputs: ~ #!")),
    ("null_value", changed(
        "  - {from: SHUT, to: DONE, trigger: finish, guards: [good], description: Finish}\n",
        "  - {from: SHUT, to: DONE, trigger: finish, guards: ~, description: Finish} #!\n")),
    # inputs
    ("input_in_both_lists", changed("optional: [note]}", "optional: [title]} #!")),
    ("bad_name", changed("optional: [note]}", "optional: [a note]} #!")),
    ("wrong_type", changed("inputs: {required: [title], optional: [note]}", "inputs: [title] #!")),
    ("wrong_type", changed("optional: [note]}", "optional: note} #!")),
    # outputs
    ("unknown_type", changed(RESULT, "  result: {type: map} #!\n")),
    ("missing_key", changed(RESULT, "  result: {schema: {a: string}} #!\n")),
    ("unknown_type_word", changed(RESULT, "  result:\n    type: object\n    schema:\n      a: text #!\n")),
    ("bad_json_schema", changed(RESULT, "  result:\n    type: object\n    schema:\n      required: title #!\n")),
    ("bad_json_schema", changed(RESULT, "  result: {type: object, schema: {$schema: 'http://x', items: {}}} #!\n")),
    ("bad_json_schema", changed(
        RESULT, "  result:\n    type: object\n    schema:\n      properties:\n        a: {$ref: 'http://x/y'} #!\n")),
    # states
    ("missing_key", changed("  - {id: SHUT, description: Shut}", "  - {id: SHUT} #!")),
    ("bad_id", changed("  - {id: SHUT, description: Shut}", "  - {id: Shut, description: Shut} #!").replace("SHUT", "Shut")),
    ("duplicate_state", changed("  - {id: SHUT, description: Shut}", "  - {id: SHUT, description: S}\n  - {id: SHUT, description: T} #!")),
    ("no_initial_state", changed("states:", "states: #!").replace("initial: true", "initial: false")),
    ("several_initial_states", changed("{id: SHUT, description: Shut}", "{id: SHUT, description: S, initial: true} #!")),
    ("no_terminal_state", changed("states:", "states: #!").replace("terminal: true", "terminal: false")),
    ("wrong_type", changed("initial: true}", "initial: 'yes'} #!")),
    ("leaves_terminal_state", changed(SHUT, SHUT + "  - {from: DONE, to: OPEN, trigger: a, description: A} #!\n")),
    ("unreachable_state", changed("states:\n", "states:\n  - {id: LONELY, description: L} #!\n")
        .replace("steps:\n", "  - {from: LONELY, to: DONE, trigger: t, description: T}\nsteps:\n", 1)),
    ("no_way_to_end", changed("states:\n", "states:\n  - {id: TRAP, description: L} #!\n")
        .replace("steps:\n", "  - {from: OPEN, to: TRAP, trigger: t, description: T}\nsteps:\n", 1)),
    ("empty_value", "version: '1.0'\nname: review\ndescription: d\nstates: [] #!\ntransitions: []\n"),
    # transitions
    ("unknown_state", changed(SHUT, SHUT.replace("to: SHUT", "to: SHUD").rstrip() + " #!\n")),
    ("unknown_guard", changed("guards: [good]", "guards: [goood]").replace("description: Finish}", "description: Finish} #!")),
    ("duplicate_trigger", changed(SHUT, SHUT + SHUT.rstrip() + " #!\n")),
    ("missing_key", changed(SHUT, "  - {from: OPEN, to: SHUT, trigger: shut} #!\n")),
    ("missing_key", "version: '1.0' #!\nname: review\ndescription: d\nstates: [{id: A, description: a, initial: true, terminal: true}]\n"),
    # steps
    ("bad_id", changed(FIRST, step(name="First")).replace("sources: [first]", "sources: [title]")),
    ("bad_id", changed(FIRST, step(name="_1")).replace("sources: [first]", "sources: [title]")),
    ("duplicate_step", changed(SECOND, step())),
    ("unknown_state", changed(FIRST, step(state="OPNE"))),
    ("step_in_terminal_state", changed(SECOND, step(state="DONE", name="second"))),
    ("unknown_handler", changed(FIRST, step().replace("aggregation_step", "agregation_step"))),
    ("missing_key", changed(FIRST, step(config="timeout_seconds: 3"))),
    ("empty_value", changed(FIRST, step(config="config: {}"))),
    ("unknown_retry_policy", changed(FIRST, step(", retry: nope"))),
    ("missing_key", changed(FIRST, step(", retry: {backoff_seconds: 2}"))),
    ("wrong_type", changed(FIRST, step(", retry: 3"))),
    ("timeout_over_step_max", changed(FIRST, step(", timeout_seconds: 101"))),
    ("out_of_range", changed(FIRST, step(", timeout_seconds: 0"))),
    ("wrong_type", changed(FIRST, step(", timeout_seconds: true"))),
    ("unknown_trigger", changed(FIRST, step(", on_failure: finish"))),
    ("unknown_step", changed(SECOND, step(", after: [frist]", name="second"))),
    ("after_other_state", changed(SECOND, step(", after: [publish_result]", name="second"))),
    ("after_cycle", changed(FIRST, step(", after: [first]"))),
    ("after_cycle", changed(FIRST, step(", after: [second]"))),
    # configs, as the step kinds judge them
    ("unknown_key", changed(FIRST, step(config="config: {sources: [title], aggregation_type: merge, agregation: 1}"))),
    ("missing_key", changed(FIRST, step(config="config: {sources: [title]}"))),
    ("bad_config", changed(FIRST, step(config="config: {sources: title, aggregation_type: merge}"))),
    ("bad_config", changed(FIRST, step(config="config: {sources: [], aggregation_type: merge}"))),
    ("bad_config", changed(FIRST, step(config="config: {sources: [title], aggregation_type: mingle}"))),
    ("bad_config", changed(FIRST, deliberation("num_agents: 0 #!"))),
    ("bad_config", changed(FIRST, deliberation("num_agents: true #!"))),
    ("bad_config", changed(FIRST, deliberation("agents: [] #!"))),
    ("unknown_key", changed(FIRST, deliberation("agents: [1]\n      constraints:\n        story: x #!"))),
    ("bad_config", changed(FIRST, deliberation("agents: [1]\n      constraints:\n        max_retries: 11 #!"))),
    # guards
    ("bad_check", changed(GOOD, "  good: {check: all_steps_complete} #!\n")),
    ("bad_check", changed(GOOD, "  good: {check: 'step_status:first:DONE'} #!\n")),
    ("bad_check", changed(GOOD, "  good: {check: 'step_status:first'} #!\n")),
    ("unknown_step", changed(GOOD, "  good: {check: 'step_status:frist:COMPLETED'} #!\n")),
    ("bad_check", changed(GOOD, "  good: {check: 'threshold:first', threshold: 1} #!\n")),
    ("bad_check", changed(GOOD, "  good: {check: 'threshold:first.a..b', threshold: 1} #!\n")),
    ("unknown_step", changed(GOOD, "  good: {check: 'threshold:frist.score', threshold: 1} #!\n")),
    ("threshold_missing", changed(GOOD, "  good: {check: 'threshold:first.score'} #!\n")),
    ("wrong_type", changed(GOOD, "  good: {check: 'threshold:first.score', threshold: true} #!\n")),
    ("bad_expression", changed(GOOD, "  good: {check: 'cel:inputs.n >'} #!\n")),
    ("bad_expression", changed(GOOD, "  good: {check: 'cel:nothing == 1'} #!\n")),
    ("bad_expression", changed(GOOD, "  good: {check: 'cel: '} #!\n")),
    ("empty_value", changed(GOOD, "  good: {check: ''} #!\n")),
    ("unknown_guard_type", changed(GOOD, "  good: {type: manual, check: all_steps_completed} #!\n")),
    ("unknown_role", changed("role: OWNER}", "role: OWNERS} #!")),
    # roles
    ("bad_id", changed(OWNER, OWNER.replace("[again, finish]", "[]") + "  - {id: owner, description: O} #!\n")),
    ("duplicate_role", changed(OWNER, OWNER + "  - {id: OWNER, description: O} #!\n")),
    ("unknown_action", changed(OWNER, OWNER.replace("finish]", "finnish]").rstrip() + " #!\n")),
    # timeouts and retry policies
    ("step_default_over_step_max", changed("step_default: 10,", "step_default: 101, #!\n ")),
    ("out_of_range", changed("ceremony_max: 1000}", "ceremony_max: 0} #!")),
    ("out_of_range", changed(POLICY, "  default: {max_attempts: 0} #!\n")),
    ("wrong_type", changed(POLICY, "  default: {max_attempts: 1.5} #!\n")),
    ("out_of_range", changed(POLICY, "  default: {max_attempts: 1, backoff_seconds: -1} #!\n")),
    ("out_of_range", changed(POLICY, "  default: {max_attempts: 1, jitter: 1.1} #!\n")),
    ("out_of_range", changed(POLICY, "  default: {max_attempts: 1, max_backoff_seconds: -1} #!\n")),
    ("wrong_type", changed(POLICY, "  default: {max_attempts: 1, non_retryable: timeout} #!\n")),
    ("wrong_type", changed(POLICY, "  default: {max_attempts: 1, exponential_backoff: 1} #!\n")),
    # cycles
    ("endless_cycle", changed(
        "  - {from: SHUT, to: OPEN, trigger: again, guards: [wish], description: Again}\n",
        "  - {from: SHUT, to: AA, trigger: again, guards: [wish], description: Again}\n"
        "  - {from: AA, to: BB, trigger: ab, description: x} #!\n"
        "  - {from: BB, to: AA, trigger: ba, description: x}\n"
        "  - {from: BB, to: DONE, trigger: bd, description: x}\n",
    ).replace("states:\n", "states:\n  - {id: AA, description: a}\n  - {id: BB, description: b}\n", 1)),
    ("endless_cycle", changed(SHUT, "  - {from: OPEN, to: OPEN, trigger: o, guards: [], description: x} #!\n" + SHUT)
        .replace(FIRST, "").replace(SECOND, "")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "text"), CASES, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(CASES)])
def test_each_rule_is_reported_once_with_its_line(rule: str, text: str) -> None:
    """The violation is reported under its code in the marked line, and nothing else is reported."""
    # specification 2.2, 2.3, 2.5, 2.6, 2.7, 2.8, 2.9, 2.10, 2.11, 2.12, 2.13, 3.1
    line = 1 + next(n for n, content in enumerate(text.split("\n")) if "#!" in content)
    found = problems(text)
    assert [(p.rule, p.line) for p in found] == [(rule, line)], "\n".join(map(str, found))
    assert found[0].file == "specs/review.yaml"
    assert len(found[0].message) > len(found[0].rule)


def test_the_base_of_these_cases_is_valid() -> None:
    definition = load(BASE, "review.yaml", KINDS)
    assert definition.initial == "OPEN"
    assert [s.id for s in definition.steps_by_state["OPEN"]] == ["first", "second"]
    assert definition.steps["second"].after == ("first",)


def test_publish_output_must_be_an_object() -> None:
    """A publish step's output of another type is a load error."""
    # specification 9.3
    text = changed(RESULT, "  result: {type: array}\n")
    assert [p.line for p in problems(text)] == [1 + text.split("\n").index(PUBLISH.rstrip("\n"))]


def test_every_violation_is_listed_not_just_the_first() -> None:
    # specification 2.5
    text = """\
version: "2.0"
name: other
descripton: x
states:
  - {id: A, description: a, initial: true}
  - {id: b, description: b, terminal: true}
  - {id: C, description: c, initial: true}
transitions:
  - {from: A, to: Z, trigger: t, description: d, guards: [nope]}
steps:
  - {id: Bad, state: A, handler: nope, config: {}}
  - {id: ok, state: QQ, handler: publish_step, config: {subject: "a b", extra: 1}, retry: x, after: [zz], timeout_seconds: -1}
guards:
  g: {check: nonsense, role: R}
roles:
  - {id: low, description: ""}
timeouts: {step_default: 5, step_max: 3}
retry_policies:
  p: {max_attempts: 0, backoff: 3}
"""
    rules = {(p.line, p.rule) for p in problems(text)}
    assert rules >= {
        (1, "bad_version"), (1, "missing_key"), (2, "name_mismatch"), (3, "unknown_key"), (6, "bad_id"),
        (7, "several_initial_states"), (9, "unknown_state"), (9, "unknown_guard"), (11, "bad_id"),
        (11, "empty_value"), (12, "unknown_state"), (12, "bad_config"), (12, "missing_key"), (12, "unknown_key"),
        (12, "unknown_retry_policy"), (12, "unknown_step"), (12, "out_of_range"), (14, "bad_check"), (14, "unknown_role"), (16, "bad_id"), (16, "empty_value"),
        (17, "step_default_over_step_max"), (19, "out_of_range"), (19, "unknown_key"),
    }  # fmt: skip
    assert list(problems(text)) == sorted(problems(text))


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        *(
            (text, "quote_it")
            for text in [
                "yes",
                "No",
                "ON",
                "off",
                "22:22",
                "1:30.5",
                "01234",
                "0100",
                "-017",
                "08",
                "1_000",
                "1_0.5",
                "0b11",
                "1e3",
                "0o17",
            ]
        ),
        (f"1{'0' * 70}", "quote_it"),
        *(
            (text, "")
            for text in [
                "y",
                "n",
                "yes!",
                "true",
                "False",
                "null",
                "~",
                "1",
                "-1",
                "+12",
                "0",
                "0x1F",
                "1.5",
                "-0.25",
                "1.0e+3",
                "2024-01-31",
                "1.2.3",
            ]
        ),
        *((text, "") for text in ("NO way", "'NO'", '"22:22"', "!!str 0100", "!!bool yes", "'1e3'")),
        ("18446744073709551616", "bad_number"),
    ],
)
def test_a_plain_scalar_that_two_versions_of_yaml_read_differently_is_to_be_quoted(written: str, rule: str) -> None:
    # specification 2.3
    text = changed(PUBLISH, PUBLISH.replace("}", f", payload_template: {{v: {written}}}}}"))
    if not rule:
        load(text, "review.yaml", KINDS)
        return
    (found,) = problems(text)
    assert (found.rule, found.line) == (rule, 1 + BASE.split("\n").index(PUBLISH.rstrip()))


@pytest.mark.parametrize(
    ("spoilt", "rule"),
    [
        ("x: &a 1\ny: *a\n", "yaml_alias"),
        ("*a : 1\n", "yaml_alias"),
        ("? [a, b]\n: {c: d}\n", "bad_key"),
        ("? {a: [b]}\n: 3\n", "bad_key"),
        (f"x: {'[' * 70}{']' * 70}\n", "nesting_too_deep"),
        (f"x: {'{a: ' * 70}1{'}' * 70}\n", "nesting_too_deep"),
        ("country: NO\n", "quote_it"),
    ],
)
def test_a_mistake_of_the_syntax_hides_no_other_violation(spoilt: str, rule: str) -> None:
    """It stands first, and the violation behind it keeps its line."""
    # specification 2.5
    text = spoilt + changed("guards: [good]", "guards: [goood]")
    found = [(problem.rule, problem.line) for problem in problems(text) if problem.rule != "unknown_key"]
    wrong = 1 + next(n for n, line in enumerate(text.split("\n")) if "goood" in line)
    assert found == [(rule, found[0][1]), ("unknown_guard", wrong)]


def test_a_second_document_hides_no_violation_of_the_first() -> None:
    # specification 2.5
    found = problems(changed("guards: [good]", "guards: [goood]") + "---\na: 1\n")
    assert [problem.rule for problem in found] == ["unknown_guard", "several_documents"]


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("description: A review.", "description: A review.\nrolez: []", "did you mean `roles`?"),
        ("guards: [good]", "guards: [god]", "did you mean `good`?"),
        ("handler: publish_step", "handler: publsh_step", "did you mean `publish_step`?"),
        ("role: OWNER}", "role: OWNR}", "did you mean `OWNER`?"),
        ("sources: [title], aggregation_type", "sources: [title], agregation_type", "did you mean `aggregation_type`?"),
        ("[again, finish]", "[again, finnish]", "did you mean `finish`?"),
    ],
)
def test_a_misspelt_word_gets_the_right_one_suggested(old: str, new: str, hint: str) -> None:
    # specification 2.5
    assert any(hint in p.message for p in problems(changed(old, new)))

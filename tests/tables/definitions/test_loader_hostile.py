"""Hostile files: the loader answers any file within bounded time, with a Definition or its problems."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ports.errors import CeremonyError
from steps.registry import all_kinds
from tables.definition import Definition
from tables.definitions.file_format import definition_schema
from tables.definitions.loader import content_hash, load, load_pinned
from tables.definitions.problems import MAX_PROBLEMS
from tables.errors import DefinitionInvalid

KINDS = all_kinds()
SCHEMA = Draft202012Validator(definition_schema(KINDS))
# Values that are valid somewhere, so that some of the changed files load.
SENSIBLE = [1, 2.5, 0, True, "text", "t", "p", "UPPER", [], ["x"], ["a"], {}, {"max_attempts": 2}, {"x": "string"}]
HEAD = "version: '1.0'\nname: x\ndescription: x\n"
STATES = "states: [{id: A, description: a, initial: true, terminal: true}]\ntransitions: []\n"
# Far above the time of each test (4 s at most, alone), far below that of an unbounded loader.
LIMIT_SECONDS = 60


def rules(text: str | bytes) -> list[str]:
    start = time.monotonic()
    with pytest.raises(DefinitionInvalid) as caught:
        load(text, "x.yaml", KINDS)
    assert time.monotonic() - start < LIMIT_SECONDS
    assert len(caught.value.message) < 2_000_000
    return [p.rule for p in caught.value.problems]


def test_an_empty_file_reports_the_missing_keys() -> None:
    assert rules("") == rules("# only a comment\n") == ["empty_file"]


@pytest.mark.parametrize("text", ["[]", "3", "text", "null", "- a\n- b"])
def test_a_file_that_is_no_map_is_refused(text: str) -> None:
    assert rules(text)[0] in {"wrong_type", "null_value"}


def test_a_file_over_256_kib_is_not_even_parsed() -> None:
    # specification 2.4
    assert rules(HEAD + "#" * 262_144) == ["file_too_large"]
    assert rules(("é" * 131_072 + "x").encode()) == ["file_too_large"]
    assert rules("é" * 131_072 + "x") == ["file_too_large"]


def test_a_file_of_256_kib_is_parsed() -> None:
    text = HEAD + STATES
    load(text + "#" * (262_144 - len(text)), "x.yaml", KINDS)


def test_25_000_values_are_allowed_and_more_are_not_but_where_they_are_pinned() -> None:
    # specification 2.4, 24.4
    def holding(values: int) -> str:
        steps = "steps: [{id: s, state: A, handler: publish_step, config: {subject: ceremony.x, event_type: e,"
        states = "states: [{id: A, description: a, initial: true}, {id: B, description: b, terminal: true}]\n"
        moves = "transitions: [{from: A, to: B, trigger: t, description: d}]\n"
        return f"{HEAD}{states}{moves}{steps} payload_template: {{v: [{'1,' * values}]}}}}}}]\n"

    few = 29
    load(holding(25_000 - few), "x.yaml", KINDS)
    text = holding(25_001 - few)
    assert rules(text) == ["too_many_values"]
    assert [problem.rule for problem in load_pinned(text, content_hash(text), KINDS).objections] == ["too_many_values"]


def test_a_definition_of_many_states_and_transitions_is_loaded_in_time_that_grows_with_their_number() -> None:
    """Looking at all transitions for each state would take their product of looks."""

    # specification 2.4
    def calls(number: int) -> int:
        states = [{"id": f"S{n}", "description": "d"} for n in range(number)]
        states[0]["initial"] = states[-1]["terminal"] = True  # type: ignore[assignment]
        moves = [{"from": f"S{n}", "to": f"S{n + 1}", "trigger": "t", "description": "d"} for n in range(number - 1)]
        text = HEAD + f"states: {json.dumps(states)}\ntransitions: {json.dumps(moves)}\n"
        looked = 0

        def look(*_: Any) -> None:
            nonlocal looked
            looked += 1

        def enter(frame: FrameType, *_: Any) -> Callable[..., None]:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return look

        tracer = sys.gettrace()  # of the coverage
        sys.settrace(enter)
        try:
            load(text, "x.yaml", KINDS)
        finally:
            sys.settrace(tracer)
        return looked

    assert calls(200) < 2.2 * calls(100)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"name: \x80", "name: \ud800"])
def test_text_that_is_not_utf8_is_refused(text: str | bytes) -> None:
    assert rules(text) == ["not_utf8"]


@pytest.mark.parametrize("text", ["a: \x00", "a: \x07", 'a: "\\ud800"', "a: 'x", "a: [", "\t- a", "%TAG", "a: *"])
def test_broken_yaml_is_one_clear_problem(text: str) -> None:
    found = rules(text)
    assert found[0] in {"yaml_syntax", "not_utf8", "unknown_key"}


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "a:\n"])
def test_deep_nesting_is_refused_where_it_begins(opening: str) -> None:
    indented = "".join(" " * n + "a:\n" for n in range(600))
    text = indented if opening == "a:\n" else opening * (200_000 // len(opening))
    assert rules(text)[-1] in {"nesting_too_deep", "bad_key", "yaml_syntax"}


def test_64_levels_are_allowed_and_65_are_not() -> None:
    # specification 2.4
    def nested(levels: int) -> str:
        return HEAD + STATES + "x: " + "[" * levels + "]" * levels + "\n"

    assert rules(nested(63)) == ["unknown_key"]
    assert sorted(rules(nested(64))) == ["nesting_too_deep", "unknown_key"]


def test_a_billion_laughs_are_refused_alias_by_alias_and_never_expanded() -> None:
    # specification 2.3
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert rules("\n".join(lines)).count("yaml_alias") == len(lines) - 1  # once a line


def test_an_anchor_without_an_alias_does_no_harm() -> None:
    load(HEAD.replace("description: x", "description: &d x") + STATES, "x.yaml", KINDS)


@pytest.mark.uncounted
def test_a_hundred_thousand_items_are_bounded() -> None:
    found = rules(HEAD + "states: [" + "a," * 120_000 + "]\ntransitions: []\n")
    assert found[-1] == "too_many_problems" and len(found) == MAX_PROBLEMS + 1


@pytest.mark.uncounted
def test_ten_thousand_unknown_keys_are_bounded() -> None:
    # specification 2.5
    found = rules(HEAD + STATES + "".join(f"key_number_{n}: 1\n" for n in range(12_000)))
    assert found.count("unknown_key") == MAX_PROBLEMS


def test_a_huge_scalar_is_clipped_in_the_message() -> None:
    with pytest.raises(DefinitionInvalid) as caught:
        load(HEAD + STATES + f"{'k' * 1000}: 1\nname2: {'v' * 200_000}\n", "x.yaml", KINDS)
    assert all(len(p.message) < 500 for p in caught.value.problems)


@pytest.mark.parametrize("number", ["9" * 60, "9" * 5000, "1:" * 30 + "1", "0b_", "0x_", "-.inf", ".nan", "1e400"])
def test_odd_numbers_are_problems_not_crashes(number: str) -> None:
    # specification 2.3
    assert rules(HEAD + STATES + f"timeouts: {{step_max: {number}}}\n")


@pytest.mark.uncounted
def test_thousands_of_steps_in_one_cycle_are_one_problem() -> None:
    steps = "".join(
        f"- {{id: s{n}, state: A, handler: aggregation_step, after: [s{(n + 1) % 1500}], "
        "config: {sources: [x], aggregation_type: list}}\n"
        for n in range(1500)
    )
    states = (
        "states: [{id: A, description: a, initial: true}, {id: B, description: b, terminal: true}]\n"
        "transitions: [{from: A, to: B, trigger: t, description: d}]\n"
    )
    assert rules(HEAD + states + "steps:\n" + steps) == ["after_cycle"]


@pytest.mark.uncounted
def test_a_chain_of_thousands_of_states_needs_no_recursion() -> None:
    n = 2000
    states = "".join(f"- {{id: S{i}, description: s}}\n" for i in range(1, n))
    ways = "".join(f"- {{from: S{i}, to: S{i + 1}, trigger: t, description: d}}\n" for i in range(n - 1))
    text = HEAD + "states:\n- {id: S0, description: s, initial: true}\n" + states
    text += f"- {{id: Z, description: z, terminal: true}}\ntransitions:\n{ways}"
    text += f"- {{from: S{n - 1}, to: Z, trigger: t, description: d}}\n"
    start = time.monotonic()
    assert len(load(text, "x.yaml", KINDS).states) == n + 1
    assert time.monotonic() - start < LIMIT_SECONDS


def test_a_deep_json_schema_of_an_output_is_judged() -> None:
    schema = "{items: " * 55 + "{type: nope}" + "}" * 55
    assert rules(HEAD + STATES + f"outputs: {{o: {{type: object, schema: {schema}}}}}\n") == ["bad_json_schema"]


@pytest.mark.uncounted
def test_json_schemas_are_bounded_all_together() -> None:
    schemas = ", ".join(f"o{n}: {{type: object, schema: {{anyOf: [{'{}, ' * 300}]}}}}" for n in range(20))
    assert "schema_too_large" in rules(HEAD + STATES + f"outputs: {{{schemas}}}\n")


def test_a_path_is_no_name() -> None:
    # specification 2.1
    with pytest.raises(DefinitionInvalid):
        load(HEAD.replace("name: x", "name: ../../etc/passwd") + STATES, "../../etc/passwd.yaml", KINDS)


KEYS = ["version", "name", "states", "transitions", "steps", "guards", "roles", "inputs", "outputs", "timeouts"]
KEYS += ["retry_policies", "id", "description", "from", "to", "trigger", "config", "handler", "after", "check", "type"]
KEYS += ["schema", "retry", "state", "role", "threshold", "initial", "terminal", "sources", "max_attempts", "1", ""]
WORDS = ["1.0", "x", "A", "B", "a", "true", "cel:true", "all_steps_completed", "step_status:a:FAILED", "threshold:a.b"]
WORDS += ["aggregation_step", "publish_step", "object", "human", "automated", "${inputs.x}", "\ud800", "é", "a" * 100]
_scalars = (
    st.sampled_from(WORDS) | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=9)
)
_trees = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=25,
)
_files = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS[:11], _trees))


def loaded_or_refused(text: str | bytes) -> Definition | DefinitionInvalid:
    found: Definition | DefinitionInvalid
    try:
        found = load(text, "x.yaml", KINDS)
    except DefinitionInvalid as error:
        found = error
    if isinstance(found, DefinitionInvalid):
        assert found.problems
        assert all(p.line >= 1 and p.rule and p.message for p in found.problems)
    return found


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_never_raise_anything_else(data: bytes) -> None:
    # specification 2.4
    loaded_or_refused(data)


@given(st.text(max_size=300) | st.text("[]{}:,-? \n&*!|>'\"#%@`a1", max_size=300))
@settings(max_examples=300, deadline=None)
def test_arbitrary_text_never_raises_anything_else(text: str) -> None:
    loaded_or_refused(text)


@pytest.mark.uncounted
@given(_files)
@settings(max_examples=150, deadline=None)
def test_arbitrary_content_never_raises_anything_else(content: dict[str, object]) -> None:
    """The sections hold arbitrary values, written as YAML."""
    loaded_or_refused(yaml.safe_dump(content, allow_unicode=True))


@pytest.mark.uncounted
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_valid_file_with_one_part_exchanged_never_raises_anything_else(data: st.DataObject) -> None:
    """A file that loads fits the published schema too."""
    # specification 2.4, 2.17
    content = copy.deepcopy(PARSED)
    place, key = data.draw(st.sampled_from(list(_places(content))))
    place[key] = data.draw(_trees | st.sampled_from(SENSIBLE))
    found = loaded_or_refused(yaml.safe_dump(content, allow_unicode=True))
    assert isinstance(found, DefinitionInvalid) or SCHEMA.is_valid(content), list(SCHEMA.iter_errors(content))


def _places(content: object) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            found += [(content, key), *_places(value)]
    return found


VALID = (
    HEAD
    + """\
states:
- {id: A, description: a, initial: true}
- {id: B, description: b, terminal: true}
transitions:
- {from: A, to: B, trigger: t, description: d, guards: [g, h]}
steps:
- {id: a, state: A, handler: aggregation_step, config: {sources: [x], aggregation_type: merge}, retry: p}
- {id: b, state: A, handler: publish_step, after: [a], config: {subject: a, event_type: c, payload_template: {a: [1]}}}
- {id: c, state: A, handler: human_gate_step, config: {role: R, message: m, quorum: 2}, on_failure: t}
- {id: d, state: A, handler: deliberation_step, config: {prompt: p, role: R, agents: [1], constraints: {plan_id: q}}}
- {id: e, state: A, handler: task_extraction_step, config: {source: 'deliberation:d', extraction_prompt: p}}
guards:
  g: {check: 'cel:inputs.x == 1'}
  h: {check: 'threshold:a.x', threshold: 1}
outputs:
  b: {type: object, schema: {properties: {a: {type: array, items: {type: number}}}}}
roles: [{id: R, description: r, allowed_actions: [c, d]}]
timeouts: {step_default: 5}
retry_policies: {p: {max_attempts: 2, jitter: 0.5, non_retryable: [timeout]}}
inputs: {required: [x]}
"""
)
PARSED: dict[str, Any] = yaml.safe_load(VALID)


def test_the_file_that_is_mutated_is_valid() -> None:
    assert len(load(VALID, "x.yaml", KINDS).steps) == 5


def test_a_pinned_definition_is_found_by_its_hash_and_loaded_once() -> None:
    """The file may have another name by now: the rule about names is not applied again."""
    # specification 1.2
    digest = content_hash(VALID)
    first = load_pinned(VALID, digest, KINDS)
    assert first is load_pinned(VALID, digest, KINDS)
    assert first.hash == digest == load(VALID.encode(), "x.yaml", KINDS).hash
    renamed = VALID.replace("name: x", "name: y")
    assert load_pinned(renamed, content_hash(renamed), KINDS).name == "y"


def test_a_pinned_text_with_another_hash_is_refused() -> None:
    with pytest.raises(CeremonyError) as caught:
        load_pinned(VALID + "# edited\n", "0" * 64, KINDS)
    assert caught.value.code == "definition_hash_mismatch"

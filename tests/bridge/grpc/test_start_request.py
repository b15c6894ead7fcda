"""Making a command from a start request, without a server."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.grpc.start_request import (
    DEEPEST,
    LARGEST_INPUTS_BYTES,
    StartInvalid,
    check_ids,
    parse_pieces,
    start_pieces,
)
from steps.registry import all_kinds
from tables.commands import Start, decode_command, encode_command
from tables.definitions.loader import load
from tables.fold.start import start_digest
from tests.pieces import in_one_go

DEFINITION = load(
    """version: "1.0"
name: probe
description: a probe
inputs: {required: [a], optional: [b]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
  - {id: two, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: list}}
""",
    "probe.yaml",
    all_kinds(),
)


def command(**more: Any) -> Start:
    fields: dict[str, Any] = {
        "ceremony_id": "c1",
        "story_id": "s1",
        "correlation_id": "",
        "inputs": {"a": "text"},
        "rich_inputs": {},
        "step_ids": (),
        "requested_by": "anna",
        "command_id": "id-1",
    }
    return in_one_go(start_pieces(DEFINITION, **{**fields, **more}))


def parsed(text: str) -> Any:
    return in_one_go(parse_pieces("a", text))


def code_of(**more: Any) -> str:
    with pytest.raises(StartInvalid) as caught:
        command(**more)
    return caught.value.code


# -- the command


def test_the_command_names_its_instance_and_its_pinned_definition() -> None:
    made = command()
    assert (made.instance_id, made.definition_name, made.definition_hash) == ("c1:s1", "probe", DEFINITION.hash)
    assert made.inputs == {"a": "text", "ceremony_id": "c1", "story_id": "s1"}
    assert made.inputs_size == len(msgspec.json.encode(made.inputs))
    assert decode_command(encode_command(made)) == made


@pytest.mark.parametrize(("given_id", "meant"), [("", "c1:s1"), ("  ", "c1:s1"), (" x ", "x"), ("x", "x")])
def test_a_blank_correlation_id_is_the_instance_id(given_id: str, meant: str) -> None:
    # specification 1.7, 10.14
    assert command(correlation_id=given_id).correlation_id == meant


def test_selected_step_ids_are_unique_and_in_the_order_of_the_file() -> None:
    assert command(step_ids=["two", "one", "two"]).step_ids == ("one", "two")
    assert command(step_ids=[]).step_ids == ()


def test_an_unknown_step_is_refused() -> None:
    # specification 10.12
    assert code_of(step_ids=["one", "nine"]) == "step_unknown"


# -- inputs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (" [1]\n", [1]),
        ("[]", []),
        ("{}", {}),
        ('["\\ud83d\\ude00"]', ["😀"]),
    ],
)
def test_json_objects_and_arrays_are_parsed(text: str, value: Any) -> None:
    # specification 10.8
    assert parsed(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "12",
        "true",
        "null",
        '"quoted"',
        "{broken",
        "[1,]",
        "NaN",
        "[NaN]",
        '{"a": Infinity}',
        "[-Infinity]",
        "[1e999]",
        "[-1e999]",
        '["\\ud800"]',
        "[" + "9" * 5000 + "]",
        "[" + "9" * 309 + "]",
        f'{{"a": [{{"b": -{2**1024 - 2**970}}}]}}',
        "[" + "0," * 20_000 + "9" * 309 + "]",
        "[x" + "[" * 500,
    ],
)
def test_every_other_text_stays_a_string(text: str) -> None:
    """So does JSON with NaN or Infinity, and with half a surrogate pair, which valid JSON cannot hold."""
    # specification 10.8
    assert parsed(text) == text


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, 2**64 + 1, -(2**70) - 1, 10**308 + 1, 2**1024 - 2**971])
def test_whole_numbers_in_text_stay_exact(number: int) -> None:
    """In the log and in the row too: two starts that differ by one are two starts."""
    # specification 10.15
    one, other = (command(inputs={"a": f"[{n}]"}) for n in (number, number + 1))
    assert one.inputs["a"] == [number]
    assert decode_command(encode_command(one)) == one
    assert start_digest(one, ()) != start_digest(other, ())


def test_digits_in_strings_and_fractions_are_no_whole_number() -> None:
    digits = "9" * 400
    assert parsed(f'["{digits}", 0.{digits}, {digits}e-400]') == [digits, 1.0, 1.0]


@pytest.mark.parametrize("number", [2.0**53 + 2, -(2.0**60), 1e300])
def test_a_whole_number_that_a_struct_cannot_hold_exactly_is_refused(number: float) -> None:
    # specification 10.15
    with pytest.raises(StartInvalid, match="2\\^53") as caught:
        command(inputs={}, rich_inputs={"a": {"b": [number]}})
    assert caught.value.code == "inputs_invalid"
    assert command(inputs={}, rich_inputs={"a": [2.0**53, -(2.0**53), 0.5]}).inputs["a"] == [2**53, -(2**53), 0.5]


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [DEEPEST, DEEPEST + 1, 5_000, 100_000])
def test_json_may_nest_64_containers(opening: str, closing: str, depth: int) -> None:
    # specification 10.11
    text = opening * depth + ("1" if "a" in opening else "") + closing * depth
    if depth <= DEEPEST:
        assert parsed(text) != text
    else:
        with pytest.raises(StartInvalid) as caught:
            parsed(text)
        assert caught.value.code == "inputs_too_deep"


def test_brackets_inside_strings_do_not_count_as_nesting() -> None:
    text = json.dumps(["[" * 100, '"[{', "\\["])
    assert parsed(text) == json.loads(text)


def test_the_size_of_inputs_is_that_of_their_json_with_names() -> None:
    """The maximum is 256 KiB; a letter outside ASCII counts with its bytes in UTF-8."""
    # specification 10.11
    bare = command(inputs={"a": ""}).inputs_size
    assert command(inputs={"a": "x" * (LARGEST_INPUTS_BYTES - bare)}).inputs_size == LARGEST_INPUTS_BYTES
    assert code_of(inputs={"a": "x" * (LARGEST_INPUTS_BYTES - bare + 1)}) == "inputs_too_large"
    assert code_of(inputs={"a": "ü" * (LARGEST_INPUTS_BYTES // 2)}) == "inputs_too_large"


@pytest.mark.parametrize("name", ["ceremony_id", "story_id"])
def test_ceremony_and_story_id_are_inputs_that_cannot_be_overridden(name: str) -> None:
    """Giving the same values as inputs is allowed."""
    # specification 10.9
    assert code_of(inputs={"a": "", name: "other"}) == "inputs_invalid"
    assert code_of(rich_inputs={name: 1}) == "inputs_invalid"
    same = {"ceremony_id": "c1", "story_id": "s1"}[name]
    assert command(inputs={"a": "", name: same}).inputs[name] == same


def test_a_missing_required_input_is_refused_and_an_undeclared_one_is_kept() -> None:
    """An undeclared input is an input like any other (docs/decisions/0002)."""
    # specification 10.10
    assert code_of(inputs={}) == "input_missing"
    assert command(inputs={"a": "", "zzz": "[1]"}).inputs["zzz"] == [1]


def test_inputs_in_a_struct_equal_inputs_as_texts() -> None:
    """A Struct has doubles only, so whole numbers become integers again."""
    # specification 10.8
    rich = command(inputs={}, rich_inputs={"a": {"n": 3.0, "x": 2.5, "t": True, "z": None, "l": [1.0]}})
    text = command(inputs={"a": '{"n": 3, "x": 2.5, "t": true, "z": null, "l": [1]}'})
    assert rich.inputs == text.inputs
    assert isinstance(rich.inputs["a"]["n"], int)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, ...])
def test_inputs_in_a_struct_must_be_json(value: Any) -> None:
    assert code_of(inputs={}, rich_inputs={"a": [value]}) == "inputs_invalid"


@pytest.mark.parametrize("container", [list, dict])
def test_inputs_in_a_struct_may_nest_64_containers(container: type) -> None:
    value: Any = container()
    for _ in range(DEEPEST - 1):
        value = [value]
    command(inputs={}, rich_inputs={"a": value})
    assert code_of(inputs={}, rich_inputs={"a": [value]}) == "inputs_too_deep"


def test_an_input_given_twice_is_refused() -> None:
    # specification 10.8
    assert code_of(rich_inputs={"a": 1}) == "input_twice"


# -- identifiers


def ids_code(**more: str) -> str:
    fields = {
        "ceremony_id": "c1",
        "story_id": "s1",
        "definition_name": "probe",
        "requested_by": "anna",
        "correlation_id": "",
        **more,
    }
    try:
        check_ids(**fields)
    except StartInvalid as error:
        refusal = error
    else:
        return ""
    assert next(iter(more)) in refusal.message
    return refusal.code


@pytest.mark.parametrize("good", ["a", "0", "A.b_c-d", "a" * 128])
def test_valid_ids_are_accepted(good: str) -> None:
    # specification 1.1
    assert ids_code(ceremony_id=good) == ids_code(story_id=good) == ""


@pytest.mark.parametrize("bad", ["_a", "-a", ".a", "a:b", "a/b", "a b", "a\n", "ä", "a" * 129, " a"])
def test_invalid_ids_are_refused(bad: str) -> None:
    # specification 1.1, 10.1
    assert ids_code(ceremony_id=bad) == ids_code(story_id=bad) == "invalid_id"


@pytest.mark.parametrize("field", ["ceremony_id", "story_id", "definition_name", "requested_by"])
def test_missing_required_fields_are_refused(field: str) -> None:
    # specification 10.1
    assert ids_code(**{field: ""}) == "field_required"


@pytest.mark.parametrize("field", ["requested_by", "correlation_id"])
def test_texts_that_are_too_long_are_refused(field: str) -> None:
    # specification 10.1
    assert ids_code(**{field: "x" * 256}) == ""
    assert ids_code(**{field: "x" * 257}) == "field_too_long"


# -- arbitrary input

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # protobuf refuses half surrogate pairs
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def told(error: StartInvalid) -> None:
    assert error.code
    assert error.message


@given(text=TEXT | JSON.map(json.dumps))
@example("[" * 3000)
@example('{"a": "\\udfff"}')
@example("[1" + "0" * 400 + "]")
def test_any_text_gives_a_value_or_a_refusal(text: str) -> None:
    """Only StartInvalid is raised, and an accepted value can be written to the log and read back."""
    try:
        made = command(inputs={"a": text})
    except StartInvalid as error:
        told(error)
        return
    assert decode_command(encode_command(made)) == made


@given(
    inputs=st.dictionaries(TEXT | st.sampled_from(["a", "b", "story_id"]), TEXT, max_size=4),
    rich=st.dictionaries(TEXT | st.sampled_from(["a", "b"]), JSON, max_size=3),
    step_ids=st.lists(TEXT | st.sampled_from(["one", "two"]), max_size=3),
    texts=st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT),
)
def test_any_request_gives_a_command_or_a_refusal(
    inputs: dict[str, str], rich: dict[str, Any], step_ids: list[str], texts: tuple[str, ...]
) -> None:
    ceremony_id, story_id, name, requested_by, correlation_id = texts
    rich = {key: value for key, value in rich.items() if _utf8(key) and _utf8(value)}
    try:
        check_ids(
            ceremony_id=ceremony_id,
            story_id=story_id,
            definition_name=name,
            requested_by=requested_by,
            correlation_id=correlation_id,
        )
        command(inputs=inputs, rich_inputs=rich, step_ids=step_ids, correlation_id=correlation_id)
    except StartInvalid as error:
        told(error)


def _utf8(value: Any) -> bool:
    """Return whether protobuf accepts the text."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True

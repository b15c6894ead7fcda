"""Schemas of outputs: flat maps and JSON Schema, enforced without ever showing the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from tables.definition import Output
from tables.definitions import output_schemas, schema_bounds
from tables.definitions.output_schemas import WORDS, check_value, is_json_schema, schema_problems
from tables.definitions.schema_bounds import KEPT_PATTERNS, MOST_STEPS
from tables.patterns import call_cost, pattern_weight
from tables.work import MOST_STEPS as MOST_STEPS_OF_A_COMMAND
from tables.work import Work


def problems(value: Any, schema: dict[str, Any] | None = None, kind: str = "object") -> list[str]:
    return check_value(value, Output("o", kind, schema))


SAMPLES: dict[str, Any] = {"object": {}, "array": [], "string": "x", "number": 1.5, "boolean": True}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("given", SAMPLES)
def test_the_type_of_an_output_is_enforced(kind: str, given: str) -> None:
    """A boolean is no number, and a number no boolean."""
    # specification 4.6, 9.3
    assert problems(SAMPLES[given], kind=kind) == ([] if kind == given else [f"$: must be of type {kind}"])


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("given", SAMPLES)
def test_each_type_word_of_a_flat_schema_takes_its_type_only(word: str, given: str) -> None:
    # specification 4.6
    wanted = [] if WORDS[word] == given else [f"$.a: must be of type {WORDS[word]}"]
    assert problems({"a": SAMPLES[given]}, {"a": word}) == wanted


def test_a_flat_schema_requires_every_field_and_allows_others() -> None:
    # specification 4.6
    assert problems({"a": "x", "c": 1}, {"a": "string", "b": "int"}) == ["$.b: is missing"]
    assert problems({"a": None}, {"a": "string"}) == ["$.a: must be of type string"]


def test_a_flat_schema_of_an_array_describes_each_element() -> None:
    found = problems([{"a": 1}, {"a": "x"}, 3], {"a": "int"}, "array")
    assert found == ["$[1].a: must be of type number", "$[2]: must be of type object"]


def test_a_flat_schema_of_a_text_requires_an_object() -> None:
    assert problems("x", {"a": "int"}, "string") == ["$: must be of type object"]


@pytest.mark.parametrize("mark", ["$schema", "properties", "items", "required", "anyOf", "oneOf", "allOf", "enum"])
def test_one_of_its_marks_makes_a_schema_json_schema(mark: str) -> None:
    # specification 4.5
    assert is_json_schema({mark: "string"}) and not is_json_schema({"title": "string", "type": "string"})


SCHEMA = {
    "required": ["a", "b"],
    "properties": {
        "a": {"type": "number", "minimum": 3},
        "b": {},
        "c": {"type": ["string", "null"], "enum": ["x", None]},
        "list": {"items": {"type": "integer"}},
    },
    "additionalProperties": False,
}


def test_json_schema_names_path_and_rule_and_never_the_value() -> None:
    # specification 9.3
    value = {"a": True, "c": "secret-value", "list": [1, "secret-value", 2.0], "other": "secret-value"}
    found = problems(value, SCHEMA)
    assert found == [
        "$: allows no `other`",
        "$: needs `b`",
        "$.a: must be of type number",
        "$.c: breaks `enum: ['x', None]`",
        "$.list[1]: must be of type integer",
    ]
    assert "secret" not in "".join(found)
    assert problems({"a": 2, "b": 0}, SCHEMA) == ["$.a: breaks `minimum: 3`"]
    assert problems({"a": 3, "b": 0}, SCHEMA) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "http://json-schema.org/draft-07/schema#", "required": ["a"]},
        {"allOf": [{"$ref": "#/definitions/x"}], "definitions": {"x": {"required": ["a"]}}},
        {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"allOf": [{"$ref": "#/$defs/a~1b%20c"}], "$defs": {"a/b c": {"required": ["a"]}}},
        {"allOf": [{"$ref": "#x"}], "$defs": {"y": {"$anchor": "x", "required": ["a"]}}},
    ],
)
def test_sound_schemas_are_accepted_and_enforced(schema: dict[str, Any]) -> None:
    assert schema_problems(Output("o", "object", schema)) == []
    assert problems({"a": 1}, schema) == [] and problems({}, schema) != []


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"required": "a"}, ("required",)),
        ({"properties": {"a": {"type": "nope"}}}, ("properties", "a", "type")),
        ({"properties": {"a": {"$ref": "http://example.com/x"}}}, ("properties", "a", "$ref")),
        ({"items": {"$ref": "file.json"}}, ("items", "$ref")),
        ({"allOf": [{"$ref": "other"}]}, ("allOf", 0, "$ref")),
        ({"$schema": 3, "required": []}, ("$schema",)),
        ({"$schema": "http://nowhere"}, ("$schema",)),
        ({"properties": {"a": {"pattern": "("}}}, ("properties", "a", "pattern")),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, ("properties", "a", "pattern")),
        ({"patternProperties": {"(": {}}, "required": []}, ("patternProperties", "(")),
        ({"patternProperties": {}, "unevaluatedProperties": False, "required": []}, ("unevaluatedProperties",)),
        ({"allOf": [{"$ref": "#/nowhere"}]}, ("allOf", 0, "$ref")),
        ({"allOf": [{"$ref": "#/allOf/x"}]}, ("allOf", 0, "$ref")),
        ({"allOf": [{"$ref": "#/title/a"}], "title": "t"}, ("allOf", 0, "$ref")),
        ({"allOf": [{"$ref": "#/title"}], "title": "t"}, ("allOf", 0, "$ref")),
        ({"allOf": [{"$ref": "#anchor"}]}, ("allOf", 0, "$ref")),
    ],
)
def test_an_unsound_json_schema_is_a_load_error_with_its_place(schema: dict[str, Any], path: tuple[Any, ...]) -> None:
    # specification 4.7
    found = schema_problems(Output("o", "object", schema))
    assert [(p, rule) for p, rule, _ in found] == [(path, "bad_json_schema")]


def test_unknown_type_words_are_load_errors() -> None:
    # specification 4.6
    found = schema_problems(Output("o", "object", {"a": "string", "b": "text", "c": 3, "d": {"x": "y"}}))
    assert [(path, rule) for path, rule, _ in found] == [((key,), "unknown_type_word") for key in "bcd"]


def test_a_schema_that_cannot_be_applied_is_a_problem_and_no_exception() -> None:
    """An older release may have accepted such a schema, and a row may pin it."""
    assert problems({"a": "x"}, {"properties": {"a": {"pattern": "("}}}) != []
    assert problems({}, {"allOf": [{"$ref": "#/nowhere"}]}) != []
    assert problems({}, {"allOf": [{"$ref": "#"}]}) != []
    assert problems({}, {"allOf": [{"$ref": "#/properties"}], "properties": {"type": {"type": "string"}}}) != []
    assert problems({}, {"$schema": "http://nowhere"}) != []


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"x": value}
    return value


BRANCHING = {
    "$defs": {
        "a": {
            "anyOf": [
                {"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["y"]},
                {"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["z"]},
            ]
        }
    },
    "allOf": [{"$ref": "#/$defs/a"}],
}


@pytest.mark.uncounted
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 100_000 + "!"}),
        (
            {"patternProperties": {"^(a+)+$": True}, "additionalProperties": False, "anyOf": [True]},
            {"a" * 999 + "!": 1},
        ),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"n": n} for n in range(20_000)] + [{"n": 7.0}]}),
        (BRANCHING, nested(40)),
        ({"properties": {"a": {"items": {"enum": list(range(20_000))}}}}, {"a": [19_999] * 20_000}),
    ],
    ids=["pattern", "patternProperties", "uniqueItems", "branching", "enum"],
)
def test_no_schema_takes_long(schema: dict[str, Any], value: Any) -> None:
    """The fold applies schemas: a slow one would block a partition on every worker."""
    # specification 4.7
    assert schema_problems(Output("o", "object", schema)) == []
    assert problems(value, schema) != []


def test_unique_items_are_those_of_json() -> None:
    schema = {"properties": {"a": {"uniqueItems": True}}}
    assert problems({"a": [1, True, "1", [1], {"1": 1}, None, 0, False]}, schema) == []
    repeated: list[list[Any]] = [[1, 1.0], [{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], [[], []]]
    for same in repeated:
        assert problems({"a": same}, schema) == ["$.a: breaks `uniqueItems`"]


def test_patterns_and_the_rest_apply_beside_properties() -> None:
    schema = {"properties": {"a": {}}, "patternProperties": {"^x_": {"type": "string"}}, "additionalProperties": False}
    assert problems({"a": 1, "x_b": "t"}, schema) == []
    assert problems({"x_b": 1, "y": 1}, schema) == ["$: breaks `additionalProperties`", "$.x_b: must be of type string"]
    rest = {"properties": {"a": {}}, "additionalProperties": {"type": "number"}}
    assert problems({"a": "t", "b": "t"}, rest) == ["$.b: must be of type number"]


def test_a_large_value_is_well_within_the_bound() -> None:
    fields = {name: {"type": "string"} for name in ("title", "description", "priority")}
    schema = {"properties": {"tasks": {"items": {"required": list(fields), "properties": fields}}}}
    task = dict.fromkeys(fields, "some text")
    assert problems({"tasks": [task] * 5000}, schema) == []


def test_the_list_of_problems_is_bounded() -> None:
    assert len(problems([0] * 10_000, {"items": {"type": "string"}}, "array")) == 50
    assert len(problems([0] * 10_000, {"a": "string"}, "array")) == 50


WIDE = {"properties": {f"p{n}": {"type": "string"} for n in range(1000)}}
ANCHORS = {"$defs": {"d": {"$anchor": "x", "type": "number"}} | {f"e{n}": {} for n in range(3000)}}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        (ANCHORS | {"properties": {"a": {"items": {"$ref": "#x"}}}}, {"a": list(range(2000))}, True),
        (
            {"properties": {"a": {"items": {"enum": ["x" * 5000 + str(n) for n in range(40)]}}}},
            {"a": ["y"] * 900},
            False,
        ),
        ({"properties": {"a": {"items": {"enum": [[[n] * 40] for n in range(90)]}}}}, {"a": [[[1] * 40]] * 700}, True),
        ({"properties": {"a": {"items": {"const": [1] * 3000}}}}, {"a": [[1] * 90] * 2000}, False),
        ({"anyOf": [{"minItems": 10**6}] * 1000}, [0] * 100_000, False),
        ({"properties": {}, "unevaluatedProperties": False}, {f"k{n}": n for n in range(20_000)}, False),
        (
            {"items": {"$schema": "http://json-schema.org/draft-07/schema#", "uniqueItems": True}},
            [[[1], [1]]] * 9,
            False,
        ),
        ({"items": {"pattern": "a{1,900}b"}}, ["a" * 100_000], False),
        ({"items": {"contains": {"pattern": "x"}}}, [["y"] * 100] * 200, False),
    ],
    ids=[
        "anchor",
        "enum-text",
        "enum-lists",
        "const",
        "messages",
        "unevaluated",
        "inner-dialect",
        "pattern",
        "contains",
    ],
)
def test_the_steps_of_a_value_are_bounded(schema: dict[str, Any], value: Any, *, fits: bool) -> None:
    # specification 4.7
    kind = "array" if isinstance(value, list) else "object"
    assert schema_problems(Output("o", kind, schema)) == []
    assert (problems(value, schema, kind) == []) is fits
    work = Work()
    check_value(value, Output("o", kind, schema), work)
    assert 0 < MOST_STEPS_OF_A_COMMAND - work.left <= MOST_STEPS + 1_000_000


def steps_of(schema: dict[str, Any], value: Any, work: Work | None = None) -> int:
    work = work or Work()
    left = work.left
    check_value(value, Output("o", "object", schema), work)
    return left - work.left


def patterns(*texts: str) -> dict[str, Any]:
    """Return a schema that applies patterns to the field `a`, one after the other."""
    return {"properties": {"a": {"allOf": [{"pattern": text} for text in texts]}}}


@pytest.mark.parametrize("text", ["a{1,900}b", r"\pL{1,4}", "^(a|b){1,200}c"])
def test_compiling_a_pattern_is_counted_once_for_each_value_as_if_no_cache_had_it(text: str) -> None:
    # specification 4.7, 20.3
    compiled = call_cost(text, pattern_weight(text))
    once = steps_of(patterns(text), {"a": "abc"})
    assert compiled < once < 1.3 * compiled + 10_000
    assert steps_of(patterns(text), {"a": "abc"}) == once
    assert steps_of(patterns(*[text] * 20), {"a": "abc"}) < once + compiled


def test_many_patterns_are_counted_at_each_call_for_the_caches_may_have_dropped_them() -> None:
    # specification 4.7, 20.3
    few, many = ([f"^(x|{number}){{1,3}}" for number in range(count)] for count in (KEPT_PATTERNS, 3 * KEPT_PATTERNS))
    each = call_cost(few[0], pattern_weight(few[0]))
    assert steps_of(patterns(*few, *few), {"a": "x"}) < steps_of(patterns(*few), {"a": "x"}) + len(few) * each
    twice = steps_of(patterns(*many, *many), {"a": "x"}) - steps_of(patterns(*many), {"a": "x"})
    assert twice > 2 * KEPT_PATTERNS * each


def test_a_long_pattern_is_refused_before_it_is_weighed() -> None:
    # specification 20.3
    text = "(" * 40_000 + ")" * 40_000
    with mock.patch.object(schema_bounds, "pattern_weight", side_effect=AssertionError("it was weighed")):
        assert steps_of({"properties": {"a": {"pattern": text}}}, {"a": ""}, Work(100_000)) == 100_000


def test_looking_for_unevaluated_items_is_counted_for_each_value() -> None:
    # specification 20.3
    item = {"prefixItems": [{}], "unevaluatedItems": False, "anyOf": [{"minItems": 9}, {"$ref": "#/properties/b"}]}
    assert steps_of({"properties": {"a": {"items": item}, "b": {}}}, {"a": [[1]] * 100}) > 100 * 6000


def test_preparing_a_schema_is_counted_once_for_each_command() -> None:
    # specification 20.3
    schema = {"properties": {f"k{number}": {"type": "string"} for number in range(500)}}
    work = Work()
    first = steps_of(schema, {}, work)
    assert first > 400 * 1000
    assert steps_of(schema, {}, work) < first - 400 * 1000
    assert steps_of(schema, {}) == first


LINKED = {"$defs": {"n": {"properties": {"x": {"$ref": "#/$defs/n"}}}}, "allOf": [{"$ref": "#/$defs/n"}]}
NEGATED = {
    "$defs": {"n": {"not": {"not": {"properties": {"x": {"$ref": "#/$defs/n"}}}}}},
    "allOf": [{"$ref": "#/$defs/n"}],
}


def beneath(depth: int, call: Callable[[], Any]) -> Any:
    return call() if depth == 0 else beneath(depth - 1, call)


@pytest.mark.parametrize(
    ("schema", "deepest"),
    [(LINKED, 127), (NEGATED, 31), ({"allOf": [{"$ref": "#"}]}, -1)],
    ids=["linked", "negated", "endless"],
)
def test_nesting_passes_or_fails_alike_under_any_stack_of_the_caller(schema: dict[str, Any], deepest: int) -> None:
    # specification 4.7
    def found() -> list[bool]:
        return [problems(nested(depth), schema) == [] for depth in range(128)]

    free = found()
    assert free == [depth <= deepest for depth in range(128)]
    assert free == beneath(200, found)


def test_patterns_that_take_too_long_to_compile_are_a_load_error_and_are_not_compiled() -> None:
    # specification 4.7
    texts = [rf"\pL{{1,{number}}}" for number in range(1, 30)]
    with mock.patch.object(output_schemas, "pattern", wraps=schema_bounds.pattern) as compiled:
        found = schema_problems(Output("o", "object", patterns(*texts)))
    assert {rule for _, rule, _ in found} == {"bad_json_schema"}
    assert "take more than 4500000 steps to compile" in found[0][2]
    assert compiled.call_count < len(texts) - len(found) + 1
    assert schema_problems(Output("o", "object", patterns(*texts)), pinned=True) == []

"""Templates: replacement, types of values, and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from tables.templates import LARGEST_RENDERED_BYTES, TemplateFailed, expressions, marks, render, render_text

INPUTS = {"title": "Login", "points": 5, "plan": {"id": "p-1", "tags": ["a", "b"]}, "nothing": None}
OUTPUTS = {"review": {"score": 0.5, "items": [{"name": "x"}]}}


def rendered(template: Any) -> Any:
    return render(template, INPUTS, OUTPUTS.get)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("${inputs.points}", 5),
        ("${ inputs.plan }", {"id": "p-1", "tags": ["a", "b"]}),
        ("${inputs.plan.tags.1}", "b"),
        ("${inputs.nothing}", None),
        ("${steps.review.score}", 0.5),
        ("${steps.review.items.0.name}", "x"),
        ("${steps.review}", {"score": 0.5, "items": [{"name": "x"}]}),
    ],
)
def test_a_sole_expression_keeps_the_type_of_its_value(template: str, value: Any) -> None:
    # specification 4.2
    assert rendered(template) == value


def test_inside_text_strings_are_inserted_as_they_are_and_other_values_as_json() -> None:
    # specification 4.2
    assert rendered("${inputs.title}: ${inputs.points}, ${inputs.plan}, ${inputs.nothing}") == (
        'Login: 5, {"id":"p-1","tags":["a","b"]}, null'
    )


def test_render_text_always_gives_text() -> None:
    assert render_text("${inputs.points}", INPUTS, OUTPUTS.get) == "5"


def test_leaves_of_nested_templates_are_replaced_and_the_template_is_left_as_it_was() -> None:
    # specification 4.1
    template = {"a": ["${inputs.title}", 1, None], "b": {"c": "${steps.review.score}"}}
    assert rendered(template) == {"a": ["Login", 1, None], "b": {"c": 0.5}}
    assert template["a"] == ["${inputs.title}", 1, None]


@pytest.mark.parametrize(
    "text",
    [
        "$5",
        "${HOME}",
        "${}",
        "${inputs}",
        "${input.title}",
        "$$",
        "}{",
        "{{ x }}",
    ],
)
def test_anything_else_is_plain_text(text: str) -> None:
    # specification 4.1
    assert rendered(text) == text


def test_inserted_values_are_never_read_as_templates() -> None:
    # specification 4.2
    assert render("<${inputs.a}>", {"a": "${inputs.b}", "b": "secret"}, OUTPUTS.get) == "<${inputs.b}>"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("$${inputs.title}", "${inputs.title}"),
        ("costs $${x", "costs ${x"),
        ("$$${inputs.title}", "$${inputs.title}"),
        ("$${${inputs.title}}", "${Login}"),
        ("${inputs.title}$${", "Login${"),
    ],
)
def test_a_doubled_dollar_writes_a_literal_placeholder(template: str, text: str) -> None:
    # specification 4.1
    assert rendered(template) == render_text(template, INPUTS, OUTPUTS.get) == text


def test_an_optional_input_that_was_not_given_is_null_alone_and_empty_inside_text() -> None:
    # specification 4.8
    template = {
        "a": "${inputs.note}",
        "b": "<${inputs.note}>",
        "c": ["${ inputs.note.deep }"],
        "d": "${inputs.nothing}",
    }
    found = render(template, INPUTS, OUTPUTS.get, ("note", "nothing"))
    assert found == {"a": None, "b": "<>", "c": [None], "d": None}
    assert render_text("${inputs.note}", INPUTS, OUTPUTS.get, ("note",)) == ""
    with pytest.raises(TemplateFailed, match="template_unresolved"):
        render("${inputs.plan.absent}", INPUTS, OUTPUTS.get, ("plan",))


def test_texts_that_only_look_like_placeholders_are_found() -> None:
    # specification 4.3
    template = {"a": ["${input.x} $${inputs.y", "{{ topic }} ${inputs.ok}"], "b": "${env.HOME and ${steps.z"}
    assert [(mark.kind.value, mark.text) for mark in marks(template)] == [
        ("unknown", "${input.x}"),
        ("braces", "{{ topic }}"),
        ("unknown", "${env.HOME and "),
        ("unclosed", "${steps.z"),
    ]


@pytest.mark.timeout(5)
@pytest.mark.parametrize("unit", ["${inputs. ", " ", "${", "$", "{{", "${inputs.", "{{ ", "$${"])
def test_hostile_templates_take_linear_time(unit: str) -> None:
    text = "${inputs." + unit * 60_000
    assert len(rendered(text)) <= len(text)
    assert len(list(marks(text))) <= len(text)


@pytest.mark.parametrize(
    "path",
    [
        "inputs.absent",
        "inputs.plan.absent",
        "inputs.plan.tags.2",
        "inputs.plan.tags.x",
        "inputs.title.0",
        "steps.other.x",
    ],
)
def test_a_missing_value_is_an_error_that_names_the_path(path: str) -> None:
    # specification 4.3
    with pytest.raises(TemplateFailed) as caught:
        rendered(f"see ${{{path}}}")
    assert caught.value.code == "template_unresolved"
    assert path in caught.value.message


def test_a_path_with_empty_parts_is_unresolved() -> None:
    for text in ("${inputs.}", "${inputs.plan..id}", "${steps.}"):
        with pytest.raises(TemplateFailed, match="template_unresolved"):
            rendered(text)


def test_a_small_template_cannot_make_a_huge_value() -> None:
    # specification 4.4
    inputs = {"big": "x" * (LARGEST_RENDERED_BYTES // 10)}
    with pytest.raises(TemplateFailed, match="template_too_large"):
        render(["${inputs.big}"] * 11, inputs, OUTPUTS.get)
    assert len(render("${inputs.big}" * 10, inputs, OUTPUTS.get)) == LARGEST_RENDERED_BYTES // 10 * 10


def test_nesting_is_bounded_in_templates_and_in_values() -> None:
    # specification 4.4
    deep: Any = "${inputs.title}"
    value: Any = 1
    for _ in range(100):
        deep = [deep]
    for _ in range(100_000):
        value = [value]
    with pytest.raises(TemplateFailed, match="template_too_deep"):
        rendered(deep)
    with pytest.raises(TemplateFailed, match="template_too_deep"):
        list(expressions(deep))
    with pytest.raises(TemplateFailed, match="template_too_deep"):
        render("${inputs.v}", {"v": value}, OUTPUTS.get)


def test_expressions_are_listed_in_order_for_checks_at_load() -> None:
    found = list(expressions({"a": "${inputs.x.y} ${steps.s}", "b": ["${steps.t.u.v}", 3]}))
    assert [(e.root, e.name, e.path) for e in found] == [
        ("inputs", "x", "y"),
        ("steps", "s", ""),
        ("steps", "t", "u.v"),
    ]
    assert [str(e) for e in found] == ["inputs.x.y", "steps.s", "steps.t.u.v"]


def test_blanks_in_an_unclosed_placeholder_take_linear_time() -> None:
    """40 KB of blanks took a second when the pattern tried each of them as the end."""
    # specification 4.4
    hostile = "${inputs." + " " * 400_000 + "${steps." + " " * 400_000
    assert render_text(hostile, {}, lambda _: None) == hostile
    assert list(expressions([hostile])) == []

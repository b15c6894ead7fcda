"""Guards: parsing of checks, their judgement on an instance, and the reasons."""

from __future__ import annotations

import timeit
from typing import Any

import pytest

from ports.errors import CeremonyError
from steps.registry import all_kinds
from tables.definition import Definition, Guard, GuardType
from tables.definitions.loader import load
from tables.guards import GuardView, RefusedCheck, guard_steps, holds, is_human, is_unjudged, parse_check
from tables.instance import Approval, CeremonyStatus, Instance, StepState, StepStatus

DEFINITION = load(
    """\
version: "1.0"
name: g
description: g
states: [{id: A, description: a, initial: true}, {id: B, description: b, terminal: true}]
transitions: [{from: A, to: B, trigger: t, description: d}]
steps:
- {id: one, state: A, handler: aggregation_step, config: {sources: [x], aggregation_type: list}}
- {id: two, state: A, handler: aggregation_step, config: {sources: [x], aggregation_type: list}}
""",
    "g.yaml",
    all_kinds(),
)
DONE = StepStatus.COMPLETED


def row(inputs: dict[str, Any] | None = None, **more: Any) -> Instance:
    known = {"story_id": "s", "ceremony_id": "c", **(inputs or {})}
    fields: dict[str, Any] = {
        "state": "A",
        "status": CeremonyStatus.RUNNING,
        "created_at": 1_500,
        "updated_at": 1_500,
        "version": 7,
    }
    return Instance("c:s", "c", "s", "g", "h", "corr", "me", "digest", inputs=known, **(fields | more))


def guard(check: str, threshold: float | None = None) -> Guard:
    return Guard("g", GuardType.AUTOMATED, check, None, threshold, parse_check(check))


def judged(check: str, instance: Instance, threshold: float | None = None) -> tuple[bool, str]:
    return holds(guard(check, threshold), GuardView.of(instance, DEFINITION))


def with_output(output: Any, status: StepStatus = DONE) -> Instance:
    return row(steps={"one": StepState(status=status, output=output)})


@pytest.mark.parametrize(
    ("check", "code"),
    [
        ("", "bad_check"),
        ("all_steps_completed:", "bad_check"),
        ("ALL_STEPS_COMPLETED", "bad_check"),
        ("step_status:one", "bad_check"),
        ("step_status:one:completed", "bad_check"),
        ("step_status::COMPLETED", "bad_check"),
        ("step_status:one:COMPLETED:x", "bad_check"),
        ("threshold:one", "bad_check"),
        ("threshold:one.", "bad_check"),
        ("threshold:.x", "bad_check"),
        ("cel:", "bad_expression"),
        ("cel:1 +", "bad_expression"),
        ("cel:unknown == 1", "bad_expression"),
        ("cel:['x'].map(a, a + a).size() > 0", "bad_expression"),
        ("cel:[1].map(a, [a, a]).map(b, [b, b]).map(c, [c, c]).size() > 0", "bad_expression"),
        ("cel:" + "1" * 4097, "bad_expression"),
        ("cel:" + "(" * 100 + "true" + ")" * 100, "bad_expression"),
        ("status == 1", "bad_check"),
    ],
)
def test_an_invalid_check_is_refused_with_a_code(check: str, code: str) -> None:
    # specification 3.1, 3.7
    with pytest.raises(CeremonyError) as caught:
        parse_check(check)
    assert caught.value.code == code


def test_all_steps_completed_reads_the_selected_steps() -> None:
    # specification 3.2
    one_done = {"one": StepState(status=DONE), "two": StepState()}
    assert judged("all_steps_completed", row(steps=one_done)) == (False, "step `two` is PENDING")
    assert judged("all_steps_completed", row(steps=one_done, selected=("one",)))[0]
    assert judged("all_steps_completed", row(steps=one_done | {"two": StepState(status=DONE)}))[0]


@pytest.mark.parametrize("status", list(StepStatus))
def test_step_status_compares_one_step(status: StepStatus) -> None:
    # specification 3.3
    instance = row(steps={"one": StepState(status=status)})
    for other in StepStatus:
        assert judged(f"step_status:one:{other}", instance) == (status is other, f"step `one` is {status}")


@pytest.mark.parametrize(
    ("output", "held"),
    [
        ({"score": 0.7}, True),
        ({"score": 1}, True),
        ({"score": 10**400}, True),
        ({"score": 0.69}, False),
        ({"score": True}, False),
        ({"score": "0.9"}, False),
        ({"score": None}, False),
        ({}, False),
        ([], False),
        (None, False),
    ],
)
def test_a_threshold_compares_numbers_and_no_booleans(output: Any, *, held: bool) -> None:
    # specification 3.4
    result, reason = judged("threshold:one.score", with_output(output), 0.7)
    assert result is held and reason


def test_a_threshold_reaches_into_objects_and_lists() -> None:
    # specification 3.4
    output = {"a": {"b": [{"c": 3}]}}
    assert judged("threshold:one.a.b.0.c", with_output(output), 3) == (True, "`one.a.b.0.c` is 3; the threshold is 3")
    assert not judged("threshold:one.a.b.1.c", with_output(output), 3)[0]


def test_a_threshold_reads_outputs_of_completed_steps_only() -> None:
    # specification 3.4
    held, reason = judged("threshold:one.x", with_output({"x": 9}, StepStatus.FAILED), 1)
    assert not held and "FAILED" in reason


@pytest.mark.parametrize(
    "expression",
    [
        "inputs.n > 2",
        "inputs.n >= 2.5",
        "has(outputs.one) && outputs.one.score == 0.5",
        "!has(outputs.two)",
        "status.one == 'COMPLETED' && status['two'] == 'PENDING'",
        "state == 'A'",
        "ceremony.instance_id == 'c:s' && ceremony.ceremony_id == 'c' && ceremony.story_id == 's'",
        "ceremony.version == 7",
        "timestamp(ceremony.started_at) == timestamp('1970-01-01T00:00:01.500Z')",
        "inputs.list.exists(x, x == 2)",
        "inputs.story_id == 's'",
    ],
)
def test_an_expression_sees_inputs_outputs_status_state_and_ceremony(expression: str) -> None:
    # specification 3.5
    instance = row({"n": 3, "list": [1, 2]}, steps={"one": StepState(status=DONE, output={"score": 0.5})})
    assert judged(f"cel:{expression}", instance) == (True, "the expression is true")


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("inputs.n == 4", "the expression is false"),
        ("inputs.missing == 4", "cel_failed: the expression fails on these values"),
        ("outputs.one.x == 1", "cel_failed: the expression fails on these values"),
        ("1 / (inputs.n - 3) == 1", "cel_failed: the expression fails on these values"),
        ("inputs.n", "cel_not_boolean: the expression is neither true nor false"),
        ("'text'", "cel_not_boolean: the expression is neither true nor false"),
        ("inputs.few.all(a, inputs.few.all(b, a + b >= 0))", "cel_failed: the expression fails on these values"),
        (
            "inputs.deep.all(a, inputs.deep.all(b, a + b >= 0))",
            "cel_too_costly: judging it takes more than 4000000 steps",
        ),
    ],
)
def test_an_expression_that_fails_or_is_not_boolean_does_not_hold(expression: str, reason: str) -> None:
    """The engine returns errors as truthy values: only True counts. No text of a library reaches a row or an effect."""
    # specification 3.6
    instance = row({"n": 3, "few": list(range(120)), "deep": list(range(2000))})
    assert judged(f"cel:{expression}", instance) == (False, reason)


def test_logs_and_people_get_the_words_of_the_engine_too() -> None:
    view = GuardView.of(row({"n": 3}), DEFINITION)
    failing = guard("cel:inputs.missing == 4")
    assert view.in_full("g", holds(failing, view)[1]).startswith("cel_failed: ")
    assert "Key not found" in view.in_full("g", holds(failing, view)[1])


def test_a_number_beyond_64_bits_does_not_spoil_the_other_data() -> None:
    """CEL's whole numbers have 64 bits; a larger one counts as a double."""
    instance = row({"n": 3, "huge": [2**70, -(10**400)]})
    assert judged("cel:inputs.n == 3", instance)[0]
    assert judged("cel:inputs.huge[0] > 1.0e21 && inputs.huge[1] < -1.0e300", instance)[0]


@pytest.mark.timeout(20)
def test_an_expression_makes_new_lists_from_short_ones_only() -> None:
    """`map` and `filter` copy their result at each element: ten thousand took the fold seconds."""
    # specification 3.7
    check = "cel:inputs.many.map(x, inputs.many.filter(y, y == x)).size() > 0"
    assert judged(check, row({"many": [1] * 50}))[0]
    held, why = judged(check, row({"many": [1] * 20_000}))
    assert not held and why.startswith("cel_too_costly: ")
    assert judged("cel:inputs.many.exists(x, x == 1)", row({"many": [1] * 5_000}))[0]
    assert judged("cel:inputs.many.filter(x, x == 1).size() == 1000", row({"many": [1] * 1000}))[0]


def test_an_expression_of_hostile_data_never_raises() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    for value in (deep, "\ud800", object(), {1: 2}):
        assert judged("cel:inputs.x == 1", row({"x": value}))[0] is False


def human(role: str | None) -> Guard:
    return Guard("ok", GuardType.HUMAN, "Is it good?", role)


def approved(role: str) -> Instance:
    return row(guard_approvals={"ok": (Approval("ann", role, 5),)})


def test_a_human_guard_waits_for_an_approval_in_its_role() -> None:
    # specification 3.8
    def judge(guard: Guard, instance: Instance) -> tuple[bool, str]:
        return holds(guard, GuardView.of(instance, DEFINITION))

    assert judge(human("PO"), row()) == (False, "it waits for an approval by the role PO")
    assert judge(human("PO"), approved("DEV"))[0] is False
    assert judge(human("PO"), approved("PO")) == (True, "approved by ann")
    assert judge(human(None), approved(""))[0] is True
    assert judge(human(None), row()) == (False, "it waits for an approval by somebody")
    assert is_human(human(None)) and not is_human(guard("all_steps_completed"))


@pytest.mark.parametrize(
    ("check", "steps"),
    [
        ("all_steps_completed", set()),
        ("step_status:one:FAILED", {"one"}),
        ("threshold:two.x", {"two"}),
        ("cel:status.one == 'FAILED'", {"one"}),
        ('cel:outputs["two"].x == 1 && inputs.one == 1', {"two"}),
        ("cel:outputs.exists(k, k == 'one')", {"one", "two"}),
        ("cel:status[inputs.name] == 'FAILED'", {"one", "two"}),
        ("cel:size(outputs) == 2", {"one", "two"}),
        ("cel:inputs.x == 1", set()),
        ("cel:inputs.x == 'outputs'", set()),
        ("cel:inputs.x == 'the status.one is \\' outputs'", set()),
        ('cel:inputs.x == r"\\d status.one" || status.two == "outputs.one"', {"two"}),
        ('cel:inputs.x == """outputs "one" """ && outputs["two"] == {}', {"two"}),
        ("cel:inputs.status == 1 // status.one", set()),
        ("cel:{'status': 1} == outputs.one", {"one"}),
        ("cel:outputs == {} || outputs.one.x == 1", {"one", "two"}),
        ("cel:has(outputs.two)", {"two"}),
    ],
)
def test_the_steps_whose_run_can_change_a_guard(check: str, steps: set[str]) -> None:
    assert guard_steps(guard(check), DEFINITION) == steps
    assert guard_steps(human("PO"), DEFINITION) == frozenset()


def test_a_view_is_cheap_until_an_expression_asks() -> None:
    """A few microseconds for a view and a status check; 50 leaves room for a busy host."""
    instance, checked, definition = row(), guard("step_status:one:FAILED"), DEFINITION
    seconds = min(timeit.repeat(lambda: holds(checked, GuardView.of(instance, definition)), number=1000, repeat=5))
    assert seconds / 1000 < 50e-6


def test_a_refused_check_never_holds_and_counts_as_unjudged() -> None:
    # specification 24.4
    refused = Guard("g", GuardType.AUTOMATED, "cel:x", None, None, RefusedCheck("bad_expression"))
    held, reason = holds(refused, GuardView.of(row(), DEFINITION))
    assert (held, reason.startswith("check_refused")) == (False, True)
    assert is_unjudged(refused, reason)
    assert guard_steps(refused, DEFINITION) == frozenset()


def test_a_view_knows_the_selected_steps() -> None:
    assert GuardView.of(row(), DEFINITION).selected == ("one", "two")
    assert GuardView.of(row(selected=("two",)), DEFINITION).selected == ("two",)
    assert GuardView.of(row(), DEFINITION).state == "A"
    assert isinstance(DEFINITION, Definition)

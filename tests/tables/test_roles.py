"""Roles: permission to use a trigger, to decide a gate or a guard, and to run a step."""

from __future__ import annotations

import pytest

from steps.registry import all_kinds
from tables.definition import Definition, Guard, GuardType
from tables.definitions.advice import warnings
from tables.definitions.loader import load
from tables.roles import allows, guard_refusal, refusal, step_role_refusal

TEXT = """\
version: "1.0"
name: r
description: r
states: [{id: A, description: a, initial: true}, {id: B, description: b, terminal: true}]
transitions:
- {from: A, to: B, trigger: ship, description: d}
- {from: A, to: B, trigger: drop, description: d}
steps:
- {id: gate, state: A, handler: human_gate_step, config: {role: PO, message: ok?}}
"""
ROLES = """\
roles:
- {id: PO, description: p, allowed_actions: [ship, gate]}
- {id: DEV, description: d}
"""


def definition(more: str = "") -> Definition:
    return load(TEXT + more, "r.yaml", all_kinds())


@pytest.mark.parametrize("role", ["", "PO", "SYSTEM", "ANY"])
def test_without_roles_every_actor_may_do_everything(role: str) -> None:
    # specification 13.1
    assert allows(definition(), role, "ship") and allows(definition(), role, "gate")


@pytest.mark.parametrize(
    ("role", "action", "code"),
    [
        ("PO", "ship", None),
        ("PO", "gate", None),
        ("", "ship", "role_required"),
        ("DEV", "ship", "role_not_allowed"),
        ("NOBODY", "ship", "role_not_allowed"),
        ("", "drop", None),  # no role names it
        ("DEV", "drop", None),
        ("SYSTEM", "ship", "role_not_allowed"),
        ("SYSTEM", "drop", "role_not_allowed"),  # agents are never among "all"
    ],
)
def test_an_action_that_roles_list_is_open_to_those_roles_only(role: str, action: str, code: str | None) -> None:
    # specification 13.1
    found = refusal(definition(ROLES), role, action)
    assert (found and found[0]) == code
    assert allows(definition(ROLES), role, action) is (code is None)


def test_system_may_use_the_actions_it_is_declared_with() -> None:
    # specification 13.1, 13.13
    system = "- {id: SYSTEM, description: s, allowed_actions: [drop]}\n"
    assert allows(definition(ROLES + system), "SYSTEM", "drop")
    assert not allows(definition(ROLES + system), "SYSTEM", "ship")


@pytest.mark.parametrize(
    ("needs", "role", "code"),
    [(None, "", None), ("PO", "PO", None), ("PO", "", "role_required"), ("PO", "DEV", "role_not_allowed")],
)
def test_only_its_role_decides_a_human_guard(needs: str | None, role: str, code: str | None) -> None:
    # specification 13.2
    found = guard_refusal(Guard("g", GuardType.HUMAN, "ok?", needs), role)
    assert (found and found[0]) == code


@pytest.mark.parametrize(
    ("roles", "warned"),
    [
        ("", False),
        (ROLES, False),
        ("roles: [{id: PO, description: p, allowed_actions: [ship]}]\n", True),  # does not list the step
        ("roles: [{id: DEV, description: d, allowed_actions: [gate]}]\n", True),  # PO is undeclared
    ],
)
def test_a_step_whose_role_may_not_run_it_is_a_warning_with_its_line(roles: str, *, warned: bool) -> None:
    # specification 2.14
    found = definition(roles)
    assert [(p.file, p.line, p.rule) for p in warnings(found, all_kinds())] == [
        ("r.yaml", 9, "role_not_allowed")
    ] * warned
    assert (step_role_refusal(found, found.steps["gate"]) is not None) is warned

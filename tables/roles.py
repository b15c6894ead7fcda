"""Permissions: roles, allowed actions, and the actors who may approve (specification 13.1)."""

from __future__ import annotations

from tables.definition import SYSTEM_ROLE, Definition, Gate, Guard, Step

CANCEL, PAUSE, RESUME = "cancel", "pause", "resume"
# Operations on a ceremony as a whole; a role may list them beside step ids and triggers.
OPERATIONS = (CANCEL, PAUSE, RESUME)


def refusal(definition: Definition, role: str, action: str) -> tuple[str, str] | None:
    """Return why an actor in `role` ("" for none) may not use `action`: (code, message), or None.

    `action` is a step id, a trigger, or one of OPERATIONS. An action that no role lists is open to all, but not to
    the role SYSTEM: where any role is declared, SYSTEM must be declared with the action.
    """
    if not definition.roles:
        return None
    named = [r.id for r in definition.roles.values() if action in r.allowed_actions]
    if not named and role != SYSTEM_ROLE:
        return None
    if role in named:
        return None
    who = ", ".join(named) or "no role"
    if not role:
        return "role_required", f"`{action}` needs a role; allowed to {who}"
    return "role_not_allowed", f"role {role} may not use `{action}`; allowed to {who}"


def allows(definition: Definition, role: str, action: str) -> bool:
    """Return whether an actor in `role` may use `action`; see `refusal`."""
    return refusal(definition, role, action) is None


def guard_refusal(guard: Guard, role: str) -> tuple[str, str] | None:
    """Return why an actor in `role` may not decide a human guard: (code, message), or None."""
    if guard.role is None or role == guard.role:
        return None
    if not role:
        return "role_required", f"guard `{guard.name}` needs a role; only {guard.role} may decide it"
    return "role_not_allowed", f"role {role} may not decide guard `{guard.name}`; only {guard.role} may"


def gate_refusal(definition: Definition, step: Step, gate: Gate, role: str) -> tuple[str, str] | None:
    """Return why an actor in `role` may not decide a gate step: (code, message), or None.

    Roles that list the step decide it. Where none does, an actor who names a role must name the gate's own.
    """
    if any(step.id in declared.allowed_actions for declared in definition.roles.values()):
        return refusal(definition, role, step.id)
    if role and role != gate.role:
        return "role_not_allowed", f"gate `{step.id}` is decided by the role {gate.role}"
    return None


def step_role_refusal(definition: Definition, step: Step) -> tuple[str, str] | None:
    """Return why the role of a step may not run it: (code, message), or None.

    Steps without one, and definitions that declare no roles, are free.
    """
    role = step.role
    if role is None or not definition.roles:
        return None
    declared = definition.roles.get(role)
    if declared is None:
        return "role_not_allowed", f"role {role} of step `{step.id}` is not declared in `roles`"
    if step.id not in declared.allowed_actions:
        return "role_not_allowed", f"role {role} does not list step `{step.id}` among its allowed_actions"
    return None

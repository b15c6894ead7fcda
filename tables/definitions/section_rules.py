"""Rules of the sections inputs, outputs, guards and roles."""

from __future__ import annotations

from ports.errors import CeremonyError
from tables.definition import Guard, GuardType, Output
from tables.definitions.draft import Draft
from tables.definitions.output_schemas import schema_problems
from tables.definitions.problems import clipped
from tables.definitions.shapes import Fields, Item
from tables.definitions.yaml_source import Node
from tables.guards import Cel, GuardCheck, RefusedCheck, StepStatusIs, Threshold, parse_check
from tables.roles import OPERATIONS
from tables.work import Work

# Judging one value of a JSON Schema takes up to a millisecond.
MAX_SCHEMA_VALUES = 4000


def inputs(draft: Draft) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names of required, of optional and of searchable inputs."""
    section = draft.fields.get("inputs")
    if section is None:
        return (), (), ()
    required, optional = section.get("required", ()), section.get("optional", ())
    names = {item.value for item in required}
    for item in optional:
        if item.value is not None and item.value in names:
            message = f"`{clipped(item.value)}` is in both lists; keep it in `required` or in `optional`"
            draft.report.add(item.line, "input_in_both_lists", message)
    return _names(required), _names(optional), _searchable(draft, section)


def _searchable(draft: Draft, section: Fields) -> tuple[str, ...]:
    declared = dict.fromkeys([*_names(section.get("required", ())), *_names(section.get("optional", ()))])
    known = [
        item.value
        for item in section.get("searchable", ())
        if item.value is not None and draft.known(item.value, declared, item.line, "unknown_input", "`searchable`")
    ]
    return tuple(dict.fromkeys(known))


def _names(items: tuple[Item, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.value for item in items if item.value is not None))


def outputs(draft: Draft) -> dict[str, Output]:
    """Return the declared outputs, also those with mistakes."""
    found = {}
    size, work = 0, Work()
    for name, item in draft.fields.get("outputs", {}).items():
        fields: Fields | None = item.value
        node: Node | None = fields.get("schema") if fields else None
        schema = None if node is None or node.holds_broken() else node.plain()
        output = Output(name, fields.get("type", "object") if fields else "object", schema)
        size += 0 if node is None else node.count()
        if size > MAX_SCHEMA_VALUES:
            message = f"the schemas of all outputs hold at most {MAX_SCHEMA_VALUES} values together; make them simpler"
            draft.report.add(item.line, "schema_too_large", message)
            break
        for path, rule, message in schema_problems(output, work, pinned=draft.pinned):
            line = item.line if node is None else node.line_at(iter(path))
            draft.report.add(line, rule, f"outputs.{clipped(name)}.schema{message}")
        found[name] = output
    return found


def guards(draft: Draft) -> dict[str, Guard]:
    """Return the declared guards, with their checks parsed."""
    return {name: _guard(draft, name, item.value) for name, item in draft.guards.items() if item.value is not None}


def _guard(draft: Draft, name: str, fields: Fields) -> Guard:
    role = fields.get("role")
    if role is not None:
        draft.known(role, draft.role_ids, fields.line_of("role"), "unknown_role", f"guards.{clipped(name)}.role")
    kind = GuardType(fields.get("type", GuardType.AUTOMATED))
    check, threshold = fields.get("check", ""), fields.get("threshold")
    expression = None
    if kind is GuardType.AUTOMATED and check and not (fields.has("type") and fields.get("type") is None):
        expression = _expression(draft, name, fields)
        if isinstance(expression, Threshold) and not fields.has("threshold"):
            message = f"guard `{clipped(name)}` needs `threshold`: the number to compare with (≥)"
            draft.report.add(fields.line_of("check"), "threshold_missing", message)
    return Guard(name, kind, check, role, threshold, expression)


def _expression(draft: Draft, name: str, fields: Fields) -> GuardCheck:
    line, check = fields.line_of("check"), fields.get("check")
    where = f"guards.{clipped(name)}.check"
    try:
        expression = parse_check(check)
    except CeremonyError as error:
        draft.report.add(line, error.code, f"{where} `{clipped(check)}` {error.message}")
        return RefusedCheck(error.code)
    if isinstance(expression, Cel) and expression.broken:
        for code, message in expression.broken:
            draft.report.add(line, code, f"{where} `{clipped(check)}`: {message}")
        return RefusedCheck(expression.broken[0][0])
    if isinstance(expression, StepStatusIs | Threshold):
        draft.known(expression.step, draft.step_ids, line, "unknown_step", where)
    return expression


def roles(draft: Draft) -> None:
    """Check that each allowed action is a step, a trigger, or an operation on the ceremony as a whole."""
    actions = {**draft.step_ids, **draft.triggers, **dict.fromkeys(OPERATIONS)}
    for role in draft.roles:
        where = f"role `{clipped(role.get('id', '?'))}`"
        for item in role.get("allowed_actions", ()):
            if item.value is not None and item.value not in actions:
                hint = draft.report.suggest(item.value, actions)
                what = "no step id, no trigger, and not cancel, pause or resume"
                message = f"{where} lists `{clipped(item.value)}`, which is {what}{hint}"
                draft.report.add(item.line, "unknown_action", message)

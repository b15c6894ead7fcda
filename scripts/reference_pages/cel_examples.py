"""CEL's operators, functions and macros, each with an example that is judged when the page is made."""

from __future__ import annotations

from typing import Any

from scripts.reference_pages.markdown import code, table
from tables.cel.engine import compiled, evaluate
from tables.work import Work

VALUES: dict[str, Any] = {
    "inputs": {"title": "Pay by card", "labels": ["a", "b"], "size": 3, "score": 0.9, "until": "2026-01-31T12:00:00Z"},
    "outputs": {"read": {"lines": [{"price": 5.5}, {"price": 20.0}]}},
    "status": {"read": "COMPLETED"},
    "state": "OPEN",
    "ceremony": {
        "instance_id": "c1:s1",
        "ceremony_id": "c1",
        "story_id": "s1",
        "version": 4,
        "started_at": "2026-01-01T00:00:00.000Z",
    },
}
# Each holds with VALUES.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("comparison", "inputs.size >= 3 && inputs.title != ''"),
    ("logic", "!(state == 'DONE') || status.read == 'COMPLETED'"),
    ("arithmetic", "inputs.size * 2 + 1 == 7 && 7 % 4 == 3"),
    ("choice", "(inputs.size > 2 ? 'large' : 'small') == 'large'"),
    ("list, map", "inputs.labels[0] == 'a' && {'x': 1}.x == 1 && 'b' in inputs.labels"),
    ("`has`", "has(inputs.title) && !has(inputs.missing)"),
    ("`size`", "size(inputs.labels) == 2 && inputs.title.size() == 11"),
    ("`contains`", "inputs.title.contains('card')"),
    ("`startsWith`, `endsWith`", "inputs.title.startsWith('Pay') && inputs.title.endsWith('card')"),
    ("`matches`", "inputs.title.matches('^[A-Z].*')"),
    ("`all`", "outputs.read.lines.all(l, l.price < 100.0)"),
    ("`exists`", "outputs.read.lines.exists(l, l.price > 10.0)"),
    ("`exists_one`", "outputs.read.lines.exists_one(l, l.price > 10.0)"),
    ("`filter`", "outputs.read.lines.filter(l, l.price > 10.0).size() == 1"),
    ("`map`", "outputs.read.lines.map(l, l.price)[1] == 20.0"),
    ("`string`, `int`, `double`", "string(3) == '3' && int('3') == 3 && double('0.5') == 0.5"),
    ("`timestamp`", "timestamp(ceremony.started_at) < timestamp(inputs.until)"),
    ("`duration`", "timestamp(inputs.until) - timestamp(ceremony.started_at) > duration('24h')"),
    ("`getFullYear`, `getHours` …", "timestamp(inputs.until).getHours('+02:00') == 14"),
    ("`type`", "type(inputs.size) == int"),
)


def cel_section() -> str:
    rows = [(name, code(example)) for name, example in EXAMPLES if _holds(example)]
    text = (
        "A check `cel:<expression>` sees `inputs`, `outputs`, `status`, `state` and `ceremony` "
        "([Guards and CEL](../writing/guards.md#the-cel-environment)). Each of these holds for one ceremony:"
    )
    return f"## CEL\n\n{text}\n\n" + table(("operator, function or macro", "example"), rows)


def _holds(example: str) -> bool:
    judged = evaluate(compiled(example), VALUES, Work())
    if not judged.holds:
        raise ValueError(f"{example}: {judged.reason}")
    return True

"""The page of a definition: every key, the config and output of every step kind, and CEL's functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from scripts.reference_pages.cel_examples import cel_section
from scripts.reference_pages.markdown import code, page, prose, table
from scripts.reference_pages.source import field_docs, modules
from steps.config import Constraints
from steps.registry import REGISTRY
from tables.definitions.file_format import DEFINITION
from tables.definitions.shapes import FixedMap, Flag, FreeMap, Key, ListOf, MapOf, Number, Shape, Text, TextOr
from tables.kinds import StepKind

HEADS = ("key", "type", "default", "meaning")
# Fields of outputs, by kind; a kind with another field has to be described here.
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "deliberation_step": {
        "task_id": "id of the task at the Ray executor",
        "deliberation_id": "id that the executor gave it",
        "role": "role of the agents, from the config",
        "num_agents": "number of agents that were asked",
        "status": "`completed`",
        "deliberations": "list of `{agent_id, role, proposal}`, by agent id; a proposal is text or an object",
    },
    "task_extraction_step": {
        "source": "`deliberation:<step>`, from the config",
        "task_id": "id of the task at the Ray executor",
        "deliberation_id": "id that the executor gave it",
        "status": "`completed`",
        "tasks": "list of objects, as the agent gave them; may be empty",
    },
    "aggregation_step": {
        "sources": "names of the sources, from the config",
        "aggregation_type": "from the config",
        "aggregated_result": "the joined value",
    },
    "human_gate_step": {
        "role": "role that decides, from the config",
        "message": "rendered message; while the gate is open the output is `{role, message, waiting: true}`",
        "approved": "true or false",
        "decided_by": "actors who decided",
        "decided_at": "time of the last decision",
        "comment": "comment of the last decision",
    },
    "publish_step": {
        "subject": "NATS subject, from the config",
        "event_type": "from the config",
        "payload": "the message's payload",
        "published": "true",
        "idempotency_key": "`publish/<instance>/<step>/<visit>`, also the header `Nats-Msg-Id`",
    },
}
# Functions of the step kinds that make a failure, with the code as their first argument.
FAILING = frozenset({"Failed", "failed", "_failed", "_refused"})


def definition_page() -> str:
    introduction = (
        "Made from the shapes by which the loader reads a file and from the config models of the step kinds. "
        "[The JSON Schema](../../specs/ceremony-definition.schema.json) is made from the same; "
        "[a definition, step by step](../writing/definitions.md) is the page to begin with."
    )
    kinds = "\n".join(_kind(entry.kind) for entry in REGISTRY)
    return page("Keys of a definition", introduction, *_sections(), "## Step kinds\n\n" + kinds, cel_section())


# -- sections of a file


def _sections() -> Iterator[str]:
    yield "## The file\n\n" + _keys(DEFINITION)
    for name, key in DEFINITION.keys.items():
        record, title = _record(key.shape, name)
        if record is not None:
            yield f"## {title}\n\n" + _keys(record)


def _record(shape: Shape, name: str) -> tuple[FixedMap | None, str]:
    """The record behind a key, and the way to it: `states[]`, `guards.<name>`."""
    if isinstance(shape, ListOf):
        return _record(shape.of, f"{name}[]")
    if isinstance(shape, MapOf):
        return _record(shape.of, f"{name}.<name>")
    return (shape, code(name)) if isinstance(shape, FixedMap) else (None, name)


def _keys(record: FixedMap) -> str:
    return table(
        HEADS, ((code(name), _type(key.shape), _default(key), prose(key.doc)) for name, key in record.keys.items())
    )


def _default(key: Key) -> str:
    if key.required:
        return "**required**"
    return "unset" if key.default is None else code(_yaml(key.default))


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(shape: Shape) -> str:  # noqa: PLR0911 - a case for each shape
    match shape:
        case Text():
            if shape.words:
                return " or ".join(map(code, shape.words))
            return f"text: {prose(shape.in_words)}" if shape.in_words else "text"
        case Number():
            bounds = shape._range()  # noqa: SLF001 - the words of the loader's own message
            return ("whole number" if shape.whole else "number") + (f" {bounds}" if bounds else "")
        case Flag():
            return "true or false"
        case FreeMap():
            return "map, not empty" if shape.non_empty else "map"
        case ListOf():
            return f"list of {_type(shape.of)}" + (", not empty" if shape.non_empty else "")
        case MapOf():
            return f"map from name to {_type(shape.of)}"
        case TextOr():
            return f"{_type(shape.text)}, or {_type(shape.other)}"
        case _:
            return "map"


# -- step kinds


def _kind(kind: StepKind) -> str:
    described = OUTPUTS.get(kind.handler, {})
    fields = tuple(getattr(kind, "fields", ()))
    if set(fields) != set(described):
        raise ValueError(f"describe the output of {kind.handler} in {__name__}: it is {', '.join(fields)}")
    output = table(("field of the output", "value"), ((code(name), described[name]) for name in fields))
    codes = ", ".join(map(code, sorted(set(_codes(kind)))))
    parts = [f"### `{kind.handler}`", _model(kind.config)]
    if any(field.annotation is Constraints for field in kind.config.model_fields.values()):
        parts.append("Keys of `constraints`:\n\n" + _model(Constraints))
    others = "[Steps and ceremonies](errors.md#steps-and-ceremonies)"
    parts += [output, f"Codes of its own failures: {codes}. Any step may also fail with those of {others}."]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _model(model: type[BaseModel]) -> str:
    docs, properties = field_docs(model), model.model_json_schema()["properties"]
    rows = (
        (code(name), _schema_type(properties[name]), _field_default(field), prose(docs.get(name, "")))
        for name, field in model.model_fields.items()
    )
    return table(HEADS, rows)


def _field_default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    return code("{}" if isinstance(value, BaseModel) else _yaml(value))


def _schema_type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(_schema_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return " or ".join(map(code, schema["enum"]))
    if "$ref" in schema:
        return "map"
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "object": "map",
    }
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return f"list of {_schema_type(items)}" if items else "list"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    found = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    return " ".join([words.get(schema.get("type", ""), "any value"), *found])


def _codes(kind: StepKind) -> Iterator[str]:
    """Codes with which the kind's own module fails an attempt."""
    tree = modules()[type(kind).__module__.replace(".", "/") + ".py"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            first = node.args[0]
            if name in FAILING and isinstance(first, ast.Constant):
                yield str(first.value)

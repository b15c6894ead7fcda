"""The page of the events: every subject with the fields of its payload, from the AsyncAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from scripts.reference_pages.markdown import code, page, prose, table
from scripts.reference_pages.source import ROOT

DOCUMENT = "specs/asyncapi.yaml"
Tree = Mapping[str, Any]


def events_page() -> str:
    tree: Tree = yaml.safe_load((ROOT / DOCUMENT).read_text("utf-8"))
    introduction = f"Made from [asyncapi.yaml](../../{DOCUMENT}). " + prose(tree["info"]["description"])
    return page("Events", introduction, *_channels(tree))


def _channels(tree: Tree) -> Iterator[str]:
    for channel in tree["channels"].values():
        for reference in channel["messages"].values():
            message = _resolved(tree, reference)
            yield _message(tree, channel, message)


def _message(tree: Tree, channel: Tree, message: Tree) -> str:
    text = prose(
        " ".join(
            part for part in (message.get("summary"), message.get("description"), channel.get("description")) if part
        )
    )
    fields = dict(_fields(tree, _payload(tree, message)))
    rows = [(code(name), *row) for name, row in fields.items()]
    shown = table(("field", "type", "required", "meaning"), rows) if rows else ""
    return f"## `{channel['address']}`\n\n" + "\n\n".join(part for part in (text, shown) if part)


def _payload(tree: Tree, message: Tree) -> Tree:
    """The schema of the payload; within the engine's envelope, of the envelope's own payload."""
    whole = _merged(tree, message.get("payload", {}))
    inner = whole["properties"].get("payload")
    return whole if inner is None else _merged(tree, inner)


def _merged(tree: Tree, schema: Tree) -> dict[str, Any]:
    """The properties of a schema and of everything that it refers to or combines."""
    schema = _resolved(tree, schema)
    found: dict[str, Any] = {
        "properties": dict(schema.get("properties", {})),
        "required": list(schema.get("required", [])),
    }
    for part in schema.get("allOf", []):
        more = _merged(tree, part)
        for name, value in more["properties"].items():
            here = found["properties"].get(name)
            found["properties"][name] = value if here is None else {"allOf": [here, value]}
        found["required"] += more["required"]
    return found


def _fields(tree: Tree, schema: Tree) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for name, value in schema["properties"].items():
        found = _resolved(tree, value)
        required = "yes" if name in schema["required"] else ""
        yield name, (_type(tree, found), required, prose(str(found.get("description", ""))))


def _type(tree: Tree, schema: Tree) -> str:
    schema = _resolved(tree, schema)
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return " or ".join(map(code, schema["enum"]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(tree, schema.get('items', {}))}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _resolved(tree: Tree, found: Tree) -> Tree:
    while "$ref" in found:
        more = {key: value for key, value in found.items() if key != "$ref"}
        target: Any = tree
        for part in str(found["$ref"]).removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        found = {**target, **more}
    return found

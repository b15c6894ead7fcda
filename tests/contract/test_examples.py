"""The examples of `specs/asyncapi.yaml` follow its schemas; each small damage to one of them is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.asyncapi import channel_of, document, validate_sent, validator
from tests.contract.test_asyncapi import OUT, resolve

MESSAGES = document()["components"]["messages"]
# By message: the channel that has it.
CHANNELS = {
    reference["$ref"].rpartition("/")[2]: name
    for name, channel in document()["channels"].items()
    for reference in channel["messages"].values()
}
EXAMPLES = [(name, example) for name, message in MESSAGES.items() for example in message["examples"]]
IDS = [f"{name} {example['name']}" for name, example in EXAMPLES]
OWN = [(name, example) for name, example in EXAMPLES if not name.startswith("Agent")]
# A value of another type than the schema's.
OTHER_TYPE: dict[str, Any] = {"string": 7, "integer": "7", "number": "7", "boolean": "yes", "array": {}, "object": []}

Path = tuple[str, ...]


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without references and with its `allOf` as one."""
    if "$ref" in schema:
        return plain(resolve(schema["$ref"]))
    whole: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    for part in map(plain, schema.get("allOf", ())):
        whole = {**part, **whole, "properties": {**whole.get("properties", {}), **part.get("properties", {})}}
        whole["required"] = [*whole.get("required", ()), *part.get("required", ())]
    return whole


# By keyword of a schema: what is wrong with a value against it, and how such a value is made of both.
AGAINST: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "type": ("has another type", lambda kind, _: OTHER_TYPE[kind if isinstance(kind, str) else "object"]),
    "const": ("has another value", lambda *_: "invented"),
    "enum": ("has an unknown value", lambda *_: "invented"),
    "pattern": ("has another form", lambda _, value: f"/{value}/"),
    "minLength": ("is empty", lambda *_: ""),
    "maxLength": ("is too long", lambda most, _: "x" * (most + 1)),
    "minimum": ("is too small", lambda least, _: least - 1),
}


def damages(schema: dict[str, Any], value: Any, path: Path = ()) -> Iterator[tuple[str, Path, Any]]:
    """Yield what is wrong, where, and the value that is put there; `...` removes it."""
    schema, where = plain(schema), ".".join(path)
    for keyword, (what, wrong) in AGAINST.items():
        if keyword in schema:
            yield f"{where} {what}", path, wrong(schema[keyword], value)
    if not isinstance(value, dict):
        return
    if schema.get("additionalProperties") is False:
        yield f"{where} has one field more", (*path, "invented"), 1
    for name in schema.get("required", ()):
        yield f"{where}.{name} is missing", (*path, name), ...
    for name, part in schema.get("properties", {}).items():
        if name in value:
            yield from damages(part, value[name], (*path, name))


def damaged(whole: dict[str, Any], path: Path, value: Any) -> Any:
    changed = copy.deepcopy(whole)
    if not path:
        return value
    node = changed
    for name in path[:-1]:
        node = node[name]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return changed


def fields(schema: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """The path of every field that a schema describes."""
    for name, part in plain(schema).get("properties", {}).items():
        yield (*path, name)
        yield from fields(part if isinstance(part, dict) else {}, (*path, name))


def has(value: Any, path: Path) -> bool:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=IDS)
@pytest.mark.parametrize("part", ["payload", "headers"])
def test_an_example_is_valid_and_each_damage_to_it_is_refused(name: str, example: Any, part: str) -> None:
    # specification 16.1, 16.6, 16.12
    check = validator(CHANNELS[name], part)
    check.validate(example[part])
    found = list(damages(MESSAGES[name][part], example[part]))
    assert len(found) > (15 if part == "payload" else 1)
    accepted = [what for what, path, value in found if check.is_valid(damaged(example[part], path, value))]
    assert not accepted


@pytest.mark.parametrize(("name", "example"), OWN, ids=[f"{name} {example['name']}" for name, example in OWN])
def test_an_example_of_ours_is_a_message_as_the_engine_sends_it(name: str, example: Any) -> None:
    subject = example["payload"]["event_type"]
    if name == "Publication":
        subject = "ceremony.backlog.reviewed"
    else:
        assert subject in OUT
    assert channel_of(subject) == CHANNELS[name]
    validate_sent(subject, example["headers"], json.dumps(example["payload"]).encode())


@pytest.mark.parametrize("name", MESSAGES)
def test_the_examples_of_a_message_show_every_field_that_it_may_have(name: str) -> None:
    """The answer of an agent has a proposal or an error, and parts that the engine does not read."""
    unread = {"artifacts", "summary", "metrics", "metadata", "causation_id"}
    examples = [example["payload"] for example in MESSAGES[name]["examples"]]
    lacking = [
        path
        for path in fields(MESSAGES[name]["payload"])
        if not any(has(example, path) for example in examples) and not unread & set(path)
    ]
    if name.startswith("Agent"):
        lacking = [path for path in lacking if path[-1] not in ("error", "error_type", "proposal", "trigger")]
    assert not lacking

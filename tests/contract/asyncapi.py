"""Checks messages of the running engine against `specs/asyncapi.yaml`."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator
from referencing import Registry
from referencing.jsonschema import DRAFT7

DOCUMENT = Path(__file__).resolve().parents[2] / "specs" / "asyncapi.yaml"
URI = "urn:ceremony:asyncapi"
# The channel of the subjects of publish steps.
PUBLICATION = "publication"
# Subjects whose messages may belong to no ceremony, or to one that was never made.
ANONYMOUS = frozenset({"ceremony.deadletter", "ceremony.start.refused"})
PROVENANCE = frozenset({"Ceremony-Instance", "Ceremony-Definition", "traceparent"})
# Second tokens of the engine's own subjects: a publish step may not use them (specification 9.5).
OWN = ("step", "transition", "publish", "dualwrite", "gate", "start")


class MessageInvalid(AssertionError):
    """A message breaks the document; the text lists every place."""


@functools.cache
def document() -> dict[str, Any]:
    """The document as data."""
    loaded: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text())
    return loaded


@functools.cache
def addresses() -> Mapping[str, str]:
    """Channels by subject, without that of publish steps."""
    return {channel["address"]: name for name, channel in document()["channels"].items() if name != PUBLICATION}


@functools.cache
def validator(channel: str, part: str = "payload") -> Draft7Validator:
    """The validator of a channel's message: of its `payload`, or of its `headers`."""
    ((_, reference),) = document()["channels"][channel]["messages"].items()
    resource = DRAFT7.create_resource(document())
    registry: Registry[Any] = Registry().with_resource(URI, resource)
    return Draft7Validator({"$ref": f"{URI}{reference['$ref']}/{part}"}, registry=registry)


def channel_of(subject: str) -> str:
    """The channel of a subject. Raises MessageInvalid for a subject of the engine without a channel."""
    known = addresses().get(subject)
    if known is not None:
        return known
    first, _, rest = subject.partition(".")
    if first == "ceremony" and rest.split(".")[0] in OWN:
        raise MessageInvalid(f"{subject}: no channel of {DOCUMENT.name} has this address")
    return PUBLICATION


def validate_message(subject: str, envelope: Any) -> None:
    """Raise MessageInvalid unless the envelope (decoded JSON) follows the document for its subject."""
    errors = sorted(validator(channel_of(subject)).iter_errors(envelope), key=str)
    if errors:
        places = "; ".join(f"{error.json_path}: {error.message[:200]}" for error in errors)
        raise MessageInvalid(f"{subject}: {places}")


def validate_sent(subject: str, headers: Mapping[str, str], data: bytes) -> None:
    """Raise MessageInvalid unless a message as NATS has it follows the document, headers included."""
    try:
        envelope = json.loads(data)
    except ValueError:
        raise MessageInvalid(f"{subject}: no JSON") from None
    validate_message(subject, envelope)
    errors = list(validator(channel_of(subject), "headers").iter_errors(dict(headers)))
    if errors:
        raise MessageInvalid(f"{subject}: " + "; ".join(f"{one.json_path}: {one.message[:200]}" for one in errors))
    if headers["Nats-Msg-Id"] != envelope["idempotency_key"]:
        raise MessageInvalid(f"{subject}: Nats-Msg-Id is not the idempotency key")
    if subject not in ANONYMOUS and (missing := PROVENANCE - headers.keys()):
        raise MessageInvalid(f"{subject}: without {', '.join(sorted(missing))}")

"""Judges messages by `specs/asyncapi.yaml`: what the running engine published must be as the document says."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator
from referencing import Registry
from referencing.jsonschema import DRAFT7

DOCUMENT = Path(__file__).resolve().parents[2] / "specs" / "asyncapi.yaml"
URI = "urn:ceremony:asyncapi"
PUBLICATION = "publication"
"""The channel of the publish steps' own subjects."""
OWN = ("step", "transition", "publish", "dualwrite", "gate", "start")
"""Second tokens of the engine's own subjects: a publish step may not use them (specification 9.5)."""


class MessageInvalid(AssertionError):
    """A message is not as the document says; the message lists every place."""


@functools.cache
def document() -> dict[str, Any]:
    """The document as data."""
    loaded: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text())
    return loaded


@functools.cache
def addresses() -> Mapping[str, str]:
    """Channel by subject, the publish steps' own left out."""
    return {channel["address"]: name for name, channel in document()["channels"].items() if name != PUBLICATION}


@functools.cache
def validator(channel: str) -> Draft7Validator:
    """Of the message of a channel."""
    ((_, reference),) = document()["channels"][channel]["messages"].items()
    resource = DRAFT7.create_resource(document())
    registry: Registry[Any] = Registry().with_resource(URI, resource)
    return Draft7Validator({"$ref": f"{URI}{reference['$ref']}/payload"}, registry=registry)


def channel_of(subject: str) -> str:
    """The channel that describes a subject. Raises MessageInvalid for a subject of ours that none describes."""
    known = addresses().get(subject)
    if known is not None:
        return known
    first, _, rest = subject.partition(".")
    if first == "ceremony" and rest.split(".")[0] in OWN:
        raise MessageInvalid(f"{subject}: no channel of {DOCUMENT.name} has this address")
    return PUBLICATION


def validate_message(subject: str, envelope: Any) -> None:
    """Raise MessageInvalid unless the envelope (decoded JSON) is what the document says of its subject."""
    errors = sorted(validator(channel_of(subject)).iter_errors(envelope), key=str)
    if errors:
        places = "; ".join(f"{error.json_path}: {error.message[:200]}" for error in errors)
        raise MessageInvalid(f"{subject}: {places}")

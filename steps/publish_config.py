"""The config of a publish step, and the output of the definition that its payload must fit."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from steps.config import Config, Text, config_of
from tables.definition import Definition, Output, Step
from tables.templates import TemplateFailed, expressions

PREFIX = "publish_"


_SUBJECT = re.compile(r"[!-)+-\-/-=?-z|~]+(?:\.[!-)+-\-/-=?-z|~]+)*")
"""Tokens of printable ASCII; no wildcards, no braces."""


def _subject(text: str) -> str:
    if not _SUBJECT.fullmatch(text):
        raise PydanticCustomError("subject_malformed", "must be a NATS subject: tokens separated by dots, no wildcards")
    return text


def _json(value: Any) -> Any:
    try:
        for _ in expressions(value):
            pass
    except TemplateFailed as error:
        raise PydanticCustomError("template_too_deep", "{message}", {"message": error.message}) from None
    _check_json(value)
    return value


def _check_json(value: Any) -> None:
    """Only what JSON can say; nesting was bounded before."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise PydanticCustomError("template_not_json", "keys must be strings: quote them")
        for item in value.values():
            _check_json(item)
    elif isinstance(value, list):
        for item in value:
            _check_json(item)
    elif not isinstance(value, str | int | float | None) or not _encodable(value):
        raise PydanticCustomError("template_not_json", "every value must be one that JSON has: quote it")


def _encodable(value: Any) -> bool:
    """Numbers that every reader of JSON can take."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(2**63) <= value < 2**64


class PublishConfig(Config):
    subject: Annotated[str, Field(max_length=256), AfterValidator(_subject)]
    event_type: Text
    payload_template: Annotated[dict[Any, Any], AfterValidator(_json)] = Field(default_factory=dict)
    """String leaves may hold `${inputs.…}` and `${steps.…}`."""
    output: Text | None = None
    """Name in the definition's `outputs`; default: the step id without `publish_`, where such an output exists."""


def output_of(step: Step, definition: Definition) -> Output | None:
    """The output that the payload must fit, or None."""
    name = config_of(step, PublishConfig).output
    if name is None and step.id.startswith(PREFIX):
        name = step.id.removeprefix(PREFIX)
    return None if name is None else definition.outputs.get(name)

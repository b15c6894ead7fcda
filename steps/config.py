"""Common parts of the config models: strictness, texts, and `constraints` of Ray tasks."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tables.definition import Step

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of the config models: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def config_of(step: Step, model: type[C]) -> C:
    """Return the step's config as the model of its kind."""
    if not isinstance(step.config, model):
        raise TypeError(f"step {step.id} has a {type(step.config).__name__}, not a {model.__name__}")
    return step.config


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be blank")
    return text


# A string that is not blank.
NonBlankText = Annotated[str, AfterValidator(_not_blank)]


def _one_word(text: str) -> str:
    if not text or not text.isprintable() or any(c.isspace() or c == ":" for c in text):
        raise PydanticCustomError("role_malformed", "must be one word without `:`: it becomes part of a task id")
    return text


# A role that becomes part of a task id; without `:` the id can be split again.
TaskRole = Annotated[str, Field(max_length=128), AfterValidator(_one_word)]


_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


def _number_from_text(value: Any) -> Any:
    """Read `"3"` as 3: definitions in the fleet quote numbers."""
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


# A number of agents; their ids have three digits.
Count = Annotated[int, Field(ge=1, le=999), BeforeValidator(_number_from_text)]


class Constraints(Config):
    """Options of a Ray task that a definition may set (specification 5.2)."""

    story_id: NonBlankText | None = None
    """Default: the ceremony's story."""
    plan_id: NonBlankText | None = None
    """Goes to the Ray executor with the task."""
    timeout_seconds: int = Field(default=300, ge=1, le=86400)
    """Time that the Ray executor may take for the task; also accepted as `timeout`."""
    max_retries: int = Field(default=3, ge=0, le=10)
    """Retries by the Ray executor itself; those of the engine are the step's `retry`."""
    metadata: dict[NonBlankText, str] = {}
    """Goes to the Ray executor with the task, from text to text; the engine's own keys win."""

    @model_validator(mode="before")
    @classmethod
    def _accept_timeout(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "timeout" not in value:
            return value
        renamed = {key: item for key, item in value.items() if key != "timeout"}
        if renamed.setdefault("timeout_seconds", value["timeout"]) != value["timeout"]:
            raise PydanticCustomError("timeouts_disagree", "`timeout` and `timeout_seconds` disagree; give one")
        return renamed

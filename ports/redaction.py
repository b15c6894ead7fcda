"""Redaction, as the exits of the engine need it: secrets and raw prompts are replaced by `[redacted:<rule>]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Detection(NamedTuple):
    """A secret or a raw prompt inside a value; the value itself is never part of it."""

    path: str
    """JSON path from the value's root: `$.items[0].token`; a secret in a key is redacted here too."""
    rule: str
    """Stable name of the rule: `aws_access_key_id`, `raw_prompt`."""

    def __str__(self) -> str:
        return f"{self.path} ({self.rule})"


class Redacted(NamedTuple):
    """A JSON value without secrets and raw prompts."""

    value: Any
    """The same object where nothing was found."""
    findings: tuple[Detection, ...]
    """In the order of the value; empty where nothing was found."""


class Redactor(Protocol):
    """Finds secrets and raw prompts. Time is linear in the bytes; nothing is remembered but prompts."""

    def of(self, prompts: tuple[str, ...]) -> Redactor:
        """Return a redactor that also finds these prompts (`Definition.prompts`), and no learnt ones; it is cached."""

    def learn(self, prompts: tuple[str, ...]) -> None:
        """Find these prompts too from now on, for exits that do not know the definition of a text."""

    def redact(self, value: Any) -> Redacted:
        """Redact a JSON value: its texts, its keys, and JSON inside its texts."""

    def encoded(self, data: bytes) -> tuple[Any, Sequence[str]] | None:
        """Redact encoded JSON: its decoded value and the paths of the findings, or None where nothing was found."""

    def text(self, text: str) -> str:
        """Redact a text, also inside JSON that it holds; the JSON stays readable."""

    def data(self, data: bytes) -> bytes:
        """Redact bytes that may be text or JSON."""

    def suspicious(self, data: bytes, *, json: bool = True) -> bool:
        """Return whether encoded JSON, or with `json=False` any text, may hold something to redact.

        It is never False where there is something. Several values may be joined by line breaks.
        """

"""The page of the settings by type: variable, type, default and bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ceremony.settings import SECRET, Settings
from scripts.reference_pages.markdown import code, page, prose, table
from scripts.reference_pages.source import field_docs

WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "Path": "path",
    "bool": "true or false",
    "SecretStr": "text",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def settings_page() -> str:
    introduction = (
        "Every variable with type, default and bounds, from the model that reads them. "
        "[Settings](../settings.md) explains each for people."
    )
    return page("Settings by type", introduction, table(("variable", "type", "default", "bounds", "notes"), _rows()))


def _rows() -> Iterator[tuple[str, ...]]:
    docs = field_docs(Settings)
    for name, field in sorted(Settings.model_fields.items(), key=lambda item: str(item[1].alias)):
        yield code(field.alias), _type(field.annotation), _default(field), _bounds(field), _notes(name, field, docs)


def _type(annotation: Any) -> str:
    text = str(getattr(annotation, "__name__", annotation) if not hasattr(annotation, "__args__") else annotation)
    plain = text.removesuffix(" | None").rpartition(".")[2]
    return "list, separated by commas" if text.startswith("tuple") else WORDS.get(plain, prose(plain))


def _default(field: Any) -> str:
    value = field.default
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(",".join(value) if isinstance(value, tuple) else value)


def _bounds(field: Any) -> str:
    found = []
    for constraint in field.metadata:
        found += [f"{sign} {getattr(constraint, key)}" for key, sign in BOUNDS.items() if hasattr(constraint, key)]
        if getattr(constraint, "pattern", None):
            found.append(code(constraint.pattern))
    return " ".join(found)


def _notes(name: str, field: Any, docs: dict[str, str]) -> str:
    secret = "secret: no message shows it" if field.alias in SECRET else ""
    return ". ".join(part for part in (secret, prose(docs.get(name, ""))) if part)

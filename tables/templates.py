"""Templates: `${inputs.<path>}` and `${steps.<id>.<path>}` are replaced by values of an instance.

A string that is one sole `${…}` becomes the value itself, with its type. Inside text a string is inserted as it is,
anything else as JSON. Inserted values are never read again as templates. Any other `${…}` is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from ports.errors import CeremonyError
from tables.paths import MISSING, dig

# All values inserted into one template together, as text.
LARGEST_RENDERED_CHARACTERS = 1024 * 1024
# Nested containers of a template.
DEEPEST = 64

_EXPRESSION = re.compile(r"\$\{\s*(inputs|steps)\.([^{}]*?)\s*\}")


class TemplateFailed(CeremonyError):
    """A template cannot be rendered: `template_unresolved`, `template_too_large` or `template_too_deep`."""


class Placeholder(NamedTuple):
    """One `${…}`: its root (`inputs` or `steps`), the input or step it names, and the path inside."""

    root: str
    name: str
    path: str
    """Dotted; empty for the whole value."""

    def __str__(self) -> str:
        return ".".join(part for part in self if part)


def expressions(template: Any, depth: int = 0) -> Iterator[Placeholder]:
    """Yield every placeholder of a template, in order. Raises TemplateFailed when it nests too deep."""
    _bounded(depth)
    if isinstance(template, str):
        for match in _EXPRESSION.finditer(template):
            yield _parsed(match)
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from expressions(value, depth + 1)
    elif isinstance(template, list):
        for value in template:
            yield from expressions(value, depth + 1)


def render(template: Any, inputs: Mapping[str, Any], output_of: Callable[[str], Any | None]) -> Any:
    """Render a template: a string, or a JSON value whose string leaves are templates.

    `output_of` gives the output of a COMPLETED step, or None. Raises TemplateFailed.
    """
    return _Renderer(inputs, output_of).value(template, 0)


def render_text(template: str, inputs: Mapping[str, Any], output_of: Callable[[str], Any | None]) -> str:
    """Render to text: a sole placeholder whose value is no string becomes JSON."""
    return _Renderer(inputs, output_of).text(template)


def as_text(value: Any) -> str:
    """Return a value as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class _Renderer:
    """One rendering: it resolves each placeholder once, and counts the characters it inserts."""

    def __init__(self, inputs: Mapping[str, Any], output_of: Callable[[str], Any | None]) -> None:
        self._inputs = inputs
        self._output_of = output_of
        self._room = LARGEST_RENDERED_CHARACTERS
        self._known: dict[Placeholder, tuple[Any, str]] = {}

    def value(self, template: Any, depth: int) -> Any:
        _bounded(depth)
        if isinstance(template, str):
            sole = _EXPRESSION.fullmatch(template)
            return self.text(template) if sole is None else self._resolved(_parsed(sole))[0]
        if isinstance(template, Mapping):
            return {key: self.value(value, depth + 1) for key, value in template.items()}
        if isinstance(template, list):
            return [self.value(value, depth + 1) for value in template]
        return template

    def text(self, template: str) -> str:
        return _EXPRESSION.sub(lambda match: self._resolved(_parsed(match))[1], template)

    def _resolved(self, expression: Placeholder) -> tuple[Any, str]:
        """Return the value, and the value as text."""
        found = self._known.get(expression)
        if found is None:
            value = self._look_up(expression)
            found = self._known[expression] = value, _text_of(value, expression)
        self._room -= len(found[1])
        if self._room < 0:
            raise TemplateFailed(
                "template_too_large",
                f"with ${{{expression}}} the values put into the template exceed "
                f"{LARGEST_RENDERED_CHARACTERS} characters",
            )
        return found

    def _look_up(self, expression: Placeholder) -> Any:
        known = self._inputs.get if expression.root == "inputs" else self._output
        base = known(expression.name, MISSING)
        value = base if base is MISSING else dig(base, expression.path)
        if value is MISSING:
            raise TemplateFailed(
                "template_unresolved",
                f"${{{expression}}} names nothing that is known now; it must be an input, or inside the output of a "
                "step that is COMPLETED",
            )
        return value

    def _output(self, step_id: str, missing: Any) -> Any:
        output = self._output_of(step_id)
        return missing if output is None else output


def _parsed(match: re.Match[str]) -> Placeholder:
    name, _, path = match[2].partition(".")
    return Placeholder(match[1], name, path)


def _text_of(value: Any, expression: Placeholder) -> str:
    try:
        return as_text(value)
    except RecursionError:
        raise TemplateFailed("template_too_deep", f"the value of ${{{expression}}} is nested too deep") from None


def _bounded(depth: int) -> None:
    if depth > DEEPEST:
        raise TemplateFailed("template_too_deep", f"a template may have at most {DEEPEST} nested containers")

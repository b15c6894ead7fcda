"""Templates: `${inputs.<path>}` and `${steps.<id>.<path>}` are replaced by values of an instance.

A string that is one sole `${…}` becomes the value itself, with its type. Inside text a string is inserted as it is,
anything else as JSON. Inserted values are never read again as templates. `$${` stands for `${`; any other `${…}` is
plain text. An optional input that was not given is null as the sole `${…}` of a value, and empty text elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from ports.errors import CeremonyError
from tables.limits import encoded_size
from tables.paths import MISSING, dig

# All values inserted into one template together, as bytes of the JSON that the template becomes.
LARGEST_RENDERED_BYTES = 1024 * 1024
# Nested containers of a template.
DEEPEST = 64

# Each pattern takes linear time: no part can match the characters of the part behind it in more than one way.
_EXPRESSION = re.compile(r"\$\{\s*(inputs|steps)\.([^{}]*)\}")
_LITERAL_OR_EXPRESSION = re.compile(r"\$\$\{|" + _EXPRESSION.pattern)
_MARKS = re.compile(
    r"(?P<literal>\$\$\{)|(?P<known>\$\{\s*(?:inputs|steps)\.[^{}]*\})|(?P<unclosed>\$\{\s*(?:inputs|steps)\.[^{}$]*)"
    r"|(?P<unknown>\$\{[^{}$]*\}?)|(?P<braces>\{\{[^{}]*\}\})"
)
# The value of an optional input that was not given: the value, its text and the bytes of that.
_NOT_GIVEN = None, "", 0


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


class MarkKind(StrEnum):
    """Kinds of text in a template that look like a placeholder and are none."""

    UNCLOSED = "unclosed"
    """`${inputs.` or `${steps.` without its `}`."""
    UNKNOWN = "unknown"
    """Any other `${…}`; it stays as written."""
    BRACES = "braces"
    """`{{ … }}` of another template language; it stays as written."""


_MARK_KINDS = frozenset(MarkKind)


class Mark(NamedTuple):
    kind: MarkKind
    text: str


def expressions(template: Any) -> Iterator[Placeholder]:
    """Yield every placeholder of a template, in order. Raises TemplateFailed when it nests too deep."""
    for text in _leaves(template, 0):
        for match in _LITERAL_OR_EXPRESSION.finditer(text):
            if match[1] is not None:
                yield _parsed(match)


def marks(template: Any) -> Iterator[Mark]:
    """Yield the texts of a template that look like placeholders and are none. Raises TemplateFailed."""
    for text in _leaves(template, 0):
        for match in _MARKS.finditer(text):
            kind = match.lastgroup or ""
            if kind in _MARK_KINDS:
                yield Mark(MarkKind(kind), match[0])


def _leaves(template: Any, depth: int) -> Iterator[str]:
    _bounded(depth)
    if isinstance(template, str):
        yield template
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from _leaves(value, depth + 1)
    elif isinstance(template, list):
        for value in template:
            yield from _leaves(value, depth + 1)


def render(
    template: Any,
    inputs: Mapping[str, Any],
    output_of: Callable[[str], Any | None],
    optional: Collection[str] = (),
) -> Any:
    """Render a template: a string, or a JSON value whose string leaves are templates.

    `output_of` gives the output of a COMPLETED step, or None; `optional` names the inputs that may be absent. Raises
    TemplateFailed.
    """
    return _Renderer(inputs, output_of, optional).value(template, 0)


def render_text(
    template: str,
    inputs: Mapping[str, Any],
    output_of: Callable[[str], Any | None],
    optional: Collection[str] = (),
) -> str:
    """Render to text: a sole placeholder whose value is no string becomes JSON, an absent optional input empty."""
    return _Renderer(inputs, output_of, optional).text(template)


def as_text(value: Any) -> str:
    """Return a value as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class _Renderer:
    """One rendering: it resolves each placeholder once, and counts the bytes it inserts."""

    def __init__(
        self, inputs: Mapping[str, Any], output_of: Callable[[str], Any | None], optional: Collection[str]
    ) -> None:
        self._inputs = inputs
        self._output_of = output_of
        self._optional = optional
        self._room = LARGEST_RENDERED_BYTES
        self._known: dict[Placeholder, tuple[Any, str, int]] = {}

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
        return _LITERAL_OR_EXPRESSION.sub(self._replaced, template)

    def _replaced(self, match: re.Match[str]) -> str:
        return "${" if match[1] is None else self._resolved(_parsed(match))[1]

    def _resolved(self, expression: Placeholder) -> tuple[Any, str, int]:
        """Return the value, the value as text, and the bytes of that text in JSON."""
        found = self._known.get(expression)
        if found is None and self._not_given(expression):
            found = self._known[expression] = _NOT_GIVEN
        if found is None:
            value = self._look_up(expression)
            text = _text_of(value, expression)
            found = self._known[expression] = value, text, encoded_size(text) - 2
        self._room -= found[2]
        if self._room < 0:
            raise TemplateFailed(
                "template_too_large",
                f"at ${{{expression}}} the values put into the template exceed {LARGEST_RENDERED_BYTES} bytes",
            )
        return found

    def _not_given(self, expression: Placeholder) -> bool:
        return expression.root == "inputs" and expression.name in self._optional and expression.name not in self._inputs

    def _look_up(self, expression: Placeholder) -> Any:
        known = self._inputs.get if expression.root == "inputs" else self._output
        base = known(expression.name, MISSING)
        value = base if base is MISSING else dig(base, expression.path)
        if value is MISSING:
            raise TemplateFailed(
                "template_unresolved",
                f"${{{expression}}} has no value; it must name an input, or a field in the output of a COMPLETED step",
            )
        return value

    def _output(self, step_id: str, missing: Any) -> Any:
        output = self._output_of(step_id)
        return missing if output is None else output


def _parsed(match: re.Match[str]) -> Placeholder:
    name, _, path = match[2].strip().partition(".")
    return Placeholder(match[1], name, path)


def _text_of(value: Any, expression: Placeholder) -> str:
    try:
        return as_text(value)
    except RecursionError:
        raise TemplateFailed("template_too_deep", f"the value of ${{{expression}}} is nested too deep") from None


def _bounded(depth: int) -> None:
    if depth > DEEPEST:
        raise TemplateFailed("template_too_deep", f"a template may have at most {DEEPEST} nested containers")

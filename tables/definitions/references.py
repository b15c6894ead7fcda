"""References of steps and guards: the inputs, steps and output fields that templates, sources and checks name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tables.definition import ALWAYS_INPUTS, Definition, Step
from tables.definitions.order import Precedence, StepOrder
from tables.guards import Cel, Threshold
from tables.kinds import Kinds
from tables.templates import MarkKind, TemplateFailed, expressions, marks

MARKS = {
    MarkKind.UNKNOWN: (
        "template_unknown",
        "stays as written: only ${inputs.…} and ${steps.…} are replaced; $${ writes a literal ${",
    ),
    MarkKind.BRACES: ("template_braces", "stays as written: placeholders are written ${inputs.…} and ${steps.…}"),
}


class Reference(NamedTuple):
    """A value that a step or a guard reads."""

    written: str
    """As it stands in the file."""
    step: str
    """The step whose output it names, or empty."""
    input: str
    """The input that it names, or empty. With `step` too: where that step has no such output."""
    field: str
    """The name at the top of the output; empty for the whole output."""


class Finding(NamedTuple):
    rule: str
    message: str


def of_templates(step: Step, kinds: Kinds) -> Iterator[Reference]:
    """Yield the references of a step's templates."""
    for template in kinds[step.handler].templates(step).values():
        for found in expressions(template):
            written = f"${{{found}}}"
            if found.root == "steps":
                yield Reference(written, found.name, "", found.path.partition(".")[0])
            else:
                yield Reference(written, "", found.name, "")


def of_sources(step: Step, definition: Definition, kinds: Kinds) -> Iterator[Reference]:
    """Yield the references of a step's sources, each a step first, else an input."""
    for source in kinds[step.handler].sources(step):
        name, _, path = source.name.partition(".")
        known = name if name in definition.steps else ""
        yield Reference(f"`{source.name}`", known, source.input, path.partition(".")[0])


def of_guards(definition: Definition) -> Iterator[tuple[str, Reference]]:
    """Yield the references of automated guards, each with the guard's name."""
    for guard in definition.guards.values():
        check = guard.expression
        if isinstance(check, Threshold):
            written = f"`{check.step}.{check.path}`"
            yield guard.name, Reference(written, check.step, "", check.path.partition(".")[0])
        elif isinstance(check, Cel):
            for reference in _of_expression(check):
                yield guard.name, reference


def _of_expression(check: Cel) -> Iterator[Reference]:
    reads = check.expression.reads
    for name in reads.get("inputs") or {}:
        yield Reference(f"`inputs.{name}`", "", name, "")
    for variable in ("outputs", "status"):
        for name, fields in (reads.get(variable) or {}).items():
            for field in fields if variable == "outputs" and fields else ("",):
                yield Reference(f"`{variable}.{name}{'.' if field else ''}{field}`", name, "", field)


def never_there(step: Step, definition: Definition, kinds: Kinds, order: StepOrder) -> Iterator[Finding]:
    """Yield the references to steps that can never have completed when this step starts."""
    declared = {*definition.required_inputs, *definition.optional_inputs}
    for reference in (*of_templates(step, kinds), *of_sources(step, definition, kinds)):
        if reference.step not in definition.steps or reference.input in declared:
            continue
        if order.of(reference.step, step.id) is Precedence.NEVER:
            message = f"{reference.written}: step `{reference.step}` never completes before `{step.id}` starts"
            yield Finding("source_never_before", message)


def maybe_there(step: Step, definition: Definition, kinds: Kinds, order: StepOrder) -> Iterator[Finding]:
    """Yield the references to steps that may not have completed when this step starts."""
    required = set(definition.required_inputs)
    for reference in (*of_templates(step, kinds), *of_sources(step, definition, kinds)):
        if reference.step not in definition.steps or reference.input in required:
            continue
        found = order.of(reference.step, step.id)
        if found is Precedence.MAYBE or (found is Precedence.NEVER and reference.input):
            text = f"{reference.written}: `{step.id}` may start before step `{reference.step}` has completed"
            yield Finding("source_maybe_later", f"{text}; name it in `after`")


def undeclared(reference: Reference, definition: Definition, kinds: Kinds) -> Iterator[Finding]:
    """Yield the names of a reference that no definition declares: an input, a step, or a field of an output."""
    step = definition.steps.get(reference.step)
    if step is not None:
        fields = kinds[step.handler].fields
        if reference.field and fields and reference.field not in fields:
            message = f"{reference.written}: the output of a {step.handler} has no `{reference.field}`"
            yield Finding("unknown_field", f"{message}; it has {', '.join(fields)}")
    elif reference.step:
        yield Finding("unknown_step", f"{reference.written}: there is no step `{reference.step}`")
    elif reference.input not in {*definition.required_inputs, *definition.optional_inputs, *ALWAYS_INPUTS}:
        yield Finding("undeclared_input", f"{reference.written}: `inputs` declares no `{reference.input}`")


def odd_marks(step: Step, kinds: Kinds) -> Iterator[Finding]:
    """Yield the texts in a step's templates that look like placeholders and stay as written."""
    for template in kinds[step.handler].templates(step).values():
        try:
            for mark in marks(template):
                if mark.kind in MARKS:
                    rule, message = MARKS[mark.kind]
                    yield Finding(rule, f"`{mark.text[:60]}` {message}")
        except TemplateFailed:
            continue  # too deep, which the config of its kind refuses

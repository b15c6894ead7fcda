"""The verb `validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ceremony.cli.errors import CommandFailed
from ceremony.cli.output import Format, OutputOption, emit_data, say

if TYPE_CHECKING:
    from ceremony.definition_files import Checked


def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR...", help="Definitions, or folders of them.")],
    publish_subjects: Annotated[
        str | None,
        typer.Option(
            envvar="PUBLISH_SUBJECTS",
            help="Subjects that publish steps may use on the server, as its PUBLISH_SUBJECTS. "
            "Default: others than ceremony.> are warnings.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Check definitions. Exit 0 if all are valid, else 1 with every reason."""
    from ceremony.definition_files import check
    from steps.registry import all_kinds

    found = check(paths, all_kinds(), None if publish_subjects is None else _allowlist(publish_subjects))
    invalid = sum(one.definition is None for one in found)
    if output is not Format.TABLE:
        emit_data({"valid": not invalid, "files": [one.data() for one in found]}, output)
        if invalid:
            raise CommandFailed
        return
    for one in found:
        report(one)
    if invalid:
        raise CommandFailed("definition_invalid", f"{invalid} of {counted(len(found))} invalid")


def _allowlist(text: str) -> tuple[str, ...]:
    from steps.subjects import parse_allowlist

    try:
        return parse_allowlist(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--publish-subjects") from None


def report(one: Checked) -> None:
    """Print a line on stdout for a valid file; print reasons and warnings on stderr."""
    for problem in one.problems:
        say(str(problem), err=True)
    for warning in one.warnings:
        say(f"{warning.file}:{warning.line}: warning: {warning.rule}: {warning.message}", err=True)
    if one.definition is not None:
        found = one.definition
        say(f"{one.path}: valid ({len(found.states)} states, {len(found.steps)} steps)")


def counted(number: int) -> str:
    return f"{number} definition is" if number == 1 else f"{number} definitions are"

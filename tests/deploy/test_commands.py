"""The commands of the runbook and of on-call exist: each verb with its options, and each value of the chart."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from ceremony.cli.verbs import command, load

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "deploy").rglob("*.md")), ROOT / "docs/on-call.md"]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Commands within sentences and tables.
SPAN = re.compile(r"`(ceremony [^`]+)`")
# Base of the errors of wrong usage; typer exports only some of them.
WrongUsage: type[Exception] = typer.BadParameter.__bases__[0]
SET = re.compile(r"--set ([\w.]+)=")


def blocks(page: Path) -> str:
    return "".join(BLOCK.findall(page.read_text("utf-8")))


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `ceremony` of each command of the page's blocks."""
    for line in blocks(page).splitlines():
        if line.startswith("ceremony "):
            yield shlex.split(line, comments=True)[1:]


def parse(words: list[str]) -> None:
    """Parse a command as the program would. Raises WrongUsage for an unknown verb or a wrong option."""
    if words[0].startswith("--"):
        command().make_context("ceremony", words, resilient_parsing=True)
        return
    found: Any = load(words[0])
    rest = words[1:]
    while isinstance(found, TyperGroup):
        found, rest = found.get_command(typer.Context(found), rest[0]), rest[1:]
        assert found is not None, words
    found.make_context(words[0], rest)


def test_every_command_of_a_block_is_one_of_the_program() -> None:
    found = [(page, words) for page in PAGES for words in commands(page)]
    assert len(found) > 20
    for page, words in found:
        try:
            parse(words)
        except (WrongUsage, StopIteration) as error:
            pytest.fail(f"{page.name}: ceremony {' '.join(words)}: {error}")


def test_every_option_in_a_sentence_is_one_of_its_verb() -> None:
    """There the arguments may be words such as ID."""
    for page in PAGES:
        for span in SPAN.findall(page.read_text("utf-8")):
            verb, *rest = span.split()[1:]
            if verb.startswith("-"):
                continue
            found: Any = load(verb)
            if isinstance(found, TyperGroup) and rest:
                found = found.get_command(typer.Context(found), rest[0])
                assert found is not None, (page.name, span)
            known = {option for parameter in getattr(found, "params", ()) for option in parameter.opts}
            assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known, (page.name, span)


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(WrongUsage):
        parse(["doctor", "--everything"])


def test_every_value_set_in_a_command_is_one_of_the_chart() -> None:
    values = yaml.safe_load((ROOT / "deploy/chart/values.yaml").read_text("utf-8"))
    paths = {path for page in PAGES for path in SET.findall(blocks(page))}
    assert paths
    for path in paths:
        found = values
        for part in path.split("."):
            assert part in found, path
            found = found[part]

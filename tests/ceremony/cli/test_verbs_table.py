"""The table of verbs: it loads little, and its help texts equal those of the verbs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from ceremony.cli.verbs import VERBS, command, load

HEAVY = (
    "aiohttp",
    "aiokafka",
    "faust",
    "fleet",
    "google",
    "grpc",
    "mode",
    "msgspec",
    "nats",
    "pydantic",
    "structlog",
    "yaml",
)
OURS = ("bridge", "streams", "steps", "tables", "ceremony.worker", "ceremony.build", "ceremony.settings")


def loaded_by(code: str, **environment: str) -> list[str]:
    """Modules of HEAVY, of OURS and of verbs that a process has imported after running `code`."""
    script = (
        "import sys\n"
        f"try:\n    {code}\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY + OURS!r} if name in sys.modules]\n"
        f"verbs = [name for name in {[f'ceremony.cli.{verb.name}' for verb in VERBS]!r} if name in sys.modules]\n"
        "print(*heavy, *verbs, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.stdout, "the program has printed nothing"
    return done.stderr.split()


def test_help_loads_no_verb_and_nothing_heavy() -> None:
    """This fails when a module that every call loads gets a heavy import."""
    assert loaded_by("from ceremony.program import run; run(['--help'])") == []


def test_completion_loads_no_verb_and_nothing_heavy() -> None:
    environment = {"_CEREMONY_COMPLETE": "complete_bash", "COMP_WORDS": "ceremony s", "COMP_CWORD": "1"}
    assert loaded_by("from ceremony.program import run; run([])", **environment) == []


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_help_of_a_verb_loads_no_engine_and_no_client(verb: str) -> None:
    """Only a verb that runs loads its libraries. pydantic does not count: typer loads it for the options."""
    found = loaded_by(f"from ceremony.program import run; run(['{verb}', '--help'])")
    assert set(found) & {"aiokafka", "faust", "grpc", "nats", "ceremony.worker", "tables"} == set()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_help_of_the_table_is_the_first_paragraph_of_the_verbs_help(verb: Any) -> None:
    paragraph = (load(verb.name).help or "").split("\n\n")[0]
    assert " ".join(paragraph.split()) == verb.help


def test_every_verb_runs_the_command_of_its_own_name() -> None:
    group = command()
    for verb in VERBS:
        context = group.make_context("ceremony", [verb.name], resilient_parsing=True)
        name, found, rest = group.resolve_command(context, [verb.name, "x"])
        assert (name, found.name, rest) == (verb.name, verb.name, ["x"])

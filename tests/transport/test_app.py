"""The Faust app: its agents and tables are listed, and wrong declarations are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterable
from typing import Any

import pytest

from bridge.clock import HostClock
from ports.log import AgentSpec, Batch, LogUrlInvalid, TableSpec, TopicSpec
from streams.transport.app import CeremonyApp, create_app


async def agent(stream: AsyncIterable[Batch]) -> None:
    """Does nothing."""


def app_on(url: str = "kafka://127.0.0.1:9092") -> CeremonyApp:
    return create_app("app", url, clock=HostClock(), partitions=2, topics=[TopicSpec("x.commands", 2)], prefix="x")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("agents", [("@ceremony", "x.commands", "Folds commands"), ("@deliberation", "x.steps.deliberation")]),
        ("tables", [("ceremonies", "rows of agent ceremony")]),
    ],
)
def test_fausts_command_line_lists_attached_agents_and_tables(command: str, lines: list[tuple[str, ...]]) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "faust", "-A", "tests.transport.listed_app", command],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    for words in lines:
        assert any(all(word in line for word in words) for line in listed.stdout.splitlines()), listed.stdout


def test_a_second_agent_with_the_same_topic_or_name_is_refused() -> None:
    app = app_on()
    app.attach(AgentSpec("one", "x.commands"), agent)
    with pytest.raises(ValueError, match="one agent per topic"):
        app.attach(AgentSpec("two", "x.commands"), agent)
    with pytest.raises(ValueError, match="is taken"):
        app.attach(AgentSpec("one", "x.other"), agent)


def test_an_agent_attached_after_the_start_is_refused() -> None:
    app = app_on()
    app.attach(AgentSpec("one", "x.commands"), agent)
    assert not app.parts
    with pytest.raises(RuntimeError, match="too late"):
        app.attach(AgentSpec("two", "x.other"), agent)


def test_the_error_for_an_unknown_log_shows_valid_urls() -> None:
    with pytest.raises(LogUrlInvalid, match=r"log_url_invalid.*kafka://host:port nor sqlite:///path"):
        app_on("nats://127.0.0.1:4222")


def test_the_names_of_changelogs_have_the_prefix() -> None:
    app = app_on()
    app.attach(AgentSpec("one", "x.commands", tables=[TableSpec("ceremonies", bytes, bytes)]), agent)
    table: Any = app.tables["ceremonies"]
    assert table.changelog_topic_name == "x.ceremonies.changelog"
    assert [(spec.name, spec.compacted) for spec in app.all_topics[len(app.topic_specs) :]] == [
        ("x.ceremonies.changelog", True)
    ]


def test_a_table_cannot_be_changed_from_outside_its_agent() -> None:
    app = app_on()
    app.attach(AgentSpec("one", "x.commands", tables=[TableSpec("ceremonies", bytes, bytes)]), agent)
    table: Any = app.tables["ceremonies"]
    assert b"k" not in table
    assert table.get(b"k", "none") == "none"
    with pytest.raises(RuntimeError, match="changed by their agent"):
        table[b"k"] = b"row"
    with pytest.raises(KeyError):
        table[b"k"]


def test_only_the_first_failure_is_reported_to_the_program() -> None:
    app = app_on()
    heard: list[BaseException] = []
    app.on_crash = heard.append
    first, second = RuntimeError("first"), RuntimeError("second")
    app.fail(first)
    app.fail(second)
    assert heard == [first]
    assert app.failure is first

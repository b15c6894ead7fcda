"""The mark `uncounted` keeps coverage from a test, its fixtures and its processes, and from nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import PROCESS_CONFIG, pytest_runtest_protocol


def mine(*_: object) -> None:
    """A tracer that traces nothing."""


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Coverage at work, or what looks like it from here."""
    monkeypatch.setenv(PROCESS_CONFIG, "config")
    before = sys.gettrace()
    sys.settrace(mine)
    try:
        yield
    finally:
        sys.settrace(before)


def now() -> tuple[object, str | None]:
    return sys.gettrace(), os.environ.get(PROCESS_CONFIG)


@pytest.mark.uncounted
def test_it_is_away_while_a_marked_test_runs_and_back_afterwards(request: pytest.FixtureRequest) -> None:
    running = pytest_runtest_protocol(request.node)
    next(running)
    assert now() == (None, None)
    with pytest.raises(StopIteration):
        next(running)
    assert now() == (mine, "config")


def test_it_stays_where_nothing_is_marked(request: pytest.FixtureRequest) -> None:
    running = pytest_runtest_protocol(request.node)
    next(running)
    assert now() == (mine, "config")

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
    """A tracer and a process configuration, as coverage sets them."""
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
def test_coverage_is_off_while_a_marked_test_runs_and_on_afterwards(request: pytest.FixtureRequest) -> None:
    running = pytest_runtest_protocol(request.node)
    next(running)
    assert now() == (None, None)
    with pytest.raises(StopIteration):
        next(running)
    assert now() == (mine, "config")


def test_coverage_stays_on_for_a_test_without_the_mark(request: pytest.FixtureRequest) -> None:
    running = pytest_runtest_protocol(request.node)
    next(running)
    assert now() == (mine, "config")

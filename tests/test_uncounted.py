"""The mark `uncounted` takes the tracer away from a test, and from nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


def mine(*_: object) -> None:
    """A tracer that traces nothing."""


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(mine)
    yield
    after = sys.gettrace()
    sys.settrace(before)
    assert after is mine


@pytest.mark.uncounted
def test_what_is_marked_is_not_traced() -> None:
    assert sys.gettrace() is None


def test_what_is_not_marked_is_traced() -> None:
    assert sys.gettrace() is mine

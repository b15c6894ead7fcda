"""The client's pauses are short in its tests, where nothing depends on their length."""

from __future__ import annotations

import pytest
from fleet.planning_ceremony.client import backoff


@pytest.fixture
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.02)
    monkeypatch.setattr(backoff, "LEAST_SECONDS", 0.005)

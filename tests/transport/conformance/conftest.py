"""Runs each conformance test on both logs: SQLite in a folder of its own, and a real Kafka with topics of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transport.conformance.harness import Place


@pytest.fixture(params=["sqlite", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(f"sqlite://{tmp_path / 'log.db'}", tmp_path)
    return Place(f"kafka://{request.getfixturevalue('kafka').bootstrap}", tmp_path)

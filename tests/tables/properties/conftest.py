"""Each property validates the whole row on every build."""

from __future__ import annotations

import pytest

from tables.fold.next_row import NextRow


@pytest.fixture(autouse=True)
def _check_fully(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NextRow, "check_fully", True)

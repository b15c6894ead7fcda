"""What a worker gives its step agents of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ceremony.settings import Settings
from ceremony.worker import Worker
from steps import deliberation, task_extraction


@pytest.mark.parametrize("seconds", [10.0, 90.0])
async def test_the_backstop_of_a_call_stands_behind_its_own_deadline(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAY_CALL_TIMEOUT_SECONDS is what ends a call, however long it is."""
    given: list[float] = []
    for module in (deliberation, task_extraction):
        made = module.agent

        def recorded(*args: Any, made: Any = made, **more: Any) -> Any:
            given.append(more["call_seconds"])
            return made(*args, **more)

        monkeypatch.setattr(module, "agent", recorded)
    settings = Settings.model_validate(
        {"CEREMONY_LOG": f"sqlite:///{tmp_path}/log.db", "RAY_CALL_TIMEOUT_SECONDS": seconds}
    )
    worker = Worker(settings)
    await worker.ray.close()
    assert worker.ray.call_timeout == seconds
    assert given == [seconds + 30, seconds + 30]

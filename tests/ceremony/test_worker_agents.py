"""Settings that a worker passes to its step agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ceremony.settings import Settings
from ceremony.worker import Worker
from steps import agent, ray_task


@pytest.mark.parametrize("seconds", [10.0, 90.0])
async def test_the_backstop_of_a_call_is_longer_than_its_deadline(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAY_CALL_TIMEOUT_SECONDS ends a call, however long it is."""
    given: dict[str, float] = {}
    made = agent.calling

    def recorded(name: str, wiring: Any, body: Any, calls: Any) -> Any:
        given[name] = calls.seconds
        return made(name, wiring, body, calls)

    monkeypatch.setattr(ray_task, "calling", recorded)
    settings = Settings.model_validate(
        {"CEREMONY_LOG": f"sqlite:///{tmp_path}/log.db", "RAY_CALL_TIMEOUT_SECONDS": seconds}
    )
    worker = Worker(settings)
    await worker.ray.close()
    assert worker.ray.call_timeout_seconds == seconds
    assert given == {"deliberation": seconds + 30, "task_extraction": seconds + 30}

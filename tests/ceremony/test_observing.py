"""An observer that fails goes on, and ends no worker."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import structlog

from ceremony import observing as module
from ceremony.observing import PAUSE_SECONDS, observing
from ceremony.worker import Worker
from tests.steps.kind_player import settings
from tests.streams.fakes import HandClock


class Failing:
    """An observer that raises these errors in turn, then works until it is cancelled."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.works = asyncio.Event()

    async def run(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.works.set()
        await asyncio.get_running_loop().create_future()


async def test_an_observer_goes_on_after_errors_and_each_type_is_logged_once() -> None:
    clock, failing = HandClock(), Failing(ValueError("a"), ValueError("b"), KeyError("c"))
    with structlog.testing.capture_logs() as lines:
        task = clock.spawn(observing("lags", clock, failing.run), name="lags")
        for _ in range(3):
            assert not failing.works.is_set()
            await clock.advance(PAUSE_SECONDS)
    assert failing.works.is_set() and not task.done()
    assert [(line["event"], line["observer"]) for line in lines] == [("observer_failed", "lags")] * 2
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_memory_that_is_out_ends_an_observer() -> None:
    with pytest.raises(MemoryError):
        await observing("lags", HandClock(), Failing(MemoryError()).run)


async def test_no_observer_ends_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    worker = Worker(settings(tmp_path))
    assert worker.engine.journal is not None
    observers = [Failing(RuntimeError("dictionary changed size during iteration")) for _ in range(4)]
    owners = (worker, "_tell"), (worker.lags, "run"), (worker.engine.sweep, "run"), (worker.engine.journal, "run")
    for failing, (owner, name) in zip(observers, owners, strict=True):
        monkeypatch.setattr(owner, name, failing.run)
    async with worker:
        await asyncio.wait({asyncio.ensure_future(failing.works.wait()) for failing in observers}, timeout=30)
        assert worker.failure is None
    assert all(failing.works.is_set() for failing in observers)

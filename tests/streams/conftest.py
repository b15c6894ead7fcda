"""The engine that the tests of commands, reads and partitions share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.clock import HostClock
from ports.log import TopicSpec
from streams import command_log, reads
from streams.transport.sqlite.log import SqliteLog
from tests.streams.engine_site import PARTITIONS, EngineSite


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineSite]:
    monkeypatch.setattr(command_log, "FOLD_SECONDS", 0.1)
    monkeypatch.setattr(reads, "FOLD_SECONDS", 0.1)
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec("t.commands", PARTITIONS), TopicSpec("t.deadletters", PARTITIONS)])
    made = EngineSite(log)
    await made.serve()
    yield made
    await log.stop()

"""Partitions are served after their take-over only, and unserved ones are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.clock import HostClock
from ports.log import TopicSpec
from streams.api import Query, Unavailable
from streams.transport.sqlite.log import SqliteLog
from tests.streams.engine_site import PARTITIONS, EngineSite
from tests.streams.test_ceremony_agent import PROBE, start
from tests.streams.test_timers import row


async def test_a_partition_that_is_being_taken_over_is_not_served(site: EngineSite) -> None:
    """Nothing is appended or read before it has folded to the log end at take-over."""
    site.home().put(row())
    site.home().end_at_take_over = 5
    with pytest.raises(Unavailable, match="moving"):
        site.engine.reads.get("c1:s1")
    with pytest.raises(Unavailable, match="moving"):
        await site.engine.commands.start(PROBE, start())
    with pytest.raises(Unavailable, match="moving"):
        await site.engine.reads.search(Query(), 10)
    assert await site.commands() == []
    assert site.engine.partitions.readiness()["tables"] == "1 of 3 partitions not recovered yet"
    site.home().position = 5
    found = site.engine.reads.get("c1:s1")
    assert found is not None and found.instance_id == "c1:s1"
    assert site.engine.partitions.readiness() == {"log": "ok", "tables": "ok"}


async def test_a_partition_that_is_not_served_names_the_reason(site: EngineSite) -> None:
    # specification 18.9
    site.engine.lost(site.home().number)
    site.unserved[site.home().number] = ("log_truncated", "the log begins above the position")
    with pytest.raises(Unavailable, match="log_truncated"):
        site.engine.reads.get("c1:s1")
    assert "log_truncated: the log begins above the position" in site.engine.partitions.readiness()["tables"]


async def test_a_worker_that_may_have_been_replaced_answers_nothing(tmp_path: Path) -> None:
    """It returns no old value and appends nothing; readiness names the reason."""
    # specification 14.16
    log = SqliteLog(tmp_path / "log.db", HostClock())
    await log.start()
    await log.create([TopicSpec("t.commands", PARTITIONS)])
    site = EngineSite(log)
    await site.serve()
    site.home().put(row())
    site.engine.partitions._fresh = lambda: False
    with pytest.raises(Unavailable, match="membership_not_confirmed"):
        site.engine.reads.get("c1:s1")
    with pytest.raises(Unavailable, match="membership_not_confirmed"):
        await site.engine.commands.start(PROBE, start())
    assert await site.commands() == []
    assert site.engine.partitions.readiness()["tables"].startswith("membership not confirmed")
    await log.stop()

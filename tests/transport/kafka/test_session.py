"""The session of a member: fresh only while the group cannot have replaced the member without its knowledge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest

from bridge.clock import HostClock
from streams.transport.kafka.session import GroupSession

REBALANCING = 27
HEARTBEAT = HeartbeatRequest("group", 1, "member")
SYNC = SyncGroupRequest("group", 1, "member", None, [])
JOIN = JoinGroupRequest("group", 6000, 15000, "member", None, "consumer", [])


class SetClock(HostClock):
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Group:
    """A coordinator whose answers take some time and have an error code."""

    def __init__(self) -> None:
        self.clock = SetClock()
        self.takes = 0.0
        self.code = 0
        coordinator = SimpleNamespace(_send_req=self._answer)
        self.session = GroupSession(SimpleNamespace(_coordinator=coordinator), self.clock, seconds=6)
        self.send = coordinator._send_req

    async def _answer(self, request: Any) -> Any:
        self.clock.now += self.takes
        return SimpleNamespace(error_code=self.code)


@pytest.mark.parametrize("request_", [HEARTBEAT, SYNC])
async def test_a_member_is_fresh_for_a_session_from_the_sending_of_a_request_that_was_answered(request_: Any) -> None:
    group = Group()
    group.takes = 2.0
    assert not group.session.fresh
    await group.send(request_)
    group.clock.now += 3.9
    known = group.session.fresh
    group.clock.now += 0.2
    assert (known, group.session.fresh) == (True, False)


@pytest.mark.parametrize("request_", [HEARTBEAT, SYNC])
async def test_an_old_answer_that_a_frozen_member_reads_does_not_make_it_fresh(request_: Any) -> None:
    # specification 14.16
    group = Group()
    group.takes = 20.0
    await group.send(request_)
    assert not group.session.fresh


async def test_an_answer_that_refuses_or_announces_a_rebalance_does_not_count() -> None:
    group = Group()
    group.code = REBALANCING
    await group.send(HEARTBEAT)
    await group.send(SYNC)
    assert not group.session.fresh


async def test_a_request_to_join_does_not_count() -> None:
    """The broker may never have got it, and counts from the last heartbeat."""
    group = Group()
    await group.send(HEARTBEAT)
    group.clock.now += 5.9
    await group.send(JOIN)
    group.clock.now += 0.2
    assert not group.session.fresh

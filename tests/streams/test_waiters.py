"""Clients that wait for the fold get the reply to their own command; those that leave are forgotten."""

from __future__ import annotations

import asyncio

from streams.waiters import ACCEPTED, FoldResult, ReplyKey, ReplyWaiters, Watchers
from tables.commands import Cancel, Pause
from tests.streams.fakes import settle

A, B = ReplyKey("c1:s1", "a", ""), ReplyKey("c1:s1", "b", "")


async def test_a_waiting_client_gets_its_reply() -> None:
    replies = ReplyWaiters()
    command = Cancel(instance_id="c1:s1", command_id="mine", actor="anna")
    future = replies.expect(ReplyKey.of(command))
    assert replies.expected(command) == ReplyKey.of(command)
    replies.resolve({ReplyKey.of(command): ACCEPTED, B: ACCEPTED})
    assert await future == ACCEPTED
    assert replies.expected(command) is None


def test_a_command_is_expected_only_by_a_client_of_its_ceremony_and_its_content() -> None:
    """Clients choose their ids by themselves, so one id may name operations of several ceremonies, or several ones."""
    # specification 13.12
    mine = Cancel(instance_id="c1:s1", command_id="r-1", actor="anna")
    replies = ReplyWaiters()
    replies._waiting[ReplyKey.of(mine)] = []
    assert replies.expected(mine) is not None
    for other in (
        Cancel(instance_id="c2:s1", command_id="r-1", actor="anna"),
        Cancel(instance_id="c1:s1", command_id="r-1", actor="ben"),
        Pause(instance_id="c1:s1", command_id="r-1", actor="anna"),
        Cancel(instance_id="c1:s1", command_id="r-2", actor="anna"),
    ):
        assert replies.expected(other) is None


async def test_all_clients_waiting_for_one_id_get_its_reply() -> None:
    """A client may repeat a call before the first is answered."""
    replies = ReplyWaiters()
    futures = [replies.expect(A), replies.expect(A)]
    replies.resolve({A: FoldResult("paused", "resume it first")})
    assert {(await future).code for future in futures} == {"paused"}


async def test_a_client_that_gives_up_takes_no_reply_from_others() -> None:
    replies = ReplyWaiters()
    first, second = replies.expect(A), replies.expect(A)
    replies.forget(A, first)
    assert A in replies._waiting
    replies.resolve({A: ACCEPTED})
    assert await second == ACCEPTED
    assert not first.done()


async def test_nothing_is_kept_after_the_last_client_has_left() -> None:
    replies = ReplyWaiters()
    future = replies.expect(A)
    replies.forget(A, future)
    replies.forget(A, future)
    assert not replies._waiting
    replies.resolve({A: ACCEPTED})
    assert not future.done()


async def test_a_cancelled_wait_is_skipped() -> None:
    replies = ReplyWaiters()
    future = replies.expect(A)
    future.cancel()
    replies.resolve({A: ACCEPTED})
    assert future.cancelled()


async def test_a_watcher_is_woken_only_for_its_own_instance() -> None:
    watchers = Watchers()
    mine, other = watchers.add(b"mine"), watchers.add(b"other")
    watchers.changed([b"mine", b"third"])
    assert (mine.is_set(), other.is_set()) == (True, False)


async def test_every_watcher_of_an_instance_is_woken() -> None:
    watchers = Watchers()
    both = [watchers.add(b"mine"), watchers.add(b"mine")]
    waiting = [asyncio.create_task(event.wait()) for event in both]
    watchers.changed([b"mine"])
    await settle()
    assert all(task.done() for task in waiting)


async def test_all_watchers_are_woken_when_ownership_changes() -> None:
    watchers = Watchers()
    events = [watchers.add(b"a"), watchers.add(b"b")]
    watchers.lost()
    assert all(event.is_set() for event in events)


async def test_a_watcher_that_left_is_forgotten() -> None:
    watchers = Watchers()
    first, second = watchers.add(b"a"), watchers.add(b"a")
    watchers.remove(b"a", first)
    watchers.changed([b"a"])
    assert (first.is_set(), second.is_set()) == (False, True)
    watchers.remove(b"a", second)
    assert not watchers._events

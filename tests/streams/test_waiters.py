"""Clients that wait for the fold get the reply to their own command; those that leave are forgotten."""

from __future__ import annotations

import asyncio

from streams.waiters import ACCEPTED, FoldResult, ReplyWaiters, Watchers
from tests.streams.fakes import settle


async def test_a_waiting_client_gets_its_reply() -> None:
    replies = ReplyWaiters()
    future = replies.expect("a")
    assert replies.expects("a") and not replies.expects("b")
    replies.resolve({"a": ACCEPTED, "b": ACCEPTED})
    assert await future == ACCEPTED
    assert not replies.expects("a")


async def test_all_clients_waiting_for_one_id_get_its_reply() -> None:
    """A client may repeat a call before the first is answered."""
    replies = ReplyWaiters()
    futures = [replies.expect("a"), replies.expect("a")]
    replies.resolve({"a": FoldResult("paused", "resume it first")})
    assert {(await future).code for future in futures} == {"paused"}


async def test_a_client_that_gives_up_takes_no_reply_from_others() -> None:
    replies = ReplyWaiters()
    first, second = replies.expect("a"), replies.expect("a")
    replies.forget("a", first)
    assert replies.expects("a")
    replies.resolve({"a": ACCEPTED})
    assert await second == ACCEPTED
    assert not first.done()


async def test_nothing_is_kept_after_the_last_client_has_left() -> None:
    replies = ReplyWaiters()
    future = replies.expect("a")
    replies.forget("a", future)
    replies.forget("a", future)
    assert not replies.expects("a")
    replies.resolve({"a": ACCEPTED})
    assert not future.done()


async def test_a_cancelled_wait_is_skipped() -> None:
    replies = ReplyWaiters()
    future = replies.expect("a")
    future.cancel()
    replies.resolve({"a": ACCEPTED})
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

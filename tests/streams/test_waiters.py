"""Who waits for the fold: each gets the answer to their own command, and who goes leaves nothing behind."""

from __future__ import annotations

import asyncio

from streams.waiters import ACCEPTED, FoldResult, ReplyWaiters, Watchers
from tests.streams.fakes import settle


async def test_who_waits_gets_the_answer() -> None:
    replies = ReplyWaiters()
    future = replies.expect("a")
    assert replies.expects("a") and not replies.expects("b")
    replies.resolve({"a": ACCEPTED, "b": ACCEPTED})
    assert await future == ACCEPTED
    assert not replies.expects("a")


async def test_all_who_wait_for_one_id_get_its_answer() -> None:
    """A client that repeats a call before the first is answered."""
    replies = ReplyWaiters()
    futures = [replies.expect("a"), replies.expect("a")]
    replies.resolve({"a": FoldResult("paused", "resume it first")})
    assert {(await future).code for future in futures} == {"paused"}


async def test_who_gives_up_does_not_take_the_answer_from_others() -> None:
    replies = ReplyWaiters()
    first, second = replies.expect("a"), replies.expect("a")
    replies.forget("a", first)
    assert replies.expects("a")
    replies.resolve({"a": ACCEPTED})
    assert await second == ACCEPTED
    assert not first.done()


async def test_nobody_is_kept_after_the_last_has_gone() -> None:
    replies = ReplyWaiters()
    future = replies.expect("a")
    replies.forget("a", future)
    replies.forget("a", future)
    assert not replies.expects("a")
    replies.resolve({"a": ACCEPTED})
    assert not future.done()


async def test_a_wait_that_was_cancelled_is_passed_over() -> None:
    replies = ReplyWaiters()
    future = replies.expect("a")
    future.cancel()
    replies.resolve({"a": ACCEPTED})
    assert future.cancelled()


async def test_a_watcher_hears_of_its_own_instance_only() -> None:
    watchers = Watchers()
    mine, other = watchers.add(b"mine"), watchers.add(b"other")
    watchers.changed([b"mine", b"third"])
    assert (mine.is_set(), other.is_set()) == (True, False)


async def test_every_watcher_of_an_instance_hears_of_it() -> None:
    watchers = Watchers()
    both = [watchers.add(b"mine"), watchers.add(b"mine")]
    waiting = [asyncio.create_task(event.wait()) for event in both]
    watchers.changed([b"mine"])
    await settle()
    assert all(task.done() for task in waiting)


async def test_all_look_again_when_ownership_changes() -> None:
    watchers = Watchers()
    events = [watchers.add(b"a"), watchers.add(b"b")]
    watchers.lost()
    assert all(event.is_set() for event in events)


async def test_a_watcher_that_went_is_forgotten() -> None:
    watchers = Watchers()
    first, second = watchers.add(b"a"), watchers.add(b"a")
    watchers.remove(b"a", first)
    watchers.changed([b"a"])
    assert (first.is_set(), second.is_set()) == (False, True)
    watchers.remove(b"a", second)
    assert not watchers._events

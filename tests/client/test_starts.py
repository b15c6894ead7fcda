"""Starts that the caller does not wait for: accepted or counted, sent once, repeated until their deadline."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fleet.planning_ceremony.client import (
    AsyncPlanningCeremonyClient,
    DeliveryOptions,
    ErrorDetails,
    PlanningCeremonyClient,
    PlanningCeremonyError,
    StartStats,
    requests,
    starts,
)
from fleet.planning_ceremony.client.outbox import StartOutbox
from fleet.planning_ceremony.client.starts import Starts
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.grpc.refusals import CallRefused
from streams.api import Unavailable
from tests.client.world import Engine, Plain, serving, start_fields
from tests.services import free_port
from tests.steps.secrets.planted import planted

PATIENCE = 30.0
MOVING = PlanningCeremonyError(grpc.StatusCode.UNAVAILABLE, "unavailable: moving")
REFUSED = PlanningCeremonyError(grpc.StatusCode.ALREADY_EXISTS, "already_exists: inputs differ")

pytestmark = pytest.mark.usefixtures("quick_pauses")


class Wire:
    """Stands in for the engine: `held` keeps each call until it is set, `answers` are the errors of the next calls."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.sent: list[str] = []
        self.timeouts: list[float] = []
        self.held = threading.Event()
        self.held.set()
        self.entered = threading.Semaphore(0)
        self.cancelled = False
        self.lock = threading.Lock()

    def send(self, request: bytes, timeout: float) -> None:
        self.entered.release()
        assert self.held.wait(PATIENCE)
        if self.cancelled:
            raise PlanningCeremonyError(grpc.StatusCode.CANCELLED, "Channel closed!")
        with self.lock:
            self.sent.append(pb.StartPlanningCeremonyRequest.FromString(request).ceremony_id)
            self.timeouts.append(timeout)
            answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    def cancel(self) -> None:
        self.cancelled = True
        self.held.set()


@contextmanager
def sending(
    wire: Wire, *, queue_size: int = 100, queue_bytes: int = 1 << 20, outbox: StartOutbox | None = None
) -> Iterator[Starts]:
    made = Starts(wire.send, wire.cancel, queue_size=queue_size, queue_bytes=queue_bytes, outbox=outbox)
    try:
        yield made
    finally:
        made.close(0.0)


def offer(made: Starts, name: str, deadline: float = PATIENCE) -> bool:
    return made.offer(requests.start(**start_fields(name)), deadline)


def test_an_accepted_start_is_sent_in_the_background() -> None:
    # specification 14.27
    wire = Wire()
    wire.held.clear()
    with sending(wire) as made:
        assert offer(made, "c1")
        assert wire.entered.acquire(timeout=PATIENCE)
        assert made.stats == StartStats(accepted=1, pending=1)  # it is under way, and the caller goes on
        wire.held.set()
        assert made.flush(PATIENCE)
        assert made.stats == StartStats(accepted=1, sent=1)


def test_a_start_is_repeated_until_the_engine_takes_it() -> None:
    # specification 14.27
    wire = Wire(*[MOVING] * 20, PlanningCeremonyError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
    with sending(wire) as made:
        assert offer(made, "c1", math.inf)
        assert made.flush(PATIENCE)
    assert wire.sent == ["c1"] * 22
    assert made.stats == StartStats(accepted=1, sent=1)
    assert max(wire.timeouts) <= starts.ATTEMPT_SECONDS


def test_a_start_that_waits_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread, a start of a partition that moves is tried again after the others."""
    monkeypatch.setattr(starts, "LANES", 1)
    far = PlanningCeremonyError(grpc.StatusCode.UNAVAILABLE, "unavailable: moving", ErrorDetails(retry_delay=600))
    wire = Wire(far)
    with sending(wire) as made:
        for number in range(5):
            assert offer(made, f"c{number}", 10_000)
        while made.stats.sent < 4:
            assert wire.entered.acquire(timeout=PATIENCE)
        assert made.stats == StartStats(accepted=5, sent=4, pending=1)
        assert wire.sent == ["c0", "c1", "c2", "c3", "c4"]
    assert made.stats == StartStats(accepted=5, sent=4, dropped={"closed": 1})


def test_a_start_is_dropped_at_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    # specification 14.27
    wire = Wire(*[MOVING] * 10_000)
    with sending(wire) as made:
        assert offer(made, "c1", 0.2)
        assert offer(made, "c2", 1e-9)
        assert made.flush(PATIENCE)
    assert made.stats == StartStats(accepted=2, dropped={"deadline": 2})
    assert wire.sent.count("c1") > 1
    assert "c2" not in wire.sent
    assert caplog.messages == ["starts dropped (deadline): 1 so far", "starts dropped (deadline): 2 so far"]


def test_a_refusal_is_counted_by_its_code_and_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    # specification 14.27
    named = PlanningCeremonyError(
        grpc.StatusCode.NOT_FOUND, "definition_unknown: no", ErrorDetails(metadata={"instance_id": "c2:s1"})
    )
    wire = Wire(REFUSED, named)
    with sending(wire) as made:
        assert offer(made, "c1")
        assert made.flush(PATIENCE)
        assert offer(made, "c2")
        assert made.flush(PATIENCE)
    assert made.stats == StartStats(accepted=2, refused={"already_exists": 1, "definition_unknown": 1})
    assert "start of a ceremony refused: already_exists" in caplog.text
    assert "start of c2:s1 refused: definition_unknown" in caplog.text


@pytest.mark.parametrize("bounds", [{"queue_size": 3}, {"queue_bytes": 200}])
def test_a_full_queue_drops_the_new_start(bounds: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    # specification 14.27
    wire = Wire()
    wire.held.clear()
    with sending(wire, **bounds) as made:
        taken = [offer(made, f"c{number}") for number in range(8)]
        assert taken == [True] * 3 + [False] * 5
        assert made.stats == StartStats(accepted=3, pending=3, dropped={"full": 5})
        wire.held.set()
        assert made.flush(PATIENCE)
        assert offer(made, "later")
    assert [line for line in caplog.messages if "full" in line] == [
        f"starts dropped (full): {count} so far" for count in (1, 2, 4)
    ]


def test_closing_sends_what_is_pending_and_takes_nothing_more() -> None:
    # specification 14.27
    wire = Wire(*[MOVING] * 10)
    with sending(wire) as made:
        for number in range(20):
            assert offer(made, f"c{number}")
        assert made.close(PATIENCE)
        assert not offer(made, "late")
    assert sorted(set(wire.sent)) == sorted(f"c{number}" for number in range(20))
    assert made.stats == StartStats(accepted=20, sent=20, dropped={"closed": 1})
    assert made.close(0.0)


def test_closing_ends_although_the_engine_does_not_answer() -> None:
    """Calls under way are cancelled; those starts count as dropped."""
    # specification 14.27
    wire = Wire()
    wire.held.clear()
    with sending(wire) as made:
        for number in range(20):
            assert offer(made, f"c{number}")
        made.close(0.01)
        assert wire.cancelled
    assert made.stats == StartStats(accepted=20, dropped={"closed": 20})
    assert not any(thread.is_alive() for thread in made._threads)


def test_a_hint_of_centuries_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python waits for no longer than `threading.TIMEOUT_MAX`; flushing and closing may be given any time too."""
    monkeypatch.setattr(starts, "LANES", 1)
    far = PlanningCeremonyError(grpc.StatusCode.UNAVAILABLE, "unavailable: x", ErrorDetails(retry_delay=1e15))
    wire = Wire(far)
    with sending(wire) as made:
        assert offer(made, "c1", math.inf)
        while made._queue == [] or made._idle == 0:
            time.sleep(0.01)
        assert offer(made, "c2")
        while made.stats.sent == 0:
            time.sleep(0.01)
        assert made.close(0.0) is True
    with sending(Wire()) as made:
        assert offer(made, "c1")
        assert made.flush(math.inf)
        assert made.close(math.inf)


def test_two_starts_that_find_one_idle_thread_are_sent_side_by_side() -> None:
    """The thread that the first of them woke still counts as idle when the second comes."""
    wire = Wire()
    with sending(wire) as made:
        assert offer(made, "c1") and wire.entered.acquire(timeout=PATIENCE)
        while made._idle == 0:
            time.sleep(0.01)
        wire.held.clear()
        with made._changed:  # no thread runs between them
            assert offer(made, "c2") and offer(made, "c3")
        assert wire.entered.acquire(timeout=PATIENCE)
        assert wire.entered.acquire(timeout=PATIENCE / 6), "c3 waits behind c2"
        wire.held.set()
        assert made.flush(PATIENCE)


def test_callers_that_flush_keep_no_start_from_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "LANES", 1)
    far = PlanningCeremonyError(grpc.StatusCode.UNAVAILABLE, "unavailable: x", ErrorDetails(retry_delay=1e6))
    wire = Wire(far)
    wire.held.clear()
    with sending(wire) as made:
        assert offer(made, "c1", math.inf) and wire.entered.acquire(timeout=PATIENCE)
        flushing = [threading.Thread(target=made.flush, args=(PATIENCE,), daemon=True) for _ in range(2)]
        for one in flushing:
            one.start()
        while len(made._changed._waiters) < len(flushing):  # type: ignore[attr-defined]
            time.sleep(0.01)
        wire.held.set()
        while made._idle == 0:
            time.sleep(0.01)
        assert offer(made, "c2")
        assert wire.entered.acquire(timeout=PATIENCE / 6), "c2 waits for the time of c1"
        made.close(0.0)
        for one in flushing:
            one.join(PATIENCE)


def test_an_error_that_is_not_of_the_arguments_has_a_code_of_its_own() -> None:
    with sending(Wire()) as made:
        made.refuse(MemoryError())
        assert made.stats == StartStats(refused={"client_failed": 1})


def test_a_sender_that_fails_inside_goes_on() -> None:
    wire = Wire(RuntimeError("a bug"), None)
    with sending(wire) as made:
        assert offer(made, "c1")
        assert made.flush(PATIENCE)
    assert made.stats == StartStats(accepted=1, sent=1)


def test_without_a_new_thread_a_start_waits_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real, failing = threading.Thread.start, [True]

    def start(thread: threading.Thread) -> None:
        if failing:
            failing.clear()
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    wire = Wire()
    with sending(wire) as made:
        assert offer(made, "c1")
        assert made.stats == StartStats(accepted=1, pending=1)
        assert offer(made, "c2")
        assert made.flush(PATIENCE)
    assert made.stats == StartStats(accepted=2, sent=2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([None, MOVING, REFUSED]), max_size=30), st.integers(1, 20), st.integers(1, 8))
def test_each_start_is_counted_once(answers: list[Exception | None], offers: int, room: int) -> None:
    # specification 14.27
    wire = Wire(*answers)
    with sending(wire, queue_size=room) as made:
        taken = sum(offer(made, f"c{number}") for number in range(offers))
        assert made.flush(PATIENCE)
        stats = made.stats
    assert stats.accepted == taken
    assert stats.pending == 0
    assert stats.accepted == stats.sent + sum(stats.refused.values())
    assert offers - taken == sum(stats.dropped.values())


# -- the two clients


def wrong_calls() -> list[Callable[[Any], Any]]:
    """Calls with arguments that nothing can be made of."""
    deep: list[Any] = []
    deep.append(deep)
    return [
        lambda client: client.start_planning_ceremony(),
        lambda client: client.start_planning_ceremony("review", ceremony_id="c1"),
        lambda client: client.start_planning_ceremony("review", **start_fields()),
        lambda client: client.start_planning_ceremony(**{**start_fields(), "ceremony_id": 7}),
        lambda client: client.start_planning_ceremony(**start_fields(inputs={"a": object()})),
        lambda client: client.start_planning_ceremony(**start_fields(inputs={"a": deep})),
        lambda client: client.start_planning_ceremony(**start_fields(inputs=3)),
        lambda client: client.start_planning_ceremony(**start_fields(story_id="\ud800")),
        lambda client: client.start_planning_ceremony(**start_fields(deadline=0)),
        lambda client: client.start_planning_ceremony(**start_fields(deadline=math.nan)),
        lambda client: client.start_planning_ceremony(**start_fields(deadline="soon")),
    ]


async def test_wrong_arguments_are_counted_and_never_raise() -> None:
    # specification 14.27
    with PlanningCeremonyClient("127.0.0.1:1") as client:
        assert [call(client) for call in wrong_calls()] == [False] * len(wrong_calls())
        assert client.start_planning_ceremony(**start_fields(inputs={"n": 2**60})) is False
        assert client.stats == StartStats(refused={"arguments_invalid": len(wrong_calls()), "inputs_invalid": 1})
    async with AsyncPlanningCeremonyClient("127.0.0.1:1") as other:
        assert [await call(other) for call in wrong_calls()] == [False] * len(wrong_calls())
        assert other.stats == StartStats(refused={"arguments_invalid": len(wrong_calls())})


async def test_both_clients_send_the_same_request() -> None:
    """Inputs are taken as they are when the start is accepted; the request is the one that `start` sends."""
    # specification 14.27
    engine = Engine(first=[Unavailable("moving", 0.01), Plain(grpc.StatusCode.UNAVAILABLE, "Socket closed")])
    inputs: dict[str, Any] = {"text": "plain", "tags": ["a", {"b": None}]}
    with serving(engine) as address:
        with PlanningCeremonyClient(address) as client:
            assert client.start_planning_ceremony(**start_fields(inputs=inputs))
            inputs["tags"].append("later")
            assert client.flush(PATIENCE)
            assert client.stats == StartStats(accepted=1, sent=1)
            inputs["tags"].pop()
            client.start(**start_fields(inputs=inputs))
        async with AsyncPlanningCeremonyClient(address) as other:
            assert await other.start_planning_ceremony(**start_fields(inputs=inputs))
            assert await other.flush(PATIENCE)
            assert other.stats == StartStats(accepted=1, sent=1)
    first, second, third, blocking, last = engine.requests
    assert first == second == third
    for one in (first, blocking, last):
        assert one.request_id
        one.request_id = ""
    assert first == blocking == last


async def test_refusals_of_the_engine_are_counted_by_both_clients() -> None:
    engine = Engine(answers=lambda _: CallRefused(grpc.StatusCode.NOT_FOUND, "definition_unknown", "no"))
    with serving(engine) as address:
        with PlanningCeremonyClient(address) as client:
            assert client.start_planning_ceremony(**start_fields())
        async with AsyncPlanningCeremonyClient(address) as other:
            assert await other.start_planning_ceremony(**start_fields())
    for one in (client, other):
        assert one.stats == StartStats(accepted=1, refused={"definition_unknown": 1})


def test_a_forked_child_counts_and_returns_at_once() -> None:
    """It has none of the threads, and a lock may be held for ever."""
    wire = Wire()
    wire.held.clear()
    with sending(wire) as made:
        assert offer(made, "c1")
        made._process = os.getpid() + 1  # as a child sees it
        with made._changed:
            assert not offer(made, "c2")
            made.refuse(ValueError())
            assert made.flush(0)
            assert made.close(0)
            assert made.stats == StartStats(dropped={"forked": 1})
        made._process = os.getpid()


AT_EXIT = """
import logging, sys
from fleet.planning_ceremony.client import PlanningCeremonyClient
logging.basicConfig()
client = PlanningCeremonyClient(sys.argv[1])
for number in range(20):
    assert client.start_planning_ceremony(
        "review", ceremony_id=f"c{number}", story_id="s1", requested_by="po"
    )
"""


def test_what_is_pending_is_sent_when_the_interpreter_exits() -> None:
    """Without `close`. The first calls are refused, so they are repeated during the exit."""
    # specification 14.27
    engine = Engine(first=[Unavailable("moving", 0.1) for _ in range(8)])
    with serving(engine) as address:
        done = subprocess.run(
            [sys.executable, "-c", AT_EXIT, address], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(set(engine.ids())) == sorted(f"c{number}" for number in range(20))
    assert len(engine.requests) == 28


def test_an_exit_without_an_engine_ends_soon_and_says_what_was_lost() -> None:
    # specification 14.27
    program = AT_EXIT.replace(
        "client = ", "from fleet.planning_ceremony.client import starts; starts.EXIT_SECONDS = 0.2\nclient = "
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"127.0.0.1:{free_port()}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == "WARNING:fleet.planning_ceremony:starts dropped (closed): 20 so far\n"


async def test_with_an_outbox_a_start_is_kept_beyond_the_client(tmp_path: Path) -> None:
    """The engine is away when it is accepted, by either client, and takes it from the next one."""
    # specification 14.28
    file, port = tmp_path / "starts", free_port()
    delivery = DeliveryOptions(outbox=file)
    with PlanningCeremonyClient(f"127.0.0.1:{port}", delivery=delivery) as client:
        assert client.start_planning_ceremony(**start_fields("c1"))
        assert not client.close(0.0)
        assert client.stats == StartStats(accepted=1, pending=1)
    async with AsyncPlanningCeremonyClient(f"127.0.0.1:{port}", delivery=delivery) as other:
        assert await other.start_planning_ceremony(**start_fields("c2"))
        assert not await other.close(0.0)
        assert other.stats == StartStats(accepted=2, pending=2)
    assert not client.start_planning_ceremony(**start_fields("c3"))
    engine = Engine()
    with serving(engine, port) as address, PlanningCeremonyClient(address, delivery=delivery) as last:
        assert last.flush(PATIENCE)
    assert sorted(engine.ids()) == ["c1", "c2"]
    assert last.stats == StartStats(accepted=2, sent=2)
    assert file.read_bytes() == b""


@pytest.mark.parametrize(("later", "left"), [(50.0, 50.0), (-500.0, 100.0), (500.0, 0.0)])
def test_the_deadline_of_a_start_in_the_outbox_goes_on_while_nobody_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float, left: float
) -> None:
    """A clock that was set back gives it no more time than it had."""
    # specification 14.28
    today, file = time.time(), tmp_path / "starts"
    wire = Wire()
    wire.held.clear()
    monkeypatch.setattr(time, "time", lambda: today)
    with sending(wire, outbox=StartOutbox(file)) as made:
        assert offer(made, "c1", 100.0)
    monkeypatch.setattr(time, "time", lambda: today + later)
    wire = Wire()
    wire.held.clear()
    begun = time.monotonic()
    with sending(wire, outbox=StartOutbox(file)) as made:
        for entry in list(made._pending.values()):
            assert left <= entry.expires - begun <= left + PATIENCE
        wire.held.set()
        assert made.flush(PATIENCE)
    sent = 1 if left else 0
    assert (len(wire.sent), made.stats.sent) == (sent, sent)
    assert made.stats.dropped == ({} if left else {"deadline": 1})


def test_an_outbox_that_cannot_be_written_accepts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the caller learns that the start was not accepted, and the client goes on."""
    # specification 14.28
    wire = Wire()
    outbox = StartOutbox(tmp_path / "starts")
    with sending(wire, outbox=outbox) as made:
        with monkeypatch.context() as patch:
            patch.setattr(outbox, "put", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert not offer(made, "c1")
        with monkeypatch.context() as patch:
            patch.setattr(outbox, "put", lambda _: False)
            assert not offer(made, "c2")
        assert offer(made, "c3")
        assert made.flush(PATIENCE)
    assert made.stats == StartStats(accepted=1, sent=1, dropped={"outbox": 1, "full": 1})
    assert wire.sent == ["c3"]


def test_a_start_that_cannot_be_settled_in_the_outbox_counts_as_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is sent again by the next process, and recognised by the engine."""
    wire, outbox = Wire(), StartOutbox(tmp_path / "starts")
    with sending(wire, outbox=outbox) as made:
        monkeypatch.setattr(outbox, "settle", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert offer(made, "c1")
        assert made.flush(PATIENCE)
    assert made.stats == StartStats(accepted=1, sent=1)
    assert "the outbox cannot be written: Input/output error" in caplog.messages


def test_damaged_lines_of_an_outbox_are_counted(tmp_path: Path) -> None:
    # specification 14.28
    file = tmp_path / "starts"
    file.write_bytes(b"00000000 {}\nnothing\n")
    with sending(Wire(), outbox=StartOutbox(file)) as made:
        assert made.stats == StartStats(dropped={"unreadable": 2})


def test_log_lines_of_the_client_hold_no_value(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Lines name codes, counts, request ids, and ids that the engine returned, whatever inputs and ids hold."""
    # specification 27.15
    caplog.set_level(logging.DEBUG)
    corpus = list(planted(5))
    wire = Wire(*[REFUSED, RuntimeError(corpus[0].text)] * len(corpus))
    with sending(wire, queue_size=5, outbox=StartOutbox(tmp_path / "starts")) as made:
        for one in corpus:
            made.offer(requests.start(**start_fields(one.secret, inputs={"note": one.text, one.secret: 1})), PATIENCE)
            made.refuse(ValueError(one.text))
    with PlanningCeremonyClient("127.0.0.1:1") as client:
        for one in corpus:
            client.start_planning_ceremony(one.text, **{one.secret: one.text})  # type: ignore[arg-type]
            client.start_planning_ceremony(**start_fields(inputs={one.text: object(), "id": 2**60}))
    assert "start not sent: arguments_invalid (TypeError)" in caplog.messages
    assert "start of a ceremony refused: already_exists" in caplog.text
    assert [one.rule for one in corpus if one.secret in caplog.text] == []

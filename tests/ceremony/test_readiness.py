"""The health of a worker: which neighbours it has, which of them decide readiness, and when it has started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from ceremony.neighbour import NO_ANSWER, PROBE_SECONDS, Neighbour
from ceremony.neighbours import Neighbours
from ceremony.readiness import Readiness
from ceremony.settings import read_settings
from ports.errors import Unreachable
from ports.health import HealthError
from tests.streams.fakes import HandClock

FULL = "stream ORDERS does not take a message: maximum messages exceeded (10077)"
OK = ("ok", "ok")
AWAY = Unreachable("ray_executor", "refused")


async def nobody(*_: object) -> None:
    raise AssertionError("nobody is asked")


def neighbours(*roles: str, **more: Any) -> dict[str, Neighbour]:
    parts: dict[str, Any] = {
        "log": SimpleNamespace(state="ok", ends=nobody),
        "partitions": SimpleNamespace(tables=lambda: OK),
        "nats": SimpleNamespace(is_connected=True, probe=nobody),
        "bridges": [SimpleNamespace(state="waiting for the stream X")],
        "outbound": SimpleNamespace(state=FULL),
        "ray": SimpleNamespace(probe=nobody),
        "projectors": [],
        "idempotency": SimpleNamespace(probe=nobody) if "valkey_host" in more else None,
    }
    made = Neighbours(read_settings({"roles": roles, **more}), HandClock(), **parts)
    return {one.name: one for one in made.all()}


def test_a_stream_that_refuses_the_messages_of_publish_steps_is_named() -> None:
    # specification 16.11
    health = neighbours("engine")["publications"].health()
    assert (health.code, health.state) == ("publications_refused", FULL)


def test_the_streams_of_nats_count_where_the_bridges_run() -> None:
    # specification 22.4
    assert neighbours("engine")["nats"].health().code == "ok"
    assert neighbours("engine", "bridge")["nats"].health()[:2] == ("nats_refuses", "waiting for the stream X")


def test_each_role_has_the_neighbours_that_it_needs() -> None:
    # specification 22.4
    assert set(neighbours("engine")) == {"log", "tables", "nats", "publications", "ray_executor"}
    assert set(neighbours("bridge")) == {"log", "nats"}
    assert set(neighbours("projector", valkey_host="v")) == {"log"}
    assert "valkey" in neighbours("engine", valkey_host="v")
    assert "valkey" not in neighbours("bridge", valkey_host="v")


def test_a_stream_of_one_definition_does_not_end_readiness_unless_it_is_required() -> None:
    # specification 16.11
    assert "publications" not in read_settings({}).required
    assert "publications" in read_settings({"readiness_requires": ("log", "publications")}).required


class Asked:
    """A neighbour that is asked; `error` is raised, and `seconds` pass before the answer."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.error: Exception | None = None
        self.seconds = 0.0
        self.neighbour = Neighbour("ray_executor", self.clock, ask=self._ask)

    async def _ask(self) -> None:
        if self.seconds:
            await self.clock.sleep(self.seconds)
        if self.error is not None:
            raise self.error

    async def probe(self) -> None:
        probing = self.clock.spawn(self.neighbour.probe(), name="probe")
        await self.clock.advance(max(self.seconds, 0.0))
        await probing


async def test_a_probe_measures_the_latency_and_a_failed_one_has_none() -> None:
    # specification 22.4
    asked = Asked()
    assert asked.neighbour.health()[:2] == ("not_asked", "not asked yet")
    asked.seconds = 0.25
    await asked.probe()
    assert asked.neighbour.health().latency_ms == pytest.approx(250)
    asked.error = AWAY
    await asked.probe()
    found = asked.neighbour.health()
    assert (found.code, found.state, found.latency_ms) == ("ray_executor_unreachable", "refused", None)


async def test_a_neighbour_that_does_not_answer_is_told_from_one_that_refuses() -> None:
    asked = Asked()
    asked.seconds = 2 * PROBE_SECONDS
    probing = asked.clock.spawn(asked.neighbour.probe(), name="probe")
    await asked.clock.advance(PROBE_SECONDS)
    await probing
    assert asked.neighbour.health()[:2] == (NO_ANSWER, "no answer within 2 s")


async def test_an_error_of_a_library_ends_no_worker() -> None:
    # specification 22.4
    asked = Asked()
    asked.error = AttributeError("'NoneType' object has no attribute 'write'")
    with structlog.testing.capture_logs() as lines:
        await asked.probe()
        await asked.probe()
    assert asked.neighbour.health().code == "probe_failed"
    assert "NoneType" not in asked.neighbour.health().state
    assert [line["event"] for line in lines] == ["probe_failed"]


async def test_the_last_error_and_the_time_of_the_change_stay() -> None:
    # specification 22.4
    asked = Asked()
    await asked.probe()
    begun = asked.neighbour.health().since
    await asked.clock.advance(5)
    assert asked.neighbour.health().since == begun
    asked.error = AWAY
    await asked.probe()
    failed = asked.neighbour.health()
    assert failed.since == begun + 5000
    await asked.clock.advance(5)
    await asked.probe()
    assert asked.neighbour.health() == failed  # the same error again is not news
    asked.error = None
    await asked.probe()
    found = asked.neighbour.health()
    assert (found.code, found.since) == ("ok", begun + 10_000)
    assert found.last_error == HealthError("ray_executor_unreachable", "refused", begun + 5000)


async def test_an_error_that_probe_and_look_word_differently_keeps_its_time() -> None:
    """A later outage has its own time, although the error is the same."""
    # specification 22.4
    asked, state = Asked(), ("ray_executor_unreachable", "away")
    neighbour = asked.neighbour = Neighbour("ray_executor", asked.clock, look=lambda: state, ask=asked._ask)
    asked.error = AWAY
    begun = int(asked.clock.wall() * 1000)
    for _ in range(3):
        await asked.probe()
        assert neighbour.health().last_error == HealthError("ray_executor_unreachable", "away", begun)
        await asked.clock.advance(5)
    asked.error, state = None, OK
    await asked.probe()
    neighbour.health()
    asked.error = AWAY
    await asked.probe()
    assert neighbour.health().last_error == HealthError("ray_executor_unreachable", "refused", begun + 15_000)


class Worker:
    """The readiness of a worker whose log and tables are set by the test."""

    def __init__(self, required: tuple[str, ...] = ("log", "tables")) -> None:
        self.clock = HandClock()
        self.codes = {"log": "log_unavailable", "tables": "partitions_recovering", "nats": "ok"}
        made = [Neighbour(name, self.clock, lambda name=name: (self.codes[name], "…")) for name in self.codes]  # type: ignore[misc]
        self.readiness = Readiness(made, required, self.clock)


def state(worker: Worker) -> tuple[bool, str]:
    return worker.readiness.is_started, worker.readiness.status


def test_a_worker_has_started_once_log_and_tables_were_there_and_stays_so() -> None:
    # specification 22.4
    worker = Worker()
    assert state(worker) == (False, "not ready")
    worker.codes["log"] = "ok"
    assert state(worker) == (False, "not ready")
    worker.codes["tables"] = "ok"
    assert state(worker) == (True, "ready")
    worker.codes["log"] = "log_unavailable"
    assert state(worker) == (True, "not ready")


def test_only_required_neighbours_decide_readiness() -> None:
    # specification 22.4
    worker = Worker(("nats",))
    assert (worker.readiness.is_ready, worker.readiness.status) == (True, "ready")
    worker.codes["nats"] = "nats_disconnected"
    assert (worker.readiness.is_ready, worker.readiness.status) == (False, "not ready")
    assert not Worker(("elsewhere",)).readiness.is_ready


def test_a_worker_that_drains_is_not_ready_and_has_started() -> None:
    # specification 18.8
    worker = Worker(())
    worker.codes |= {"log": "ok", "tables": "ok"}
    worker.readiness.drain()
    assert (worker.readiness.is_ready, worker.readiness.status) == (False, "draining")
    assert worker.readiness.is_started

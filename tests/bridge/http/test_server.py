"""Health and metrics over HTTP: `/livez`, `/readyz` with each neighbour's state, `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from bridge.clock import HostClock
from bridge.http.server import HttpServer
from scripts.metrics_page import declared
from steps.secrets.redactor import TextRedactor
from tests.bridge.health import SaidHealth
from tests.e2e.world import World, http_get, until
from tests.steps.secrets.planted import planted

pytestmark = pytest.mark.asyncio(loop_scope="module")
NEIGHBOURS = {"log", "tables", "nats", "publications", "ray_executor"}
SHOWN = {"code", "state", "since", "latency_ms", "last_error"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("http")
    async with World(folder, f"sqlite://{folder}/log.db") as made:
        yield made


async def readyz(world: World) -> tuple[int, dict[str, str]]:
    """Return the status of /readyz, and the state of each neighbour."""
    status, body = await world.http("/readyz")
    return status, {name: health["state"] for name, health in json.loads(body)["neighbours"].items()}


@contextlib.asynccontextmanager
async def serving(health: SaidHealth, registry: CollectorRegistry | None = None) -> AsyncIterator[str]:
    """Serve this health; yields the address."""
    server = HttpServer("127.0.0.1:0", health, registry or CollectorRegistry(), HostClock(), redactor=TextRedactor())
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop()


async def got(address: str) -> tuple[int, Any]:
    status, body = await asyncio.to_thread(http_get, address)
    return status, json.loads(body)


async def becomes(world: World, status: int, **states: str) -> None:
    """Wait for this status of /readyz, with the named neighbours in these states (`!` for any state but ok)."""

    async def so() -> bool:
        found, neighbours = await readyz(world)
        return found == status and all(
            (neighbours[name] != "ok") if state == "!" else (neighbours[name] == state)
            for name, state in states.items()
        )

    await until(so, f"/readyz answers {status} with {states}")


async def test_livez_answers_alive(world: World) -> None:
    # specification 22.4
    status, body = await world.http("/livez")
    assert (status, json.loads(body)) == (200, {"status": "alive"})


async def test_readyz_lists_the_state_of_every_neighbour(world: World) -> None:
    # specification 22.4
    await becomes(world, 200, log="ok", tables="ok", nats="ok", ray_executor="ok")
    _, neighbours = await readyz(world)
    assert set(neighbours) == NEIGHBOURS


async def test_a_worker_without_nats_is_not_ready_until_it_is_back(world: World) -> None:
    """It stays alive, and names the missing neighbour without raw exception text."""
    # specification 22.4
    await asyncio.to_thread(world.nats.kill)
    await becomes(world, 503, nats="!", log="ok", tables="ok")
    _, neighbours = await readyz(world)
    assert "Error" not in neighbours["nats"] and "Traceback" not in neighbours["nats"]
    assert (await world.http("/livez"))[0] == 200
    await asyncio.to_thread(world.nats.start)
    await becomes(world, 200, nats="ok")


async def test_a_worker_without_the_ray_executor_is_not_ready(world: World) -> None:
    await world.stop_ray()
    await becomes(world, 503, ray_executor="!", nats="ok")
    world.ray = world.new_ray()
    await world.ray.start()
    await becomes(world, 200, ray_executor="ok")


async def metric(world: World, name: str, **labels: str) -> float:
    """The value of a sample, 0 if it does not exist."""
    _, text = await world.http("/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def test_steps_publishes_and_endings_are_counted(world: World) -> None:
    """A backlog review has seven steps, one publish and one ceremony."""
    # specification 22.4
    before = [
        await metric(world, "ceremony_steps_total", status="COMPLETED"),
        await metric(world, "ceremony_publish_total", duplicate="false"),
        await metric(world, "ceremony_ended_total", status="COMPLETED"),
        await metric(world, "ceremony_events_total", subject="ceremony.step.executed"),
    ]
    await world.finish(await world.start("backlog_review", "C-metrics"))
    after = [
        await metric(world, "ceremony_steps_total", status="COMPLETED"),
        await metric(world, "ceremony_publish_total", duplicate="false"),
        await metric(world, "ceremony_ended_total", status="COMPLETED"),
        await metric(world, "ceremony_events_total", subject="ceremony.step.executed"),
    ]
    # Seven finished steps, and the gate when it opens.
    assert [b - a for a, b in zip(before, after, strict=True)] == [7, 1, 1, 8]
    await until(lambda: metric(world, "ceremony_instances"), "the rows are counted")
    assert await metric(world, "ceremony_partitions_owned") == 3


async def test_a_running_worker_serves_the_metrics_that_the_page_lists_and_no_others(world: World) -> None:
    """Without the `_created` series of Prometheus' client; those without labels are there from the start."""
    # specification 29.4
    await world.finish(await world.start("backlog_review", "C-all-metrics"))
    _, text = await world.http("/metrics")
    served = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    ours = {name for name in served if name.startswith("ceremony_")}
    assert ours - {name for metric in declared() for name in metric.series} == set()
    assert {name for metric in declared() if not metric.labels for name in metric.series} - ours == set()
    assert not [name for name in served if name.endswith("_created")]


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
async def test_metrics_are_encoded_one_by_one_to_the_same_text(accept: str) -> None:
    """Other tasks run between them."""
    registry = CollectorRegistry()
    for number in range(5):
        Counter(f"probe_{number}", "d", ["a"], registry=registry).labels("x").inc(number)
    encode, content_type = choose_encoder(accept)
    turns = 0
    seen: list[int] = []

    class NotingRedactor(TextRedactor):
        def data(self, data: bytes) -> bytes:
            seen.append(turns)
            return super().data(data)

    async def beside() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    server = HttpServer("127.0.0.1:0", SaidHealth(), registry, HostClock(), redactor=NotingRedactor())
    await server.start()
    task = asyncio.create_task(beside())
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": accept}) as answer,
        ):
            body = await answer.read()
    finally:
        task.cancel()
        await server.stop()
    assert body == encode(registry)
    assert answer.headers["Content-Type"] == content_type
    assert len(set(seen)) == len(seen) == 5


async def test_an_unknown_path_is_not_found(world: World) -> None:
    assert (await world.http("/elsewhere"))[0] == 404


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ({"log": "ok", "nats": "ok", "ray_executor": "down"}, 200),
        ({"log": "ok", "nats": "down", "ray_executor": "ok"}, 503),
        ({"log": "ok"}, 503),
    ],
)
async def test_only_required_neighbours_decide_readiness(states: dict[str, str], status: int) -> None:
    """A required neighbour with an unknown state is not ready either."""
    # specification 22.4
    async with serving(SaidHealth(states, ("log", "nats"))) as address:
        found, body = await got(f"{address}/readyz")
    assert (found, body["status"]) == (status, "ready" if status == 200 else "not ready")
    assert body["required"] == ["log", "nats"]


async def test_livez_asks_nobody_and_startupz_stays_when_readiness_goes() -> None:
    """A worker whose neighbours are away, or that drains, is not killed for it."""
    # specification 22.4
    health = SaidHealth({"log": "no Kafka at k:9092"}, ("log",))
    health.is_started = False
    async with serving(health) as address:
        assert await got(f"{address}/livez") == (200, {"status": "alive"})
        status, body = await got(f"{address}/startupz")
        assert (status, body["status"], body["required"]) == (503, "starting", ["log"])
        health.is_started = health.is_draining = True
        assert (await got(f"{address}/startupz"))[0] == 200
        status, body = await got(f"{address}/readyz")
        assert (status, body["status"]) == (503, "draining")
        assert (await got(f"{address}/livez"))[0] == 200


async def test_readyz_shows_code_time_latency_and_last_error_of_each_neighbour(world: World) -> None:
    # specification 22.4
    await becomes(world, 200, nats="ok", ray_executor="ok", log="ok")

    async def all_probed() -> Any:
        _, body = await got(f"http://127.0.0.1:{world.worker.http.port}/readyz")
        probed = [body["neighbours"][name]["latency_ms"] for name in ("log", "nats", "ray_executor")]
        return body["neighbours"] if all(latency is not None for latency in probed) else None

    found = await until(all_probed, "each neighbour was probed")
    assert all(health.keys() == SHOWN for health in found.values())
    assert {name: health["code"] for name, health in found.items()} == dict.fromkeys(NEIGHBOURS, "ok")
    assert all(health["since"].startswith("20") and health["since"].endswith("Z") for health in found.values())
    assert found["tables"]["latency_ms"] is None


async def test_a_port_in_use_raises_an_os_error(world: World) -> None:
    address = f"127.0.0.1:{world.worker.http.port}"
    server = HttpServer(address, SaidHealth(), CollectorRegistry(), HostClock(), redactor=TextRedactor())
    with pytest.raises(OSError, match="address already in use"):
        await server.start()
    await server.stop()


async def test_readyz_lists_warnings_and_stays_ready() -> None:
    # specification 22.16
    async with serving(SaidHealth({"log": "ok"}, ("log",), ["topic_replicas_few: c.commands"])) as address:
        status, body = await got(f"{address}/readyz")
    assert (status, body["warnings"]) == (200, ["topic_replicas_few: c.commands"])


async def test_readyz_and_metrics_hold_no_secret() -> None:
    """A state may quote a neighbour, and the label of a metric the code of a foreign dead letter."""
    # specification 27.10
    secret = next(planted()).secret
    registry = CollectorRegistry()
    Counter("letters", "By code.", ["code"], registry=registry).labels(f"x {secret}").inc()
    async with serving(SaidHealth({"nats": f"it says {secret}"}), registry) as address:
        _, ready = await asyncio.to_thread(http_get, f"{address}/readyz")
        _, started = await asyncio.to_thread(http_get, f"{address}/startupz")
        _, metrics = await asyncio.to_thread(http_get, f"{address}/metrics")
    assert json.loads(ready)["neighbours"]["nats"]["state"] == "it says [redacted:aws_access_key_id]"
    assert 'letters_total{code="x [redacted:aws_access_key_id]"} 1.0' in metrics
    assert secret not in ready + started + metrics

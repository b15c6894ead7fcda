"""The checker collects the whole stream, and every page of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import (
    PlanningCeremonyProcessorServicer,
    add_PlanningCeremonyProcessorServicer_to_server,
)

from tests.checker.collect import BATCH, collect, collect_messages, settled_instances
from tests.checker.recording import Message, Start
from tests.services import NatsServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Each of these tests has its own server, because the stream is named CEREMONY."""
    server = NatsServer(tmp_path / "nats")
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


class Service(PlanningCeremonyProcessorServicer):
    """A service with short pages, UNAVAILABLE at first, whose last ceremony ends after some calls."""

    def __init__(self, ceremonies: int) -> None:
        self._ceremonies = ceremonies
        self._asked = 0

    async def ListPlanningCeremonyInstances(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self._asked += 1
        if self._asked == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "partition_moving: again")
        page = range(request.offset, min(request.offset + 3, self._ceremonies))
        return pb.ListPlanningCeremonyInstancesResponse(
            ceremonies=[self._ceremony(number) for number in page], total_count=self._ceremonies, success=True
        )

    def _ceremony(self, number: int) -> pb.PlanningCeremonyInstance:
        busy = number == self._ceremonies - 1 and self._asked < 6
        return pb.PlanningCeremonyInstance(
            instance_id=f"c-{number}:s",
            status="RUNNING" if busy else "WAITING_FOR_HUMAN",
            step_status={"ask": "WAITING_FOR_HUMAN"},
            open_gates=[pb.OpenGate(step_id="ask"), pb.OpenGate(guard="owner_agrees")],
            version=number,
        )


@pytest.fixture
async def service() -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_PlanningCeremonyProcessorServicer_to_server(Service(8), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def fill(url: str, count: int) -> None:
    client = await nats.connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="CEREMONY", subjects=["ceremony.>"])
    for number in range(count):
        await client.publish("ceremony.started", b'{"n": %d}' % number, headers={"Nats-Msg-Id": str(number)})
    await jetstream.publish("ceremony.story", b"no json")
    await client.close()


async def test_the_whole_stream_is_collected_in_order(server: NatsServer) -> None:
    """They are more than one batch, including a message without JSON and without an id."""
    await fill(server.url, BATCH + 20)
    found = await collect_messages(server.url, quiet_seconds=0.6)
    assert [message.sequence for message in found] == list(range(1, BATCH + 22))
    assert found[4] == Message(5, "ceremony.started", "4", {"n": 4})
    assert found[-1] == Message(BATCH + 21, "ceremony.story", "", None)


async def test_an_empty_stream_gives_an_empty_run(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="CEREMONY", subjects=["ceremony.>"])
    await client.close()
    assert await collect_messages(server.url) == []


async def test_every_page_is_read_and_an_unavailable_service_is_called_again(service: str) -> None:
    """It repeats until every accepted start has ended or waits for people, or the time is up."""
    found = await settled_instances(service, [Start("c-7:s", "approval")], 10)
    assert sorted(instance.instance_id for instance in found) == [f"c-{number}:s" for number in range(8)]
    assert {instance.status for instance in found} == {"WAITING_FOR_HUMAN"}
    assert found[1].open_gates == ["ask", "owner_agrees"]


async def test_waiting_for_a_missing_start_ends_after_the_time_limit(service: str) -> None:
    found = await settled_instances(service, [Start("lost:s", "approval")], 1)
    assert len(found) == 8


async def test_a_run_is_collected_from_nats_and_grpc(server: NatsServer, service: str) -> None:
    await fill(server.url, 1)
    run = await collect(server.url, service, {"approval": "text"}, [Start("c-0:s", "approval")])
    assert (len(run.messages), len(run.instances), run.definitions) == (2, 8, {"approval": "text"})

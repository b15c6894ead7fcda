"""Callers that are killed with SIGKILL: what their client had accepted reaches the real engine, each start once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient, DeliveryOptions

from tests.e2e.world import World, until
from tests.services import free_port

# Prints the id of each start as soon as it is accepted, until it is killed.
CALLER = """
import math, sys
from fleet.planning_ceremony.client import DeliveryOptions, PlanningCeremonyClient
address, outbox, name = sys.argv[1:]
client = PlanningCeremonyClient(address, delivery=DeliveryOptions(deadline=math.inf, outbox=outbox))
for number in range(100_000):
    taken = client.start_planning_ceremony(
        "merge_chain", ceremony_id=f"{name}-{number}", story_id="S1", requested_by="po", inputs={"payload": {"a": 1}}
    )
    if taken:
        print(f"{name}-{number}:S1", flush=True)
"""


def accepted_before_the_kill(address: str, outbox: Path, name: str, count: int) -> list[str]:
    """Run a caller, kill it after it has printed so many ids, and return all that it had printed."""
    process = subprocess.Popen([sys.executable, "-c", CALLER, address, outbox, name], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(count)]
    process.kill()
    lines += process.stdout.readlines()
    process.wait(30)
    process.stdout.close()
    return [line.strip() for line in lines if line.endswith("\n")]


async def test_what_a_killed_caller_had_accepted_is_started_exactly_once(tmp_path: Path) -> None:
    """One caller dies while no engine runs, a second one, with the same outbox, while its starts are being sent."""
    # specification 14.28
    outbox = tmp_path / "starts"
    accepted = await asyncio.to_thread(accepted_before_the_kill, f"127.0.0.1:{free_port()}", outbox, "away", 20)
    assert len(accepted) >= 20
    async with World(tmp_path / "world", f"sqlite://{tmp_path}/log.db") as world:
        address = f"127.0.0.1:{world.worker.grpc.port}"
        accepted += await asyncio.to_thread(accepted_before_the_kill, address, outbox, "near", 60)
        assert len(accepted) >= 80
        async with AsyncPlanningCeremonyClient(address, delivery=DeliveryOptions(outbox=outbox)) as client:
            assert await client.flush(60.0)
            assert client.stats.refused == client.stats.dropped == {}
        assert outbox.read_bytes() == b""
        for instance_id in accepted:
            assert (await world.get(instance_id)).definition_name == "merge_chain"
        for instance_id in accepted:
            await world.finish(instance_id)

        async def started() -> Counter[str] | None:
            """The number of announcements by instance, once there is one of each."""
            found = Counter(
                message.envelope["payload"]["instance_id"]
                for message in await world.messages(*accepted)
                if message.subject == "ceremony.started"
            )
            return found if found.keys() >= set(accepted) else None

        assert await until(started, "each start is announced") == Counter(accepted)

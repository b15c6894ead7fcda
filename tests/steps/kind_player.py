"""Plays one ceremony on a worker with an embedded log: `python kind_player.py FOLDER NAME INPUTS`.

FOLDER has the definition NAME; INPUTS is a JSON object. Prints the ended ceremony, and the place of the packages, as
JSON. There is no NATS and no Ray executor. Run it with the packages under test on PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

import steps
from ceremony.settings import Settings
from ceremony.worker import Worker

SECONDS = 60.0
NOBODY = "127.0.0.1:1"
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


def settings(folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "CEREMONY_LOG": f"sqlite:///{folder}/log.db",
            "CEREMONY_PARTITIONS": 1,
            "CEREMONIES_DIR": str(folder),
            "PLANNING_CEREMONY_GRPC_ADDR": "127.0.0.1:0",
            "CEREMONY_HTTP_ADDR": "127.0.0.1:0",
            "NATS_URL": f"nats://{NOBODY}",
            "RAY_EXECUTOR_URL": NOBODY,
            "READINESS_REQUIRES": "log,tables",
        }
    )


async def until(found: Callable[[], Awaitable[Any]]) -> Any:
    """Poll until there is a result."""
    async with asyncio.timeout(SECONDS):
        while (result := await found()) is None:
            await asyncio.sleep(0.05)
    return result


async def play(folder: Path, name: str, inputs: dict[str, Any]) -> pb.PlanningCeremonyInstance:
    """Start a worker and a ceremony, and return the ceremony once it has ended."""
    async with Worker(settings(folder)) as worker:

        async def ready() -> bool | None:
            return worker.http.ready() or None

        await until(ready)
        async with AsyncPlanningCeremonyClient(f"127.0.0.1:{worker.grpc.port}") as client:
            instance_id = await client.start(
                name, ceremony_id="played", story_id="S1", requested_by="test", inputs=inputs
            )

            async def ended() -> pb.PlanningCeremonyInstance | None:
                instance = await client.get(instance_id)
                return instance if instance is not None and instance.status in ENDED else None

            ceremony: pb.PlanningCeremonyInstance = await until(ended)
            return ceremony


def main(folder: str, name: str, inputs: str) -> None:
    ceremony = asyncio.run(play(Path(folder), name, json.loads(inputs)))
    outputs = {step: json.loads(output) for step, output in ceremony.step_outputs.items()}
    packages = str(Path(steps.__file__ or "").parents[1])
    print(json.dumps({"packages": packages, "status": ceremony.status, "outputs": outputs}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The table of NATS permissions in deploy/README.md is enough for the engine, and no more than its subjects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.world import ROOT, World, until
from tests.services import NatsServer, free_port

pytestmark = pytest.mark.timeout(120)
ROW = re.compile(r"^\| (publish|subscribe) \| (.*?) \| ", re.MULTILINE)
CONFIG = """
authorization {{
  users = [
    {{user: admin, password: admin}}
    {{user: engine, password: word, permissions: {{publish: {publish}, subscribe: {subscribe}}}}}
  ]
}}
"""


def granted(direction: str) -> list[str]:
    """The subjects of the table's rows for this direction."""
    section = (ROOT / "deploy/README.md").read_text("utf-8").partition("\n## NATS\n")[2]
    return [
        subject for found, cell in ROW.findall(section) if found == direction for subject in re.findall("`(.*?)`", cell)
    ]


class GuardedNats(NatsServer):
    """Knows an administrator, and the engine with the permissions of the table."""

    @property
    def url(self) -> str:
        return f"nats://admin:admin@127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        return (self.folder / "said.log").read_text(errors="replace")

    def _command(self) -> Sequence[str]:
        command = [*super()._command(), "--log", str(self.folder / "said.log")]
        config = Path(command[2])
        quoted = {name: "[" + ", ".join(f'"{one}"' for one in granted(name)) + "]" for name in ("publish", "subscribe")}
        config.write_text(config.read_text() + CONFIG.format(**quoted))
        return command


async def test_the_permissions_of_the_table_serve_the_engine_whole(tmp_path: Path) -> None:
    """Streams and durables are made, agents answer, results are published, and a second worker reads back."""
    server = GuardedNats(tmp_path / "guarded", free_port())
    world = World(
        tmp_path / "world", f"sqlite://{tmp_path / 'log.db'}", NATS_URL=f"nats://engine:word@127.0.0.1:{server.port}"
    )
    world.nats = server
    world.ray = world.new_ray()
    async with world:
        reviewed = await world.start("backlog_review", "allowed")
        assert (await world.finish(reviewed)).status == "COMPLETED"
        await world.restart_worker()
        planned = await world.start("planning", "planned")
        assert (await world.finish(planned)).status == "COMPLETED"
        for instance_id in (reviewed, planned):
            await until(partial(published, world, instance_id), "its events are on NATS")
        assert "Permissions Violation" not in server.said, [
            line for line in server.said.splitlines() if "Violation" in line
        ]


async def published(world: World, instance_id: str) -> bool:
    return "ceremony.completed" in {message.subject for message in await world.messages(instance_id)}


def test_the_table_grants_no_whole_interface() -> None:
    assert not {">", "$JS.API.>", "$JS.>", "$SYS.>"} & set(granted("publish"))

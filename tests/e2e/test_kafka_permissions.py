"""The table of Kafka permissions in deploy/README.md is enough for the engine, and ends at its prefix."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from ports.log import LogFailed
from tests.bridge.projection.world import ValkeySite
from tests.e2e.world import ROOT, World, until
from tests.services import KafkaServer, ValkeyServer, free_port

pytestmark = pytest.mark.timeout(180)
ROW = re.compile(r"^\| (topic|group|transactional id) \| prefix `(.*?)` \| (.*?) \| ", re.MULTILINE)
# Kafka's numbers.
RESOURCES = {"topic": 2, "group": 3, "transactional id": 5}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
PREFIXED, ALLOW = 4, 3
# The principal of a client without a user.
ENGINE = "User:ANONYMOUS"
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


def granted() -> Iterator[tuple[str, str, str]]:
    """Resource, prefix and operation of each right of the table."""
    section = (ROOT / "deploy/README.md").read_text("utf-8").partition("\n## Kafka\n")[2].partition("\n## ")[0]
    for resource, prefix, operations in ROW.findall(section):
        for operation in operations.split(", "):
            yield resource, prefix, operation


class GuardedKafka(KafkaServer):
    """Allows nothing that no rule allows; an administrator has a listener and a password of his own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.admin_port = free_port()

    @property
    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))

    def _properties(self) -> dict[str, object]:
        found = super()._properties()
        login = f'{LOGIN} username="admin" password="word" user_admin="word";'
        return found | {
            "listeners": f"{found['listeners']},ADMIN://127.0.0.1:{self.admin_port}",
            "advertised.listeners": f"{found['advertised.listeners']},ADMIN://127.0.0.1:{self.admin_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:SASL_PLAINTEXT,ADMIN:SASL_PLAINTEXT",
            "inter.broker.listener.name": "ADMIN",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.controller.plain.sasl.jaas.config": login,
            "listener.name.admin.plain.sasl.jaas.config": login,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:admin",
        }

    async def allow(self) -> None:
        admin = AIOKafkaAdminClient(
            bootstrap_servers=f"127.0.0.1:{self.admin_port}",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_plain_username="admin",
            sasl_plain_password="word",
        )
        await admin.start()
        try:
            for resource, prefix, operation in granted():
                rule = RESOURCES[resource], prefix, PREFIXED, ENGINE, "*", OPERATIONS[operation], ALLOW
                answer = await admin._send_request(CreateAclsRequest(*rule))
                assert [code for code, _ in answer.creation_responses] == [0], rule
        finally:
            await admin.close()


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[GuardedKafka]:
    server = GuardedKafka(tmp_path / "kafka")
    server.start()
    try:
        await server.allow()
        yield server
    finally:
        server.kill()


async def test_the_permissions_of_the_table_serve_the_engine_whole(
    guarded: GuardedKafka, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """All roles: topics are made, ceremonies run, a second owner fences the first; nothing outside the prefix."""
    site = ValkeySite(valkey)
    site.wipe()
    site.close()
    store: dict[str, object] = {
        "VALKEY_HOST": valkey.host, "VALKEY_PORT": valkey.port, "VALKEY_PASSWORD": valkey.password,
    }  # fmt: skip
    world = World(tmp_path / "world", f"kafka://{guarded.bootstrap}")
    world.settings |= store
    async with world:
        reviewed = await world.start("backlog_review", "reviewed")
        assert (await world.finish(reviewed)).status == "COMPLETED"
        await world.restart_worker()
        planned = await world.start("planning", "planned")
        assert (await world.finish(planned)).status == "COMPLETED"
        for instance_id in (reviewed, planned):
            await until(partial(published, world, instance_id), "its events are on NATS")
        await until(lambda: world.ok("valkey"), "the projector is up to date")
        assert "Denied" not in guarded.said, [line for line in guarded.said.splitlines() if "Denied" in line][:3]
        await world.stop_worker()
        world.settings["CEREMONY_TOPIC_PREFIX"] = "other"
        with pytest.raises(LogFailed, match=r"topic_refused|topic_not_authorized"):
            await world.start_worker()
    assert "Denied" in guarded.said


async def published(world: World, instance_id: str) -> bool:
    return "ceremony.completed" in {message.subject for message in await world.messages(instance_id)}


def test_the_table_grants_no_change_and_no_removal() -> None:
    assert {operation for _, _, operation in granted()} <= OPERATIONS.keys()
    assert all(prefix.startswith("ceremony.") for _, prefix, _ in granted())

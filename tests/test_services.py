"""The services of the tests are real: they keep acknowledged data, and end when they are stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import nats as nats_client
import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from neo4j import GraphDatabase

from bridge.clock import HostClock
from ceremony.dev.nats_server import NatsServer as ProductNatsServer
from ceremony.dev.nats_server import left_over
from tests.services import (
    NEVER,
    KafkaCluster,
    KafkaServer,
    NatsServer,
    Neo4jServer,
    ServiceError,
    ValkeyServer,
    end_orphans,
    free_port,
    running,
)


async def _produce(bootstrap: str, topic: str, count: int, *, copies: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, copies)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for number in range(count):
            await producer.send_and_wait(topic, str(number).encode())


async def _read(bootstrap: str, topic: str) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        consumer.seek(partition, 0)
        values: list[bytes | None] = []
        while len(values) < end:
            values += [record.value for record in (await consumer.getmany(timeout_ms=500)).get(partition, [])]
        return values
    finally:
        await consumer.stop()


@pytest.mark.timeout(60)
async def test_kafka_keeps_acknowledged_records_through_a_kill(tmp_path: Path) -> None:
    """A broker that was killed with SIGKILL comes back on the same port with every acknowledged record."""
    with running(KafkaServer(tmp_path, flush_messages=1)) as server:
        await _produce(server.bootstrap, "kept", 20)
        first = server.pid
        server.kill()
        assert server.pid is None
        await asyncio.to_thread(server.start)
        assert server.pid != first
        assert await _read(server.bootstrap, "kept") == [str(number).encode() for number in range(20)]


async def test_nats_keeps_acknowledged_messages_through_a_kill(tmp_path: Path) -> None:
    """A nats-server that was killed with SIGKILL comes back with its stream."""
    with running(NatsServer(tmp_path)) as server:
        client = await nats_client.connect(server.url)
        await client.jetstream().add_stream(name="KEPT", subjects=["kept.>"])
        for _ in range(20):
            await client.jetstream().publish("kept.one", b"x")
        await client.close()
        server.kill()
        server.start()
        client = await nats_client.connect(server.url)
        assert (await client.jetstream().stream_info("KEPT")).state.messages == 20
        await client.close()


async def test_valkey_keeps_acknowledged_writes_through_a_kill(tmp_path: Path) -> None:
    """A Valkey that was killed with SIGKILL comes back with them; one that forgets comes back empty."""
    with running(ValkeyServer(tmp_path)) as server:
        client = redis.Redis(port=server.port, password=server.password, retry=NEVER)
        for number in range(20):
            client.set(f"kept:{number}", number)
        server.kill()
        server.start()
        assert len(client.keys("kept:*")) == 20
        server.kill()
        server.forget()
        server.start()
        assert client.dbsize() == 0
        client.close()


@pytest.mark.timeout(180)
def test_neo4j_keeps_acknowledged_writes_through_a_kill(tmp_path: Path) -> None:
    """A Neo4j that was killed with SIGKILL comes back with them and with its password."""
    with running(Neo4jServer(tmp_path)) as server:
        with GraphDatabase.driver(server.uri, auth=(server.user, server.password)) as driver:
            driver.execute_query("UNWIND range(1, 20) AS number CREATE (:Kept {number: number})")
        server.kill()
        server.start()
        with GraphDatabase.driver(server.uri, auth=(server.user, server.password)) as driver:
            assert driver.execute_query("MATCH (n:Kept) RETURN count(n) AS kept").records[0]["kept"] == 20


async def test_the_products_nats_server_replaces_one_that_a_killed_run_left(tmp_path: Path) -> None:
    """Two runs on one folder: the second ends the server that the first left behind and finds its streams."""
    first = ProductNatsServer(tmp_path, free_port(), free_port(), HostClock())
    second = ProductNatsServer(tmp_path, free_port(), free_port(), HostClock())
    await first.start()
    abandoned = first.pid
    assert left_over(tmp_path) == abandoned
    try:
        await second.start()
        assert left_over(tmp_path) == second.pid != abandoned
        client = await nats_client.connect(second.url)
        await client.close()
    finally:
        await second.stop()
        await first.stop()
    assert left_over(tmp_path) is None


async def test_a_service_that_cannot_start_gives_the_reason(tmp_path: Path) -> None:
    """The error of a server whose port is taken ends with the last lines of its log, and nothing is left running."""
    with running(NatsServer(tmp_path / "one")) as taken:
        rival = NatsServer(tmp_path / "two")
        rival.port = taken.port
        with pytest.raises(ServiceError, match=r"nats ended: .*address already in use"):
            rival.start()
        assert rival.pid is None


def test_servers_of_a_killed_run_are_ended_by_the_next_run(tmp_path: Path) -> None:
    """A killed run leaves its server running; the next run ends that server and no other."""
    program = (
        "import sys, os; from pathlib import Path; from tests.services import NatsServer;"
        "server = NatsServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    orphan = int(done.stdout)
    assert _runs(orphan)
    with running(NatsServer(tmp_path / "mine")) as mine:
        end_orphans()
        assert _ended(orphan)
        assert mine.pid is not None and _runs(mine.pid)


def test_ports_are_given_once() -> None:
    """No port is given twice, and none lies in the range of the system's client ports."""
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == 200
    assert max(ports) < 32_768


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _ended(pid: int) -> bool:
    for _ in range(100):
        if not _runs(pid):
            return True
        asyncio.run(asyncio.sleep(0.05))
    return False


@pytest.mark.timeout(120)
def test_a_cluster_keeps_acknowledged_records_when_its_leader_is_killed(tmp_path: Path) -> None:
    """Another broker takes the lead, and the killed one comes back."""
    cluster = KafkaCluster(tmp_path)
    cluster.start()
    try:
        asyncio.run(_produce(cluster.bootstrap, "kept", 20, copies=3))
        leader = cluster.leader("kept", 0)
        leader.kill()
        assert asyncio.run(_read(cluster.bootstrap, "kept")) == [str(n).encode() for n in range(20)]
        assert cluster.leader("kept", 0) is not leader
        leader.start()
        assert leader.pid is not None
    finally:
        cluster.kill()

"""Kafka: a single broker, and a cluster of three."""

from __future__ import annotations

import asyncio
import base64
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from tests.java_install import KAFKA, JavaInstall, install
from tests.services.java import archives_into, java, with_archive
from tests.services.server import POLL_SECONDS, READY_SECONDS, Server, ServiceError, free_port

HEAP = "-Xmx256m"
# Brokers of a cluster, and the number that must have a record before it is acknowledged.
CLUSTER, MIN_INSYNC = 3, 2
# Settings of the test brokers that a broker with Kafka's own defaults does not have. It keeps those for one node, and
# those that only save time.
NOT_KAFKAS_OWN = frozenset(
    {
        "auto.create.topics.enable",
        "offsets.topic.num.partitions",
        "transaction.state.log.num.partitions",
    }
)


class KafkaServer(Server):
    """A single Kafka broker with its own controller (KRaft). By default topics must be created by their users."""

    name = "kafka"

    def __init__(
        self, folder: Path, port: int | None = None, flush_messages: int | None = None, *, defaults: bool = False
    ) -> None:
        """`flush_messages` 1 syncs every append to disk (`log.flush.interval.messages`); default: Kafka's own.

        `defaults`: as a broker is unpacked, it creates the topics that somebody asks for, with one partition.
        """
        super().__init__(folder, port)
        self.controller_port = free_port()
        self.node_id = 1
        self._flush_messages = flush_messages
        self._defaults = defaults

    @property
    def bootstrap(self) -> str:
        """The address for clients, `127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    def _command(self) -> Sequence[str]:
        install = installed_kafka()
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()))
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(install, properties)
        return [*java(install, HEAP), "kafka.Kafka", str(properties)]

    def _format(self, install: JavaInstall, properties: Path) -> None:
        tool = [
            *java(install, HEAP),
            "kafka.tools.StorageTool",
            "format",
            "-t",
            self._cluster_id(),
            "-c",
            str(properties),
        ]
        done = subprocess.run(tool, check=False, capture_output=True, text=True, timeout=READY_SECONDS)
        if done.returncode:
            raise ServiceError(f"kafka cannot format {self.folder}: {done.stdout[-500:]} {done.stderr[-500:]}")

    def _cluster_id(self) -> str:
        return new_cluster_id()

    def _properties(self) -> dict[str, object]:
        controller = f"127.0.0.1:{self.controller_port}"
        properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": self.node_id,
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"{self.node_id}@{controller}",
            "log.dirs": self.folder / "data",
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # A restart after SIGKILL is refused until the old session has ended.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            # Its default takes half of the small heap.
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "log.cleaner.threads": 1,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "controlled.shutdown.enable": "false",
        }
        if self._defaults:
            properties = {key: value for key, value in properties.items() if key not in NOT_KAFKAS_OWN}
        if self._flush_messages is not None:
            properties["log.flush.interval.messages"] = self._flush_messages
        return properties

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        return _in_thread(lambda: asyncio.run(_has_broker(self.bootstrap)))


class KafkaNode(KafkaServer):
    """One of the brokers of a KafkaCluster."""

    def __init__(self, cluster: KafkaCluster, node_id: int) -> None:
        super().__init__(cluster.folder / f"node-{node_id}")
        self.node_id = node_id
        self._cluster = cluster

    def _cluster_id(self) -> str:
        return self._cluster.id

    def _properties(self) -> dict[str, object]:
        nodes = self._cluster.nodes
        voters = ",".join(f"{node.node_id}@127.0.0.1:{node.controller_port}" for node in nodes)
        return {
            **super()._properties(),
            "controller.quorum.voters": voters,
            "min.insync.replicas": MIN_INSYNC,
            "offsets.topic.replication.factor": len(nodes),
            "transaction.state.log.replication.factor": len(nodes),
            "transaction.state.log.min.isr": MIN_INSYNC,
            "replica.lag.time.max.ms": 4000,
            "unclean.leader.election.enable": "false",
        }


class KafkaCluster:
    """Three brokers, each with a controller: topics of replication 3 outlive one of them (min.insync.replicas 2)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.id = new_cluster_id()
        self.nodes: list[KafkaNode] = []
        for number in range(1, CLUSTER + 1):
            self.nodes.append(KafkaNode(self, number))

    @property
    def bootstrap(self) -> str:
        """The addresses for clients, with commas between."""
        return ",".join(node.bootstrap for node in self.nodes)

    def start(self) -> None:
        """Start all and wait until they have found each other: a controller alone has no quorum."""
        try:
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait_ready()
            self._wait_whole()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        self.kill()  # in good order each would wait for the others

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def pause(self) -> None:
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        for node in self.nodes:
            node.resume()

    def leader(self, topic: str, partition: int) -> KafkaNode:
        """Return the broker that leads a partition now. Raises ServiceError if none does."""
        for node in self.nodes:
            if _in_thread(lambda: asyncio.run(_leader(self.bootstrap, topic, partition)) == node.node_id):  # noqa: B023
                return node
        raise ServiceError(f"kafka: {topic}[{partition}] has no leader")

    def _wait_whole(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not _in_thread(lambda: asyncio.run(_has_broker(self.bootstrap, CLUSTER))):
            if time.monotonic() > deadline:
                raise ServiceError(f"kafka: not all of {self.bootstrap} have found each other")
            time.sleep(POLL_SECONDS)


def installed_kafka() -> JavaInstall:
    """Return Kafka from the user's cache, fetched if missing, with its class data archive if Java can make one."""
    return with_archive(install(KAFKA), _ArchivingKafka)


class _ArchivingKafka(KafkaServer):
    """A broker that writes its class data archive when it ends in good order."""

    def __init__(self, folder: Path, install: JavaInstall) -> None:
        super().__init__(folder)
        self._install = install

    def _command(self) -> Sequence[str]:
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()))
        self._format(self._install, properties)
        program, *rest = java(self._install, HEAP)
        return [program, archives_into(self.folder), *rest, "kafka.Kafka", str(properties)]


def new_cluster_id() -> str:
    """Return a cluster id in Kafka's format: a UUID in URL-safe base64 that does not look like an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


async def _leader(bootstrap: str, topic: str, partition: int) -> int | None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    try:
        await client.bootstrap()
        await client.set_topics([topic])
        found: int | None = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        return found
    finally:
        await client.close()


async def _has_broker(bootstrap: str, brokers: int = 1) -> bool:
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    try:
        await client.bootstrap()
        return len(client.cluster.brokers()) >= brokers
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await client.close()


def _in_thread(question: Callable[[], bool]) -> bool:
    """Run `question` in a thread of its own: the caller may be in an event loop, and asyncio.run cannot be nested."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(question()))
    thread.start()
    thread.join()
    return bool(answers and answers[0])

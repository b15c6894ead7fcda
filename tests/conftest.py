"""Fixtures that start the real services, once a session and only if a test uses them."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.services import KafkaServer, NatsServer, end_orphans, installed_kafka, running

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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch Kafka before the first test if one needs it: a download must not count as a test's time.

    The objects made by collecting stay to the end, so they are hidden from the garbage collector.
    """
    gc.collect()
    gc.freeze()
    given = os.environ.get("CEREMONY_TEST_KAFKA") or session.config.option.collectonly
    if not given and any(_needs_kafka(item) for item in session.items):
        installed_kafka()


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


def _needs_kafka(item: pytest.Item) -> bool:
    asks = "kafka" in getattr(item, "fixturenames", ())
    return asks or hasattr(getattr(item, "module", None), KafkaServer.__name__)


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

"""Rows, stores and a changelog for the tests of the read models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import redis
from msgspec.structs import replace
from neo4j import GraphDatabase

from bridge.neo4j.client import Neo4jAddress
from bridge.neo4j.store import Neo4jStore
from bridge.projection.definitions import PinnedDefinitions
from bridge.projection.documents import Changes, Documents
from bridge.projection.dual_writes import DualWrites, Ledger
from bridge.projection.projector import Projector
from bridge.projection.rows import RowModel
from bridge.projection.store import Store
from bridge.valkey.client import ValkeyAddress
from bridge.valkey.store import ValkeyStore
from ports.clock import Clock
from ports.log import Log
from steps.registry import all_kinds
from tables.definition import Definition
from tables.instance import Instance
from tables.read_model import Document, Redact, document_of, nothing_redacted
from tests.conftest import Neo4jAddress as GivenNeo4j
from tests.conftest import ValkeyAddress as GivenValkey
from tests.services import NEVER, Neo4jServer, ValkeyServer
from tests.tables.world import BEGIN, World, definition_of

TOPIC = "t.ceremonies.changelog"
BODY = """
inputs: {optional: [note]}
states:
  - {id: OPEN, description: open, initial: true}
  - {id: DONE, description: done, terminal: true}
transitions:
  - {from: OPEN, to: DONE, trigger: finish, guards: [], description: finish}
steps:
  - {id: gather, state: OPEN, handler: aggregation_step, config: {sources: [note], aggregation_type: list}}
"""
DEFINITION = definition_of(BODY)


def row(instance_id: str, version: int = 1, *, correlation: str = "corr-1", life: int = 0, note: str = "x") -> Instance:
    """A running row; `life` counts the starts of one instance id, each of a later year."""
    world = World(DEFINITION)
    world.start(note=note)
    ceremony_id, _, story_id = instance_id.partition(":")
    year = life * 31_557_600_000
    return replace(
        world.live,
        instance_id=instance_id,
        ceremony_id=ceremony_id,
        story_id=story_id,
        version=version,
        correlation_id=correlation,
        created_at=BEGIN + year,
        updated_at=BEGIN + year + version,
    )


def document(*arguments: Any, **options: Any) -> Document:
    return document_of(row(*arguments, **options), nothing_redacted)


def row_projector(
    log: Log,
    store: Store,
    clock: Clock,
    *,
    prefix: str,
    partitions: int,
    ledger: Ledger | None = None,
    redact_by: Callable[[Definition | None], Redact] = lambda _: nothing_redacted,
) -> Projector[Changes]:
    """A projector of rows, as a worker builds it."""
    documents = Documents(PinnedDefinitions(log, all_kinds(), prefix=prefix), redact_by, clock)
    failed = DualWrites(log, ledger, clock, store=store.name, prefix=prefix, partitions=partitions)
    return Projector(log, RowModel(store, documents, failed, prefix=prefix), clock, partitions=partitions)


class ValkeySite:
    """A Valkey, seen by its readers."""

    def __init__(self, server: ValkeyServer | GivenValkey) -> None:
        self.address = ValkeyAddress(server.host, server.port, 0, lambda: server.password)
        self.client = redis.Redis(port=server.port, host=server.host, password=server.password, retry=NEVER)

    def store(self, topic: str = TOPIC) -> Store:
        return ValkeyStore(self.address, topic=topic)

    def wipe(self) -> None:
        self.client.flushdb()

    def versions(self) -> Mapping[str, int]:
        """Versions by instance id, after a check that sets and documents agree."""
        found: dict[str, int] = {}
        everyone = self._members("ceremony:instances:all")
        by_correlation: dict[str, set[str]] = {}
        for key in self._keys("ceremony:instance:*"):
            text: Any = self.client.get(key)
            if text is None:
                continue  # it has left since the keys were listed
            value = json.loads(text)
            found[value["instance_id"]] = value.get("version", 0)
            by_correlation.setdefault(value["correlation_id"], set()).add(value["instance_id"])
        assert everyone == found.keys()
        sets = {key.removeprefix("ceremony:instances:correlation:") for key in self._keys("*:correlation:*")}
        assert sets == by_correlation.keys()
        for correlation, members in by_correlation.items():
            assert self._members(f"ceremony:instances:correlation:{correlation}") == members
        return found

    def _keys(self, pattern: str) -> list[str]:
        keys: Any = self.client.keys(pattern)
        return [key.decode() for key in keys]

    def _members(self, key: str) -> set[str]:
        members: Any = self.client.smembers(key)
        return {member.decode() for member in members}

    def plant(self, instance_id: str) -> None:
        """Write a row as an older engine did."""
        value = json.dumps({"instance_id": instance_id, "correlation_id": "old", "current_state": "OPEN"})
        self.client.set(f"ceremony:instance:{instance_id}", value)
        self.client.sadd("ceremony:instances:all", instance_id)
        self.client.sadd("ceremony:instances:correlation:old", instance_id)

    def definitions(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for key in self._keys("ceremony:definition:*"):
            text: Any = self.client.get(key)
            found[key.removeprefix("ceremony:definition:")] = text.decode()
        return found

    def close(self) -> None:
        self.client.close()


class Neo4jSite:
    """A Neo4j, seen by its readers."""

    def __init__(self, server: Neo4jServer | GivenNeo4j) -> None:
        self.address = Neo4jAddress(server.uri, server.user, None, lambda: server.password)
        self.driver = GraphDatabase.driver(server.uri, auth=(server.user, server.password))

    def store(self, topic: str = TOPIC) -> Store:
        return Neo4jStore(self.address, topic=topic)

    def ask(self, statement: Any, **parameters: Any) -> list[dict[str, Any]]:
        return [dict(record) for record in self.driver.execute_query(statement, parameters).records]

    def wipe(self) -> None:
        self.ask("MATCH (n) DETACH DELETE n")
        for kind, many in (("CONSTRAINT", "CONSTRAINTS"), ("INDEX", "INDEXES")):
            for found in self.ask(f"SHOW {many} YIELD name WHERE name STARTS WITH 'ceremony_' RETURN name"):
                self.ask(f"DROP {kind} {found['name']}")

    def versions(self) -> Mapping[str, int]:
        """Versions by instance id, after a check that each node leads to one definition."""
        rows = self.ask(
            "MATCH (i:CeremonyInstance) OPTIONAL MATCH (i)-[:INSTANCE_OF]->(d:CeremonyDefinition)"
            " RETURN i.instance_id AS id, i.version AS version, i.definition_name AS name,"
            " collect({name: d.name, hash: d.hash}) AS definitions"
        )
        assert all(row["definitions"] == [{"name": row["name"], "hash": DEFINITION.hash}] for row in rows)
        return {row["id"]: row["version"] for row in rows}

    def plant(self, instance_id: str) -> None:
        self.ask(
            "MERGE (i:CeremonyInstance {instance_id: $id}) SET i.correlation_id = 'old'"
            " MERGE (d:CeremonyDefinition {name: 'probe'}) MERGE (i)-[:INSTANCE_OF]->(d)",
            id=instance_id,
        )

    def definitions(self) -> Mapping[str, str]:
        rows = self.ask("MATCH (d:CeremonyDefinition) WHERE d.text IS NOT NULL RETURN d.hash AS hash, d.text AS text")
        return {row["hash"]: row["text"] for row in rows}

    def close(self) -> None:
        self.driver.close()


Site = ValkeySite | Neo4jSite

"""The read model in Neo4j: a node for each instance, which leads to its pinned definition (specification 25.1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, LiteralString

from bridge.neo4j.client import NAME, Neo4jAddress, neo4j_errors, new_driver
from bridge.projection.store import StoredRow, StoreError, Write
from tables.read_model import Document, neo4j_properties

PAGE = 1000
# Two processes that prepare an empty store may meet.
MADE_BY_ANOTHER = "EquivalentSchemaRuleAlreadyExists"
# Without the constraints each MERGE would look at all nodes.
SCHEMA: Sequence[LiteralString] = (
    "CREATE CONSTRAINT ceremony_instance_id IF NOT EXISTS FOR (i:CeremonyInstance) REQUIRE i.instance_id IS UNIQUE",
    "CREATE INDEX ceremony_correlation_id IF NOT EXISTS FOR (i:CeremonyInstance) ON (i.correlation_id)",
    "CREATE CONSTRAINT ceremony_definition_hash IF NOT EXISTS FOR (d:CeremonyDefinition) REQUIRE d.hash IS UNIQUE",
    "CREATE CONSTRAINT ceremony_projector_id IF NOT EXISTS FOR (p:CeremonyProjector) REQUIRE p.id IS UNIQUE",
)
PLACES: LiteralString = """
MATCH (p:CeremonyProjector {topic: $topic}) WHERE p.place IS NOT NULL RETURN p.partition AS partition, p.place AS place
"""
SET_PLACES: LiteralString = """
UNWIND $places AS row
MERGE (p:CeremonyProjector {id: row.id}) SET p.topic = $topic, p.partition = row.partition, p.place = row.place
"""
# The first SET locks the node of the place; only then it is read, so that of two writers one sees the other's place.
WRITE: LiteralString = """
MERGE (p:CeremonyProjector {id: $id})
SET p.topic = $topic, p.partition = $partition
WITH p, coalesce(p.place, '') AS found
CALL (p, found) {
    WITH p, found WHERE found IN [$expected, $place]
    SET p.place = $place
    WITH p
    CALL () {
        UNWIND $definitions AS row
        MERGE (d:CeremonyDefinition {hash: row.hash})
        SET d.name = row.name, d.text = row.text
    }
    CALL () {
        UNWIND $pinned AS pinned
        MERGE (d:CeremonyDefinition {hash: pinned.hash}) ON CREATE SET d.name = pinned.name
        WITH d, pinned
        UNWIND pinned.rows AS row
        MERGE (i:CeremonyInstance {instance_id: row.id})
        WITH i, d, row
        WHERE i.version IS NULL OR i.created_at < row.created_at
            OR (i.created_at = row.created_at AND i.version <= row.version)
        SET i += row.properties
        WITH i, d, COLLECT { MATCH (i)-[link:INSTANCE_OF]->(other) RETURN [link, other] } AS links
        FOREACH (link IN [link IN links WHERE link[1] <> d | link[0]] | DELETE link)
        FOREACH (_ IN CASE WHEN none(link IN links WHERE link[1] = d) THEN [1] ELSE [] END |
            CREATE (i)-[:INSTANCE_OF]->(d))
    }
    CALL () {
        UNWIND $gone AS row
        MATCH (i:CeremonyInstance {instance_id: row.id})
        WHERE i.version IS NULL OR i.created_at < row.created_at
            OR (i.created_at = row.created_at AND i.version <= row.version)
        DETACH DELETE i
    }
}
RETURN CASE WHEN found IN [$expected, $place] THEN $place ELSE found END AS place
"""
IDS: LiteralString = """
MATCH (i:CeremonyInstance) WHERE i.instance_id > $after
RETURN i.instance_id AS id ORDER BY i.instance_id LIMIT $most
"""
ROWS: LiteralString = """
UNWIND $ids AS id MATCH (i:CeremonyInstance {instance_id: id}) RETURN properties(i) AS properties
"""
DEFINITIONS: LiteralString = """
UNWIND $hashes AS hash MATCH (d:CeremonyDefinition {hash: hash}) WHERE d.text IS NOT NULL
RETURN d.hash AS hash, d.text AS text
"""


class Neo4jStore:
    """Implements `Store`: each write is one statement, in a transaction of its own."""

    name = NAME

    def __init__(self, address: Neo4jAddress, *, topic: str) -> None:
        """`topic`: the changelog, whose places stand under its name."""
        self._address = address
        self._topic = topic
        self._driver = new_driver(address)
        self._opening = asyncio.Lock()
        """Statements about the schema block each other."""

    async def open(self) -> None:
        async with self._opening:
            for statement in SCHEMA:
                try:
                    await self._run(statement)
                except StoreError as error:
                    if MADE_BY_ANOTHER not in error.reason:
                        raise

    async def places(self) -> Mapping[int, str]:
        return {row["partition"]: row["place"] for row in await self._run(PLACES, topic=self._topic)}

    async def write(self, write: Write) -> str:
        (row,) = await self._run(
            WRITE,
            id=self._id(write.partition),
            topic=self._topic,
            partition=write.partition,
            expected=write.expected,
            place=write.place,
            pinned=_by_definition(write.documents),
            gone=[
                {"id": gone.instance_id, "created_at": gone.created_at, "version": gone.version} for gone in write.gone
            ],
            definitions=[
                {"hash": digest, "name": name, "text": text}
                for digest, (name, text) in (write.definitions or {}).items()
            ],
        )
        return str(row["place"])

    async def set_places(self, places: Mapping[int, str]) -> None:
        rows = [{"id": self._id(number), "partition": number, "place": place} for number, place in places.items()]
        await self._run(SET_PLACES, topic=self._topic, places=rows)

    async def instance_ids(self) -> AsyncIterator[Sequence[str]]:
        after = ""
        while page := [str(row["id"]) for row in await self._run(IDS, after=after, most=PAGE)]:
            yield page
            after = page[-1]

    async def rows(self, instance_ids: Collection[str]) -> Sequence[StoredRow]:
        found = [row["properties"] for row in await self._run(ROWS, ids=list(instance_ids))]
        return [_stored(properties) for properties in found]

    async def definitions(self, hashes: Collection[str]) -> Mapping[str, str]:
        found = await self._run(DEFINITIONS, hashes=list(hashes))
        return {str(row["hash"]): str(row["text"]) for row in found}

    async def close(self) -> None:
        with neo4j_errors(self._address):
            await self._driver.close()

    def _id(self, partition: int) -> str:
        return f"{self._topic}/{partition}"

    async def _run(self, statement: LiteralString, **parameters: Any) -> Sequence[Mapping[str, Any]]:
        with neo4j_errors(self._address):
            async with self._driver.session(database=self._address.database) as session:
                result = await session.run(statement, parameters)
                return await result.data()


def _by_definition(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Return rows below their definition, which is so looked up once for all of them."""
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        new = {"hash": document.definition_hash, "name": document.definition_name, "rows": []}
        found.setdefault(document.definition_hash, new)["rows"].append(_row(document))
    return list(found.values())


def _row(document: Document) -> dict[str, Any]:
    return {
        "id": document.instance_id,
        "version": document.version,
        "created_at": document.created_at,
        "properties": neo4j_properties(document),
    }


def _stored(properties: Mapping[str, Any]) -> StoredRow:
    version = properties.get("version")
    if not isinstance(version, int):
        return StoredRow(str(properties["instance_id"]), 0, properties)
    return StoredRow(str(properties["instance_id"]), version, properties)

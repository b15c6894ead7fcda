"""Collects the read models from outside, by their keys and properties in the specification, and judges them.

A store is compared with the service: the tables are the truth, and the service reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis.asyncio as redis
from neo4j import AsyncGraphDatabase

from tests.checker.recording import Instance, StoredInstance
from tests.checker.violations import Violation

PREFIX = "ceremony:instance:"
ALL = "ceremony:instances:all"
BY_CORRELATION = "ceremony:instances:correlation:"
BATCH = 500
NODES = """
MATCH (i:CeremonyInstance)
OPTIONAL MATCH (i)-[:INSTANCE_OF]->(d:CeremonyDefinition)
RETURN properties(i) AS properties, collect([d.name, d.hash]) AS definitions
"""
COMPARED = ("definition_name", "definition_hash", "current_state", "status", "version", "correlation_id")


async def collect_valkey(url: str) -> list[StoredInstance]:
    """Every instance of a Valkey, `redis://:password@host:port`."""
    async with redis.from_url(url, decode_responses=True) as client:
        keys = sorted([key async for key in client.scan_iter(f"{PREFIX}*", count=BATCH)])
        everything = {str(member) for member in await client.smembers(ALL)}
        found = []
        for begin in range(0, len(keys), BATCH):
            page = keys[begin : begin + BATCH]
            for key, value in zip(page, await client.mget(page), strict=True):
                if value is not None:
                    found.append(await _from_valkey(client, key.removeprefix(PREFIX), json.loads(value), everything))
        strays = everything - {one.instance_id for one in found}
        return found + [StoredInstance(instance_id, problem=f"only in the set {ALL}") for instance_id in strays]


async def _from_valkey(client: Any, instance_id: str, value: Mapping[str, Any], everything: set[str]) -> StoredInstance:
    correlated = await client.sismember(f"{BY_CORRELATION}{value['correlation_id']}", instance_id)
    problems = [
        *([] if value["instance_id"] == instance_id else [f"its key is that of {value['instance_id']}"]),
        *([] if instance_id in everything else [f"not in the set {ALL}"]),
        *([] if correlated else ["not in the set of its correlation id"]),
    ]
    return StoredInstance(
        instance_id,
        **{name: value[name] for name in COMPARED},
        step_status=value["step_status"],
        step_outputs=value["step_outputs"],
        problem="; ".join(problems),
    )


async def collect_neo4j(uri: str, user: str, password: str) -> list[StoredInstance]:
    """Every instance of a Neo4j, `bolt://host:port`."""
    async with AsyncGraphDatabase.driver(uri, auth=(user, password)) as driver:
        records, _, _ = await driver.execute_query(NODES)
    return [_from_neo4j(record["properties"], record["definitions"]) for record in records]


def _from_neo4j(properties: Mapping[str, Any], definitions: Sequence[Sequence[str]]) -> StoredInstance:
    name, digest = definitions[0] if len(definitions) == 1 else ("", "")
    wrong = name != properties["definition_name"]
    return StoredInstance(
        properties["instance_id"],
        **{name: properties[name] for name in COMPARED if name != "definition_hash"},
        definition_hash=digest or "",
        step_status=json.loads(properties["step_status_json"]),
        step_outputs=json.loads(properties["step_outputs_json"]),
        problem=f"it is an instance of {definitions}" if wrong else "",
    )


def store_violations(
    store: str, stored: Sequence[StoredInstance], instances: Sequence[Instance]
) -> Iterator[Violation]:
    """Compare a store with the instances that the service shows."""
    shown = {instance.instance_id: instance for instance in instances}
    held = {one.instance_id: one for one in stored}
    for instance_id in sorted(shown.keys() - held.keys()):
        yield Violation("store_missing", instance_id, 0, f"the service shows it, {store} does not have it")
    for instance_id in sorted(held.keys() - shown.keys()):
        yield Violation("store_stray", instance_id, 0, f"{store} has it, the service does not")
    for instance_id in sorted(held.keys() & shown.keys()):
        one = held[instance_id]
        if one.problem:
            yield Violation("store_index_differs", instance_id, 0, f"{store}: {one.problem}")
        for name, here, there in _differences(one, shown[instance_id]):
            text = f"{name} is {here!r:.200} in {store}, and {there!r:.200} for the service"
            yield Violation("store_differs", instance_id, 0, text)


def _differences(stored: StoredInstance, shown: Instance) -> Iterator[tuple[str, Any, Any]]:
    for name in COMPARED:
        here, there = getattr(stored, name), getattr(shown, name)
        if here != there:
            yield name, here, there
    if dict(stored.step_status) != dict(shown.step_status):
        yield "step_status", dict(stored.step_status), dict(shown.step_status)
    outputs = {step: json.loads(output) for step, output in shown.step_outputs.items()}
    if dict(stored.step_outputs) != outputs:
        yield "step_outputs", dict(stored.step_outputs), outputs

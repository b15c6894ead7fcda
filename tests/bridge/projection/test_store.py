"""The stores: whole writes, never over a newer version, and only from the place that they continue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from bridge.neo4j.client import Neo4jAddress
from bridge.neo4j.store import Neo4jStore
from bridge.projection.store import Gone, Place, Store, StoreError, Write
from bridge.valkey.client import ValkeyAddress
from bridge.valkey.store import ValkeyStore
from tables.read_model import Document, neo4j_properties, valkey_json
from tests.bridge.projection.world import DEFINITION, TOPIC, Neo4jSite, Site, ValkeySite, document
from tests.services import free_port


@pytest.fixture
async def store(site: Site) -> AsyncIterator[Store]:
    store = site.store()
    await store.open()
    yield store
    await store.close()


async def wrote(store: Store, *documents: Document, gone: tuple[Gone, ...] = (), **options: Any) -> None:
    """Write to partition 0 from the place that the store has."""
    before = (await store.places()).get(0, "")
    following = (Place.read(before) or Place(0)).next + 1
    write = Write(0, before, Place(following).text, documents, gone, **options)
    assert await store.write(write) == write.place


async def test_a_write_brings_rows_and_place_together(site: Site, store: Store) -> None:
    # specification 25.1, 25.4
    first, second = document("c1:s1", correlation="a"), document("c2:s1", 7, correlation="b")
    await wrote(store, first, second, definitions={DEFINITION.hash: (DEFINITION.name, DEFINITION.text)})
    assert site.versions() == {"c1:s1": 1, "c2:s1": 7}
    assert site.definitions() == {DEFINITION.hash: DEFINITION.text}
    assert await store.places() == {0: Place(1).text}
    (stored,) = await store.rows(["c2:s1", "none:s1"])
    expected = valkey_json(second) if isinstance(site, ValkeySite) else neo4j_properties(second)
    assert stored == ("c2:s1", 7, expected)


async def test_a_row_never_replaces_a_newer_version(site: Site, store: Store) -> None:
    # specification 25.4
    await wrote(store, document("c1:s1", 5, note="newer"))
    await wrote(store, document("c1:s1", 4, note="older"))
    assert site.versions() == {"c1:s1": 5}
    await wrote(store, gone=(Gone("c1:s1", document("c1:s1").created_at, 4),))
    assert site.versions() == {"c1:s1": 5}
    await wrote(store, document("c1:s1", 5, note="again"))
    (stored,) = await store.rows(["c1:s1"])
    assert "again" in str(stored.document)


async def test_a_write_from_another_place_changes_nothing(site: Site, store: Store) -> None:
    # specification 25.5
    await wrote(store, document("c1:s1", 1))
    late = Write(0, "", Place(99).text, [document("c1:s1", 2)], [Gone("c1:s1")])
    assert await store.write(late) == Place(1).text
    assert site.versions() == {"c1:s1": 1}
    assert await store.places() == {0: Place(1).text}
    assert await store.write(Write(1, Place(5).text, Place(6).text, [document("c9:s1")])) == ""
    assert site.versions() == {"c1:s1": 1}


async def test_a_write_whose_answer_was_lost_can_be_repeated(site: Site, store: Store) -> None:
    write = Write(0, "", Place(3).text, [document("c1:s1", 1)])
    assert await store.write(write) == await store.write(write) == write.place
    assert site.versions() == {"c1:s1": 1}


async def test_a_row_that_leaves_is_in_no_set_any_more(site: Site, store: Store) -> None:
    # specification 25.6
    await wrote(store, document("c1:s1", 3, correlation='with "escapes"'), document("c2:s1", correlation="b"))
    await wrote(store, gone=(Gone("c1:s1"), Gone("unknown:s1")))
    assert site.versions() == {"c2:s1": 1}


async def test_a_new_life_of_an_id_replaces_the_former_one_whatever_its_version(site: Site, store: Store) -> None:
    # specification 25.4
    await wrote(store, document("c1:s1", 57, correlation="former"))
    await wrote(store, document("c1:s1", 1, correlation="new", life=1))
    assert site.versions() == {"c1:s1": 1}
    await wrote(store, document("c1:s1", 58, correlation="former"), gone=(Gone("c1:s1", document("c1:s1").created_at),))
    assert site.versions() == {"c1:s1": 1}


async def test_a_row_of_an_older_engine_is_replaced(site: Site, store: Store) -> None:
    site.plant("c1:s1")
    await wrote(store, document("c1:s1"))
    assert site.versions() == {"c1:s1": 1}


async def test_all_ids_can_be_listed_in_pages(store: Store) -> None:
    ids = {f"c{number}:s1" for number in range(2300)}
    template = document("c1:s1")
    everyone = [replace(template, instance_id=instance_id) for instance_id in sorted(ids)]
    await wrote(store, *everyone)
    found = [instance_id async for page in store.instance_ids() for instance_id in page]
    assert set(found) == ids and len(found) >= len(ids)


async def test_places_can_be_set_for_a_rebuild(store: Store) -> None:
    await wrote(store, document("c1:s1"))
    await store.set_places({0: Place(0, "again").text, 3: Place(0, "again").text})
    assert await store.places() == {0: Place(0, "again").text, 3: Place(0, "again").text}


async def test_neo4j_has_its_constraints_and_index_before_the_first_row(site: Site, store: Store) -> None:
    # specification 25.7
    assert await store.places() == {}
    if not isinstance(site, Neo4jSite):
        return
    constraints = site.ask("SHOW CONSTRAINTS YIELD type, labelsOrTypes, properties RETURN labelsOrTypes, properties")
    assert {"labelsOrTypes": ["CeremonyInstance"], "properties": ["instance_id"]} in constraints
    assert {"labelsOrTypes": ["CeremonyDefinition"], "properties": ["hash"]} in constraints
    indexes = site.ask("SHOW INDEXES YIELD labelsOrTypes, properties RETURN labelsOrTypes, properties")
    assert {"labelsOrTypes": ["CeremonyInstance"], "properties": ["correlation_id"]} in indexes


async def test_an_empty_store_can_be_prepared_for_several_partitions_at_once(site: Site, store: Store) -> None:
    site.wipe()
    await asyncio.gather(*(store.open() for _ in range(4)))
    await wrote(store, document("c1:s1"))


async def test_a_definition_is_one_node_for_each_hash(site: Site, store: Store) -> None:
    # specification 25.7
    if not isinstance(site, Neo4jSite):
        return
    other = {"0" * 64: (DEFINITION.name, "an earlier text")}
    await wrote(store, document("c1:s1"), document("c2:s1"), definitions=other)
    nodes = site.ask("MATCH (d:CeremonyDefinition) RETURN d.name AS name, d.hash AS hash ORDER BY hash")
    assert nodes == [{"name": "probe", "hash": "0" * 64}, {"name": "probe", "hash": DEFINITION.hash}]


@pytest.mark.parametrize("name", ["valkey", "neo4j"])
async def test_a_store_that_is_away_is_one_line_with_its_address(name: str) -> None:
    port = free_port()
    store: Store
    if name == "valkey":
        store = ValkeyStore(ValkeyAddress("127.0.0.1", port, 0, lambda: "hunter2"), topic=TOPIC)
    else:
        store = Neo4jStore(Neo4jAddress(f"bolt://127.0.0.1:{port}", "neo4j", None, lambda: "hunter2"), topic=TOPIC)
    with pytest.raises(StoreError, match=rf"no connection to .*127\.0\.0\.1:{port}") as caught:
        await store.places()
    assert "hunter2" not in str(caught.value) and caught.value.code == f"{name}_unavailable"
    await store.close()


async def test_a_refused_password_is_named_as_such(site: Site) -> None:
    store: Store
    if isinstance(site, ValkeySite):
        store = ValkeyStore(ValkeyAddress(site.address.host, site.address.port, 0, lambda: "hunter2"), topic=TOPIC)
    else:
        store = Neo4jStore(Neo4jAddress(site.address.uri, "neo4j", None, lambda: "hunter2"), topic=TOPIC)
    with pytest.raises(StoreError, match="is refused"):
        await store.places()
    await store.close()


async def test_the_document_in_the_store_is_the_documented_json(site: Site, store: Store) -> None:
    # specification 25.1
    await wrote(store, document("c1:s1", note="the note"))
    if isinstance(site, ValkeySite):
        value: Any = site.client.get("ceremony:instance:c1:s1")
        assert json.loads(value)["inputs"]["note"] == "the note"
    else:
        (row,) = site.ask("MATCH (i:CeremonyInstance) RETURN i.engine AS engine, i.version AS version")
        assert json.loads(row["engine"])["inputs"]["note"] == "the note" and row["version"] == 1

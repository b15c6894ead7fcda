"""Each test of a store runs on a real Valkey and on a real Neo4j, emptied before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bridge.projection.world import Neo4jSite, Site, ValkeySite


@pytest.fixture(params=["valkey", "neo4j"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    server = request.getfixturevalue(request.param)
    site = ValkeySite(server) if request.param == "valkey" else Neo4jSite(server)
    site.wipe()
    yield site
    site.close()

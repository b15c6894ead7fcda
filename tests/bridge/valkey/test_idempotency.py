"""The idempotency store on a real Valkey: claims, leases, results, and a server that hangs or is gone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis.asyncio as redis

from bridge.clock import HostClock
from bridge.valkey.client import valkey_client
from bridge.valkey.idempotency import COMPLETED_KEPT_SECONDS, LEASE_SECONDS, ValkeyIdempotency
from ports.errors import Unreachable
from ports.idempotency import HeldByAnother
from ports.outbound import Published
from tests.conftest import ValkeyAddress
from tests.services import ValkeyServer, running

SENT = Published("CEREMONY", 7, duplicate=False)


@pytest.fixture
async def client(valkey: ValkeyServer | ValkeyAddress) -> AsyncIterator[redis.Redis]:
    async with connected(valkey) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"publish/c1:{uuid4()}/tell/1"


def connected(server: ValkeyServer | ValkeyAddress) -> redis.Redis:
    return valkey_client(server.host, server.port, 0, lambda: server.password)


def store(client: redis.Redis, owner: str = "ana") -> ValkeyIdempotency:
    return ValkeyIdempotency(client, HostClock(), owner)


async def mark_of(client: redis.Redis, key: str) -> dict[str, object]:
    value = await client.get(f"idempotency:{key}")
    assert value is not None
    found: dict[str, object] = json.loads(value)
    return found


async def test_a_claim_is_in_progress_until_its_lease_ends(client: redis.Redis, key: str) -> None:
    # specification 9.11
    assert await store(client).claim(key) is None
    mark = await mark_of(client, key)
    assert (mark["state"], mark["owner"]) == ("IN_PROGRESS", "ana")
    assert str(mark["timestamp"]).endswith("+00:00")
    assert 0 < await client.pttl(f"idempotency:{key}") <= LEASE_SECONDS * 1000


async def test_a_claim_is_refused_to_another_worker_and_repeated_for_its_holder(client: redis.Redis, key: str) -> None:
    """A worker that restarts under its name goes on at once."""
    await store(client).claim(key)
    held = await store(client, "ben").claim(key)
    assert isinstance(held, HeldByAnother) and 0 < held.seconds <= LEASE_SECONDS
    assert await store(client).claim(key) is None


async def test_a_claim_whose_lease_has_ended_is_taken_over(client: redis.Redis, key: str) -> None:
    # specification 9.11
    await store(client).claim(key)
    await client.pexpire(f"idempotency:{key}", 1)
    while await client.exists(f"idempotency:{key}"):
        pass
    assert await store(client, "ben").claim(key) is None
    assert (await mark_of(client, key))["owner"] == "ben"


async def test_a_completed_message_is_known_to_every_worker(client: redis.Redis, key: str) -> None:
    # specification 9.11
    await store(client).claim(key)
    await store(client).complete(key, SENT)
    assert await store(client, "ben").claim(key) == Published("CEREMONY", 7, duplicate=True)
    mark = await mark_of(client, key)
    assert (mark["state"], mark["stream"], mark["sequence"]) == ("COMPLETED", "CEREMONY", 7)
    assert COMPLETED_KEPT_SECONDS - 60 < await client.ttl(f"idempotency:{key}") <= COMPLETED_KEPT_SECONDS


@pytest.mark.parametrize("value", ["not JSON", "[]", "7", '{"state":"ODD"}'])
async def test_a_value_that_is_no_mark_is_replaced(client: redis.Redis, key: str, value: str) -> None:
    await client.set(f"idempotency:{key}", value)
    assert await store(client).claim(key) is None
    assert (await mark_of(client, key))["state"] == "IN_PROGRESS"


async def test_a_mark_of_the_older_engine_counts_as_completed(client: redis.Redis, key: str) -> None:
    await client.set(f"idempotency:{key}", '{"state":"COMPLETED","timestamp":"2026-01-01T00:00:00Z"}')
    assert await store(client).claim(key) == Published("", 0, duplicate=True)


async def test_a_server_that_hangs_or_is_gone_is_unreachable(tmp_path: Path) -> None:
    # specification 9.11
    with running(ValkeyServer(tmp_path)) as server:
        async with connected(server) as client:
            assert await store(client).claim("a") is None
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            try:
                with pytest.raises(Unreachable, match="no answer within"):
                    await store(client).claim("b")
            finally:
                os.kill(server.pid, signal.SIGCONT)
            server.kill()
            with pytest.raises(Unreachable, match="the call failed"):
                await store(client).complete("a", SENT)

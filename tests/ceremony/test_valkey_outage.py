"""An outage of Valkey is told once, and its end too, however many parts of a worker use it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from bridge.projection.store import StoreError
from ceremony.build import Parts
from ceremony.settings import read_settings
from ports.errors import Unreachable
from streams.outages import CALLS_SETTLE_SECONDS, SUMMARY_SECONDS
from tests.services import ValkeyServer, running
from tests.streams.fakes import HandClock

SPECS = Path(__file__).parents[2] / "specs/ceremonies"


def parts_of(folder: Path, clock: HandClock, server: ValkeyServer, *roles: str) -> Parts:
    options: dict[str, Any] = {
        "roles": roles,
        "log": f"sqlite:///{folder}/log.db",
        "state": "memory",
        "ceremonies_dir": SPECS,
        "valkey_host": server.host,
        "valkey_port": server.port,
        "valkey_password": server.password,
    }
    return Parts(read_settings(options), clock)


async def ask_all(parts: Parts) -> None:
    """Make a call of each part that tells of Valkey."""
    assert parts.idempotency is not None
    with contextlib.suppress(Unreachable):
        await parts.idempotency.claim("publish/c1:s1/tell/1")
    for projector in parts.projectors:
        with contextlib.suppress(StoreError):
            await projector.calls.once(projector.store.places)


def outages(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(line["event"], line["neighbour"]) for line in lines if line["event"].startswith("neighbour_")]


async def close(parts: Parts) -> None:
    for one in (parts.idempotency, parts.history_copy, *(projector.store for projector in parts.projectors)):
        if one is not None:
            await one.close()


def pass_by(parts: Parts, clock: HandClock, seconds: float) -> None:
    """Let time pass in which nobody calls Valkey."""
    clock.seconds += seconds
    for outage in parts.outages:
        outage.tick()


@pytest.mark.parametrize("roles", [("engine",), ("engine", "projector")])
async def test_an_outage_of_valkey_is_told_once_each_minute_and_at_its_end(
    tmp_path: Path, roles: tuple[str, ...]
) -> None:
    # specification 30.6
    clock, server = HandClock(), ValkeyServer(tmp_path / "valkey")
    with running(server), structlog.testing.capture_logs() as lines:
        parts = parts_of(tmp_path, clock, server, *roles)
        assert len(parts.projectors) == (2 if "projector" in roles else 0)
        server.kill()
        await ask_all(parts)
        assert outages(lines) == [("neighbour_fails", "valkey")]
        pass_by(parts, clock, SUMMARY_SECONDS)
        assert outages(lines)[1:] == [("neighbour_still_fails", "valkey")]
        server.start()
        await ask_all(parts)
        pass_by(parts, clock, CALLS_SETTLE_SECONDS)
        assert outages(lines)[2:] == [("neighbour_back", "valkey")]
        await close(parts)

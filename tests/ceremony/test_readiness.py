"""The states of a worker's neighbours, and which of them decide readiness by default."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ceremony.readiness import Readiness
from ceremony.settings import read_settings

FULL = "stream ORDERS does not take a message: maximum messages exceeded (10077)"


def states(*roles: str) -> dict[str, str]:
    engine: Any = SimpleNamespace(partitions=SimpleNamespace(readiness=lambda: {"log": "ok", "tables": "ok"}))
    nats: Any = SimpleNamespace(is_connected=True)
    outbound: Any = SimpleNamespace(state=FULL)
    return Readiness(roles, engine, nats, [], outbound).states()


def test_a_stream_that_refuses_the_messages_of_publish_steps_is_named() -> None:
    # specification 16.11
    assert states("engine")["publications"] == FULL
    assert states("engine", "bridge")["nats"] == "ok"


def test_a_bridge_alone_performs_no_publish_step() -> None:
    assert "publications" not in states("bridge")


def test_a_stream_of_one_definition_does_not_end_readiness_unless_it_is_required() -> None:
    # specification 16.11
    assert "publications" not in read_settings({}).required
    assert "publications" in read_settings({"readiness_requires": ("log", "publications")}).required

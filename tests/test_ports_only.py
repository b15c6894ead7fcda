"""Nothing outside the ports sleeps, starts tasks, asks for the time, draws a number or speaks to a neighbour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ports_only import PACKAGES, findings, findings_below, forbidden

pytestmark = pytest.mark.uncounted
ROOT = Path(__file__).parent.parent

# Path pattern → top-level modules and names that may be used there, each with its reason.
ALLOWED = {
    # The Clock port itself, and the ids that the front draws for a command before it is in the log.
    "bridge/clock.py": frozenset({"time", "uuid", "asyncio.sleep", "asyncio.create_task", "asyncio.timeout"}),
    # One family of modules per neighbour may import that neighbour's client.
    "bridge/nats/*.py": frozenset({"nats"}),
    "bridge/valkey/*.py": frozenset({"redis"}),
    "bridge/neo4j/*.py": frozenset({"neo4j"}),
    # The library sends from a thread of its own, and a stop waits for it in another.
    "bridge/otel/*.py": frozenset({"opentelemetry", "asyncio.to_thread"}),
    "bridge/ray/executor.py": frozenset({"grpc"}),
    "bridge/grpc/*.py": frozenset({"grpc", "grpc_health", "grpc_reflection"}),
    # A small neighbour: it speaks both protocols and draws its random numbers from a seed.
    "ceremony/dev/ray_simulation/*.py": frozenset({"grpc", "grpc_health", "nats", "random"}),
    # It takes over the hook for errors of threads, and starts none.
    "ceremony/raw_lines.py": frozenset({"threading"}),
    # The drivers are the log's own side of the port; Faust and aiokafka are known here only.
    "streams/transport/*.py": frozenset({"aiokafka", "faust", "mode"}),
    # Disk operations run in the one thread of the row stores.
    "streams/transport/partition/rocks_*.py": frozenset({"concurrent", "loop.run_in_executor"}),
    # SQLite blocks: its commits run in the one thread of the file.
    "streams/transport/sqlite/*.py": frozenset({"sqlite3", "concurrent", "loop.run_in_executor"}),
}


def test_clocks_randomness_and_clients_are_used_in_the_ports_only() -> None:
    """Each use outside the allow-list is named with its file and line."""
    found = [str(finding) for finding in findings_below(ROOT) if forbidden(finding, ALLOWED)]
    assert not found, "use the protocols of ports/ instead:\n" + "\n".join(found)


def test_the_pure_core_has_no_entry_in_the_allow_list() -> None:
    """Entries exist for bridge/, ceremony/ and the drivers, never for tables/ or steps/."""
    assert all(pattern.startswith(("bridge/", "streams/transport/", "ceremony/")) for pattern in ALLOWED)
    assert all(any((ROOT / package).rglob("*.py")) for package in PACKAGES)


def test_every_entry_of_the_allow_list_is_needed() -> None:
    """An entry that covers nothing is out of date."""
    found = list(findings_below(ROOT))
    for pattern, names in ALLOWED.items():
        for name in names:
            assert any(not forbidden(finding, {pattern: frozenset({name})}) for finding in found), (pattern, name)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time", ["m.py:1: time"]),
        ("import os\nfrom time import monotonic", ["m.py:2: time"]),
        ("def f():\n    import random as r", ["m.py:2: random"]),
        ("from uuid import uuid4", ["m.py:1: uuid"]),
        ("import nats.js", ["m.py:1: nats.js"]),
        ("from urllib import request", ["m.py:1: urllib.request"]),
        ("__import__('time')", ["m.py:1: time"]),
        ("import importlib\nimportlib.import_module('grpc.aio')", ["m.py:2: grpc.aio"]),
        ("from datetime import datetime, UTC\nx = datetime.now(UTC)", ["m.py:2: datetime.datetime.now"]),
        ("import datetime as dt\nx = dt.datetime.utcnow", ["m.py:2: datetime.datetime.utcnow"]),
        ("from datetime import date\ndate.today()", ["m.py:2: datetime.date.today"]),
        ("import asyncio\nawait asyncio.sleep(0)", ["m.py:2: asyncio.sleep"]),
        ("from asyncio import create_task as spawn\nspawn(f())", ["m.py:2: asyncio.create_task"]),
        ("import asyncio\nasyncio.get_running_loop().call_later(1, f)", ["m.py:2: loop.call_later"]),
        ("import asyncio\nawait asyncio.wait(tasks, timeout=1)", ["m.py:2: asyncio.wait(timeout=)"]),
        ("import asyncio\nawait asyncio.gather(f(), g())", ["m.py:2: asyncio.gather"]),
        ("import asyncio\nasync with asyncio.TaskGroup() as g: ...", ["m.py:2: asyncio.TaskGroup"]),
    ],
)
def test_a_planted_use_is_found(source: str, found: list[str]) -> None:
    """Each way to bypass the ports is found, under another name too."""
    assert [str(finding) for finding in findings(source, "m.py")] == found


@pytest.mark.parametrize(
    "source",
    [
        "await clock.sleep(1)\nclock.spawn(f(), name='f')",
        "from datetime import datetime\ndatetime.fromisoformat('2026-01-01')",
        "import asyncio\nawait asyncio.wait(tasks)\nawait asyncio.gather(*tasks)\nasyncio.Event()",
        "from urllib.parse import urlsplit",
        "from .time import x\ntime = 1\nrow.now()",
    ],
)
def test_an_innocent_use_is_not_found(source: str) -> None:
    """Calls through the ports and waits for tasks are no findings."""
    assert findings(source, "m.py") == []

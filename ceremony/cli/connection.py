"""The connection of a verb to the engine: its address, and its errors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ceremony.cli.errors import CommandFailed, Exit, refused
from ceremony.cli.options import DEFAULT_SERVER

if TYPE_CHECKING:
    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient

DEV_FILE = Path(".ceremony/dev.json")
CONNECT_SECONDS = 3.0
# Of gRPC's own forms of an address.
SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "xds:", "passthrough:")

Result = TypeVar("Result")

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="CEREMONY_SERVER",
        help="The engine, host:port. Without it: the address in ./.ceremony/dev.json, written by `ceremony dev`, "
        f"else {DEFAULT_SERVER}.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Server:
    """An address, and the remedy if nothing answers there."""

    address: str
    source: str = ""


def server(given: str | None) -> Server:
    """The engine to call: the given address, else the `ceremony dev` of this folder, else the default."""
    if given:
        return Server(given, "start one with `ceremony dev`, or name another with --server or CEREMONY_SERVER")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        dev = json.loads(DEV_FILE.read_text())
        if runs(int(dev["pid"])):
            return Server(str(dev["grpc"]), f"`ceremony dev` (process {dev['pid']}, {DEV_FILE}) does not answer")
        return Server(str(dev["grpc"]), f"the `ceremony dev` of {DEV_FILE} has ended: start it again, or use --server")
    return Server(DEFAULT_SERVER, "start one with `ceremony dev`, or name another with --server or CEREMONY_SERVER")


def runs(pid: int) -> bool:
    """Return whether a process has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def call(given: str | None, work: Callable[[AsyncPlanningCeremonyClient], Awaitable[Result]]) -> Result:
    """Do `work` with a client of the engine. Raises CommandFailed when it cannot be reached or refuses."""
    import asyncio

    from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient, PlanningCeremonyError

    async def connected() -> Result:
        at = server(given)
        await _knock(at)
        async with AsyncPlanningCeremonyClient(at.address) as client:
            return await work(client)

    try:
        return asyncio.run(connected())
    except PlanningCeremonyError as error:
        raise refused(error.status.name, error.message) from None


async def _knock(at: Server) -> None:
    """Check that something listens at the address. gRPC itself would try for some seconds before it fails."""
    import asyncio

    from bridge.clock import HostClock

    if at.address.startswith(SCHEMES):
        return  # a target of gRPC
    host, _, port = at.address.rpartition(":")
    if "/" in at.address or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):  # noqa: PLR2004 - the range of ports
        raise CommandFailed("server_malformed", f"{at.address!r} is not host:port", Exit.USAGE)
    try:
        async with HostClock().timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError, ValueError):
        text = f"nothing answers at {at.address}; {at.source}"
        raise CommandFailed("unavailable", text, Exit.UNAVAILABLE) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()

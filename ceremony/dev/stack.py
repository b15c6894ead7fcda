"""`ceremony dev`: the engine with everything it needs, in one folder: log, nats-server, a simulated Ray executor."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from ceremony.dev.nats_server import NatsServer
from ceremony.dev.private import make_private_folder, write_private
from ceremony.dev.ray_simulation import Knobs, RaySimulation
from ceremony.errors import DevError, NatsServerError, one_line
from ceremony.settings import read_settings
from ceremony.worker import worker_of_process
from ports.clock import Clock
from ports.masking import masked_address

HOST = "127.0.0.1"
# Used if it is free: clients try it by default.
GRPC_PORT = 50057
# Below the ephemeral ports: a client that redials a dead server could be given that server's port as its own.
NATS_PORTS = range(24_222, 24_622, 2)
NATS_ATTEMPTS = 5
READY_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class DevOptions:
    """Addresses are `host:port`; port 0 takes a free one. For None the last run's value is used, if it is free."""

    folder: Path
    log: str | None = None
    """None: an SQLite file in the folder."""
    grpc_addr: str | None = None
    http_addr: str | None = None
    nats_port: int | None = None
    ceremonies_dir: Path | None = None
    topic_prefix: str | None = None
    knobs: Knobs = field(default_factory=Knobs)


@dataclass(frozen=True, slots=True)
class Running:
    """The running parts, as `dev.json` lists them."""

    grpc: str
    http: str
    nats: str
    ray_executor: str
    log: str
    folder: str
    ceremonies_dir: str
    pid: int
    nats_pid: int

    def data(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Dev:
    """Inside `async with Dev(...) as dev:` everything is ready. `dev.worker.ended()` returns when a part fails."""

    def __init__(self, options: DevOptions, clock: Clock) -> None:
        self.options = options
        self.folder = options.folder.absolute()
        self._clock = clock
        self._stack = contextlib.AsyncExitStack()
        self._nats: NatsServer | None = None
        self._log = options.log or f"sqlite://{quote(str(self.folder / 'log.db'))}"

    def check(self) -> None:
        """Read all settings, before anything is made. Raises SettingsInvalid; DevError without the definitions."""
        neighbours = {"nats_url": f"nats://{HOST}:1", "ray_executor_url": f"{HOST}:1"}  # their ports come later
        definitions = read_settings({**neighbours, **self._given()}).ceremonies_dir
        if not definitions.is_dir():
            remedy = "name another one with --ceremonies-dir or CEREMONIES_DIR, or make one with ceremony init"
            raise DevError("definitions_missing", "there is no such folder", place=str(definitions), remedy=remedy)

    def _given(self) -> dict[str, Any]:
        """The settings that the options give, and those that need no other process."""
        options = self.options
        settings = {
            "log": self._log,
            "grpc_addr": options.grpc_addr or f"{HOST}:0",
            "http_addr": options.http_addr or f"{HOST}:0",
            "ceremonies_dir": options.ceremonies_dir,
            "topic_prefix": options.topic_prefix,
            "state_dir": self.folder / "state",
            "drain_seconds": 0.0,  # there is no load balancer
        }
        return {name: value for name, value in settings.items() if value is not None}

    def children(self) -> list[int]:
        """Ids of the child processes, also of those that still start."""
        return [self._nats.pid] if self._nats is not None and self._nats.pid else []

    async def __aenter__(self) -> Self:
        """Raises DevError, NatsServerError, SimulationError, SettingsInvalid, OSError; nothing is left running then."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        self.check()
        self._stack.enter_context(locked(self.folder))
        before = read_file(self.folder)
        expect_log(before, self._log)
        nats = self._nats = await self._start_nats(before)
        self._stack.push_async_callback(nats.stop)
        ray = RaySimulation(grpc_address=f"{HOST}:0", nats_url=nats.url, clock=self._clock, knobs=self.options.knobs)
        await self._stack.enter_async_context(ray)
        settings = read_settings(await self._settings(before, nats.url, ray.url))
        self.worker = await self._stack.enter_async_context(worker_of_process(settings))
        await self._ready()
        self.running = Running(
            grpc=f"{HOST}:{self.worker.grpc.port}",
            http=f"http://{HOST}:{self.worker.http.port}",
            nats=nats.url,
            ray_executor=ray.url,
            log=masked_address(settings.log),
            folder=str(self.folder),
            ceremonies_dir=str(settings.ceremonies_dir.absolute()),
            pid=os.getpid(),
            nats_pid=nats.pid or 0,
        )
        write_file(self.folder, self.running)

    async def _start_nats(self, before: Mapping[str, Any]) -> NatsServer:
        """Start it on the given port, else on the first free one; if another process is faster, on the next."""
        if self.options.nats_port:
            candidates: Iterable[int] = [self.options.nats_port]
        else:
            candidates = [port for port in (port_of(before.get("nats", "")),) if port] + list(NATS_PORTS)
        await NatsServer(self.folder / "nats", 0, 0, self._clock).end_left_over()
        attempts = 0
        async for port in free_ports(candidates):
            server = NatsServer(self.folder / "nats", port, await any_port(), self._clock)
            try:
                await server.start()
            except NatsServerError as error:
                attempts += 1
                if error.code != "nats_server_ended" or attempts >= NATS_ATTEMPTS or self.options.nats_port:
                    raise
                continue
            return server
        raise DevError("nats_port_in_use", "no port for NATS is free", remedy="name a free one with --nats-port")

    async def _settings(self, before: Mapping[str, Any], nats_url: str, ray_url: str) -> dict[str, Any]:
        """The settings that `dev` makes itself; the rest comes from the environment, as for `serve`."""
        settings = {**self._given(), "nats_url": nats_url, "ray_executor_url": ray_url}
        if self.options.grpc_addr is None:
            settings["grpc_addr"] = await listen_address(port_of(before.get("grpc", "")), GRPC_PORT)
        if self.options.http_addr is None:
            settings["http_addr"] = await listen_address(port_of(before.get("http", "")))
        return settings

    async def _ready(self) -> None:
        ended = self._clock.spawn(self.worker.ended(), name="dev-ended")
        try:
            async with self._clock.timeout(READY_SECONDS):
                while not self.worker.http.ready():
                    if ended.done():
                        raise DevError("worker_failed", one_line(self.worker.failure))
                    await self._clock.sleep(POLL_SECONDS)
        except TimeoutError:
            states = self.worker.readiness.states().items()
            missing = "; ".join(f"{name}: {state}" for name, state in states if state != "ok")
            raise DevError("not_ready", f"not ready within {READY_SECONDS:.0f} s: {missing}") from None
        finally:
            ended.cancel()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the system unlocks it however the process ends. Raises DevError."""
    try:
        make_private_folder(folder, "dev.lock")
        file = os.fdopen(os.open(folder / "dev.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DevError("folder_unusable", str(error.strerror), place=str(folder)) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            by = read_file(folder).get("pid", "another one")
            text = f"{folder} belongs to a running `ceremony dev` (process {by})"
            raise DevError("folder_in_use", text, remedy="end it, or name another folder") from None
        yield


def read_file(folder: Path) -> dict[str, Any]:
    """The `dev.json` of the last run, or an empty object."""
    try:
        found = json.loads((folder / "dev.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def expect_log(before: Mapping[str, Any], log: str) -> None:
    """Raises DevError where the last run wrote to this embedded log and its file is gone."""
    file = Path(unquote(urlsplit(log).path))
    if log.startswith("sqlite:") and before.get("log") == log and not (file.exists() and file.stat().st_size):
        text = f"{file} is missing or empty, and the last run wrote to it"
        raise DevError("log_missing", text, remedy="put the file back, or begin anew in another folder")


def write_file(folder: Path, running: Running) -> None:
    """Write `dev.json` in one step: clients may be reading it."""
    new = folder / "dev.json.new"
    write_private(new, json.dumps(running.data(), indent=2) + "\n")
    new.replace(folder / "dev.json")


def port_of(address: object) -> int:
    """The port at the end of an address, 0 without one."""
    digits = str(address).rpartition(":")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and int(digits) < 65536 else 0  # noqa: PLR2004 - a port


async def is_free(port: int) -> bool:
    """Return whether a server could listen there now."""
    try:
        server = await asyncio.start_server(lambda _r, _w: None, HOST, port)
    except OSError:
        return False
    server.close()
    return True


async def any_port() -> int:
    """A port that is free now."""
    server = await asyncio.start_server(lambda _r, _w: None, HOST, 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    return port


async def free_ports(candidates: Iterable[int]) -> AsyncIterator[int]:
    for port in candidates:
        if await is_free(port):
            yield port


async def listen_address(*wished: int) -> str:
    """The first free port of `wished`, else port 0."""
    for port in wished:
        if port and await is_free(port):
            return f"{HOST}:{port}"
    return f"{HOST}:0"

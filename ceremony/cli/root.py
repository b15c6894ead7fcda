"""What the program's root hands to the command line: the bridge may not know the worker, but is told how to get one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # it would load pydantic
    from tables.kinds import Kinds


class Port(Protocol):
    """A server that has a port once it has started."""

    @property
    def port(self) -> int: ...


class HttpPort(Port, Protocol):
    def ready(self) -> bool:
        """What `/readyz` would say."""


class RunningWorker(Protocol):
    """A worker inside its `async with`."""

    @property
    def grpc(self) -> Port: ...

    @property
    def http(self) -> HttpPort: ...

    @property
    def failure(self) -> BaseException | None:
        """Why a part has failed for good."""

    @property
    def halfway(self) -> bool:
        """Whether it has ended without waiting for all of its parts: they took too long, for a neighbour is away."""

    def states(self) -> Mapping[str, str]:
        """State of each neighbour: `ok`, or what is wrong."""

    async def ended(self) -> None:
        """Returns when a part has failed for good."""


class WorkerSettings(Protocol):
    """What the command line reads of a worker's settings; the rest is between the root and the worker."""

    log: str
    log_level: str
    log_format: str
    ceremonies_dir: Path


class SettingsInvalid(Exception):
    """The environment or the options are wrong; `problems` has one line for each variable."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Root:
    """What the command line needs from above, each as late as possible: `ceremony get` must not wait for Faust."""

    settings: Callable[[Mapping[str, Any]], WorkerSettings]
    """Settings from the environment, with these (by field name) in place of what it says. Raises SettingsInvalid."""
    worker: Callable[[Any], AbstractAsyncContextManager[RunningWorker]]
    """A worker for such settings."""
    log: Callable[[Any, Any], AbstractAsyncContextManager[Any]]
    """The log of such settings, beside its workers, on a clock; started and stopped. Raises LogUnavailable."""
    kinds: Callable[[], Kinds]
    """The registry of step kinds."""
    logs: Callable[[str, str], None]
    """Sets up logging: level, and `console` or `json`."""
    run: Callable[[Any], Any]
    """Runs a coroutine on the fastest loop there is and returns what it returns."""
    program: Sequence[str]
    """The command that starts this program again, without arguments."""
